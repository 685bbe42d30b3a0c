# SPDX-License-Identifier: Apache-2.0
"""Names of Services in DNS: which there should be, and how a server comes to hold them."""
