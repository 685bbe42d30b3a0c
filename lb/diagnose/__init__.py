# SPDX-License-Identifier: Apache-2.0
"""Why something does not work: trace, explain, doctor, audit."""
