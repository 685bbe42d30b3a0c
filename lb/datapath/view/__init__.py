# SPDX-License-Identifier: Apache-2.0
"""From map entries to words."""
