# SPDX-License-Identifier: Apache-2.0
"""What Python knows of the maps that it writes: which ids and rows are whose, and what each VIP holds.

The ledger is never ahead of the kernel: it changes after a write has succeeded. All of it can be read back
from the maps (:mod:`lb.datapath.sync.recover`), since they carry the names.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import NamedTuple

import numpy as np

from lb.datapath.maps.interface import Maps, Rows
from lb.datapath.maps.layouts import (
    FAMILIES,
    ID,
    LINE_ROWS,
    NODE_NAME,
    NODE_NONE,
    NODE_SELF,
    SOURCE_RANGE,
    VIP,
    VIP_KEY,
    VipKindCode,
    pack_address,
    unpack_address,
)
from lb.datapath.sync.pools import NO_ROWS, IdPool, Region, RowPool
from lb.errors import CapacityError, LbError
from lb.model import IPNetwork, ObjectKey, Protocol
from lb.plan.types import Backend, VipKey, VipKind

_LOG = logging.getLogger(__name__)

PortKey = tuple[str, Protocol | None]
"""A port's name and protocol: unique within a Service, and the same over a restart."""

Socket = int
"""A backend's address as a number, times 65536, plus its port: in the order of identities, and small."""


def socket_of(backend: Backend) -> Socket:
    """Return a backend's key; it names the backend within a family."""
    return int(backend.address) << 16 | backend.port


KIND_CODES = {kind: VipKindCode[kind.name] for kind in VipKind}
KIND_WORDS = {int(code): kind.value for kind, code in KIND_CODES.items()}
"""What Kubernetes calls the kinds of VIPs, by their codes in the maps."""


SetKey = tuple[int, ...]
"""What tells a port's sets of backends apart: the ids, in the order of sockets; where weights are unequal,
then 0, and the weights in the same order, divided by what they have in common."""


