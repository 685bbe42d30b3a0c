# SPDX-License-Identifier: Apache-2.0
"""Where the programs run: interfaces, control groups, network namespaces."""
