# SPDX-License-Identifier: Apache-2.0
"""How two states of the maps differ, entry by entry, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lb.datapath.maps.interface import Maps, Rows
from lb.datapath.maps.layouts import (
    FAMILIES,
    ID,
    NODE_NONE,
    SETTINGS,
    BackendFlag,
    BackendStateCode,
    IfaceFlag,
    VipFlag,
    unpack_address,
)
from lb.datapath.sync.ledger import (
    KIND_WORDS,
    Ledger,
    VipRow,
    read_names,
    read_nodes,
    read_ranges,
    read_vips,
    set_of,
)
from lb.datapath.sync.pools import Region
from lb.datapath.sync.tables import listed, set_rows, table_rows, write_sets
from lb.model import IPAddress, socket_text
from lb.words import by_number

_FLAGS = {
    VipFlag.INSIDE_LOCAL: "Local for this node",
    VipFlag.OUTSIDE_LOCAL: "Local for others",
    VipFlag.SOURCE_RANGES: "source ranges",
    VipFlag.DIRECT: "direct return",
    VipFlag.UDP_STAYS: "a second chance for UDP",
    VipFlag.GONE: "gone, lingers for open connections",
}
_MEMBER = {
    BackendFlag.LOCAL: "local",
    BackendFlag.IN_CLUSTER_SET: "in the Cluster set",
    BackendFlag.IN_LOCAL_SET: "in the Local set",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One entry that differs. before, after: what it is and what it would be; ``""``: not there.

    service: ``namespace/name`` of whose it is, ``""`` when nobody's. version: IP version, 0 for none.
    """

    map: str
    entry: str
    service: str
    before: str
    after: str

    @property
    def sign(self) -> str:
        """``+`` for an entry that would come, ``-`` for one that would go, ``~`` for a change."""
        if not self.before:
            return "+"
        return "~" if self.after else "-"

    def as_dict(self) -> dict[str, Any]:
        """Return the difference as JSON has it."""
        return asdict(self)


def differences(before: Maps, after: Maps) -> list[Difference]:
    """Compare the maps that Python writes; by map, and within it by entry, ids and addresses as numbers.

    A cluster network that is wider than it would be is no difference: it only grows while an agent runs.

    Raises BpfError: a map could not be read.
    """
    old, new = _State(before), _State(after)
    found = []
    for name, entries in old.entries.items():
        others = new.entries[name]
        for key in sorted(entries.keys() | others.keys(), key=by_number):
            was, would = entries.get(key), others.get(key)
            if was is not None and would is not None and _in_step(was[1], would[1]):
                continue
            service = would[0] if would else was[0] if was else ""
            found.append(Difference(name, key, service, was[2] if was else "", would[2] if would else ""))
    return found


def _in_step(was: object, would: object) -> bool:
    return was.holds(would) if isinstance(was, _ClusterNetwork) else was == would


_Entry = tuple[str, object, str]
"""Service, what is compared, and the same in words."""


@dataclass(frozen=True, slots=True)
class _ClusterNetwork:
    """As in the settings; one without any clusterIP has the net 0, and all ones in the mask."""

    net: IPAddress
    mask: IPAddress

    def holds(self, other: object) -> bool:
        """Tell whether every clusterIP of another is in this one."""
        if not isinstance(other, _ClusterNetwork):
            return False
        net, mask = int(self.net), int(self.mask)
        if (int(other.net), int(other.mask) + 1) == (0, 1 << other.mask.max_prefixlen):
            return True
        return not mask & ~int(other.mask) and not (net ^ int(other.net)) & mask