def set_key(ids: Sequence[int], weights: Sequence[int]) -> SetKey:
    """Return the key of a set; weights: one for each id, at least 1; none: all are equal."""
    if not weights or min(weights) == max(weights):
        return tuple(ids)
    common = math.gcd(*weights)
    return (*ids, 0, *[weight // common for weight in weights])


def set_of(key: SetKey) -> tuple[SetKey, SetKey]:
    """Return the ids of a set, and their weights: none if they are equal."""
    if 0 not in key:
        return key, ()
    at = key.index(0)
    return key[:at], key[at + 1 :]


class VipRow(NamedTuple):
    """The value of a VIP in ``vips4`` or ``vips6``."""

    service: int
    affinity_seconds: int
    inside: Region
    outside: Region
    kind: int
    flags: int


@dataclass(slots=True)
class Port:
    """What one Service port has in the maps of one family.

    id: in ``services``; named: whether it is written there.
    backends: backend id by socket.
    regions: the rows of each set of backends, by its key. A set whose rows are not as they would be made
    today has a negative number among its ids, so that it is not taken for the set of those ids.
    ranges: source ranges; False if a write failed and the kernel may or may not have it.
    vips: the row that the kernel holds of each VIP; None if a write failed and the row is not known.
    gone: VIPs that the port has lost and that stay in the kernel for their open connections
    (:mod:`lb.datapath.sync.gone_vips`); none of them is in vips.
    former: rows of tables that the outside had before, the newest first; retired: where those begin that are
    to be among them. ages: the backends that were in its lists, the oldest first, and line: the rows of it;
    of the first, unordered, it is not known who came first (:mod:`lb.datapath.sync.former_sets`).
    """

    id: int
    named: bool = False
    backends: dict[Socket, int] = field(default_factory=dict)
    regions: dict[SetKey, Region] = field(default_factory=dict)
    ranges: dict[IPNetwork, bool] = field(default_factory=dict)
    vips: dict[VipKey, VipRow | None] = field(default_factory=dict)
    gone: dict[VipKey, VipRow] = field(default_factory=dict)
    former: list[Region] = field(default_factory=list)
    retired: set[int] = field(default_factory=set)
    ages: list[int] = field(default_factory=list)
    unordered: int = 0
    line: Region = NO_ROWS

    def unreferenced(self) -> Iterator[tuple[SetKey, Region]]:
        """Yield the sets that no VIP uses; none while the row of a VIP is not known."""
        rows = list(self.vips.values())
        if None in rows:
            return
        offsets = {r.offset for row in rows if row for r in (row.inside, row.outside) if r.size}
        for key, region in self.regions.items():
            if region.offset not in offsets:
                yield key, region

    def all_regions(self) -> Iterator[Region]:
        """Yield all rows that are the port's."""
        yield from self.regions.values()
        yield from self.former
        if self.line.size:
            yield self.line

    def listed(self) -> set[int]:
        """Return the backend ids in sets."""
        return set().union(*(set_of(key)[0] for key in self.regions))

    def row(self, vip: VipKey) -> VipRow | None:
        """Return what the kernel holds of a VIP that the port has, or had; None: that is not known."""
        return self.vips.get(vip) or self.gone.get(vip)

    def forget(self, vip: VipKey) -> None:
        """Forget a VIP of the port, whether the port still has it or it lingers."""
        self.vips.pop(vip, None)
        self.gone.pop(vip, None)


Ports = dict[PortKey, Port]


class NodeNames:
    """The ``nodes`` map. Only dumps read it.

    A name that finds no room in the map, or that the kernel refuses, changes nothing for the Service: dumps
    show the node of its backends as unknown.

    Attributes
    ----------
    known: the ids of other nodes, by name.
    full: some name has found no room.
    """

    def __init__(self, maps: Maps, names: Mapping[str, int], own: str | None) -> None:
        self._maps = maps
        self.known = dict(names)
        self._pool = IdPool("nodes", NODE_NONE + 1, maps.capacity("nodes") - 1, "", self.known.values())
        self._own = own
        self._unwritten: dict[int, str] = {}
        self.full = False

    def id_of(self, backend: Backend) -> int:
        """Return the id of a backend's node, a new one if need be."""
        if backend.local:
            if self._own != backend.node:
                self._own = self._unwritten[NODE_SELF] = backend.node
            return NODE_SELF
        if not backend.node:
            return NODE_NONE
        if backend.node not in self.known:
            try:
                node = self.known[backend.node] = self._pool.allocate()
            except CapacityError:
                self.full = True
                return NODE_NONE
            self._unwritten[node] = backend.node
        return self.known[backend.node]

    def write(self) -> int:
        """Write the new names and return how many; those that fail are tried again at the next call."""
        if not self._unwritten:
            return 0
        keys = np.array(list(self._unwritten), ID)
        values = np.array([(name.encode(),) for name in self._unwritten.values()], NODE_NAME)
        try:
            self._maps.update("nodes", keys, values)
        except LbError as error:
            _LOG.warning("names of nodes not written: %s", error)
            return 0
        self._unwritten.clear()
        return len(keys)

    def forget_unused(self, used: set[int]) -> None:
        """Delete the names of nodes that no backend is on any more."""
        unused = {name: node for name, node in self.known.items() if node not in used}
        if unused:
            self._maps.delete("nodes", np.array(list(unused.values()), ID))
            self._pool.release(unused.values())
            for name, node in unused.items():
                del self.known[name]
                self._unwritten.pop(node, None)
        self.full = False


@dataclass(slots=True)
class Ledger:
    """Everything that one node's maps hold, and the pools that the rest comes from.

    services, backend_ids: by IP version. owners: the port that a VIP in the kernel belongs to. lingering: the
    VIPs among them that their port has no more.
    """

    services: Mapping[int, dict[ObjectKey, Ports]]
    owners: dict[VipKey, Port]
    service_ids: IdPool
    backend_ids: Mapping[int, IdPool]
    rows: RowPool
    nodes: NodeNames
    lingering: set[VipKey]


def no_services() -> dict[int, dict[ObjectKey, Ports]]:
    """Return Services by IP version, none of either."""
    return {version: {} for version in FAMILIES}


def new_ledger(maps: Maps, services: Mapping[int, dict[ObjectKey, Ports]], nodes: NodeNames) -> Ledger:
    """Return the ledger of these Services, given by IP version; what they do not use is free.

    Id 0 stays unused for Service ports and backends, so that a row of zeros never names a real one.
    """
    by_version = {
        version: [port for ports in by_key.values() for port in ports.values()]
        for version, by_key in services.items()
    }
    ports = [port for family in by_version.values() for port in family]
    used_regions = (region for port in ports for region in port.all_regions())
    return Ledger(
        services=services,
        owners={vip: port for port in ports for vip in (*port.vips, *port.gone)},
        service_ids=IdPool(
            "services", 1, maps.capacity("services"), "limits.services", (p.id for p in ports)
        ),
        backend_ids={
            version: IdPool(
                f"backends{version}",
                1,
                maps.capacity(f"backends{version}") - 1,
                "limits.backends",
                (backend for port in family for backend in port.backends.values()),
            )
            for version, family in by_version.items()
        },
        rows=RowPool(
            "tables", maps.capacity("tables") * LINE_ROWS, "limits.table_rows", used_regions, line=LINE_ROWS
        ),
        nodes=nodes,
        lingering={vip for port in ports for vip in port.gone},
    )


def vip_keys(version: int, vips: Iterable[VipKey]) -> Rows:
    """Return VIPs of one family as keys of ``vips4`` or ``vips6``."""
    rows = [(pack_address(vip.address), vip.port, vip.protocol or 0, 0) for vip in vips]
    return np.array(rows, VIP_KEY[version])


def vip_values(rows: Sequence[VipRow]) -> Rows:
    """Return VIPs' rows as values of ``vips4`` and ``vips6``."""
    return np.array([(*row, (0, 0)) for row in rows], VIP)


def read_vips(maps: Maps) -> dict[VipKey, VipRow]:
    """Read the VIPs of both families."""
    found = {}
    regions: dict[tuple[int, int], Region] = {}

    def shared(side: tuple[int, int]) -> Region:
        """Return one object for all VIPs of a port."""
        return regions.setdefault(side, Region(*side))

    for version in FAMILIES:
        keys, values = maps.read(f"vips{version}")
        for (address, port, protocol, _), (service, affinity, inside, outside, kind, flags, _) in zip(
            keys.tolist(), values.tolist(), strict=True
        ):
            vip = VipKey(unpack_address(address), port, Protocol(protocol) if protocol else None)
            found[vip] = VipRow(service, affinity, shared(inside), shared(outside), kind, flags)
    return found


def read_names(maps: Maps) -> dict[int, tuple[str, str]]:
    """Read the names of Service ports by id: ``namespace/name`` of the Service, and the port's own."""
    ids, rows = maps.read("services")
    return {
        ident: (f"{namespace.decode()}/{name.decode()}", port_name.decode())
        for ident, (namespace, name, port_name) in zip(ids.tolist(), rows.tolist(), strict=True)
    }


def read_nodes(maps: Maps) -> dict[int, str]:
    """Read the names of nodes by id."""
    ids, rows = maps.read("nodes")
    return {ident: name.decode() for ident, (name,) in zip(ids.tolist(), rows.tolist(), strict=True)}


_SERVICE_BITS = 32  # of a source range's key, in front of the address


def range_keys(version: int, ranges: Iterable[tuple[int, IPNetwork]]) -> Rows:
    """Return (Service port id, network) pairs of one family as keys of its ``source_ranges`` map."""
    rows = [
        (_SERVICE_BITS + net.prefixlen, service, pack_address(net.network_address)) for service, net in ranges
    ]
    return np.array(rows, SOURCE_RANGE[version])


def read_ranges(maps: Maps) -> list[tuple[int, IPNetwork]]:
    """Read the source ranges of both families as (Service port id, network) pairs, in no order."""
    return [
        (service, ip_network((unpack_address(address), prefix - _SERVICE_BITS)))
        for version in FAMILIES
        for prefix, service, address in maps.read(f"source_ranges{version}")[0].tolist()
    ]
