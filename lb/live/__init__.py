# SPDX-License-Identifier: Apache-2.0
"""What is happening now: monitor, capture, top."""
