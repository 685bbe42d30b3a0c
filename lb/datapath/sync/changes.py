# SPDX-License-Identifier: Apache-2.0
"""What one Service's new plan means for the maps of a family: ids and rows allocated, nothing written yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lb.datapath.maps.interface import Rows
from lb.datapath.maps.layouts import BackendFlag, BackendStateCode, VipFlag, pack_address
from lb.datapath.sync.ledger import KIND_CODES, Ledger, Port, PortKey, Socket, VipRow, socket_of
from lb.datapath.sync.pools import NO_ROWS, Region
from lb.datapath.sync.tables import set_rows, set_size
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
_SOURCE_RANGES = int(VipFlag.SOURCE_RANGES)


@dataclass(slots=True)
class Change:
    """The writes that bring one Service in step with its plan in one family, by IP version.

    before: the backends that the Service had. wanted: those that it shall have.
    names: ports that the ``services`` map does not name yet, with (namespace, name, port name).
    new: rows of the family's ``backends`` by id, in state FREE; states: the state they and changed ones get.
    kept: (id, state, flags, node) wanted of those that are there; edits: (id, flags, node) where they differ.
    tables: region and its rows. new_ranges, old_ranges: source ranges to write and to delete. puts, deletes:
    VIPs; replaced: those of puts that the port has already. error: what stopped the Service.
    """

    key: ObjectKey
    version: int
    before: Sockets
    wanted: Sockets = field(default_factory=dict)
    names: list[tuple[Port, tuple[bytes, bytes, bytes]]] = field(default_factory=list)
    new: dict[int, tuple[int | bytes, ...]] = field(default_factory=dict)
    kept: list[tuple[int, int, int, int]] = field(default_factory=list)
    edits: list[tuple[int, int, int]] = field(default_factory=list)
    states: dict[int, int] = field(default_factory=dict)
    tables: list[tuple[Region, NDArray[np.uint32]]] = field(default_factory=list)
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

    Most of the work of a sync is here, so each backend is looked at once.
    """
    backends = {socket_of(backend): backend for backend in plan.backends}
    offers = {
        TrafficPolicy.CLUSTER: list(backends)
        if plan.cluster is plan.backends
        else list(map(socket_of, plan.cluster)),
        TrafficPolicy.LOCAL: list(map(socket_of, plan.local)),
    }
    cluster, local = set(offers[TrafficPolicy.CLUSTER]), set(offers[TrafficPolicy.LOCAL])
    slots = port.backends
    for socket, backend in backends.items():
        state = _ACTIVE if backend.state is _IS_ACTIVE else _TERMINATING
        flags = _IN_CLUSTER_SET if socket in cluster else 0
        if backend.local:
            flags |= _LOCAL | (_IN_LOCAL_SET if socket in local else 0)
        node = ledger.nodes.id_of(backend)
        slot = slots.get(socket)
        if slot is not None:
            change.kept.append((slot, state, flags, node))
        else:
            slot = slots[socket] = ledger.backend_ids[plan.version].allocate()
            place = (pack_address(backend.address), backend.port)
            change.new[slot] = (*place, _FREE, flags, port.id, 0, node)
            change.states[slot] = state
    change.new_ranges += [(port, network) for network in plan.source_ranges if not port.ranges.get(network)]
    change.old_ranges += [(port, network) for network in port.ranges.keys() - set(plan.source_ranges)]
    wanted = {policy for vip in plan.vips for policy in (vip.inside, vip.outside)}
    regions = {policy: _table(ledger, change, port, offers[policy]) for policy in sorted(wanted)}
    common = _USABLE if plan.cluster else 0
    for vip in plan.vips:
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
    return set(backends)


def _vip_flags(vip: Vip, plan: PortPlan) -> int:
    """Return the flags in which the VIPs of a port may differ."""
    flags = _INSIDE_LOCAL if vip.inside is TrafficPolicy.LOCAL else 0
    if vip.outside is TrafficPolicy.LOCAL:
        flags |= _OUTSIDE_LOCAL
    if vip.kind is VipKind.LOAD_BALANCER and plan.source_ranges:
        flags |= _SOURCE_RANGES
    return flags


def compare(slots: Rows, changes: Sequence[Change]) -> None:
    """Note which present backends differ from what is wanted; slots is their family's live array.

    All at once: for one Service or for thousands it takes the same few calls.
    """
    kept = [row for change in changes for row in change.kept]
    wanted = np.array(kept, np.uint32)
    live = slots[wanted[:, 0]]
    other_state = live["state"] != wanted[:, 1]
    other_place = (live["flags"] != wanted[:, 2]) | (live["node"] != wanted[:, 3])
    if not (other_state.any() or other_place.any()):
        return
    owners = [change for change in changes for _ in change.kept]
    for at in np.flatnonzero(other_state).tolist():
        owners[at].states[kept[at][0]] = kept[at][1]
    for at in np.flatnonzero(other_place).tolist():
        slot, _, flags, node = kept[at]
        owners[at].edits.append((slot, flags, node))


def _table(ledger: Ledger, change: Change, port: Port, sockets: Sequence[Socket]) -> Region:
    """Return the region with the set of these backends, a new one if the port has none yet."""
    if not sockets:
        return NO_ROWS
    ids = tuple([port.backends[socket] for socket in sockets])
    if ids not in port.regions:
        region = port.regions[ids] = ledger.rows.allocate(set_size(len(ids)))
        identities = [(change.version, socket >> 16, socket & 0xFFFF) for socket in sockets]
        change.tables.append((region, set_rows(ids, identities)))
    return port.regions[ids]
