# SPDX-License-Identifier: Apache-2.0
"""Fixtures for packet tests: they need root and a kernel with BPF."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest

from tests import packets as p
from tests.packet.encapsulated import GUE_PORT
from tests.packet.harness import Datapath
from tests.packets import family as family_of_packets

Open = Callable[..., socket.socket]


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


@pytest.fixture
def direct(datapath: Datapath) -> Iterator[None]:
    """With direct return: this node and NODE2 take encapsulated packets of each other."""
    datapath.set_up_node(direct_port=GUE_PORT)
    yield
    datapath.set_up_node()


@pytest.fixture
def opened(datapath: Datapath) -> Iterator[Open]:
    """Return what opens a socket of the node: bound to a port, and connected to a peer where there is one."""
    with contextlib.ExitStack() as stack:

        def open_socket(
            kind: socket.SocketKind, port: int, peer: tuple[str, int] | None = None, *, listens: bool = False
        ) -> socket.socket:
            family = socket.AF_INET if p.version() == 4 else socket.AF_INET6
            with datapath.namespace.entered():
                one = stack.enter_context(socket.socket(family, kind))
                one.setblocking(False)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind((p.here(p.NODE1), port))
                if listens:
                    one.listen()
                if peer is not None:
                    with contextlib.suppress(BlockingIOError):
                        one.connect((p.here(peer[0]), peer[1]))
            return one

        yield open_socket
