# SPDX-License-Identifier: Apache-2.0
"""Ports of the reserved range: what two flows may share and what not, and whose packets they are."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address

import numpy as np
import pytest
from msgspec import structs

from lb.config import SnatPorts, Timeouts
from lb.model import Protocol
from lb.plan.types import ServicePlan, Vip, VipKind
from tests import packets as p
from tests.packet.conversation import PATHS, Conversation, Path
from tests.packet.harness import DROP, OUTSIDE_INGRESS, PASS, SEND, TC_UPLINK_OUT, Datapath
from tests.packet.plans import BUILD, TARGET_PORT, VIPS, service
from tests.packet.reference import CLIENT_PORTS, TIME_WAIT

FORWARDED = [path for path in PATHS if path.forwarded]
KEPT = [path for path in PATHS if not path.forwarded]
ONE = SnatPorts(62_000, 62_000)
TWO = SnatPorts(62_000, 62_001)

each_protocol = pytest.mark.parametrize("protocol", list(Protocol))
forwarded = pytest.mark.parametrize("path", FORWARDED, ids=lambda path: path.name)
kept = pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name)


@forwarded
@each_protocol
def test_snat_ports_of_two_clients_with_one_source_port_differ(
    datapath: Datapath, path: Path, protocol: Protocol
) -> None:
    """And each client gets its own answers."""
    datapath.set_up_node(snat_ports=TWO)
    datapath.apply(service(p.BACKEND_REMOTE, protocol=protocol))
    clients = [
        Conversation(datapath, path, protocol=protocol, client=address) for address in (p.CLIENT, p.CLIENT_2)
    ]
    for client in clients:
        client.send()
    assert {client.seen for client in clients} == {(p.NODE1, 62_000), (p.NODE1, 62_001)}
    for client in clients * 2:
        assert client.answer() == "REPLY"
        assert client.send("A") == "FLOW_HIT"


@forwarded
@each_protocol
def test_snat_ports_of_one_client_through_two_vips_differ(
    datapath: Datapath, path: Path, protocol: Protocol
) -> None:
    datapath.set_up_node(snat_ports=TWO)
    datapath.apply(service(p.BACKEND_REMOTE, protocol=protocol))
    conversations = [
        Conversation(datapath, path, protocol=protocol, kind=kind)
        for kind in (VipKind.CLUSTER_IP, VipKind.NODE_PORT)
    ]
    for conversation in conversations:
        conversation.send()
    assert len({conversation.seen for conversation in conversations}) == 2
    for conversation in conversations:
        assert conversation.answer() == "REPLY"


@forwarded
def test_snat_ports_are_shared_by_flows_to_different_backends(datapath: Datapath, path: Path) -> None:
    """One port serves every backend once: the range limits connections to one backend, not all of them."""
    datapath.set_up_node(snat_ports=ONE)
    by_kind = {VipKind.CLUSTER_IP: p.BACKEND_REMOTE, VipKind.LOAD_BALANCER: p.BACKEND_REMOTE_2}
    datapath.apply(
        *(service(backend, name=kind.value, vips=[kind]) for kind, backend in by_kind.items()),
        service(p.BACKEND_REMOTE, name="udp", protocol=Protocol.UDP, whole=False),
    )
    conversations = [Conversation(datapath, path, kind=kind) for kind in by_kind]
    conversations.append(Conversation(datapath, path, protocol=Protocol.UDP))
    for conversation in conversations:
        conversation.send()
        assert conversation.seen == (p.NODE1, 62_000)
    for conversation in conversations:
        assert conversation.answer() == "REPLY"


@forwarded
@each_protocol
def test_snat_ports_that_ran_out_are_counted_and_nobody_is_hijacked(
    datapath: Datapath, path: Path, protocol: Protocol
) -> None:
    datapath.set_up_node(snat_ports=ONE)
    datapath.apply(service(p.BACKEND_REMOTE, protocol=protocol))
    first = Conversation(datapath, path, 1000, protocol)
    first.establish()
    for port in range(1001, 1010):
        result = Conversation(datapath, path, port, protocol).try_to_send()
        assert (result.verdict, result.reason) == (DROP, "SNAT_EXHAUSTED")
    assert first.answer() == "REPLY"
    assert first.send("A") == "FLOW_HIT"


@forwarded
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP, Protocol.SCTP])
def test_snat_ports_of_a_flow_that_was_lost_are_its_again(
    datapath: Datapath, path: Path, protocol: Protocol
) -> None:
    """The first choice is the hash of the client's tuple: with both halves gone, the next packet finds it."""
    datapath.apply(service(p.BACKEND_REMOTE, p.BACKEND_REMOTE_2, protocol=protocol))
    for port in range(1000, 1020):
        conversation = Conversation(datapath, path, port, protocol)
        conversation.establish()
        before = conversation.backend, conversation.seen
        datapath.delete("flows", datapath.read("flows")[0])
        assert conversation.send("A") == "NEW_REMOTE"
        assert (conversation.backend, conversation.seen) == before
        assert conversation.answer("A") == "REPLY"


