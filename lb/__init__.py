# SPDX-License-Identifier: Apache-2.0
"""An eBPF-assisted load balancer for Kubernetes Services; the command is ``lbctl``."""

__version__ = "0.2.0"
