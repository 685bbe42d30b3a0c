# SPDX-License-Identifier: Apache-2.0
"""Fixtures for packet tests: they need root and a kernel with BPF."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.packet.harness import Datapath
from tests.packets import family as family_of_packets


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"], autouse=True)
def family(request: pytest.FixtureRequest) -> Iterator[int]:
    """The IP version under test: every packet test runs in both, unless it parametrises this one."""
    with family_of_packets(request.param):
        yield request.param


@pytest.fixture(scope="session")
def loaded_datapath() -> Iterator[Datapath]:
    """The programs, loaded once."""
    datapath = Datapath()
    yield datapath
    datapath.close()


@pytest.fixture
def datapath(loaded_datapath: Datapath, family: int) -> Datapath:
    """The programs with empty flows, affinity and counters, and no Service."""
    assert family
    loaded_datapath.apply()
    loaded_datapath.reset()
    return loaded_datapath