@forwarded
def test_snat_ports_of_a_flow_that_was_lost_are_its_again_if_the_first_choice_is_anothers(
    datapath: Datapath, path: Path
) -> None:
    """Tries come in the same order, and who was in the way still is."""
    datapath.set_up_node(snat_ports=SnatPorts(62_000, 62_007))
    datapath.apply(service(p.BACKEND_REMOTE))
    conversations = {port: Conversation(datapath, path, port) for port in range(1000, 1006)}
    for conversation in conversations.values():
        conversation.establish()
    for port, conversation in conversations.items():
        before = conversation.seen
        keys = datapath.read("flows")[0]
        datapath.delete("flows", keys[(keys["sport"] == port) | (keys["dport"] == before[1])])
        assert conversation.send("A") == "NEW_REMOTE"
        assert conversation.seen == before


@forwarded
def test_snat_ports_of_forgotten_flows_are_taken_again(datapath: Datapath, path: Path) -> None:
    """The dead flow goes as a pair: its client's late datagram cannot come out of somebody else's port."""
    datapath.set_up_node(Timeouts(udp_new=1, udp=1), ONE)
    datapath.apply(service(p.BACKEND_REMOTE, protocol=Protocol.UDP))
    old = Conversation(datapath, path, 1000, Protocol.UDP)
    old.send()
    keys, values = datapath.read("flows")
    values = values.copy()
    values["last_seen"] -= 2 * 10**9
    values["touched"] = 0
    datapath.update("flows", keys, values)
    new = Conversation(datapath, path, 1001, Protocol.UDP)
    new.establish()
    assert old.try_to_send().reason == "SNAT_EXHAUSTED"
    assert new.answer() == "REPLY"


@forwarded
def test_snat_ports_of_a_dead_connection_are_not_revived_by_its_client(
    datapath: Datapath, path: Path
) -> None:
    """A late segment without SYN must not come out of the port that another client has by now."""
    datapath.set_up_node(Timeouts(tcp_syn=1), ONE)
    datapath.apply(service(p.BACKEND_REMOTE))
    old = Conversation(datapath, path, 1000)
    old.send()
    keys, values = datapath.read("flows")
    values["last_seen"] -= np.uint64(2 * 10**9)
    datapath.update("flows", keys, values)
    new = Conversation(datapath, path, 1001)
    new.establish()
    assert old.try_to_send("A").reason == "SNAT_EXHAUSTED"
    assert new.answer() == "REPLY"


@kept
@each_protocol
def test_snat_ports_say_nothing_about_a_client_that_uses_such_a_port_itself(
    datapath: Datapath, path: Path, protocol: Protocol
) -> None:
    """Its replies come to a port of the range too; they are translated where the client is, only there."""
    datapath.set_up_node(snat_ports=TWO)
    datapath.apply(service(*path.backends(20, 1), protocol=protocol))
    client = Conversation(datapath, path, 62_000, protocol)
    client.send()
    assert client.seen == p.seen((path.client, 62_000), protocol)
    for program in OUTSIDE_INGRESS:
        if path.ingress not in OUTSIDE_INGRESS:
            result = datapath.run(program, client.reply(link=p.FROM_NODE2))
            assert (result.verdict, result.reason) == (PASS, "NOT_VIP")
    assert client.answer() == "REPLY"


