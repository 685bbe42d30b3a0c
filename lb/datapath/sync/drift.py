# SPDX-License-Identifier: Apache-2.0
"""Whether the maps still hold what was written: compares the ledger with the kernel, plans nothing.

The agent repeats this all the time. While nobody writes, the maps stay the same, and to see that takes a
small part of a comparison. ``lbctl audit`` also compares with the source, and it compares the tables row by
row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash

from lb.datapath.maps.interface import Maps, Rows
from lb.datapath.maps.layouts import ADDRESS, FAMILIES, ID, VIP_KEY, BackendStateCode
from lb.datapath.sync.ledger import Ledger, Port, read_ranges, vip_keys, vip_values

_AT_ONCE = 512
"""Ports whose rows are made at a time: those of a whole cluster would take much memory for a moment."""


class Drift:
    """Compares again only when the maps are not as they were, or something has been written since."""

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        self._last: tuple[bytes, dict[str, int]] | None = None

    def look(self, ledger: Ledger) -> dict[str, int]:
        """Return what :func:`drift` does.

        Raises BpfError: a map could not be read.
        """
        seen = _fingerprint(self._maps)
        if self._last is None or self._last[0] != seen:
            self._last = seen, drift(ledger, self._maps)
        return self._last[1]

    def forget(self) -> None:
        """Call it when the ledger changes."""
        self._last = None


def _fingerprint(maps: Maps) -> bytes:
    """Return a hash of all that :func:`drift` reads. Equal contents may have another, in another order."""
    found = xxhash.xxh3_128()
    for version in FAMILIES:
        for name in (f"vips{version}", f"source_ranges{version}"):
            for part in maps.read(name):
                found.update(part.tobytes())
        found.update(maps.array(f"backends{version}").tobytes())
    return found.digest()


def drift(ledger: Ledger, maps: Maps) -> dict[str, int]:
    """Return by map how many VIPs, source ranges and backends are not as the ledger has them.

    Raises BpfError: a map could not be read.
    """
    found: dict[str, int] = {}
    ranges = set(read_ranges(maps))
    for version, services in ledger.services.items():
        ports = [port for by_port in services.values() for port in by_port.values()]
        found[f"vips{version}"] = _wrong_vips(maps, version, ports)
        wanted = {(port.id, network) for port in ports for network in port.ranges}
        there = {each for each in ranges if each[1].version == version}
        found[f"source_ranges{version}"] = len(wanted ^ there)
        found[f"backends{version}"] = _wrong_backends(maps, version, ports)
    return found


def _wrong_vips(maps: Maps, version: int, ports: Sequence[Port]) -> int:
    """Return how many VIPs are not as the ports of a family have them; a row that is not known is wrong."""
    keys, values = maps.read(f"vips{version}")
    live = _lines(keys, values)
    held: set[bytes] = set()
    for start in range(0, len(ports), _AT_ONCE):
        some = ports[start : start + _AT_ONCE]
        rows = {vip: row for port in some for vip, row in (*port.vips.items(), *port.gone.items()) if row}
        held |= _lines(vip_keys(version, rows), vip_values(list(rows.values())))
    wide = VIP_KEY[version].itemsize
    return len({line[:wide] for line in live ^ held})


def _lines(keys: Rows, values: Rows) -> set[bytes]:
    return {key.tobytes() + value.tobytes() for key, value in zip(keys, values, strict=True)}


def _wrong_backends(maps: Maps, version: int, ports: Sequence[Port]) -> int:
    """Return how many slots are not as the ports of a family have them, whether they are used or not."""
    live = maps.array(f"backends{version}")
    slots = np.array([slot for port in ports for slot in port.backends.values()], ID)
    packed = b"".join(
        [socket.to_bytes(18, "big") for port in ports for socket in port.backends]
    )  # address and port
    sockets = np.frombuffer(packed, [("wide", "V16"), ("port", ">u2")])
    rows = np.zeros(len(live), [("address", ADDRESS[version]), ("port", ">u2"), ("service", ID)])
    used = np.zeros(len(live), bool)
    wide = sockets["wide"] if version == 6 else sockets["wide"].copy().view(">u4")[3::4]
    rows["address"][slots], rows["port"][slots] = wide, sockets["port"]
    rows["service"][slots] = np.repeat([port.id for port in ports], [len(port.backends) for port in ports])
    used[slots] = True
    wrong = used != (live["state"] != BackendStateCode.FREE)
    for name in rows.dtype.names or ():
        wrong |= used & (rows[name] != live[name])
    return int(np.count_nonzero(wrong))
