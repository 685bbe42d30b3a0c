# SPDX-License-Identifier: Apache-2.0
"""What direct return needs to know of nodes (``bpf/direct.h``): where they are, and which backends are here.

Three maps of each family: ``hosts`` (node id to address) says where a packet for another node's backend goes,
``host_addresses`` from whom such packets are taken, ``endpoints`` which slot a backend of this node has that
another node names. Without direct return they are empty.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from lb.datapath.maps.interface import Maps
from lb.datapath.maps.layouts import (
    ADDRESS,
    FAMILIES,
    ID,
    SOCKET_ADDRESS,
    BackendFlag,
    BackendStateCode,
    pack_address,
)
from lb.datapath.sync.slots import Slots
from lb.errors import LbError
from lb.model import IPAddress, Node

_LOG = logging.getLogger(__name__)

Entries = dict[Any, Any]


class DirectReturn:
    """Writes the three maps; what they hold is read once, and later differences are written.

    nodes: the other nodes of the cluster as they are now. A failed write is one warning, and is tried again
    with the next call: meanwhile packets go by SNAT, or are counted for nobody.
    """

    def __init__(self, maps: Maps, nodes: Callable[[], Iterable[Node]]) -> None:
        self._maps = maps
        self._nodes = nodes
        self._known: dict[str, Entries] = {}
        self._failed = ""

    def write_hosts(self, ids: Mapping[str, int]) -> None:
        """Write where the nodes are; ids are the numbers of those that have backends, by name."""
        nodes = list(self._nodes())
        for version in FAMILIES:
            addresses = {node.name: _addresses(node, version) for node in nodes}
            hosts = {ids[name]: own[0] for name, own in addresses.items() if own and name in ids}
            sources = {address: 1 for own in addresses.values() for address in own}
            self._write(f"hosts{version}", hosts, ID, ADDRESS[version])
            self._write(f"host_addresses{version}", sources, ADDRESS[version], ID)

    def write_endpoints(self, slots: Slots) -> None:
        """Write which slots the backends of this node have."""
        for version in FAMILIES:
            rows = slots[version]
            here = (rows["state"] != BackendStateCode.FREE) & (rows["flags"] & BackendFlag.LOCAL != 0)
            ids = np.flatnonzero(here)
            found = rows[ids]
            fields = (found[name].tolist() for name in ("address", "service", "port"))
            wanted = {
                (address, service, port, (0, 0)): ident
                for ident, address, service, port in zip(ids.tolist(), *fields, strict=True)
            }
            self._write(f"endpoints{version}", wanted, SOCKET_ADDRESS[version], ID)

    def _write(self, name: str, wanted: Entries, key: Any, value: Any) -> None:
        try:
            if name not in self._known:
                self._known[name] = read_entries(self._maps, name)
            known = self._known[name]
            gone = [one for one in known if one not in wanted]
            changed = [one for one in wanted if known.get(one) != wanted[one]]
            if gone:
                self._maps.delete(name, np.array(gone, key))
            if changed:
                self._maps.update(name, np.array(changed, key), np.array([wanted[c] for c in changed], value))
            self._known[name] = wanted
        except LbError as error:
            self._known.pop(name, None)
            if str(error) != self._failed:
                self._failed = str(error)
                _LOG.warning("direct return: %s not written: %s", name, error)


def read_entries(maps: Maps, name: str) -> Entries:
    """Return what one of the maps holds, as Python objects.

    Raises BpfError: the kernel refused.
    """
    keys, values = maps.read(name)
    return dict(zip(map(_hashable, keys.tolist()), values.tolist(), strict=True))


def _hashable(key: Any) -> Any:
    """Return a key as a dictionary takes it: an array in it stays one in numpy's rows."""
    return tuple(map(_hashable, key)) if isinstance(key, tuple | np.ndarray) else key


def clear_direct_return(maps: Maps) -> None:
    """Empty the maps, as they are without direct return.

    Raises BpfError: the kernel refused.
    """
    for version in FAMILIES:
        for name in ("hosts", "host_addresses", "endpoints"):
            keys = maps.read(f"{name}{version}")[0]
            if len(keys):
                maps.delete(f"{name}{version}", keys)


def _addresses(node: Node, version: int) -> list[int | bytes]:
    own: list[IPAddress] = [address for address in node.addresses if address.version == version]
    return [pack_address(address) for address in own]
