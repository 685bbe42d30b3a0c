# SPDX-License-Identifier: Apache-2.0
"""From the live maps back to the ledger, so that a restarted agent goes on with the ids that flows hold."""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np

from lb.datapath.maps.interface import Maps, Rows
from lb.datapath.maps.layouts import FAMILIES, ID, NODE_SELF, BackendStateCode, VipFlag, unpack_address
from lb.datapath.sync import accounts
from lb.datapath.sync.former_sets import read_former
from lb.datapath.sync.ledger import (
    Ledger,
    NodeNames,
    Port,
    PortKey,
    Socket,
    VipRow,
    new_ledger,
    no_services,
    range_keys,
    read_names,
    read_nodes,
    read_ranges,
    read_vips,
    set_key,
)
from lb.datapath.sync.tables import list_weights, listed, set_size, table_rows
from lb.model import ObjectKey
from lb.plan import SMALL_SET
from lb.plan.types import VipKey

_NAMELESS = ObjectKey("", "")
_ById = dict[tuple[int, int], Port]
"""Ports by IP version and id."""


def read_ledger(maps: Maps) -> Ledger:
    """Rebuild the ledger and clean away what a crash half-way through a sync has left.

    Writes come in the order names, source ranges, backends, tables, VIPs, and deletions in reverse. So a
    crash can leave entries that no VIP leads to: names, ranges and backends of ports without VIPs, and names
    of nodes without backends. They are deleted here. A VIP whose port has no name can only come from damage.
    It is filed under a Service without a name, which no source has, so the next comparison with the source
    deletes it.

    Raises BpfError: the kernel refused a read or a clean-up.
    """
    services = no_services()
    names = _service_names(maps)
    ports: _ById = {}
    for vip, row in sorted(read_vips(maps).items(), key=_port_order):
        version = vip.address.version
        if (version, row.service) not in ports:
            key, port_name = names.get(row.service, (_NAMELESS, ""))
            port_key: PortKey = (port_name, vip.protocol)
            if key == _NAMELESS or port_key in services[version].get(key, ()):
                key, port_key = _NAMELESS, (str(row.service), vip.protocol)
            port = ports[version, row.service] = Port(row.service, named=row.service in names)
            services[version].setdefault(key, {})[port_key] = port
        port = ports[version, row.service]
        (port.gone if row.flags & VipFlag.GONE else port.vips)[vip] = row
    tables = table_rows(maps)
    _read_former(maps, tables, ports)
    _read_ranges(maps, ports)
    for family in FAMILIES:
        _read_backends(maps, family, ports)
    for port in ports.values():
        _read_regions(tables, port)
    stray = names.keys() - {port.id for port in ports.values()}
    if stray:
        maps.delete("services", np.array(sorted(stray), ID))
    accounts.recover(maps, sorted(names.keys() - stray))
    return new_ledger(maps, services, _read_nodes(maps))


def _port_order(entry: tuple[VipKey, VipRow]) -> tuple[bool, int, int, int, int]:
    """Order VIPs by id, so that a restart on equal maps always goes on in the same way.

    Addresses as a whole come last: it is the other VIPs that know their port's protocol.
    """
    vip, row = entry
    return (vip.protocol is None, row.service, int(vip.address), vip.port, vip.protocol or 0)


def _service_names(maps: Maps) -> dict[int, tuple[ObjectKey, str]]:
    found = {}
    for ident, (service, port_name) in read_names(maps).items():
        namespace, _, name = service.partition("/")
        found[ident] = (ObjectKey(sys.intern(namespace), name), sys.intern(port_name))
    return found


def _read_former(maps: Maps, tables: Rows, ports: _ById) -> None:
    """Give the ports their former sets; delete those that no port has."""
    former = read_former(maps)
    for (_, ident), port in ports.items():
        if ident in former:
            port.line, port.unordered, port.former = former.pop(ident)
            port.ages = listed(tables, *port.line).tolist()
    if former:
        maps.delete("former", np.array(sorted(former), ID))


def _read_ranges(maps: Maps, ports: _ById) -> None:
    """Give the ports their source ranges; delete those that no port has."""
    leftovers = []
    for service, network in read_ranges(maps):
        if port := ports.get((network.version, service)):
            port.ranges[network] = True
        else:
            leftovers.append((service, network))
    for version in FAMILIES:
        of_family = [each for each in leftovers if each[1].version == version]
        if of_family:
            maps.delete(f"source_ranges{version}", range_keys(version, of_family))


def _read_backends(maps: Maps, version: int, ports: _ById) -> None:
    """Give the ports of one family their backends; free the slots that no port has."""
    slots = maps.array(f"backends{version}")
    used = np.flatnonzero(slots["state"] != BackendStateCode.FREE)
    leftovers = []
    rows = slots[used]
    addresses = rows["address"].tolist()
    if version == 6:
        addresses = [int(unpack_address(address)) for address in addresses]
    for backend, address, number, service in zip(
        used.tolist(), addresses, rows["port"].tolist(), rows["service"].tolist(), strict=True
    ):
        socket: Socket = address << 16 | number
        port = ports.get((version, service))
        if port is not None and socket not in port.backends:
            port.backends[socket] = backend
        else:
            leftovers.append(backend)
    if leftovers:
        slots["state"][leftovers] = BackendStateCode.FREE


def _read_regions(tables: Rows, port: Port) -> None:
    """File a port's sets under the backends in their rows."""
    sockets = {backend: socket for socket, backend in port.backends.items()}
    regions = {region for row in port.vips.values() if row for region in (row.inside, row.outside)}
    for region in sorted(regions):
        if not region.size:
            continue
        found = listed(tables, *region).tolist()
        weights = list_weights(tables, *region)
        ids = tuple(sorted(sockets.keys() & set(found), key=sockets.__getitem__))
        as_made = list(ids) == found if len(found) <= SMALL_SET else _is_even(ids, found)
        good = as_made and region.size == set_size(len(ids), weighted=bool(weights)) and 0 not in weights
        key = set_key(ids, weights if good else ())
        # A set that is not as it would be made today keeps its rows until its VIPs have a new one; the
        # negative number keeps it from being taken for the set of its backends. So does a table of unequal
        # weights, which cannot be read from it.
        port.regions[key if good and key not in port.regions else (*ids, -1 - region.offset)] = region


def _is_even(ids: tuple[int, ...], found: list[int]) -> bool:
    """Tell whether the rows of a table have just these ids, and each as often as a table of equal weights."""
    counts = Counter(found)
    return counts.keys() == set(ids) and max(counts.values()) - min(counts.values()) <= 1


def _read_nodes(maps: Maps) -> NodeNames:
    by_id = read_nodes(maps)
    own = by_id.pop(NODE_SELF, None)
    nodes = NodeNames(maps, {name: node for node, name in by_id.items()}, own)
    nodes.forget_unused(nodes_in_use(maps))
    return nodes


def nodes_in_use(maps: Maps) -> set[int]:
    """Return the node ids of all backends."""
    used: set[int] = set()
    for version in FAMILIES:
        slots = maps.array(f"backends{version}")
        used.update(np.unique(slots["node"][slots["state"] != BackendStateCode.FREE]).tolist())
    return used
