# SPDX-License-Identifier: Apache-2.0
"""Which Services may have one address together, and which of them gives way: pure."""

from __future__ import annotations

from lb.addresses.claimant import Claimant
from lb.addresses.request import EVERYWHERE
from lb.model import ObjectKey, TrafficPolicy


def age(each: Claimant) -> tuple[str, ObjectKey]:
    """Return what orders Services, the oldest first; one without a time of creation is young."""
    return (each.created or "~", each.key)


def collide(one: Claimant, other: Claimant) -> bool:
    """Tell whether a port of one protocol is of both Services."""
    return bool({(p.protocol, p.port) for p in one.ports} & {(p.protocol, p.port) for p in other.ports})


def may_share(one: Claimant, other: Claimant) -> bool:
    """Tell whether two Services may have one address together.

    They say so with the same key, in one namespace unless both open themselves; no port and protocol is of
    both; and either any node may serve both, or both are served by the same pods: with
    externalTrafficPolicy Local an address would lead to nodes that can serve one of them alone.
    """
    if not one.request.sharing_key or one.request.sharing_key != other.request.sharing_key:
        return False
    if one.key.namespace != other.key.namespace and not (_opens(one, other) and _opens(other, one)):
        return False
    if collide(one, other):
        return False
    local = TrafficPolicy.LOCAL in (one.external_policy, other.external_policy)
    same_pods = one.key.namespace == other.key.namespace and one.selector and one.selector == other.selector
    return not local or bool(same_pods)


def _opens(one: Claimant, other: Claimant) -> bool:
    return bool(one.request.sharing_namespaces & {other.key.namespace, EVERYWHERE})


def gives_way(each: Claimant, other: Claimant) -> bool:
    """Tell whether a Service leaves an address that it shares to another: both have come to want one port.

    The younger one does, for nodes serve the port for the older one. Who shares without the same key has
    agreed to nothing, and moves for nobody.
    """
    key = each.request.sharing_key
    return bool(key) and key == other.request.sharing_key and age(other) < age(each) and collide(each, other)
