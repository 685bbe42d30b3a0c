# SPDX-License-Identifier: Apache-2.0
"""Real clients through a lab: who answers, on whatever address, in each uplink mode and overlay."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from lb.config import Switch, UplinkMode
from lb.lab.addressing import Overlay
from tests.netns.conftest import MakeLab, remove
from tests.netns.pinned import (
    Cluster,
    bring_up,
    check_answers,
    check_large_transfers,
    check_sources,
)
from tests.netns.waiting import dumped

WAYS: dict[str, dict[str, Any]] = {
    "tc": {"uplink_mode": UplinkMode.TC},
    "xdp-native": {"uplink_mode": UplinkMode.XDP_NATIVE},
    "xdp-generic": {"uplink_mode": UplinkMode.XDP_GENERIC},
    "vxlan": {"overlay": Overlay.VXLAN},
    "vxlan-xdp": {"overlay": Overlay.VXLAN, "uplink_mode": UplinkMode.XDP_NATIVE},
    "redirect": {"uplink_mode": UplinkMode.TC, "redirect": Switch.ON},
    "redirect-vxlan": {"overlay": Overlay.VXLAN, "redirect": Switch.ON},
    "redirect-xdp": {"uplink_mode": UplinkMode.XDP_NATIVE, "redirect": Switch.ON},
}


@pytest.fixture(scope="module", params=list(WAYS))
def cluster(
    request: pytest.FixtureRequest, make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A lab for each uplink mode and overlay, one at a time."""
    found = bring_up(make_lab, tmp_path_factory.mktemp("traffic"), **WAYS[request.param])
    yield found
    remove(found.lab.spec.id)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("where", ["local", "remote"])
@pytest.mark.parametrize("client", ["outside", "pod", "same pod"])
def test_dual_stack_the_backend_answers(cluster: Cluster, client: str, where: str, version: int) -> None:
    check_answers(cluster, client, where, version)


@pytest.mark.parametrize("version", [4, 6])
def test_dual_stack_source_address_is_kept_for_a_local_backend_and_for_pods(
    cluster: Cluster, version: int
) -> None:
    check_sources(cluster, version)


@pytest.mark.parametrize("version", [4, 6])
def test_dual_stack_large_transfers_arrive_whole(cluster: Cluster, version: int) -> None:
    check_large_transfers(cluster, version)


OPTIONS = """\
import errno, json, socket, sys

RECORD_ROUTE = b"\\x07\\x07\\x04" + bytes(5)
DESTINATION_OPTIONS = b"\\0\\0\\x01\\x04" + bytes(4)

def made(host, kind):
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
    made.settimeout(5)
    if ":" in host:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, DESTINATION_OPTIONS)
    else:
        made.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, RECORD_ROUTE)
    return made

def tcp(host, port):
    with made(host, socket.SOCK_STREAM) as asking:
        asking.connect((host, port))
        asking.sendall(b"GET /hostname HTTP/1.0\\r\\nHost: web\\r\\n\\r\\n")
        with asking.makefile() as answer:
            return answer.read().split()[-1]

def udp(host, port):
    with made(host, socket.SOCK_DGRAM) as asking:
        asking.connect((host, port))
        asking.send(b"x" * int(sys.argv[2]))
        return asking.recv(65535).decode().split()[0]

for protocol, host, port in json.loads(sys.argv[1]):
    try:
        print({"tcp": tcp, "udp": udp}[protocol](host, port))
    except OSError as error:
        print(errno.errorcode.get(error.errno, error))
"""
"""Asks as ASK does, with an option or an extension header on each packet; datagrams are of so many bytes."""


def test_options_real_connections(cluster: Cluster) -> None:
    """Also what is refused: a connection, whose checksum the device has to complete, and a datagram.

    A datagram comes in pieces where these fit all the way: we cut nothing smaller that has options.
    """
    size = 3000 if cluster.lab.spec.overlay is Overlay.NONE else 1200
    questions, answers = [], []
    for target, version in itertools.product(cluster.targets.values(), (4, 6)):
        host, port = target.address("clusterIP", "tcp", version)
        questions += [(protocol, host, at) for protocol in ("tcp", "udp") for at in (port, port + 1)]
        answers += [str(target.pod["name"]), "ECONNREFUSED"] * 2
    for place in ("client", str(cluster.bystander["name"])):
        argv = [sys.executable, "-I", "-S", "-c", OPTIONS, json.dumps(questions), str(size)]
        done = cluster.lab.run(place, argv)
        assert done.stdout.split() == answers, (place, done.stdout, done.stderr)


def test_first_datagram_waits_for_the_next_hop(cluster: Cluster) -> None:
    """The node knows no neighbour: what is sent first, and once, arrives when the neighbour has answered.

    A process of the node is the hard case: its packet has a route, that to the VIP, when it is translated.
    """
    target = cluster.targets["remote"]
    for version in (4, 6):
        for place, kind in (("node1", "clusterIP"), ("client", "NodePort")):
            flushed = cluster.lab.run("node1", ["ip", f"-{version}", "neigh", "flush", "dev", "eth0"])
            assert flushed.returncode == 0, flushed.stderr
            answers = cluster.ask(place, [("udp", *target.address(kind, "udp", version))])
            assert answers == [str(target.pod["name"])], (version, place)


def test_programs_that_carried_it_are_those_of_the_mode(cluster: Cluster) -> None:
    """XDP did the work in an XDP mode; what it could not send, tc did."""
    counters = dumped(cluster.lab, "node1")["counters"]
    translated = {row["hook"] for row in counters if row["reason"] in ("NEW_LOCAL", "FLOW_HIT")}
    mode = cluster.lab.spec.uplink_mode
    assert ("XDP_UPLINK" in translated) == (mode in (UplinkMode.XDP_NATIVE, UplinkMode.XDP_GENERIC))
    # Replies of local pods go past the stack with the option alone; those of hairpin in any case.
    redirected = cluster.lab.spec.redirect is Switch.ON
    assert (sum(row["packets"] for row in counters if _is_reply(row, "TC_UPLINK_OUT")) == 0) == redirected
    trouble = {"REWRITE_FAILED", "NO_ROUTE", "NO_BACKEND", "SNAT_EXHAUSTED", "TTL_EXPIRED"}
    assert not trouble & {row["reason"] for row in counters}


def _is_reply(row: dict[str, Any], hook: str) -> bool:
    return bool(row["hook"] == hook and row["reason"] == "REPLY")