@pytest.mark.parametrize("program", OUTSIDE_INGRESS)
@each_protocol
def test_snat_ports_that_nobody_uses_are_the_nodes_own(
    datapath: Datapath, program: str, protocol: Protocol
) -> None:
    """A packet to such a port of the node that belongs to no flow is for the node's stack."""
    frame = BUILD[protocol](p.FROM_NODE2, (p.BACKEND_REMOTE, TARGET_PORT), (p.NODE1, 62_000))
    datapath.set_up_node(snat_ports=TWO)
    datapath.apply(service(p.BACKEND_REMOTE, protocol=protocol))
    result = datapath.run(program, frame)
    assert (result.verdict, result.reason) == (PASS, "NOT_VIP")
    p.assert_same(result.packet, frame)


def at_snat_port(plan: ServicePlan) -> ServicePlan:
    """Return the plan with a VIP on the node's address and a port of the range."""
    (port,) = plan.ports
    (vip,) = port.vips
    moved = Vip(structs.replace(vip.key, address=ip_address(p.here(p.NODE1)), port=62_000), vip.kind)
    return replace(plan, ports=(replace(port, vips=(moved,)),))


@pytest.mark.parametrize("program", OUTSIDE_INGRESS)
def test_snat_ports_may_be_a_vips_too(datapath: Datapath, program: str) -> None:
    """An external address of the node with such a port is served all the same."""
    datapath.set_up_node(snat_ports=TWO)
    datapath.apply(at_snat_port(service(p.BACKEND_LOCAL, vips=[VipKind.EXTERNAL_IP], whole=False)))
    frame = p.tcp(p.FROM_CLIENT, (p.CLIENT, p.CLIENT_PORT), (p.NODE1, 62_000))
    result = datapath.run(program, frame)
    assert (result.verdict, result.reason) == (PASS, "NEW_LOCAL")
    p.assert_same(result.packet, p.rebuilt(frame, dst=(p.BACKEND_LOCAL, TARGET_PORT)))


@kept
@each_protocol
def test_snat_ports_replace_a_clients_port_only_when_it_is_taken(
    datapath: Datapath, path: Path, protocol: Protocol
) -> None:
    """One client port, four addresses of one Service, one backend: the first keeps the port, the others get
    one each, and every answer finds its VIP."""
    datapath.apply(service(*path.backends(20, 1), protocol=protocol))
    conversations = [Conversation(datapath, path, protocol=protocol, kind=kind) for kind in VIPS]
    for conversation in conversations:
        conversation.send()
    first, *others = (conversation.seen for conversation in conversations)
    assert first == p.seen((path.client, p.CLIENT_PORT), protocol)
    assert len(set(others)) == len(others)
    assert all(address == path.client and port in CLIENT_PORTS for address, port in others)
    for conversation in conversations * 2:
        assert conversation.answer() == "REPLY"


def _age(datapath: Datapath, seconds: float) -> None:
    keys, values = datapath.read("flows")
    values = values.copy()
    values["last_seen"] -= np.uint64(seconds * 10**9)
    values["touched"] = 0
    datapath.update("flows", keys, values)


