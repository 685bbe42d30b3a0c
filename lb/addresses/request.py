# SPDX-License-Identifier: Apache-2.0
"""What a Service says about its load-balancer address: pure.

Our own annotations, and those with which MetalLB and Cilium are told the same (their documentation: MetalLB,
"Usage"; Cilium, "LoadBalancer IP Address Management"). Of two that say different things, the first of these
lists counts; spec.loadBalancerIP comes last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from lb.model import IPAddress

ADDRESSES = (
    "lbctl/addresses",
    "metallb.io/loadBalancerIPs",
    "metallb.universe.tf/loadBalancerIPs",
    "lbipam.cilium.io/ips",
    "io.cilium/lb-ipam-ips",
)
"""Addresses, separated by commas: at most one of each family."""

POOLS = ("lbctl/pools", "metallb.io/address-pool", "metallb.universe.tf/address-pool")
"""Names of pools, separated by commas: only out of these."""

SHARING_KEY = (
    "lbctl/sharing-key",
    "metallb.io/allow-shared-ip",
    "metallb.universe.tf/allow-shared-ip",
    "lbipam.cilium.io/sharing-key",
    "io.cilium/lb-ipam-sharing-key",
)
"""Services with the same key may have one address together; see :func:`lb.addresses.allocate.may_share`."""

SHARING_NAMESPACES = (
    "lbctl/sharing-namespaces",
    "lbipam.cilium.io/sharing-cross-namespace",
    "io.cilium/lb-ipam-sharing-cross-namespace",
)
"""Namespaces of others that may share, separated by commas, or ``*``; default: one's own alone."""

EVERYWHERE = "*"
_SHARED_EVERYWHERE = SHARING_KEY[1:3]  # MetalLB knows no limit


@dataclass(frozen=True, slots=True)
class AddressRequest:
    """What a Service asks for.

    Attributes
    ----------
    addresses: by IP version (4, 6).
    pools: names; empty: any that is automatic.
    sharing_key, sharing_namespaces: see above; ``""``: it shares with nobody.
    error: what of it cannot be read; nothing new is given then.
    """

    addresses: Mapping[int, IPAddress]
    pools: tuple[str, ...] = ()
    sharing_key: str = ""
    sharing_namespaces: frozenset[str] = frozenset()
    error: str = ""


NO_REQUEST = AddressRequest({})


def read_request(annotations: Mapping[str, str], load_balancer_ip: str = "") -> AddressRequest:
    """Return what annotations and spec.loadBalancerIP ask for."""
    name, text = _first(annotations, ADDRESSES)
    if not text:
        name, text = "spec.loadBalancerIP", load_balancer_ip
    addresses: dict[int, IPAddress] = {}
    error = ""
    try:
        for word in _words(text):
            address = ip_address(word)
            if addresses.setdefault(address.version, address) != address:
                raise ValueError(f"{text!r} names two addresses of IPv{address.version}")
    except ValueError as wrong:
        error = f"{name}: {wrong}"
    key_name, key = _first(annotations, SHARING_KEY)
    spaces = set(_words(_first(annotations, SHARING_NAMESPACES)[1]))
    if key_name in _SHARED_EVERYWHERE:
        spaces.add(EVERYWHERE)
    return AddressRequest(
        addresses,
        pools=tuple(_words(_first(annotations, POOLS)[1])),
        sharing_key=key,
        sharing_namespaces=frozenset(spaces),
        error=error,
    )


def _first(annotations: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, str]:
    """Return name and text of the first annotation that is not empty; two empty texts for none."""
    return next(((name, text) for name in names if (text := annotations.get(name, "").strip())), ("", ""))


def _words(text: str) -> list[str]:
    return [word for part in text.split(",") if (word := part.strip())]
