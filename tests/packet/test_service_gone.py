# SPDX-License-Identifier: Apache-2.0
"""A Service goes, or one of its addresses: open connections go on, new ones meet nobody."""

from __future__ import annotations

import pytest

from lb.model import Protocol
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.conversation import PATHS, Conversation, Path
from tests.packet.harness import PASS, SEND, Datapath
from tests.packet.plans import BUILD, VIPS, service

each_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
each_kind = pytest.mark.parametrize("kind", list(VipKind))
each_protocol = pytest.mark.parametrize("protocol", list(Protocol))


@each_path
@each_kind
@each_protocol
def test_service_gone_open_connections_go_on_and_no_new_ones_begin(
    datapath: Datapath, path: Path, kind: VipKind, protocol: Protocol
) -> None:
    datapath.apply(service(*path.backends(20, 1), protocol=protocol))
    talk = Conversation(datapath, path, protocol=protocol, kind=kind)
    talk.send()
    talk.answer()
    datapath.apply()
    assert talk.send("A") == "FLOW_HIT"
    assert talk.answer("A") == "REPLY"

    new = BUILD[protocol](path.link, (path.client, p.CLIENT_PORT + 1), VIPS[kind])
    result = datapath.run(path.ingress, new)
    if kind is VipKind.CLUSTER_IP:
        assert (result.verdict, result.reason) == (SEND, "REJECT_UNKNOWN_PORT")
    else:
        assert (result.verdict, result.reason) == (PASS, "NOT_VIP")
        p.assert_same(result.packet, new)

    datapath.apply(service(*path.backends(20, 1), protocol=protocol))
    assert talk.send("A") == "FLOW_HIT"
    assert datapath.run(path.ingress, new).reason.startswith("NEW_")


@each_path
def test_service_gone_ends_what_was_closed(datapath: Datapath, path: Path) -> None:
    """A SYN on a connection that both sides have ended begins another one, which nobody takes."""
    datapath.apply(service(*path.backends(20, 1)))
    talk = Conversation(datapath, path, kind=VipKind.LOAD_BALANCER)
    for what, flags in (("send", "S"), ("answer", "SA"), ("send", "FA"), ("answer", "FA")):
        getattr(talk, what)(flags)
    datapath.apply()
    assert talk.send("A") == "FLOW_HIT"
    assert talk.try_to_send("S").reason == "NOT_VIP"


@each_path
def test_service_gone_with_one_address_alone(datapath: Datapath, path: Path) -> None:
    """As when a NodePort is taken away, or the type changes."""
    datapath.apply(service(*path.backends(20, 1)))
    talk = Conversation(datapath, path, kind=VipKind.NODE_PORT)
    talk.send()
    datapath.apply(service(*path.backends(20, 1), vips=[VipKind.CLUSTER_IP]))
    assert talk.answer() == "REPLY"
    assert talk.send("A") == "FLOW_HIT"
    other = Conversation(datapath, path, p.CLIENT_PORT + 1, kind=VipKind.CLUSTER_IP)
    assert other.send().startswith("NEW_")


@each_path
def test_service_gone_and_its_backends_slots_anothers(datapath: Datapath, path: Path) -> None:
    """A connection to an endpoint that has gone goes on, whoever has its slot now."""
    first, second = path.backends(20, 2)
    datapath.apply(service(first))
    talk = Conversation(datapath, path)
    talk.send()
    talk.answer()
    datapath.apply(service(second))
    datapath.skew += 10
    datapath.apply(service(second), service(first, name="other", vips=[VipKind.EXTERNAL_IP]))
    assert talk.send("A") == "FLOW_HIT"
    assert talk.backend == first
    assert talk.answer("A") == "REPLY"