@kept
@pytest.mark.parametrize(
    ("ends", "later", "keeps_port"),
    [
        (["answer FA", "send FA", "answer A"], TIME_WAIT - 1, False),
        (["answer FA", "send FA", "answer A"], TIME_WAIT + 0.5, True),
        (["send FA", "answer FA", "send A"], TIME_WAIT - 1, False),
        (["send RA"], TIME_WAIT - 1, True),
        (["answer FA", "send RA"], TIME_WAIT - 1, True),
        ([], TIME_WAIT - 1, True),
    ],
    ids=str,
)
def test_snat_ports_keep_off_a_tuple_in_time_wait(
    datapath: Datapath, path: Path, ends: list[str], later: float, keeps_port: bool
) -> None:
    """A connection that is forgotten, but not by the backend that both sides have closed it with."""
    datapath.set_up_node(Timeouts(tcp_closing=10, tcp_established=10))
    datapath.apply(service(*path.backends(20, 1)))
    old, new = (
        Conversation(datapath, path, kind=kind) for kind in (VipKind.CLUSTER_IP, VipKind.LOAD_BALANCER)
    )
    for segment in ["send S", "answer SA", "send A", *ends]:
        what, flags = segment.split()
        getattr(old, what)(flags)
    _age(datapath, later)
    new.send("S")
    assert new.seen is not None
    assert (new.seen == old.seen) is keeps_port
    assert new.seen[0] == path.client
    assert new.answer("SA") == "REPLY"


@forwarded
def test_snat_ports_in_time_wait_are_better_than_none(datapath: Datapath, path: Path) -> None:
    datapath.set_up_node(Timeouts(tcp_closing=1), ONE)
    datapath.apply(service(p.BACKEND_REMOTE))
    old, new = Conversation(datapath, path, 1000), Conversation(datapath, path, 1001)
    old.establish()
    old.answer("FA")
    old.send("FA")
    assert new.try_to_send("S").reason == "SNAT_EXHAUSTED"
    _age(datapath, 2)
    assert new.send("S") == "NEW_REMOTE"
    assert new.answer("SA") == "REPLY"


@forwarded
@each_protocol
def test_snat_ports_of_half_open_flows_are_given_back(
    datapath: Datapath, path: Path, protocol: Protocol
) -> None:
    """A flood of first packets in anybody's name, answered or not, holds no port against the next client."""
    datapath.set_up_node(snat_ports=ONE)
    datapath.apply(service(p.BACKEND_REMOTE, protocol=protocol))
    for number in range(3):
        stranger = Conversation(datapath, path, 1000 + number, protocol)
        assert stranger.send() == "NEW_REMOTE"
        stranger.answer()
    client = Conversation(datapath, path, 2000, protocol)
    client.establish()
    assert client.seen == (p.NODE1, 62_000)
    assert Conversation(datapath, path, 3000, protocol).try_to_send().reason == "SNAT_EXHAUSTED"
    assert client.answer() == "REPLY"


@forwarded
@each_protocol
def test_snat_ports_run_out_towards_one_backend_and_another_is_taken(
    datapath: Datapath, path: Path, protocol: Protocol
) -> None:
    datapath.set_up_node(snat_ports=ONE)
    datapath.apply(service(p.BACKEND_REMOTE, p.BACKEND_REMOTE_2, protocol=protocol))
    clients = []
    for port in range(1000, 1100):
        client = Conversation(datapath, path, port, protocol)
        if client.try_to_send().verdict == SEND:
            client.establish()
            clients.append(client)
    assert {client.backend for client in clients} == {p.BACKEND_REMOTE, p.BACKEND_REMOTE_2}
    assert len(clients) == 2
    assert all(client.answer() == "REPLY" for client in clients)


@forwarded
def test_snat_ports_of_the_range_before_stay_with_their_flows(datapath: Datapath, path: Path) -> None:
    datapath.set_up_node(snat_ports=ONE)
    datapath.apply(service(p.BACKEND_REMOTE))
    old = Conversation(datapath, path, 1000)
    old.establish()
    datapath.set_up_node(snat_ports=SnatPorts(2000, 2000), former=ONE)
    new = Conversation(datapath, path, 1001)
    new.establish()
    assert (old.seen[1], new.seen[1]) == (62_000, 2000)
    for conversation in (old, new):
        assert conversation.answer() == "REPLY"
        assert conversation.send("A") == "FLOW_HIT"


