# SPDX-License-Identifier: Apache-2.0
"""The twin: one program of client actions and Service changes, run by our node and by one of kube-proxy."""
