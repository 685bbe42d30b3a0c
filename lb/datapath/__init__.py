# SPDX-License-Identifier: Apache-2.0
"""The kernel side: maps and their layouts, the loader, hooks, reconciliation and dumps."""
