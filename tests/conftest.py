"""What holds for every test."""

from __future__ import annotations

import signal

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """End on SIGTERM as on Ctrl-C, with every fixture's clean-up: labs and pins go."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
