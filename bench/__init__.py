"""Benchmarks: measured side by side in one run. The tests only ask whether they work."""
