# SPDX-License-Identifier: Apache-2.0
"""What numbers in the maps are called: nodes, protocols, and a backend as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lb.datapath.maps.layouts import NODE_NONE, BackendFlag, BackendStateCode, unpack_address
from lb.model import Protocol, socket_text

NEW_FLOW = frozenset({"NEW_LOCAL", "NEW_REMOTE", "NEW_HAIRPIN", "NEW_DIRECT"})
"""Reasons of the first packet of a flow, by where its backend is and how it gets there."""


@dataclass(frozen=True, slots=True)
class ShownBackend:
    """A backend by its slot.

    node: ``""`` if its endpoint names none.
    state: ``active``, ``terminating``, or ``free`` if the backend is gone and its slot is unused or
    another's.
    """

    id: int
    address: str
    node: str
    local: bool
    state: str

    @property
    def terminating(self) -> bool:
        """Whether it is on its way out."""
        return self.state == BackendStateCode.TERMINATING.name.lower()


def backend(
    ident: int, slot: tuple[Any, ...], node_of: Callable[[int], str | None], *, gone: bool
) -> ShownBackend:
    """Return a backend in words.

    slot: the fields of its struct backend_slot, as ``tolist()`` gives them. node_of: see :func:`node_name`.
    gone: the slot is free, or another backend's by now.
    """
    address, port, state, flags, _, _, node = slot
    return ShownBackend(
        ident,
        socket_text(unpack_address(address), port),
        node_name(node, node_of),
        bool(flags & BackendFlag.LOCAL),
        BackendStateCode(BackendStateCode.FREE if gone else state).name.lower(),
    )


def node_name(ident: int, node_of: Callable[[int], str | None]) -> str:
    """Return a node's name, ``""`` for none. node_of gives that of an id, None where the maps have none."""
    if ident == NODE_NONE:
        return ""
    name = node_of(ident)
    return "unknown" if name is None else name


def protocol_name(number: int) -> str:
    """Return the name of a protocol, or its number as text."""
    try:
        return Protocol(number).name
    except ValueError:
        return {1: "ICMP", 58: "ICMPv6"}.get(number, str(number))


def mac_text(mac: bytes) -> str:
    """Return a link address as ``02:77:00:00:00:01``; mac: its six bytes, of numpy's kind or Python's."""
    return bytes(mac).hex(":")
