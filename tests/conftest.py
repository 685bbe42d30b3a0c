# SPDX-License-Identifier: Apache-2.0
"""What holds for every test."""

from __future__ import annotations

import signal

import pytest
from hypothesis import HealthCheck, settings


def pytest_configure(config: pytest.Config) -> None:
    """End on SIGTERM as on Ctrl-C, with every fixture's clean-up: labs and pins go.

    No test is about time: on a busy machine Hypothesis may take as long as it likes.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")
