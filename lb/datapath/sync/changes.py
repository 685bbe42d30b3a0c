# SPDX-License-Identifier: Apache-2.0
"""What one Service's new plan means for the maps of a family: ids and rows allocated, nothing written yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lb.datapath.maps.interface import Rows
from lb.datapath.maps.layouts import ID, BackendFlag, BackendStateCode, VipFlag, pack_address
from lb.datapath.sync.ledger import (
    KIND_CODES,
    Ledger,
    Port,
    PortKey,
    Socket,
    VipRow,
    set_key,
    set_of,
    socket_of,
)
from lb.datapath.sync.pools import NO_ROWS, Region
from lb.datapath.sync.tables import SetRows, set_rows, set_size
from lb.errors import LbError
from lb.model import IPNetwork, ObjectKey, TrafficPolicy
from lb.plan.types import BackendState, PortPlan, ServicePlan, Vip, VipKey, VipKind

Sockets = dict[PortKey, set[Socket]]

_IS_ACTIVE = BackendState.ACTIVE
_FREE, _ACTIVE, _TERMINATING = (
    int(code) for code in (BackendStateCode.FREE, BackendStateCode.ACTIVE, BackendStateCode.TERMINATING)
)
_LOCAL, _IN_CLUSTER_SET, _IN_LOCAL_SET = (
    int(flag) for flag in (BackendFlag.LOCAL, BackendFlag.IN_CLUSTER_SET, BackendFlag.IN_LOCAL_SET)
)
_USABLE = int(VipFlag.USABLE)
_INSIDE_LOCAL, _OUTSIDE_LOCAL = int(VipFlag.INSIDE_LOCAL), int(VipFlag.OUTSIDE_LOCAL)
_SOURCE_RANGES, _DIRECT = int(VipFlag.SOURCE_RANGES), int(VipFlag.DIRECT)
_UDP_STAYS = int(VipFlag.UDP_STAYS)


@dataclass(slots=True)
class Change:
    """The writes that bring one Service in step with its plan in one family, by IP version.

    before: the backends that the Service had. wanted: those that it shall have.
    names: ports that the ``services`` map does not name yet, with (namespace, name, port name).
    new: rows of the family's ``backends`` by id, in state FREE; states: the state they and changed ones get.
    kept: ids of those that are there; places: what is wanted of each, node << 16 | flags << 8 | state;
    edits: (id, flags, node) where they differ. tables: region and its rows. new_ranges, old_ranges: source
    ranges to write and to delete. puts, deletes: VIPs; replaced: those of puts that the port has already.
    error: what stopped the Service.
    """

    key: ObjectKey
    version: int
    before: Sockets
    wanted: Sockets = field(default_factory=dict)
    names: list[tuple[Port, tuple[bytes, bytes, bytes]]] = field(default_factory=list)
    new: dict[int, tuple[int | bytes, ...]] = field(default_factory=dict)
    kept: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    edits: list[tuple[int, int, int]] = field(default_factory=list)
    states: dict[int, int] = field(default_factory=dict)
    tables: list[tuple[Region, SetRows]] = field(default_factory=list)
    new_ranges: list[tuple[Port, IPNetwork]] = field(default_factory=list)
    old_ranges: list[tuple[Port, IPNetwork]] = field(default_factory=list)
    puts: dict[VipKey, tuple[Port, VipRow]] = field(default_factory=dict)
    replaced: set[VipKey] = field(default_factory=set)
    deletes: dict[VipKey, Port] = field(default_factory=dict)
    error: LbError | None = None

    @property
    def leaves(self) -> bool:
        """Whether something that was there, or was to be there, may be of no use now."""
        changed = bool(self.before) and (bool(self.puts) or self.before != self.wanted)
        return self.error is not None or bool(self.deletes or self.old_ranges) or changed


def prepare(ledger: Ledger, key: ObjectKey, version: int, plan: ServicePlan | None) -> Change | None:
    """Compare a plan with the ledger in one family and allocate what is missing; None: the Service is gone.

    Ports without a VIP are left out; when nothing is wanted and nothing there, there is no change. Ids and
    rows that were allocated are in the ledger also when the change carries an error.
    """
    planned = [port for port in plan.ports if port.version == version and port.vips] if plan else []
    there = ledger.services[version].get(key)
    if not planned and (there is None or all(map(_lingers, there.values()))):
        return None
    ports = ledger.services[version].setdefault(key, {})
    before = {port_key: set(port.backends) for port_key, port in ports.items()}
    change = Change(key, version, before)
    desired: dict[PortKey, PortPlan] = {(port.port_name, port.protocol): port for port in planned}
    try:
        for port_key, port_plan in desired.items():
            names = _names(key, port_plan.port_name)
            if port_key not in ports:
                # Read back from an address as a whole alone, a port does not know its protocol.
                known = ports.pop((port_plan.port_name, None), None)
                ports[port_key] = known or Port(ledger.service_ids.allocate())
            if not ports[port_key].named:
                change.names.append((ports[port_key], names))
            change.wanted[port_key] = _prepare_port(ledger, change, ports[port_key], port_plan)
    except LbError as error:
        change.error = error
    for port_key, port in ports.items():
        if port_key not in desired:
            change.deletes.update(dict.fromkeys(port.vips, port))
            change.old_ranges += [(port, network) for network in port.ranges]
    return change


def _lingers(port: Port) -> bool:
    """Tell whether nothing is left of a port but VIPs that linger."""
    return bool(port.gone) and not (port.vips or port.ranges)


def _names(key: ObjectKey, port_name: str) -> tuple[bytes, bytes, bytes]:
    names = (key.namespace.encode(), key.name.encode(), port_name.encode())
    if max(map(len, names)) > 63:
        raise LbError(
            f"Service {key}, port {port_name!r}: a name of more than 63 bytes has no room in the maps"
        )
    return names


def _prepare_port(ledger: Ledger, change: Change, port: Port, plan: PortPlan) -> set[Socket]:
    """Note what one port needs, and return its backends.

    Most of the work of a sync is here, so each backend is looked at once, and nothing is called for it that
    need not be.
    """
    backends = plan.backends
    sockets = [int(backend.address) << 16 | backend.port for backend in backends]
    cluster = sockets if plan.cluster is backends else list(map(socket_of, plan.cluster))
    local = list(map(socket_of, plan.local))
    in_cluster, in_local = set(cluster), set(local)
    slots, nodes = port.backends, ledger.nodes.known
    for socket, backend in zip(sockets, backends, strict=True):
        state = _ACTIVE if backend.state is _IS_ACTIVE else _TERMINATING
        flags = _IN_CLUSTER_SET if socket in in_cluster else 0
        if backend.local:
            flags |= _LOCAL | (_IN_LOCAL_SET if socket in in_local else 0)
            node = ledger.nodes.id_of(backend)
        else:
            node = nodes[backend.node] if backend.node in nodes else ledger.nodes.id_of(backend)
        slot = slots.get(socket)
        if slot is not None:
            change.kept.append(slot)
            change.places.append(node << 16 | flags << 8 | state)
        else:
            slot = slots[socket] = ledger.backend_ids[plan.version].allocate()
            place = (pack_address(backend.address), backend.port)
            change.new[slot] = (*place, _FREE, flags, port.id, 0, node)
            change.states[slot] = state
    if plan.source_ranges or port.ranges:
        change.new_ranges += [(port, net) for net in plan.source_ranges if not port.ranges.get(net)]
        change.old_ranges += [(port, net) for net in port.ranges.keys() - set(plan.source_ranges)]
    regions: dict[TrafficPolicy, Region] = {}
    common = _USABLE if plan.cluster else 0
    for vip in plan.vips:
        for policy in (vip.inside, vip.outside):
            if policy not in regions:
                of_cluster = policy is TrafficPolicy.CLUSTER
                weights = [one.weight for one in (plan.cluster if of_cluster else plan.local)]
                regions[policy] = _table(ledger, change, port, cluster if of_cluster else local, weights)
        row = VipRow(
            port.id,
            plan.affinity_seconds,
            regions[vip.inside],
            regions[vip.outside],
            KIND_CODES[vip.kind],
            common | _vip_flags(vip, plan),
        )
        if port.vips.get(vip.key) != row:
            change.puts[vip.key] = (port, row)
            if vip.key in port.vips:
                change.replaced.add(vip.key)
    change.deletes.update(dict.fromkeys(port.vips.keys() - {vip.key for vip in plan.vips}, port))
    return set(sockets)


def _vip_flags(vip: Vip, plan: PortPlan) -> int:
    """Return the flags in which the VIPs of a port may differ."""
    flags = _INSIDE_LOCAL if vip.inside is TrafficPolicy.LOCAL else 0
    if vip.outside is TrafficPolicy.LOCAL:
        flags |= _OUTSIDE_LOCAL
    if plan.direct:
        flags |= _DIRECT | (_UDP_STAYS if plan.udp_stays else 0)
    if vip.kind is VipKind.LOAD_BALANCER and plan.source_ranges:
        flags |= _SOURCE_RANGES
    return flags


def compare(slots: Rows, changes: Sequence[Change]) -> None:
    """Note which present backends differ from what is wanted; slots is their family's live array.

    All at once: for one Service or for thousands it takes the same few calls.
    """
    kept = np.array([slot for change in changes for slot in change.kept], ID)
    wanted = np.array([place for change in changes for place in change.places], np.uint64)
    live = slots[kept]
    place = live["node"].astype(np.uint64) << np.uint64(16)
    place |= live["flags"].astype(np.uint64) << np.uint64(8)
    place |= live["state"]
    differ = np.flatnonzero(place != wanted)
    if not len(differ):
        return
    owners = [change for change in changes for _ in change.kept]
    for at, slot, is_now, shall_be in zip(
        differ.tolist(), kept[differ].tolist(), place[differ].tolist(), wanted[differ].tolist(), strict=True
    ):
        if is_now & 0xFF != shall_be & 0xFF:
            owners[at].states[slot] = shall_be & 0xFF
        if is_now >> 8 != shall_be >> 8:
            owners[at].edits.append((slot, shall_be >> 8 & 0xFF, shall_be >> 16))


def _table(
    ledger: Ledger, change: Change, port: Port, sockets: Sequence[Socket], weights: Sequence[int]
) -> Region:
    """Return the region with the set of these backends, a new one if the port has none yet."""
    if not sockets:
        return NO_ROWS
    key = set_key([port.backends[socket] for socket in sockets], weights)
    if key not in port.regions:
        ids, unequal = set_of(key)
        region = port.regions[key] = ledger.rows.allocate(set_size(len(ids), weighted=bool(unequal)))
        change.tables.append((region, set_rows(ids, change.version, sockets, unequal)))
    return port.regions[key]
