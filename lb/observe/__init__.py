# SPDX-License-Identifier: Apache-2.0
"""What the data plane and the agent do, for those who look: metrics. Traces and explanations: later work."""