class _State:
    """Entries by map and by the text of their key."""

    def __init__(self, maps: Maps) -> None:
        self._maps = maps

    @cached_property
    def entries(self) -> Mapping[str, dict[str, _Entry]]:
        found: dict[str, dict[str, _Entry]] = {"services": {}, "nodes": self._nodes}
        for ident, (service, port) in self._names.items():
            found["services"][f"#{ident}"] = (service, (service, port), f"{service} {port}".rstrip())
        for version in FAMILIES:
            found[f"source_ranges{version}"] = {}
            found[f"backends{version}"] = dict(self._backends(version))
            found[f"vips{version}"] = {}
            found[f"ifaces{version}"] = dict(self._ifaces(version))
            found[f"announced{version}"] = dict(self._announced(version))
            found[f"settings{version}"] = dict(self._settings(version))
        for ident, network in read_ranges(self._maps):
            service, port = self._name(ident)
            entry = (service, ident, "let in")
            found[f"source_ranges{network.version}"][f"#{ident} {network}"] = entry
        found["links"] = dict(self._links())
        found["tables"] = {}
        for vip, row in read_vips(self._maps).items():
            found[f"vips{vip.address.version}"][str(vip)] = self._vip(row)
            for region in (row.inside, row.outside):
                if region.size:
                    found["tables"][_rows_text(region)] = (
                        self._name(row.service)[0],
                        self._ids(region),
                        f"set of {len(self._ids(region))} backends",
                    )
        return found

    @cached_property
    def _names(self) -> dict[int, tuple[str, str]]:
        return read_names(self._maps)

    def _name(self, ident: int) -> tuple[str, str]:
        return self._names.get(ident, ("", ""))

    def _node(self, ident: int) -> str:
        known = self._nodes.get(f"#{ident}")
        return known[2] if known else f"node #{ident}"

    @cached_property
    def _nodes(self) -> dict[str, _Entry]:
        return {f"#{ident}": ("", name, name) for ident, name in read_nodes(self._maps).items()}

    @cached_property
    def _slots(self) -> dict[int, Rows]:
        return {version: np.array(self._maps.array(f"backends{version}")) for version in FAMILIES}

    def _backends(self, version: int) -> Iterator[tuple[str, _Entry]]:
        slots = self._slots[version]
        for slot in np.flatnonzero(slots["state"] != BackendStateCode.FREE).tolist():
            address, port, state, flags, ident, _, node = slots[slot].item()
            name = (
                BackendStateCode(state).name.lower() if state in iter(BackendStateCode) else f"state {state}"
            )
            words = [socket_text(unpack_address(address), port), name]
            words += [f"on {self._node(node)}"] if node != NODE_NONE else []
            value = (address, port, state, flags, ident, node)
            words += [text for flag, text in _MEMBER.items() if flags & flag]
            words += [f"unknown flags {rest}"] if (rest := flags & ~sum(_MEMBER)) else []
            yield f"#{slot}", (self._name(ident)[0], value, ", ".join(words))

    def _ifaces(self, version: int) -> Iterator[tuple[str, _Entry]]:
        indexes, rows = self._maps.read(f"ifaces{version}")
        for index, row in zip(indexes.tolist(), rows.tolist(), strict=True):
            address, flags = unpack_address(row[0]), IfaceFlag(row[1])
            words = [one.name.lower() for one in flags if one.name] or ["primary address"]
            words += [str(address)] if int(address) else []
            words += [f"MTU {row[2]}"] if row[2] else []
            yield f"#{index}", ("", row, " ".join(words))

    def _announced(self, version: int) -> Iterator[tuple[str, _Entry]]:
        keys, rows = self._maps.read(f"announced{version}")
        for (address, ifindex), mac in zip(keys.tolist(), rows["mac"].tolist(), strict=True):
            words = f"answered for, at link address {mac.hex(':')}"
            yield f"{unpack_address(address)} #{ifindex}", ("", mac, words)

    def _links(self) -> Iterator[tuple[str, _Entry]]:
        for index, mac, _ in self._maps.array("links")[0]["links"].tolist():
            if index:
                yield f"#{index}", ("", mac, f"link address {mac.hex(':')}")

    def _settings(self, version: int) -> Iterator[tuple[str, _Entry]]:
        row = self._maps.array(f"settings{version}")[0]
        for name in SETTINGS[version].fields or ():
            if name not in {"cluster_net", "cluster_mask", "snat_sources", "pad"}:
                yield name, ("", int(row[name]), str(int(row[name])))
        sources = tuple(unpack_address(each) for each in row["snat_sources"].tolist())
        yield "snat_sources", ("", sources, ", ".join(str(each) for each in sources if int(each)))
        net, mask = (unpack_address(row[name].tolist()) for name in ("cluster_net", "cluster_mask"))
        yield "cluster_net", ("", _ClusterNetwork(net, mask), f"{net} mask {mask}")

    @cached_property
    def _tables(self) -> Rows:
        return table_rows(self._maps)

    def _ids(self, region: Region) -> tuple[int, ...]:
        return tuple(np.unique(listed(self._tables, *region)).tolist())

    def _vip(self, row: VipRow) -> _Entry:
        service, port = self._name(row.service)
        sets = [self._ids(region) if region.size else () for region in (row.inside, row.outside)]
        words = [f"{service} {port}".strip() or f"unknown Service port #{row.service}"]
        words += [f"{KIND_WORDS.get(row.kind, f'kind {row.kind}')}"]
        inside, outside = map(len, sets)
        words += [
            f"{inside} backends" if sets[0] == sets[1] else f"{inside} backends here, {outside} outside"
        ]
        regions = dict.fromkeys(_rows_text(one) for one in (row.inside, row.outside) if one.size)
        words += [" and ".join(regions)] if regions else []
        words += [f"affinity {row.affinity_seconds} s"] if row.affinity_seconds else []
        words += [text for flag, text in _FLAGS.items() if row.flags & flag]
        words += [] if any(sets) or not row.flags & VipFlag.USABLE else ["dropped rather than rejected"]
        return service, row, ", ".join(words)


