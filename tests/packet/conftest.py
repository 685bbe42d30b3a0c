"""Fixtures for packet tests: they need root and a kernel with BPF."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.packet.harness import Datapath


@pytest.fixture(scope="session")
def loaded_datapath() -> Iterator[Datapath]:
    """The programs, loaded once."""
    datapath = Datapath()
    yield datapath
    datapath.close()


@pytest.fixture
def datapath(loaded_datapath: Datapath) -> Datapath:
    """The programs with empty flows, affinity and counters, and no Service."""
    loaded_datapath.apply()
    loaded_datapath.reset()
    return loaded_datapath
