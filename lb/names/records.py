# SPDX-License-Identifier: Apache-2.0
"""Which records a Service has in DNS: pure.

After "Kubernetes DNS-Based Service Discovery", version 1.1.0 (github.com/kubernetes/dns,
docs/specification.md). Owner names and data are absolute, in DNS's text form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lb.model import EndpointSlice, IPAddress, Service, ServiceType

Records = Mapping[tuple[str, str], frozenset[str]]
"""Data by owner name and type, ``("kubia.default.svc.cluster.local.", "A"): {"10.66.13.240"}``."""

VERSION = "1.1.0"
"""Of the specification, as ``dns-version`` tells it."""

NO_ENDPOINTS = '"no endpoint is ready"'
"""The text of a headless Service without any address, so that its name exists and an answer has no data."""

_PRIORITY_AND_WEIGHT = "0 100"  # of SRV records: all are equal


class _Found:
    """Records while they are gathered."""

    def __init__(self) -> None:
        self._sets: dict[tuple[str, str], set[str]] = {}

    def add(self, owner: str, kind: str, data: str) -> None:
        self._sets.setdefault((owner, kind), set()).add(data)

    def address(self, owner: str, address: IPAddress) -> None:
        self.add(owner, "A" if address.version == 4 else "AAAA", str(address))

    def service(self, name: str, protocol: str, port: int, owner: str, target: str) -> None:
        """Add the SRV record of a port; one without a name has none."""
        if name:
            srv = f"_{name}._{protocol.lower()}.{owner}"
            self.add(srv, "SRV", f"{_PRIORITY_AND_WEIGHT} {port} {target}")

    def records(self) -> Records:
        return {key: frozenset(data) for key, data in self._sets.items()}


def service_records(service: Service, slices: Iterable[EndpointSlice], zone: str) -> Records:
    """Return the records of one Service; zone is the cluster's, without final dot.

    With a clusterIP: its addresses, an SRV record for each named port, the way back from the addresses.
    Headless: the same for the addresses of the ready endpoints, each of which also has a name of its own: its
    hostname, else one made of its address. ExternalName: an alias.
    """
    own = f"{service.key.name}.{service.key.namespace}.svc.{zone}."
    found = _Found()
    if service.type is ServiceType.EXTERNAL_NAME:
        found.add(own, "CNAME", f"{service.external_name.rstrip('.')}.")
    elif service.headless:
        _headless(found, service, slices, own)
    else:
        for address in service.cluster_ips:
            found.address(own, address)
            found.add(f"{address.reverse_pointer}.", "PTR", own)
        for port in service.ports if service.cluster_ips else ():
            found.service(port.name, port.protocol.name, port.port, own, own)
    return found.records()


def _headless(found: _Found, service: Service, slices: Iterable[EndpointSlice], own: str) -> None:
    some = False
    for piece in slices:
        for endpoint, hostname in zip(piece.endpoints, piece.host_names(), strict=True):
            if not endpoint.ready and not service.publish_not_ready:
                continue
            some = True
            host = hostname or str(endpoint.address).replace(".", "-").replace(":", "-")
            target = f"{host}.{own}"
            found.address(own, endpoint.address)
            found.address(target, endpoint.address)
            found.add(f"{endpoint.address.reverse_pointer}.", "PTR", target)
            for port in piece.ports:
                found.service(port.name, port.protocol.name, port.port, own, target)
    if not some:
        found.add(own, "TXT", NO_ENDPOINTS)


def zone_records(zone: str, server: str, addresses: Iterable[IPAddress]) -> Records:
    """Return what a cluster's zone has besides: the version, and the addresses of the server's name."""
    found = _Found()
    found.add(f"dns-version.{zone}.", "TXT", f'"{VERSION}"')
    for address in addresses:
        found.address(f"{server}.", address)
    return found.records()


def merged(parts: Iterable[Records]) -> Records:
    """Return the records of all; data of one owner and type come together."""
    found: dict[tuple[str, str], frozenset[str]] = {}
    for part in parts:
        for key, data in part.items():
            known = found.get(key)
            found[key] = data if known is None else known | data
    return found


def by_zone(records: Records, zones: Iterable[str]) -> dict[str, Records]:
    """Return each zone's records, by its name without final dot; those that are in none of them are left out.

    Of zones that are one within the other the inner one has them.
    """
    found: dict[str, dict[tuple[str, str], frozenset[str]]] = {zone: {} for zone in zones}
    for (owner, kind), data in records.items():
        zone = owner[:-1]
        while zone and zone not in found:
            zone = zone.partition(".")[2]
        if zone:
            found[zone][owner, kind] = data
    return dict(found)
