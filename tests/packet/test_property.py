"""Random Services, packets, faults of time: the real programs against the reference model, step by step."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any

import numpy as np
import pytest
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
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from lb.config import SnatPorts, Timeouts
from lb.datapath import layouts
from lb.model import ObjectKey, Protocol, TrafficPolicy
from lb.plan import SMALL_SET
from lb.plan.types import Backend, BackendState, PortPlan, ServicePlan, Vip, VipKey, VipKind
from tests import packets as p
from tests.packet import harness, reference
from tests.packet.harness import Datapath
from tests.packet.reference import Model, ModelBackend, ModelVip, World
from tests.packets import difference

# Time passes in steps of TICK; every timeout lies half a step from the next multiple, so that neither the
# seconds of a run nor the second by which last_seen may lag change anything.
TICK = 7
TIMEOUTS = Timeouts(tcp_syn=59.5, tcp_established=5001.5, tcp_closing=10.5, udp_new=31.5, udp=122.5)
AFFINITY_SECONDS = 45
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
VIP_PORT = 80


STATES = st.sampled_from([BackendState.ACTIVE, BackendState.ACTIVE, BackendState.TERMINATING])
RANGES = [
    IPv4Network(text)
    for text in ("0.0.0.0/0", "192.0.2.0/24", f"{p.CLIENT}/32", "10.0.0.0/8", f"{p.POD_CLIENT}/32")
]
POLICIES = st.sampled_from(TrafficPolicy)


def service_strategy() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "protocol": st.sampled_from([Protocol.TCP, Protocol.UDP]),
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
                timeouts=reference.Timeouts(
                    TIMEOUTS.tcp_syn,
                    TIMEOUTS.tcp_established,
                    TIMEOUTS.tcp_closing,
                    TIMEOUTS.udp_new,
                    TIMEOUTS.udp,
                ),
                neighbours={
                    IPv4Network(p.POD_NET_2): p.NODE2_MAC,
                    IPv4Network(f"{p.CLIENT}/32"): p.CLIENT_MAC,
                    IPv4Network(f"{p.CLIENT_2}/32"): p.CLIENT_MAC,
                },
            )
        )
        self.incarnations = 0
        self.checked: reference.Tuple5 | None = None
        self.set_services(services)

    @rule(services=st.lists(service_strategy(), min_size=1, max_size=3))
    def set_services(self, services: list[dict[str, Any]]) -> None:
        """Replace all Services; backends that stay keep their flows."""
        plans, vips, alive = [], {}, {}
        for number, spec in enumerate(services):
            name, address = f"service-{number}-{spec['protocol'].name}", VIP_ADDRESSES[number]
            backends = [
                Backend(IPv4Address(one), TARGET_PORT, "", one in (p.BACKEND_LOCAL, p.BACKEND_LOCAL_2), state)
                for one, state in spec["backends"].items()
            ]
            backends.sort(key=lambda one: one.identity)
            sets = {
                TrafficPolicy.CLUSTER: taking_new(backends),
                TrafficPolicy.LOCAL: taking_new([one for one in backends if one.local]),
            }
            plans.append(plan(name, address, spec, backends, sets))
            vips[IPv4Address(address), VIP_PORT, spec["protocol"]] = ModelVip(
                name,
                spec["affinity"],
                {side: model_rows(sets[policy]) for side, policy in spec["policies"].items()},
                usable=bool(backends),
                allowed=tuple(spec["ranges"]) if spec["kind"] is VipKind.LOAD_BALANCER else (),
            )
            for backend in map(model_backend, backends):
                known = self.model.world.backends.get((name, backend))
                self.incarnations += known is None
                alive[name, backend] = self.incarnations if known is None else known
        self.datapath.apply(*plans)
        self.model.world.vips = vips
        self.model.world.backends = alive

    @rule(ticks=st.sampled_from([1, 2, 5, 10, 20, 720]))
    def let_time_pass(self, ticks: int) -> None:
        """Make every entry older, instead of waiting."""
        seconds = ticks * TICK
        for name, field in (("flows4", "last_seen"), ("affinity4", "last_used")):
            keys, values = self.datapath.maps.read(name)
            values[field] -= np.uint64(seconds * 10**9)
            self.datapath.maps.update(name, keys, values)
        self.model.now += seconds
        self.datapath.skew += seconds  # freed backend slots come into use again

    @rule(
        outside=st.booleans(),
        client=st.integers(0, 1),
        sport=st.sampled_from(SOURCE_PORTS),
        vip=st.sampled_from((*VIP_ADDRESSES, p.NOT_A_VIP)),
        protocol=st.sampled_from([Protocol.TCP, Protocol.UDP]),
        program=st.sampled_from(harness.OUTSIDE_INGRESS),
        flags=st.sampled_from(["S", "S", "S", "A", "PA", "FA", "R", "RA"]),
        payload=st.binary(max_size=40),
        ttl=st.sampled_from([64, 64, 64, 1]),
        checksum=st.booleans(),
    )
    def client_sends(
        self,
        *,
        outside: bool,
        client: int,
        sport: int,
        vip: str,
        protocol: Protocol,
        program: str,
        flags: str,
        payload: bytes,
        ttl: int,
        checksum: bool,
    ) -> None:
        source = (OUTSIDE_CLIENTS if outside else INSIDE_CLIENTS)[client]
        t = reference.Tuple5(IPv4Address(source), IPv4Address(vip), sport, VIP_PORT, protocol)
        self.request(t, program, flags, payload, ttl=ttl, checksum=checksum)

    @precondition(lambda self: self.model.by_client)
    @rule(
        pick=st.integers(0, 1000),
        program=st.sampled_from(harness.OUTSIDE_INGRESS),
        flags=st.sampled_from(["S", "S", "A", "FA", "R"]),
        payload=st.binary(max_size=40),
    )
    def client_goes_on(self, *, pick: int, program: str, flags: str, payload: bytes) -> None:
        """Another packet of a known 5-tuple: whatever has become of its flow, its backend, its Service."""
        known = list(self.model.by_client)
        self.request(known[pick % len(known)], program, flags, payload)

    def request(
        self,
        t: reference.Tuple5,
        program: str,
        flags: str,
        payload: bytes,
        *,
        ttl: int = 64,
        checksum: bool = True,
    ) -> None:
        outside = str(t.src) in OUTSIDE_CLIENTS
        link = p.FROM_CLIENT if outside else p.FROM_POD
        src, dst = (str(t.src), t.sport), (str(t.dst), t.dport)
        if t.protocol is Protocol.TCP:
            frame = p.tcp(link, src, dst, flags, payload, ttl=ttl, ack=77)
        else:
            frame = p.udp(link, src, dst, payload, ttl=ttl, checksum=checksum)
        self.enters(program if outside else harness.TC_POD_IN, frame)

    @precondition(lambda self: self.model.by_client)
    @rule(
        pick=st.integers(0, 1000),
        program=st.sampled_from(harness.OUTSIDE_INGRESS),
        flags=st.sampled_from(["SA", "A", "PA", "FA", "RA"]),
        payload=st.binary(max_size=40),
    )
    def backend_replies(self, *, pick: int, program: str, flags: str, payload: bytes) -> None:
        flows = list(self.model.by_client.values())
        flow = flows[pick % len(flows)]
        t = flow.backend_side.reversed()
        src, dst = (str(t.src), t.sport), (str(t.dst), t.dport)
        inside = str(flow.client_side.src) in INSIDE_CLIENTS

        def frame(link: Packet) -> bytes:
            if t.protocol is Protocol.TCP:
                return p.tcp(link, src, dst, flags, payload, ack=1001)
            return p.udp(link, src, dst, payload)

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
        t = reference.tuple_of(Ether(frame))
        result = self.datapath.run(program, frame)
        side = "inside" if program == harness.TC_POD_IN else "outside"
        expected = self.model.ingress(frame, side, lambda: self.chosen_port(t))
        self.compare(program, result, expected)

    def leaves(self, program: str, frame: bytes) -> None:
        result = self.datapath.run(program, frame)
        self.compare(program, result, self.model.egress(frame))

    def compare(self, program: str, result: harness.Result, expected: reference.Expected) -> None:
        assert (result.verdict, result.reason) == (expected.verdict, expected.reason), program
        if expected.packet is not None:
            text = difference(result.packet, expected.packet)
            assert not text, f"{program} {expected.reason}\n{text}"

    def chosen_port(self, t: reference.Tuple5) -> int:
        """Return the source port that the kernel's flow of t was given."""
        keys, values = self.datapath.read("flows")
        here = (
            (keys["src"] == int(t.src))
            & (keys["dst"] == int(t.dst))
            & (keys["sport"] == t.sport)
            & (keys["dport"] == t.dport)
            & (keys["protocol"] == t.protocol)
            & (keys["direction"] == layouts.Direction.FORWARD)
        )
        (port,) = values["sport"][here].tolist()
        return int(port)

    @invariant()
    def kernel_and_model_agree_on_every_flow(self) -> None:
        if not hasattr(self, "model"):
            return
        keys, values = self.datapath.read("flows")
        forward = keys["direction"] == layouts.Direction.FORWARD
        kernel = {
            (int(k["src"]), int(k["sport"]), int(k["dst"]), int(k["dport"]), int(k["protocol"])): (
                int(v["src"]),
                int(v["sport"]),
                int(v["dst"]),
                layouts.FlowState(int(v["state"])).name.lower(),
            )
            for k, v in zip(keys[forward], values[forward], strict=True)
        }
        model = {
            (int(t.src), t.sport, int(t.dst), t.dport, int(t.protocol)): (
                int(flow.backend_side.src),
                flow.backend_side.sport,
                int(flow.backend_side.dst),
                flow.state,
            )
            for t, flow in self.model.by_client.items()
        }
        assert kernel == model
        assert int((~forward).sum()) == len(self.model.by_backend)

    def teardown(self) -> None:
        self.datapath.apply()


