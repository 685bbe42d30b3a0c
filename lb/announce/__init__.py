# SPDX-License-Identifier: Apache-2.0
"""Which addresses of Services the network is to send to this node: pure, the same for ARP, NDP and BGP."""
