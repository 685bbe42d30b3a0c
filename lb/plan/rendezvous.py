# SPDX-License-Identifier: Apache-2.0
"""Consistent hashing for small sets of backends: rendezvous, also called highest random weight.

(Thaler, Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996.) A connection goes to the backend
whose seed, mixed with the connection's hash, gives the greatest number. Every node computes the same; when
a backend goes, nothing but its own connections change hands; and every backend's share is the same.

With unequal weights the logarithm of that number is divided by the weight (Schindelhauer, Schomaker,
"Weighted Distributed Hash Tables", 2005). Shares are then as the weights, and when a weight changes, only
connections of that backend change hands, or become its own. With equal weights it is the choice above, so a
set that gets unequal weights, or equal ones again, keeps all other connections where they are.

The mixing is done for each new connection in bpf/backend.h, over a list that needs no work to make. A large
set would take too many steps there: it gets a lookup table, see :mod:`lb.plan.maglev`.
"""

from __future__ import annotations

from collections.abc import Iterable

import xxhash

SMALL_SET = 16
"""The largest set that is a list; SMALL_SET of bpf/types.h."""

FULL_WEIGHT = 1 << 26
"""What is divided by a weight; FULL_WEIGHT of bpf/types.h."""

_SEED = 0x6C62_6374_6C31  # part of the algorithm: another seed on one node, and nodes disagree


def seeds(version: int, sockets: Iterable[int]) -> list[int]:
    """Return each backend's seed, a 32-bit hash of its identity.

    version: IP version of all. sockets: addresses as numbers, times 65536, plus ports.
    """
    family, digest = version << 144, xxhash.xxh3_64_intdigest
    return [digest((family | socket).to_bytes(19, "big"), _SEED) & 0xFFFF_FFFF for socket in sockets]


def divisors(weights: Iterable[int]) -> list[int]:
    """Return what the programs multiply logarithms by, for weights of 1 and more."""
    return [FULL_WEIGHT // weight for weight in weights]


def weights_of(found: Iterable[int]) -> list[int]:
    """Return the weights that divisors were made of; exact up to 5000. 0 for what no weight gives."""
    return [round(FULL_WEIGHT / divisor) if divisor else 0 for divisor in found]
