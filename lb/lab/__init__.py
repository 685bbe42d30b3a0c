# SPDX-License-Identifier: Apache-2.0
"""The lab: a cluster of network namespaces on one machine, with pods, kubelet and an agent on each node."""
