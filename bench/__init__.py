# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: measured side by side in one run. The tests only ask whether they work."""
