# SPDX-License-Identifier: Apache-2.0
"""Labs for the notes: those of the tests that send real traffic."""

from tests.netns.conftest import make_lab

__all__ = ["make_lab"]
