# SPDX-License-Identifier: Apache-2.0
"""A way to the API server on which packets are lost without a word: it is noticed, said, and got over."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

from lb.kube import client
from lb.kube.availability import PROBE_SECONDS
from tests.kube.double import ApiDouble
from tests.kube.harness import client_of, running, whole_lists
from tests.kube.objects import endpoint, endpoint_slice, node, service
from tests.namespaces import NetworkNamespace

ALL = ("services", "endpointslices", "nodes")
NOTICED_SECONDS = 30.0


@pytest.fixture
def namespace() -> Iterator[NetworkNamespace]:
    """A network namespace whose loopback is up; the calling thread is in it."""
    with contextlib.closing(NetworkNamespace()) as own, own.entered():
        loopback("up")
        yield own


def loopback(state: str) -> None:
    """Set the loopback interface up or down; while it is down, packets between its addresses are lost."""
    subprocess.run(["ip", "link", "set", "lo", state], check=True)


def options(connection: socket.socket) -> dict[str, int]:
    """Return what tells when a silent connection ends, in seconds."""
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    tcp = socket.IPPROTO_TCP
    return {
        "idle": connection.getsockopt(tcp, socket.TCP_KEEPIDLE),
        "interval": connection.getsockopt(tcp, socket.TCP_KEEPINTVL),
        "most": connection.getsockopt(tcp, socket.TCP_USER_TIMEOUT) // 1000,
    }


def test_every_connection_ends_in_time_when_its_other_end_is_gone(namespace: NetworkNamespace) -> None:
    with ApiDouble() as double:
        response = client_of(double).request(
            "GET", "/api/v1/services", {"watch": "1", "resourceVersion": "1000"}
        )
        with socket.socket(fileno=os.dup(response._raw.fileno())) as connection:
            set_to = options(connection)
        double.released.set()
        response.close()
    latest = max(set_to["most"], set_to["idle"] + set_to["interval"]) + set_to["interval"]
    assert latest + PROBE_SECONDS < NOTICED_SECONDS


def test_a_connection_that_dies_silently_is_said_and_made_anew(
    namespace: NetworkNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The times are a tenth of those in use."""
    shorter = {socket.TCP_KEEPIDLE: 1, socket.TCP_KEEPINTVL: 1, socket.TCP_USER_TIMEOUT: 1500}
    monkeypatch.setattr(
        client,
        "SOCKET_OPTIONS",
        tuple(
            (level, name, shorter.get(name, value) if level == socket.IPPROTO_TCP else value)
            for level, name, value in client.SOCKET_OPTIONS
        ),
    )
    with ApiDouble() as double:
        double.put(service())
        double.put(endpoint_slice("web-1", endpoint("10.0.0.1")))
        double.put(node())
        with running(client_of(double)) as run:
            run.wait(lambda: run.synced and double.watching(*ALL))
            loopback("down")
            run.wait(lambda: all(health.error for health in run.source.health()))
            assert run.deletes() == []
            loopback("up")
            double.put(endpoint_slice("web-1", endpoint("10.0.0.2")))
            run.wait(lambda: run.endpoints() == {"10.0.0.2"})
            run.wait(lambda: not any(health.error for health in run.source.health()))
            assert whole_lists(double) == 1, "the watch goes on where it was"
