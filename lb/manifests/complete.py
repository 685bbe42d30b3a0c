# SPDX-License-Identifier: Apache-2.0
"""The cluster IPs, node ports and health check ports of Services that name none: pure.

The API server fills these in when a Service is created; manifests that were never in a cluster lack them.
Which number it is follows the rule of :mod:`lb.manifests.allocate`; of which IP families, and in what order,
follows Kubernetes ("IPv4/IPv6 dual-stack", Services): the families that a Service names, else those of its
cluster IPs, else the cluster's first; with PreferDualStack and RequireDualStack the other one, too.

In one respect this is milder. A Service that names all of its cluster IPs is taken as it is, although
service_cidr may lack one of their families: nothing is to be given, and that setting has a default.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lb.errors import ConfigError, InputError
from lb.manifests.allocate import address_bands, place, port_bands
from lb.manifests.objects import PORT_MAX, PORT_MIN, ServiceRequest
from lb.model import (
    IPAddress,
    IPNetwork,
    ObjectKey,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
    TrafficPolicy,
)


@dataclass(frozen=True, slots=True)
class Pools:
    """Where addresses and node ports come from.

    networks: one network for each IP version (4, 6) of the cluster; the first is the default.
    node_ports: the numbers of NodePorts, whether named or given.
    """

    networks: Mapping[int, IPNetwork]
    node_ports: range

    @classmethod
    def parse(cls, service_cidr: str, node_port_range: str) -> Pools:
        """Read ``10.96.0.0/16`` or ``10.96.0.0/16,fd00:96::/112``, and ``30000-32767``.

        Raises ConfigError: one of the two is malformed; names the setting.
        """
        try:
            networks = [ipaddress.ip_network(text.strip()) for text in service_cidr.split(",")]
        except ValueError as error:
            raise ConfigError(f"service_cidr {service_cidr!r}: {error}") from error
        by_version: dict[int, IPNetwork] = {network.version: network for network in networks}
        if len(by_version) < len(networks):
            raise ConfigError(f"service_cidr {service_cidr!r}: at most one network of each family")
        if not all(address_bands(network) for network in networks):
            raise ConfigError(f"service_cidr {service_cidr!r}: too small, it has no address to give")
        first, _, last = node_port_range.partition("-")
        if not (first.isdecimal() and last.isdecimal() and PORT_MIN <= int(first) <= int(last) <= PORT_MAX):
            raise ConfigError(
                f"node_port_range {node_port_range!r}: must be FIRST-LAST, each from {PORT_MIN} to {PORT_MAX}"
            )
        return cls(by_version, range(int(first), int(last) + 1))


def complete(requests: Sequence[ServiceRequest], pools: Pools) -> tuple[list[Service], list[InputError]]:
    """Return the Services with everything that the API server would have filled in.

    A Service for which nothing is left, or which asks for a family that the cluster lacks, is not among
    them; an error names it.
    """
    families = {
        request.service.key: ip_families(request, pools) if _wants_addresses(request.service) else ()
        for request in requests
    }
    addresses = {
        version: _place_addresses(requests, version, network, families)
        for version, network in pools.networks.items()
    }
    ports = _place_ports(requests, pools.node_ports)
    services: list[Service] = []
    errors: list[InputError] = []
    for request in requests:
        service = request.service
        try:
            cluster_ips = tuple(
                _cluster_ip(request, version, pools, addresses) for version in families[service.key]
            )
            service = _with_ports(request, ports, pools.node_ports)
        except _NothingLeftError as error:
            origin = service.origin
            errors.append(
                InputError(origin.path, origin.line, f"Service {service.key}", error.field, str(error))
            )
            continue
        if cluster_ips != service.cluster_ips:
            service = dataclasses.replace(service, cluster_ips=cluster_ips)
        services.append(service)
    return services, errors


class _NothingLeftError(Exception):
    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def _wants_addresses(service: Service) -> bool:
    return not service.headless and service.type is not ServiceType.EXTERNAL_NAME


def ip_families(request: ServiceRequest, pools: Pools) -> tuple[int, ...]:
    """Return the IP versions of a Service, in their order: those of its cluster IPs, and of its endpoints.

    A headless Service has them, too; without a selector it has both (its endpoints are whatever they are).
    """
    if request.service.type is ServiceType.EXTERNAL_NAME:
        return ()
    families = request.families or (next(iter(pools.networks)),)
    other = 10 - families[0]
    if len(families) == 1 and (request.requires_dual or (request.prefers_dual and other in pools.networks)):
        return (*families, other)
    return families


def _named(service: Service, version: int) -> IPAddress | None:
    return next((address for address in service.cluster_ips if address.version == version), None)


def _place_addresses(
    requests: Sequence[ServiceRequest],
    version: int,
    network: IPNetwork,
    families: Mapping[ObjectKey, tuple[int, ...]],
) -> dict[str, int]:
    services = [request.service for request in requests]
    taken = {int(address) for service in services if (address := _named(service, version)) is not None}
    claimants = (
        str(service.key)
        for service in services
        if version in families[service.key] and _named(service, version) is None
    )
    return place(claimants, taken, address_bands(network))


def _cluster_ip(
    request: ServiceRequest, version: int, pools: Pools, placed: Mapping[int, Mapping[str, int]]
) -> IPAddress:
    service = request.service
    named = _named(service, version)
    if named is not None:
        return named
    if version not in placed:
        lacks = f"service_cidr has no IPv{version} network to give a cluster IP from"
        if version in request.families or not request.requires_dual:
            raise _NothingLeftError("spec.ipFamilies", lacks)
        raise _NothingLeftError("spec.ipFamilyPolicy", f"is RequireDualStack, but {lacks}")
    number = placed[version].get(str(service.key))
    if number is None:
        raise _NothingLeftError(
            "spec.clusterIP", f"no address is left in the service network {pools.networks[version]}"
        )
    return ipaddress.IPv4Address(number) if version == 4 else ipaddress.IPv6Address(number)


def _port_claim(service: Service, port: ServicePort) -> str:
    """Name a claim on a node port: TCP and UDP of one Service port get the same number where that is free."""
    return f"{service.key}:{port.port}"


def _health_claim(service: Service) -> str:
    return f"{service.key}:health"


def _checks_health(service: Service) -> bool:
    return service.type is ServiceType.LOAD_BALANCER and service.external_policy is TrafficPolicy.LOCAL


def _place_ports(requests: Sequence[ServiceRequest], node_ports: range) -> dict[Protocol, dict[str, int]]:
    taken: dict[Protocol, set[int]] = {protocol: set() for protocol in Protocol}
    claims: dict[Protocol, list[str]] = {protocol: [] for protocol in Protocol}
    for request in requests:
        service = request.service
        for port in service.ports:
            if port.node_port:
                taken[port.protocol].add(port.node_port)
            elif request.wants_node_ports:
                claims[port.protocol].append(_port_claim(service, port))
        if service.health_check_node_port:
            taken[Protocol.TCP].add(service.health_check_node_port)
        elif _checks_health(service):
            claims[Protocol.TCP].append(_health_claim(service))
    bands = port_bands(node_ports)
    return {protocol: place(claims[protocol], taken[protocol], bands) for protocol in Protocol}


def _with_ports(
    request: ServiceRequest, placed: Mapping[Protocol, Mapping[str, int]], node_ports: range
) -> Service:
    service = request.service
    exhausted = f"no node port is left in {node_ports.start}-{node_ports.stop - 1}"
    ports = []
    for i, port in enumerate(service.ports):
        number = port.node_port
        if request.wants_node_ports and not number:
            number = placed[port.protocol].get(_port_claim(service, port), 0)
            if not number:
                raise _NothingLeftError(f"spec.ports[{i}].nodePort", exhausted)
        ports.append(port if number == port.node_port else dataclasses.replace(port, node_port=number))
    health = service.health_check_node_port
    if _checks_health(service) and not health:
        health = placed[Protocol.TCP].get(_health_claim(service), 0)
        if not health:
            raise _NothingLeftError("spec.healthCheckNodePort", exhausted)
    if tuple(ports) == service.ports and health == service.health_check_node_port:
        return service
    return dataclasses.replace(service, ports=tuple(ports), health_check_node_port=health)
