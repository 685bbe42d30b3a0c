# SPDX-License-Identifier: Apache-2.0
"""Random Services, packets, faults of time: the real programs against the reference model, step by step."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from scapy.packet import Packet

from lb.config import SnatPorts, Timeouts
from lb.datapath.maps import layouts
from lb.model import Protocol, TrafficPolicy
from lb.plan.types import Backend, BackendState, VipKind
from tests import options
from tests import packets as p
from tests.packet import harness, reference
from tests.packet.harness import Datapath
from tests.packet.model_types import Expected, ModelVip, Tuple5, World
from tests.packet.model_types import Timeouts as ModelTimeouts
from tests.packet.random_packets import (
    AFFINITY_SECONDS,
    VIP_PORT,
    frame_of,
    key_of,
    model_backend,
    model_rows,
    plan,
    side_of,
    taking_new,
    with_extra,
)
from tests.packet.reference import Model
from tests.packets import difference

# Time passes in steps of TICK; every timeout lies half a step from the next multiple, so that neither the
# seconds of a run nor the second by which last_seen may lag change anything.
TICK = 7
TIMEOUTS = Timeouts(
    tcp_syn=59.5, tcp_established=5001.5, tcp_closing=10.5, udp_new=31.5, udp=122.5, sctp=1000.5
)
SNAT_PORTS = SnatPorts(61_000, 61_499)
OUTSIDE_CLIENTS = (p.CLIENT, p.CLIENT_2)
INSIDE_CLIENTS = (p.POD_CLIENT, p.BACKEND_LOCAL)
BACKENDS = (
    p.BACKEND_LOCAL,
    p.BACKEND_LOCAL_2,
    p.BACKEND_REMOTE,
    p.BACKEND_REMOTE_2,
    p.BACKEND_UNROUTED,
)
SOURCE_PORTS = (40_000, 40_001, 61_200)
TARGET_PORT = 8080
VIP_ADDRESSES = ("10.96.0.10", "10.96.0.11", "203.0.113.10")
STATES = st.sampled_from([BackendState.ACTIVE, BackendState.ACTIVE, BackendState.TERMINATING])
RANGES = [
    IPv4Network(text)
    for text in ("0.0.0.0/0", "192.0.2.0/24", f"{p.CLIENT}/32", "10.0.0.0/8", f"{p.POD_CLIENT}/32")
]
POLICIES = st.sampled_from(TrafficPolicy)
NUMBERS = st.sampled_from([0, 1, 1, 1, 0xFFFF_FFFF])
EXTRAS = st.sampled_from([0] * 12 + list(range(1, 7)))  # options: see with_extra()


def service_strategy() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "protocol": st.sampled_from(Protocol),
            "affinity": st.sampled_from([0, AFFINITY_SECONDS]),
            "backends": st.dictionaries(st.sampled_from(BACKENDS), STATES, max_size=4),
            "kind": st.sampled_from([VipKind.CLUSTER_IP, VipKind.LOAD_BALANCER]),
            "ranges": st.just(set()) | st.sets(st.sampled_from(RANGES), max_size=2),
            "policies": st.fixed_dictionaries({"inside": POLICIES, "outside": POLICIES}),
        }
    )


class Machine(RuleBasedStateMachine):
    """One node. Every rule does a thing to the programs and to the model, and compares."""

    datapath: Datapath

    @initialize(services=st.lists(service_strategy(), min_size=1, max_size=3))
    def start(self, services: list[dict[str, Any]]) -> None:
        self.datapath.apply()
        self.datapath.reset()
        self.datapath.set_up_node(TIMEOUTS, SNAT_PORTS)
        self.model = Model(
            World(
                node_address=IPv4Address(p.NODE1),
                node_mac=p.NODE1_MAC,
                snat_ports=range(SNAT_PORTS.first, SNAT_PORTS.last + 1),
                timeouts=ModelTimeouts(
                    TIMEOUTS.tcp_syn,
                    TIMEOUTS.tcp_established,
                    TIMEOUTS.tcp_closing,
                    TIMEOUTS.udp_new,
                    TIMEOUTS.udp,
                    TIMEOUTS.sctp,
                ),
                neighbours={
                    IPv4Network(p.POD_NET_2): p.NODE2_MAC,
                    IPv4Network(f"{p.CLIENT}/32"): p.CLIENT_MAC,
                    IPv4Network(f"{p.CLIENT_2}/32"): p.CLIENT_MAC,
                },
            )
        )
        self.incarnations = 0
        self.identity = 0  # of the last datagram in pieces
        self.set_services(services)

    @rule(services=st.lists(service_strategy(), min_size=1, max_size=3))
    def set_services(self, services: list[dict[str, Any]]) -> None:
        """Replace all Services; backends that stay keep their flows."""
        plans, vips, addresses, alive = [], {}, {}, {}
        for number, spec in enumerate(services):
            name, address = f"service-{number}-{spec['protocol'].name}", VIP_ADDRESSES[number]
            backends = [
                Backend(
                    ip_address(p.here(one)),
                    TARGET_PORT,
                    "",
                    one in (p.BACKEND_LOCAL, p.BACKEND_LOCAL_2),
                    state,
                )
                for one, state in spec["backends"].items()
            ]
            backends.sort(key=lambda one: one.identity)
            sets = {
                TrafficPolicy.CLUSTER: taking_new(backends),
                TrafficPolicy.LOCAL: taking_new([one for one in backends if one.local]),
            }
            plans.append(plan(name, address, spec, backends, sets))
            vip = ModelVip(
                name,
                spec["affinity"],
                {side: model_rows(sets[policy]) for side, policy in spec["policies"].items()},
                usable=bool(backends),
                allowed=tuple(spec["ranges"]) if spec["kind"] is VipKind.LOAD_BALANCER else (),
                cluster_ip=spec["kind"] is VipKind.CLUSTER_IP,
            )
            vips[IPv4Address(address), VIP_PORT, spec["protocol"]] = vip
            addresses[IPv4Address(address)] = vip
            for backend in map(model_backend, backends):
                known = self.model.world.backends.get((name, backend))
                self.incarnations += known is None
                alive[name, backend] = self.incarnations if known is None else known
        self.datapath.apply(*plans)
        world = self.model.world
        for key, vip in world.vips.items():
            if key not in vips and vip.service in self.model.opened:
                world.gone[key] = vip
        world.gone = {key: vip for key, vip in world.gone.items() if key not in vips}
        lingering = {vip.service for vip in world.gone.values()}
        alive |= {key: since for key, since in world.backends.items() if key[0] in lingering}
        self.model.world.vips = vips
        self.model.world.addresses = addresses
        self.model.world.backends = alive

    @rule(ticks=st.sampled_from([1, 2, 5, 10, 20, 720]))
    def let_time_pass(self, ticks: int) -> None:
        """Make every entry older, instead of waiting."""
        seconds = ticks * TICK
        for name, field in (("flows", "last_seen"), ("affinity", "last_used")):
            keys, values = self.datapath.read(name)
            values[field] -= np.uint64(seconds * 10**9)
            if name == "flows":
                values["touched"][values["fins"] & layouts.FlowSign.ANSWERED == 0] = 0
            self.datapath.update(name, keys, values)
        self.model.now += seconds
        self.datapath.skew += seconds  # freed backend slots come into use again

    @rule(
        outside=st.booleans(),
        client=st.integers(0, 1),
        sport=st.sampled_from(SOURCE_PORTS),
        vip=st.sampled_from((*VIP_ADDRESSES, p.NOT_A_VIP)),
        port=st.sampled_from([VIP_PORT, VIP_PORT, VIP_PORT, VIP_PORT, VIP_PORT + 1]),
        protocol=st.sampled_from(Protocol),
        program=st.sampled_from(harness.OUTSIDE_INGRESS),
        flags=st.sampled_from(["S", "S", "S", "A", "PA", "FA", "R", "RA"]),
        payload=st.binary(max_size=40),
        ttl=st.sampled_from([64, 64, 64, 1]),
        checksum=st.booleans(),
        number=NUMBERS,
        extra=EXTRAS,
    )
    def client_sends(
        self,
        *,
        outside: bool,
        client: int,
        sport: int,
        vip: str,
        port: int,
        protocol: Protocol,
        program: str,
        flags: str,
        payload: bytes,
        ttl: int,
        checksum: bool,
        number: int,
        extra: int,
    ) -> None:
        source = (OUTSIDE_CLIENTS if outside else INSIDE_CLIENTS)[client]
        t = Tuple5(IPv4Address(source), IPv4Address(vip), sport, port, protocol)
        self.request(t, program, flags, payload, ttl=ttl, checksum=checksum, number=number, extra=extra)

    @precondition(lambda self: self.model.by_client)
    @rule(
        pick=st.integers(0, 1000),
        program=st.sampled_from(harness.OUTSIDE_INGRESS),
        flags=st.sampled_from(["S", "A", "A", "FA", "R"]),
        payload=st.binary(max_size=40),
        number=NUMBERS,
        extra=EXTRAS,
    )
    def client_goes_on(
        self, *, pick: int, program: str, flags: str, payload: bytes, number: int, extra: int
    ) -> None:
        """Another packet of a known 5-tuple: whatever has become of its flow, its backend, its Service."""
        known = list(self.model.by_client)
        self.request(known[pick % len(known)], program, flags, payload, number=number, extra=extra)

    def request(
        self,
        t: Tuple5,
        program: str,
        flags: str,
        payload: bytes,
        *,
        ttl: int = 64,
        checksum: bool = True,
        number: int = 0,
        extra: int = 0,
    ) -> None:
        outside = str(t.src) in OUTSIDE_CLIENTS
        link = p.FROM_CLIENT if outside else p.FROM_POD
        frame = frame_of(link, t, flags, payload, ttl=ttl, checksum=checksum, number=number)
        self.enters(program if outside else harness.TC_POD_IN, with_extra(frame, extra))

    @precondition(lambda self: self.model.by_client)
    @rule(
        pick=st.integers(0, 1000),
        program=st.sampled_from(harness.OUTSIDE_INGRESS),
        flags=st.sampled_from(["SA", "SA", "A", "PA", "FA", "RA"]),
        payload=st.just(b"") | st.binary(max_size=40),
        number=NUMBERS,
        extra=EXTRAS,
    )
    def backend_replies(
        self, *, pick: int, program: str, flags: str, payload: bytes, number: int, extra: int
    ) -> None:
        flows = list(self.model.by_client.values())
        flow = flows[pick % len(flows)]
        inside = str(flow.client_side.src) in INSIDE_CLIENTS

        def frame(link: Packet) -> bytes:
            plain = frame_of(link, flow.backend_side.reversed(), flags, payload, number=number)
            return with_extra(plain, extra)

        # A reply to a client that kept its address enters where the backend is, and is left alone there.
        if flow.backend.local:
            self.enters(harness.TC_POD_IN, frame(p.FROM_POD))
        else:
            self.enters(program, frame(p.FROM_NODE2))
        if flow.path == "stack":
            self.leaves(
                *(harness.TC_POD_OUT, frame(p.TO_POD))
                if inside
                else (harness.TC_UPLINK_OUT, frame(p.TO_CLIENT))
            )

    def enters(self, program: str, frame: bytes) -> None:
        t = reference.tuple_of(options.out_of(frame)[0])
        self.datapath.begin_the_day()
        result = self.datapath.run(program, frame)
        expected = self.model.ingress(frame, side_of(program), lambda: self.chosen_port(t))
        self.compare(program, result, expected)

    @rule(
        outside=st.booleans(),
        client=st.integers(0, 1),
        vip=st.sampled_from((*VIP_ADDRESSES, p.NOT_A_VIP, p.NODE1)),
        program=st.sampled_from(harness.OUTSIDE_INGRESS),
        extra=EXTRAS,
    )
    def client_pings(self, *, outside: bool, client: int, vip: str, program: str, extra: int) -> None:
        link = p.FROM_CLIENT if outside else p.FROM_POD
        frame = with_extra(p.echo(link, (OUTSIDE_CLIENTS if outside else INSIDE_CLIENTS)[client], vip), extra)
        program = program if outside else harness.TC_POD_IN
        self.compare(program, self.datapath.run(program, frame), self.model.ping(frame, side_of(program)))

    @precondition(lambda self: self.model.by_client)
    @rule(
        pick=st.integers(0, 1000),
        program=st.sampled_from(harness.OUTSIDE_INGRESS),
        flags=st.sampled_from(["S", "A"]),
    )
    def client_goes_on_in_pieces(self, *, pick: int, program: str, flags: str) -> None:
        """The later piece goes where the first goes, or nowhere."""
        known = [t for t in self.model.by_client if t.protocol is not Protocol.SCTP]
        if not known:
            return
        t = known[pick % len(known)]
        outside = str(t.src) in OUTSIDE_CLIENTS
        program = program if outside else harness.TC_POD_IN
        frame = frame_of(p.FROM_CLIENT if outside else p.FROM_POD, t, flags, bytes(range(200)))
        self.identity += 1
        first, later = p.pieces(frame, 104, identity=self.identity)
        self.datapath.begin_the_day()
        results = [self.datapath.run(program, piece) for piece in (first, later)]
        expected = self.model.ingress(frame, side_of(program), lambda: self.chosen_port(t))
        assert (results[0].verdict, results[0].reason) == (expected.verdict, expected.reason)
        if expected.reason.startswith(("NEW_", "FLOW_HIT")):
            assert expected.packet is not None
            assert (results[1].verdict, results[1].reason) == (expected.verdict, "FLOW_HIT")
            wanted = p.pieces(expected.packet, 104, identity=self.identity)
            for result, want in zip(results, wanted, strict=True):
                p.assert_same(result.packet, want)
        else:
            wanted_reason = self.model.later_fragment(expected.reason, t.dst, program == harness.XDP)
            untouched = {"NOT_VIP", "FRAGMENT"}  # which of them depends on whether an address still lingers
            alike = untouched if wanted_reason in untouched else {wanted_reason}
            assert results[1].reason in alike
            assert results[1].verdict == ("drop" if wanted_reason == "STRAY_FRAGMENT" else "pass")

    @precondition(lambda self: self.model.by_client)
    @rule(
        pick=st.integers(0, 1000),
        program=st.sampled_from(harness.OUTSIDE_INGRESS),
        kind=st.sampled_from(sorted(p.ICMP_ERRORS)),
        about_reply=st.booleans(),
        by_router=st.booleans(),
        length=st.sampled_from([8, 20]),
    )
    def somebody_reports_an_error(
        self, *, pick: int, program: str, kind: str, about_reply: bool, by_router: bool, length: int
    ) -> None:
        """About a packet of a known flow, as it was beyond the node: at every hook that sees it."""
        flows = list(self.model.by_client.values())
        flow = flows[pick % len(flows)]
        seen = flow.client_side.reversed() if about_reply else flow.backend_side
        inside = str(flow.client_side.src) in INSIDE_CLIENTS
        source = p.ROUTER if by_router else str(seen.dst)
        if seen.protocol is Protocol.SCTP:
            length = 8  # behind them is the checksum, which stays
        if about_reply:
            ways = [(harness.TC_POD_IN, p.FROM_POD) if inside else (program, p.FROM_CLIENT)]
        else:
            ways = [(harness.TC_POD_IN, p.FROM_POD) if flow.backend.local else (program, p.FROM_NODE2)]
            if flow.path == "stack":
                ways.append(
                    (harness.TC_POD_OUT, p.TO_POD) if inside else (harness.TC_UPLINK_OUT, p.TO_CLIENT)
                )
        for at, link in ways:
            about = frame_of(link, seen, "A", b"what was too much")
            header = p.ip(source, str(seen.src))
            frame = p.icmp_error(link, header, kind, p.quote(about, length))
            expected = self.model.error(link, header, kind, about, length, side_of(at))
            self.compare(at, self.datapath.run(at, frame), expected)

    def leaves(self, program: str, frame: bytes) -> None:
        result = self.datapath.run(program, frame)
        self.compare(program, result, self.model.egress(frame))

    def compare(self, program: str, result: harness.Result, expected: Expected) -> None:
        assert (result.verdict, result.reason) == (expected.verdict, expected.reason), program
        if expected.packet is not None:
            text = difference(result.packet, expected.packet)
            assert not text, f"{program} {expected.reason}\n{text}"

    def chosen_port(self, t: Tuple5) -> int:
        """Return the source port that the kernel's flow of t was given."""
        return self.kernel_flows()[key_of(t)][1]

    def kernel_flows(self) -> dict[tuple[str, int, str, int, int], tuple[str, int, str, str]]:
        """Return the forward halves: what a client sends, and its source, its backend and its state."""
        keys, values = self.datapath.read("flows")
        forward = keys["direction"] == layouts.Direction.FORWARD
        return {
            (p.role(src), sport, p.role(dst), dport, protocol): (
                p.role(value["src"].tolist()),
                int(value["sport"]),
                p.role(value["dst"].tolist()),
                layouts.FlowState(int(value["state"])).name.lower(),
            )
            for (src, dst, sport, dport, protocol, *_), value in zip(
                keys[forward].tolist(), values[forward], strict=True
            )
        }

    @invariant()
    def kernel_and_model_agree_on_every_flow(self) -> None:
        if not hasattr(self, "model"):
            return
        model = {
            key_of(t): (
                str(flow.backend_side.src),
                flow.backend_side.sport,
                str(flow.backend_side.dst),
                flow.state,
            )
            for t, flow in self.model.by_client.items()
        }
        assert self.kernel_flows() == model
        replies = self.datapath.read("flows")[0]["direction"] == layouts.Direction.REPLY
        assert int(replies.sum()) == len(self.model.by_backend)

    def teardown(self) -> None:
        self.datapath.apply()


def test_the_programs_do_what_the_model_does(datapath: Datapath) -> None:
    machine = type("BoundMachine", (Machine,), {"datapath": datapath})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=80,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            # A failure names the seed; shrinking one takes minutes: add Phase.shrink by hand.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
        ),
    )
