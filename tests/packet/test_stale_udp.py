# SPDX-License-Identifier: Apache-2.0
"""UDP has no end that a packet tells: a client that goes on with one port must find whoever is there now."""

from __future__ import annotations

import pytest

from lb.config import SnatPorts
from lb.model import Protocol, TrafficPolicy
from lb.plan.types import ServicePlan, VipKind
from tests import packets as p
from tests.packet.conversation import Conversation, Path, destination, each_path
from tests.packet.harness import OUTSIDE_INGRESS, PASS, SEND, TC_POD_IN, Datapath
from tests.packet.plans import TARGET_PORT, VIPS, retargeted, service
from tests.packet.rows import POD_IN, UPLINK_IN, Row, dropped, passed, play, sent

UDP = Protocol.UDP
KINDS = (VipKind.CLUSTER_IP, VipKind.NODE_PORT)

each_kind = pytest.mark.parametrize("kind", KINDS)


def talk(datapath: Datapath, path: Path, kind: VipKind = VipKind.CLUSTER_IP) -> Conversation:
    return Conversation(datapath, path, protocol=UDP, kind=kind)


@each_path
@each_kind
def test_stale_udp_goes_to_the_successor_with_its_next_datagram(
    datapath: Datapath, path: Path, kind: VipKind
) -> None:
    """However often the pod is replaced, and although the client never pauses."""
    client = talk(datapath, path, kind)
    for backend in path.backends(20, 5):
        datapath.apply(service(backend, protocol=UDP))
        assert client.send().startswith("NEW_")
        assert client.backend == backend
        client.answer()
        assert client.send() == "FLOW_HIT"


@each_path
@each_kind
def test_stale_udp_keeps_a_terminating_backend(datapath: Datapath, path: Path, kind: VipKind) -> None:
    first, second = path.backends(20, 2)
    datapath.apply(service(first, protocol=UDP))
    client = talk(datapath, path, kind)
    client.send()
    datapath.apply(service(second, protocol=UDP, terminating=[first]))
    assert client.send() == "FLOW_HIT"
    assert client.backend == first
    datapath.apply(service(second, protocol=UDP))
    assert client.send().startswith("NEW_")
    assert client.backend == second


@each_path
@each_kind
def test_stale_udp_is_rejected_while_there_is_no_endpoint(
    datapath: Datapath, path: Path, kind: VipKind
) -> None:
    """And not for a moment longer: the same port gets through as soon as there is one."""
    first, second = path.backends(20, 2)
    client = talk(datapath, path, kind)
    for backend in (first, second, first):
        datapath.apply(service(backend, protocol=UDP))
        client.send()
        assert client.backend == backend
        datapath.apply(service(protocol=UDP))
        for _ in range(2):
            result = client.try_to_send()
            assert (result.verdict, result.reason) == (SEND, "REJECT_NO_ENDPOINT")
            p.assert_same(result.packet, p.port_unreachable_for(client.request()))


@each_path
@each_kind
def test_stale_udp_unready_endpoints_are_none(datapath: Datapath, path: Path, kind: VipKind) -> None:
    """The client began before any endpoint was ready; the first that is gets its next datagram."""
    datapath.apply(service(protocol=UDP, terminating=path.backends(20, 1)))
    client = talk(datapath, path, kind)
    assert client.try_to_send().reason == "REJECT_NO_ENDPOINT"
    datapath.apply(service(*path.backends(20, 1), protocol=UDP))
    assert client.send().startswith("NEW_")
    client.answer()


@each_path
def test_stale_udp_a_late_reply_of_the_old_backend_is_not_the_new_ones(
    datapath: Datapath, path: Path
) -> None:
    datapath.set_up_node(snat_ports=SnatPorts(62_000, 62_001))
    first, second = path.backends(20, 2)
    datapath.apply(service(first, protocol=UDP))
    client = talk(datapath, path)
    client.send()
    old, seen = client.backend, client.seen
    datapath.apply(service(second, protocol=UDP))
    client.send()
    client.answer()
    client.backend, client.seen = old, seen
    assert client.stray() == "NOT_VIP"


@pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
@pytest.mark.parametrize("kind", KINDS)
def test_stale_udp_follows_a_changed_target_port(
    datapath: Datapath, uplink_program: str, kind: VipKind
) -> None:
    """The pod stays, what listens in it moves: the flow to the old number ends."""
    plan = service(p.BACKEND_LOCAL, protocol=UDP)
    frame = p.udp(p.FROM_CLIENT, (p.CLIENT, p.CLIENT_PORT), VIPS[kind])
    for number in (TARGET_PORT, 9090, TARGET_PORT):
        out = p.rebuilt(frame, dst=(p.BACKEND_LOCAL, number))
        steps = (
            passed(UPLINK_IN, frame, out, "NEW_LOCAL"),
            passed(UPLINK_IN, frame, out, "FLOW_HIT"),
        )
        play(datapath, Row(f"target port {number}", (retargeted(plan, number),), steps), uplink_program)


@pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
def test_stale_udp_under_internal_policy_local(datapath: Datapath, uplink_program: str) -> None:
    """The pod of this node is replaced while another node still has one: what is dropped meanwhile leaves no
    flow behind that would keep the client from the successor."""
    local, successor, remote = p.BACKEND_LOCAL, p.BACKEND_LOCAL_2, p.BACKEND_REMOTE
    frame = p.udp(p.FROM_POD, (p.POD_CLIENT, p.CLIENT_PORT), VIPS[VipKind.CLUSTER_IP])

    def plan(*addresses: str) -> ServicePlan:
        return service(*addresses, protocol=UDP, internal=TrafficPolicy.LOCAL)

    def to(address: str) -> bytes:
        return p.rebuilt(frame, dst=(address, TARGET_PORT))

    for what, backends, step in (
        ("one here", [local], passed(POD_IN, frame, to(local), "NEW_LOCAL")),
        ("and one elsewhere", [local, remote], passed(POD_IN, frame, to(local), "FLOW_HIT")),
        ("only elsewhere", [remote], dropped(POD_IN, frame, "NO_LOCAL_ENDPOINT")),
        ("its successor", [successor, remote], passed(POD_IN, frame, to(successor), "NEW_LOCAL")),
        ("none", [], sent(POD_IN, frame, p.port_unreachable_for(frame), "REJECT_NO_ENDPOINT")),
    ):
        play(datapath, Row(what, (plan(*backends),), (step,)), uplink_program)


@pytest.mark.parametrize("program", [*OUTSIDE_INGRESS, TC_POD_IN])
def test_stale_udp_many_clients_move_to_the_backends_that_are_left(datapath: Datapath, program: str) -> None:
    """Each of them at once, and the others not at all."""
    backends = tuple(f"10.0.1.{host}" for host in range(20, 30))
    frames = [p.udp(p.FROM_CLIENT, (p.CLIENT, port), VIPS[VipKind.CLUSTER_IP]) for port in range(3000, 3100)]
    datapath.apply(service(*backends, protocol=UDP))
    before = {frame: destination(datapath.run(program, frame)) for frame in frames}
    gone = set(backends[:5])
    datapath.apply(service(*backends[5:], protocol=UDP))
    for frame, backend in before.items():
        result = datapath.run(program, frame)
        assert result.verdict == PASS
        if backend in gone:
            assert result.reason == "NEW_LOCAL"
            assert destination(result) not in gone
        else:
            assert (result.reason, destination(result)) == ("FLOW_HIT", backend)
    assert set(before.values()) == set(backends)
