"""Metrics, traces and explanations of what the data plane does: later work."""
