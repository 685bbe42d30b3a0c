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

from lb.plan.maglev import Identity

SMALL_SET = 16
"""The largest set that is a list; SMALL_SET of bpf/types.h."""

_SEED = 0x6C62_6374_6C31  # part of the algorithm: another seed on one node, and nodes disagree


def weights(identities: Iterable[Identity]) -> list[int]:
    """Return each backend's weight, a 32-bit hash of its identity."""
    return [
        xxhash.xxh3_64_intdigest((version << 144 | address << 16 | port).to_bytes(19, "big"), _SEED)
        & 0xFFFF_FFFF
        for version, address, port in identities
    ]
