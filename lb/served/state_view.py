# SPDX-License-Identifier: Apache-2.0
"""What the cluster's state holds and no map does: Services without a VIP, pods' names, pools' addresses.

Both are worked out when somebody asks, from what the state holds at that moment, in the asker's thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lb.model import EndpointSlice, Service, ServiceType, socket_text
from lb.served.api import Query, as_json, service_of
from lb.served.http import Answer
from lb.state import ClusterState


class StateView:
    """Tells of a state; may be asked from any thread."""

    def __init__(self, state: ClusterState) -> None:
        self._state = state

    def answers(self) -> dict[str, Answer]:
        """Return what answers each path."""
        return {
            "/api/unserved": as_json(lambda _query: {"services": self.unserved()}),
            "/api/balanced": as_json(lambda query: {"services": self.balanced(query)}),
            "/api/pods": as_json(lambda query: {"pods": self.pods(query)}),
        }

    def unserved(self) -> list[dict[str, str]]:
        """Return the Services that have no VIP because none is asked for, by name, and why."""
        found = ((str(one.key), why(one)) for one in self._state.services())
        return [{"service": service, "why": text} for service, text in sorted(found) if text]

    def balanced(self, query: Query) -> list[dict[str, Any]]:
        """Return the Services of type LoadBalancer, or one, with their addresses and what is said of them."""
        key = service_of(query) if "service" in query else None
        return [
            {
                "service": str(one.key),
                "addresses": [str(address) for address in one.load_balancer_ips],
                "note": one.balancer_note,
            }
            for one in sorted(self._state.services(), key=lambda each: each.key)
            if one.type is ServiceType.LOAD_BALANCER and key in (None, one.key)
        ]

    def pods(self, query: Query) -> dict[str, str]:
        """Return the pods behind addresses, of one Service or of all: see :func:`by_address`."""
        key = service_of(query) if "service" in query else None
        slices = self._state.all_slices()
        return by_address([one for one in slices if key is None or one.service == key])


def why(service: Service) -> str:
    """Return why a Service asks for no VIP of ours, ``""`` when it does."""
    if not service.proxied:
        return "a label gives it to another proxy"
    if service.type is ServiceType.EXTERNAL_NAME:
        return f"ExternalName: DNS answers with {service.external_name}"
    return "headless: DNS answers with the pods' addresses" if service.headless else ""


def by_address(slices: list[EndpointSlice]) -> dict[str, str]:
    """Return ``namespace/name`` of the pod at each ``address:port``, and at each address of one pod."""
    found: dict[str, str] = {}
    several: set[str] = set()
    for place, pod in _places(slices):
        if found.setdefault(place, pod) != pod:
            several.add(place)
    return {place: pod for place, pod in found.items() if place not in several}


def _places(slices: list[EndpointSlice]) -> Iterator[tuple[str, str]]:
    for piece in slices:
        ports = [port.port for port in piece.ports]
        for endpoint, pod in piece.named():
            if pod:
                yield str(endpoint.address), pod
                for port in ports:
                    yield socket_text(endpoint.address, port), pod
