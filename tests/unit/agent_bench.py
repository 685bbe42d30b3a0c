# SPDX-License-Identifier: Apache-2.0
"""The agent's loop without a kernel: what is around it is fake, and so is its clock."""

from __future__ import annotations

import queue
from collections.abc import Callable, Collection, Mapping, Sequence
from ipaddress import ip_address

from lb.agent import Agent
from lb.attachments import Attachments
from lb.config import Limits
from lb.datapath.attach.hooks import LostHook
from lb.datapath.sync.ledger import read_vips
from lb.datapath.sync.reconcile import Reconciler
from lb.datapath.sync.sync_record import SyncReport
from lb.datapath.view.dump import VipEntry, dump
from lb.inbox import Failed, Inbox, InterfacesChanged, Settled, SourceEvents, Stop
from lb.model import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Event,
    IPAddress,
    Node,
    ObjectKey,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
    Synced,
)
from lb.plan import HealthCheck
from lb.plan.types import ServicePlan, Topology, VipKey
from lb.served.health import HealthChecks
from lb.served.history import History, Since
from lb.state import ClusterState
from tests.fake_maps import FakeMaps

NODE = "node1"
NODE_ADDRESS = ip_address("192.0.2.11")
WEB = ObjectKey("default", "web")
DNS = ObjectKey("kube-system", "dns")
SYNCED = Synced("test")
EPOCH = 1.7e9
"""Seconds by which the time of day is ahead of the bench's clock."""


def service(key: ObjectKey, address: str, *, node_port: int = 0, created: str = "") -> Service:
    return Service(
        key,
        type=ServiceType.NODE_PORT if node_port else ServiceType.CLUSTER_IP,
        ports=(ServicePort("http", Protocol.TCP, 80, 8080, node_port),),
        cluster_ips=(ip_address(address),),
        created=created,
    )


def endpoints(key: ObjectKey, *addresses: str) -> EndpointSlice:
    return EndpointSlice(
        ObjectKey(key.namespace, f"{key.name}-1"),
        key,
        (EndpointPort("http", Protocol.TCP, 8080),),
        tuple(Endpoint(ip_address(address), node=NODE) for address in addresses),
    )


WEB_SERVICE = service(WEB, "10.96.0.1")
DNS_SERVICE = service(DNS, "10.96.0.2")


class FakeAttachments(Attachments):
    """A node whose topology and whose attach failures the test sets; notes what it was asked."""

    def __init__(self) -> None:
        self.addresses: tuple[IPAddress, ...] = (NODE_ADDRESS,)
        self.own: frozenset[IPAddress] = frozenset()
        self.sockets: frozenset[VipKey] = frozenset()
        self.problems: list[str] = []
        self.attached: list[frozenset[int] | None] = []
        self.changed: dict[str, int] = {}
        self.missing: list[list[LostHook]] = []
        self.uplink = True
        self.unpinned: list[int | Exception] = []

    def faces_outside(self) -> bool:
        return self.uplink

    def lost(self) -> Sequence[LostHook]:
        return self.missing.pop(0) if self.missing else []

    def mend(self) -> int:
        found = self.unpinned.pop(0) if self.unpinned else 0
        if isinstance(found, Exception):
            raise found
        return found

    def topology(self, node: Node | None, claims: Callable[[IPAddress], bool]) -> Topology:
        internal = node.addresses if node else ()
        sockets = frozenset(one for one in self.sockets if claims(one.address))
        return Topology(NODE, node.zone if node else "", self.addresses, self.own, internal, sockets)

    def attach(self, changed: frozenset[int] | None) -> Sequence[str]:
        self.attached.append(changed)
        return list(self.problems)

    def drift(self) -> dict[str, int]:
        return dict(self.changed)


class FakeChecks(HealthChecks):
    """Notes what the agent tells of health-check ports."""

    def __init__(self) -> None:
        self.now: dict[ObjectKey, HealthCheck] = {}
        self.node_ports: dict[ObjectKey, frozenset[int]] = {}
        self.unwritten: list[set[ObjectKey]] = []
        self.addresses: list[Sequence[IPAddress]] = []

    def update(
        self,
        checks: Mapping[ObjectKey, HealthCheck | None],
        unwritten: Collection[ObjectKey],
        node_ports: Mapping[ObjectKey, frozenset[int]],
    ) -> None:
        self.node_ports |= node_ports
        self.now |= {key: check for key, check in checks.items() if check}
        for key in [key for key, check in checks.items() if check is None]:
            self.now.pop(key, None)
        self.unwritten.append(set(unwritten))

    def move(self, addresses: Sequence[IPAddress]) -> None:
        self.addresses.append(addresses)


class CountingReconciler(Reconciler):
    """The real one; notes which Services each sync was given."""

    syncs: list[set[ObjectKey]]

    def sync(self, plans: dict[ObjectKey, ServicePlan | None]) -> SyncReport:
        self.syncs.append(set(plans))
        return super().sync(plans)


class Bench:
    """An agent on a bench: everything around it is fake, but state, plan and reconciler are real."""

    def __init__(self, maps: FakeMaps | None = None, *, serving: bool = True) -> None:
        self.now = 1000.0
        self.maps = maps or FakeMaps(Limits(backends=64, table_rows=65536, vips=64, services=64))
        self.attachments = FakeAttachments()
        self.checks = FakeChecks()
        self.inbox: Inbox = queue.SimpleQueue()
        self.history = History(self.clock, lambda: self.now + EPOCH)
        self.latencies: list[tuple[Since, float]] = []
        self.history.measured = lambda since, seconds: self.latencies.append((since, seconds))
        self.reconciler = CountingReconciler(
            self.maps, self.clock, settle=lambda: None, tell=self.history.wrote
        )
        self.reconciler.syncs = []
        self.reconciler.recover()
        self.synced: list[list[str]] = []
        self.beats: list[list[str]] = []
        self.announced: list[tuple[str, str]] = []
        self.state = ClusterState()
        self.agent = Agent(
            inbox=self.inbox,
            state=self.state,
            node_name=NODE,
            attachments=self.attachments,
            reconciler=self.reconciler,
            serving=serving,
            checks=self.checks,
            history=self.history,
            announce=lambda key, note: self.announced.append((str(key), note.reason)),
            synced=lambda agent: self.synced.append([one.text for one in agent.problems()]),
            beat=lambda agent: self.beats.append([one.text for one in agent.problems()]),
            clock=self.clock,
        )

    def clock(self) -> float:
        # The time passes while somebody looks at the clock: gathering ends without a real wait.
        self.now += 0.001
        return self.now

    def tell(self, *messages: Event | InterfacesChanged | Failed | Settled | Stop) -> None:
        """Put the messages into the inbox, each event in a batch of its own, and let the agent step once."""
        for message in messages:
            if isinstance(message, InterfacesChanged | Failed | Settled | Stop):
                self.inbox.put(message)
            else:
                self.inbox.put(SourceEvents([message], self.now))
        self.agent.step()

    def vips(self) -> set[str]:
        keys, _ = self.maps.read("vips4")
        return {str(ip_address(int(key["address"]))) for key in keys}

    def backends(self) -> set[str]:
        vips = dump(self.maps, 0, ("vips",))["vips"]
        return {each.address for vip in vips if isinstance(vip, VipEntry) for each in vip.backends}

    def whole_addresses(self) -> set[str]:
        return {str(vip.address) for vip in read_vips(self.maps) if vip.protocol is None}


def texts(bench: Bench) -> list[str]:
    """Return what is wrong; each has to say what to do."""
    problems = bench.agent.problems()
    assert all(one.next for one in problems)
    return [one.text for one in problems]
