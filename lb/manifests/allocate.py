# SPDX-License-Identifier: Apache-2.0
"""Which address or node port a Service gets that names none: pure, and the same on every node.

The rule. A claimant's place is a hash of its name, reduced to the pool; where that place is taken, the next
free one counts, wrapping around. Numbers that manifests name are taken from the start; claimants are placed
in the order of their names. So the outcome depends on the set of names and claims only, not on history, on
the order of files, or on the node, and a Service keeps what it has when others come or go, unless their
places collide.

Like Kubernetes' allocators, the low end of each pool is used only when the rest is full, so that numbers
chosen by hand there seldom collide (Kubernetes documentation, "Virtual IPs and Service Proxies", avoiding
collisions).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence

from lb.model import IPNetwork


def place(claimants: Iterable[str], taken: Collection[int], bands: Sequence[range]) -> dict[str, int]:
    """Give every claimant a number of its own.

    bands are the numbers to give, the first band until it is full, then the next; taken ones are never given.
    A claimant that is missing in the result found no number left.
    """
    free = {band: _size(band) - sum(1 for number in taken if number in band) for band in bands}
    used = set(taken)
    result: dict[str, int] = {}
    for claimant in sorted(claimants):
        band = next((band for band in bands if free[band] > 0), None)
        if band is None:
            break
        at = int.from_bytes(hashlib.blake2b(claimant.encode(), digest_size=8).digest()) % _size(band)
        while band[at] in used:
            at = (at + 1) % _size(band)
        free[band] -= 1
        used.add(band[at])
        result[claimant] = band[at]
    return result


def address_bands(network: IPNetwork) -> list[range]:
    """Return the addresses of a service network, as numbers, that may be given, the preferred first.

    Not among them: the network's own address, the first one (Kubernetes' API server takes it), IPv4's
    broadcast address. The low end is a sixteenth of the network, at least 16 and at most 256 addresses.
    """
    base, size = int(network.network_address), network.num_addresses
    end = base + size - (1 if network.version == 4 else 0)
    return _bands(base + 2, end, base + _low_end(size, 16, 256))


def port_bands(ports: range) -> list[range]:
    """Return the node ports that may be given, the preferred first; the low end is 16 to 128 ports."""
    return _bands(ports.start, ports.stop, ports.start + _low_end(len(ports), 32, 128))


def _size(band: range) -> int:
    return band.stop - band.start  # len() cannot count an IPv6 network


def _low_end(size: int, share: int, most: int) -> int:
    return 0 if size <= 16 else min(max(16, size // share), most)


def _bands(first: int, end: int, split: int) -> list[range]:
    split = min(max(first, split), end)
    return [band for band in (range(split, end), range(first, split)) if band]