def _rows_text(region: Region) -> str:
    return f"rows {region.offset} to {region.offset + region.size - 1}"


@dataclass(frozen=True, slots=True)
class DamagedSet:
    """A set of backends whose rows are not those of its backends; rows are those that it should have."""

    difference: Difference
    region: Region
    rows: Rows


def damaged_sets(ledger: Ledger, live: Maps, wanted: Maps) -> list[DamagedSet]:
    """Return the sets in a ledger whose rows in the live maps are not as they were made.

    wanted: the maps that the ledger is about: live ones, or a :class:`lb.datapath.maps.overlay.Overlay` of
    them; rows that were written anew there are left out.

    Raises BpfError: a map could not be read.
    """
    rows = table_rows(live)
    touched = table_rows(wanted)
    found = []
    for version, services in ledger.services.items():
        for key, ports in services.items():
            for port in ports.values():
                sockets = {slot: socket for socket, slot in port.backends.items()}
                for key_of_set, region in port.regions.items():
                    ids, weights = set_of(key_of_set)
                    if any(ident < 0 for ident in ids) or not ids:
                        continue
                    right = np.asarray(set_rows(ids, version, [sockets[i] for i in ids], weights), ID)
                    part = slice(region.offset, region.offset + len(right))
                    as_live = np.array_equal(touched[part], rows[part])
                    if as_live and not np.array_equal(rows[part], right):
                        wrong = int(np.count_nonzero(rows[part] != right))
                        difference = Difference(
                            "tables",
                            _rows_text(region),
                            str(key),
                            f"{wrong} of {len(right)} words are wrong",
                            f"set of {len(ids)} backends",
                        )
                        found.append(DamagedSet(difference, region, right))
    return found


def repair(maps: Maps, damaged: Iterable[DamagedSet]) -> None:
    """Write the rows of damaged sets where they are: each row leads to a backend of the set.

    Raises BpfError: the kernel refused.
    """
    write_sets(maps, ((one.region, one.rows) for one in damaged))
