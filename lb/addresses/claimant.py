# SPDX-License-Identifier: Apache-2.0
"""A Service as whoever gives addresses reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lb.addresses.request import NO_REQUEST, AddressRequest
from lb.model import IPAddress, Service, ServiceType


@dataclass(frozen=True, slots=True)
class Claimant(Service):
    """A Service with what it says about its load-balancer address, and what its status says.

    Of the base class's fields key, type, ports, selector, external_policy, labels, created, cluster_ips,
    external_ips and load_balancer_ips are filled in, the last ones whatever their ipMode.

    Attributes
    ----------
    families: IP versions that it is served in, in order.
    requires_all: it is not satisfied with an address of one of them (RequireDualStack).
    load_balancer_class: ``""`` for none.
    elsewhere: its status has an entry that is no address of ours (a host name, ipMode Proxy): somebody else
        serves it.
    uid, version: of the object; ``""`` without an API.
    ingress, conditions: the lists in its status as they are there.
    """

    families: tuple[int, ...] = (4,)
    requires_all: bool = False
    load_balancer_class: str = ""
    request: AddressRequest = NO_REQUEST
    elsewhere: bool = False
    uid: str = ""
    version: str = ""
    ingress: tuple[Mapping[str, Any], ...] = field(default=())
    conditions: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def balanced(self) -> bool:
        """Whether it is of type LoadBalancer: the addresses in its status count for no other type."""
        return self.type is ServiceType.LOAD_BALANCER

    @property
    def standing(self) -> tuple[IPAddress, ...]:
        """The load-balancer addresses that it has."""
        return self.load_balancer_ips if self.balanced else ()