def taking_new(backends: list[Backend]) -> list[Backend]:
    """Return the active ones; without any, those that are on their way out."""
    return [one for one in backends if one.state is BackendState.ACTIVE] or backends


def model_backend(backend: Backend) -> ModelBackend:
    return ModelBackend(IPv4Address(str(backend.address)), backend.port, backend.local)


def model_rows(backends: list[Backend]) -> tuple[ModelBackend, ...]:
    """Return what each row of a set leads to; here all sets are small."""
    assert len(backends) <= SMALL_SET
    return tuple(map(model_backend, backends))


def plan(
    name: str,
    address: str,
    spec: dict[str, Any],
    backends: list[Backend],
    sets: dict[TrafficPolicy, list[Backend]],
) -> ServicePlan:
    """Return a Service of one port and one VIP."""
    key = VipKey(IPv4Address(address), VIP_PORT, spec["protocol"])
    port = PortPlan(
        port_name="port",
        protocol=spec["protocol"],
        version=4,
        affinity_seconds=spec["affinity"],
        vips=(Vip(key, spec["kind"], **spec["policies"]),),
        backends=tuple(backends),
        cluster=tuple(sets[TrafficPolicy.CLUSTER]),
        local=tuple(sets[TrafficPolicy.LOCAL]),
        source_ranges=tuple(spec["ranges"]) if spec["kind"] is VipKind.LOAD_BALANCER else (),
    )
    return ServicePlan(ObjectKey("default", name), "", (port,))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("family", [4], indirect=True)
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
