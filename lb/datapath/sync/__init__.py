# SPDX-License-Identifier: Apache-2.0
"""From plans to map entries."""
