# SPDX-License-Identifier: Apache-2.0
"""Consistent hashing for small sets of backends: rendezvous, also called highest random weight.

(Thaler, Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996.) A connection goes to the backend
whose weight, mixed with the connection's hash, gives the greatest number. Every node computes the same; when
a backend goes, nothing but its own connections change hands; and every backend's share is the same.

The mixing is done for each new connection by ``rendezvous()`` in bpf/backend.h, over a list that needs no
work to make. A large set would take too many steps there: it gets a lookup table, see
:mod:`lb.plan.maglev`.
"""

from __future__ import annotations

from collections.abc import Iterable

import xxhash

SMALL_SET = 16
"""The largest set that is a list; SMALL_SET of bpf/types.h."""

_SEED = 0x6C62_6374_6C31  # part of the algorithm: another seed on one node, and nodes disagree


def weights(version: int, sockets: Iterable[int]) -> list[int]:
    """Return each backend's weight, a 32-bit hash of its identity.

    version: IP version of all. sockets: addresses as numbers, times 65536, plus ports.
    """
    family, digest = version << 144, xxhash.xxh3_64_intdigest
    return [digest((family | socket).to_bytes(19, "big"), _SEED) & 0xFFFF_FFFF for socket in sockets]