@dataclass(frozen=True, slots=True)
class NodeSocket:
    """A socket of the node, at one of its addresses or at all of them (any), also IPv6's for both (both)."""

    protocol: Protocol
    any: bool = False
    both: bool = False
    connected: bool = False

    @contextlib.contextmanager
    def opened(self, datapath: Datapath, port: int) -> Iterator[None]:
        """Have it at a port, connected to the backend or open to everybody."""
        family = socket.AF_INET6 if self.both or p.version() == 6 else socket.AF_INET
        kind = socket.SOCK_STREAM if self.protocol is Protocol.TCP else socket.SOCK_DGRAM
        with datapath.namespace.entered():
            one = socket.socket(family, kind)
        with one:
            one.setblocking(False)
            one.bind(("::" if self.both else "" if self.any else p.here(p.NODE1), port))
            if self.connected:
                with contextlib.suppress(BlockingIOError):
                    one.connect((p.here(p.BACKEND_REMOTE), TARGET_PORT))
            elif self.protocol is Protocol.TCP:
                one.listen()
            yield


NODE_SOCKETS = [
    NodeSocket(protocol, any=here != "one", both=here == "both", connected=connected)
    for protocol in (Protocol.TCP, Protocol.UDP)
    for here in ("one", "any", "both")
    for connected in (False, True)
    if not (connected and here == "both")  # connected, it has one family
]
each_socket = pytest.mark.parametrize("node_socket", NODE_SOCKETS, ids=str)


@forwarded
@each_socket
def test_snat_ports_leave_the_nodes_sockets_theirs(
    datapath: Datapath, path: Path, node_socket: NodeSocket
) -> None:
    """A socket that is open to everybody, or one that is connected to that backend: the kernel is asked."""
    protocol = node_socket.protocol
    datapath.set_up_node(snat_ports=TWO)
    datapath.apply(service(p.BACKEND_REMOTE, protocol=protocol))
    with node_socket.opened(datapath, 62_000):
        client = Conversation(datapath, path, protocol=protocol)
        client.establish()
        assert client.seen == (p.NODE1, 62_001)
        assert Conversation(datapath, path, 1001, protocol).try_to_send().reason == "SNAT_EXHAUSTED"


@forwarded
@each_socket
def test_snat_ports_go_back_to_a_socket_of_the_node_that_comes_later(
    datapath: Datapath, path: Path, node_socket: NodeSocket
) -> None:
    """The kernel gives ports away without asking us: with the node's first packet the answers are its own.

    A listener sends nothing of its own accord, and so takes no port from anybody.
    """
    protocol = node_socket.protocol
    datapath.set_up_node(snat_ports=TWO)
    datapath.apply(service(p.BACKEND_REMOTE, protocol=protocol))
    client = Conversation(datapath, path, protocol=protocol)
    client.establish()
    own, backend = client.seen, (p.BACKEND_REMOTE, TARGET_PORT)
    with node_socket.opened(datapath, own[1]):
        assert client.answer("A") == "REPLY"
        sent = BUILD[protocol](p.TO_NODE2, own, backend)
        result = datapath.run(TC_UPLINK_OUT, sent, from_host=True)
        assert result.verdict == PASS
        p.assert_same(result.packet, sent)
        if protocol is Protocol.TCP and not node_socket.connected:
            assert result.reason == "NOT_VIP"
            assert client.answer("A") == "REPLY"
            return
        assert result.reason == "OWN_CONNECTION"
        assert client.stray("SA") == "NOT_VIP"
        client.send("A")
        assert client.seen == (p.NODE1, TWO.first + TWO.last - own[1])


@forwarded
def test_snat_ports_leave_a_services_port_alone(datapath: Datapath, path: Path) -> None:
    """A NodePort of the range is not taken for SNAT."""
    datapath.set_up_node(snat_ports=TWO)
    taken = at_snat_port(service(p.BACKEND_LOCAL, name="other", vips=[VipKind.EXTERNAL_IP], whole=False))
    datapath.apply(service(p.BACKEND_REMOTE), taken)
    client = Conversation(datapath, path)
    client.establish()
    assert client.seen == (p.NODE1, 62_001)
    assert Conversation(datapath, path, 1001).try_to_send().reason == "SNAT_EXHAUSTED"
