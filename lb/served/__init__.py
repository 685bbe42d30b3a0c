# SPDX-License-Identifier: Apache-2.0
"""What the agent serves: health, metrics, the page, and the answers that lbctl asks an agent for."""
