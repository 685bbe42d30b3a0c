# SPDX-License-Identifier: Apache-2.0
"""A core/v1 Service manifest to a :class:`ServiceRequest`.

The rules are those of Kubernetes' API reference and validation for Service, in so far as a single object
can show them; the names of fields that only others read (appProtocol …) are known, their values are not
looked at.
"""

from __future__ import annotations

import enum
import ipaddress

from lb.annotations import FORWARD, SLOW_START, read_slow_start
from lb.manifests import syntax
from lb.manifests.fields import Field, Fields
from lb.manifests.objects import PORT_MAX, PORT_MIN, Meta, ServiceRequest, read_annotation
from lb.model import (
    IPAddress,
    IPNetwork,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
    TrafficDistribution,
    TrafficPolicy,
)

AFFINITY_DEFAULT, AFFINITY_MAX = 10_800, 86_400
"""Seconds of ClientIP affinity: when not set, and at most."""

SKIP_LABELS = ("service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless")

_SPEC = frozenset(
    [
        "allocateLoadBalancerNodePorts",
        "clusterIP",
        "clusterIPs",
        "externalIPs",
        "externalName",
        "externalTrafficPolicy",
        "healthCheckNodePort",
        "internalTrafficPolicy",
        "ipFamilies",
        "ipFamilyPolicy",
        "loadBalancerClass",
        "loadBalancerIP",
        "loadBalancerSourceRanges",
        "ports",
        "publishNotReadyAddresses",
        "selector",
        "sessionAffinity",
        "sessionAffinityConfig",
        "topologyKeys",
        "trafficDistribution",
        "type",
    ]
)
_PORT = frozenset(["appProtocol", "name", "nodePort", "port", "protocol", "targetPort"])
_EXPOSED = (ServiceType.NODE_PORT, ServiceType.LOAD_BALANCER)


class _Affinity(enum.StrEnum):
    NONE = "None"
    CLIENT_IP = "ClientIP"


class _Family(enum.StrEnum):
    V4 = "IPv4"
    V6 = "IPv6"


class _FamilyPolicy(enum.StrEnum):
    UNSET = ""
    SINGLE = "SingleStack"
    PREFER_DUAL = "PreferDualStack"
    REQUIRE_DUAL = "RequireDualStack"


class _IpMode(enum.StrEnum):
    VIP = "VIP"
    PROXY = "Proxy"


def read_service(root: Fields, meta: Meta, node_ports: range) -> ServiceRequest:
    """Read a Service; node_ports are the numbers that an explicit nodePort may have."""
    spec = root["spec"].fields(_SPEC)
    kind = spec["type"].choice(ServiceType, ServiceType.CLUSTER_IP)
    cluster_ips, headless = _cluster_ips(spec, kind)
    selector = spec["selector"].string_map(syntax.label_key, syntax.label_value)
    families, policy = _families(spec, cluster_ips, headless=headless, selected=bool(selector))
    service = Service(
        key=meta.key,
        type=kind,
        ports=_ports(spec, kind, node_ports, headless=headless),
        cluster_ips=cluster_ips,
        headless=headless,
        external_ips=tuple(filter(None, map(read_address, spec["externalIPs"].items()))),
        load_balancer_ips=_load_balancer_ips(root["status"], kind),
        external_name=_external_name(spec, kind),
        selector=selector or None,  # an empty one is stored as none: endpoints are given by hand
        affinity_seconds=_affinity(spec),
        publish_not_ready=spec["publishNotReadyAddresses"].flag(),
        internal_policy=spec["internalTrafficPolicy"].choice(TrafficPolicy, TrafficPolicy.CLUSTER),
        external_policy=_external_policy(spec, kind),
        source_ranges=_source_ranges(spec, kind),
        health_check_node_port=_health_check_port(spec, kind, node_ports),
        distribution=spec["trafficDistribution"].choice(TrafficDistribution, TrafficDistribution.NONE),
        proxied=not any(label in meta.labels for label in SKIP_LABELS),
        created=meta.created,
        slow_start=read_annotation(root, SLOW_START, read_slow_start, 0),
        forward=meta.annotations.get(FORWARD, "").strip(),
        labels=meta.labels,
        origin=meta.origin,
    )
    allocate = spec["allocateLoadBalancerNodePorts"]
    if allocate.present and kind is not ServiceType.LOAD_BALANCER:
        allocate.error("may only be set when type is LoadBalancer")
    balanced = kind is ServiceType.LOAD_BALANCER
    return ServiceRequest(
        service,
        families=families,
        prefers_dual=policy is _FamilyPolicy.PREFER_DUAL,
        requires_dual=policy is _FamilyPolicy.REQUIRE_DUAL,
        wants_node_ports=kind in _EXPOSED and (allocate.flag() or not allocate.present),
        annotations=meta.annotations if balanced else {},
        load_balancer_class=spec["loadBalancerClass"].text() if balanced else "",
        load_balancer_ip=spec["loadBalancerIP"].text() if balanced else "",
    )


def _ports(spec: Fields, kind: ServiceType, node_ports: range, *, headless: bool) -> tuple[ServicePort, ...]:
    places = spec["ports"].items()
    if not places and not headless and kind is not ServiceType.EXTERNAL_NAME:
        spec["ports"].error("needs at least one port")
    ports: list[ServicePort] = []
    names: set[str] = set()
    numbers: set[tuple[Protocol, int]] = set()
    node_numbers: set[tuple[Protocol, int]] = set()
    for place in places:
        entry = place.fields(_PORT)
        port = _port(entry, node_ports)
        if len(places) > 1 and not port.name:
            entry["name"].error("is required when a Service has several ports")
        if port.name and port.name in names:
            entry["name"].error(f"{port.name!r} is the name of an earlier port, too")
        if (port.protocol, port.port) in numbers:
            entry["port"].error(f"{port.port}/{port.protocol.name} is there twice")
        if port.node_port:
            if kind not in _EXPOSED:
                entry["nodePort"].error(f"may not be set when type is {kind}")
            if (port.protocol, port.node_port) in node_numbers:
                entry["nodePort"].error(f"{port.node_port}/{port.protocol.name} is there twice")
            node_numbers.add((port.protocol, port.node_port))
        names.add(port.name)
        numbers.add((port.protocol, port.port))
        ports.append(port)
    return tuple(ports)


def _port(entry: Fields, node_ports: range) -> ServicePort:
    name = entry["name"].text()
    if name:
        entry["name"].check(syntax.dns_label(name))
    number = required_port(entry["port"])
    return ServicePort(
        name=name,
        protocol=read_protocol(entry["protocol"]),
        port=number,
        target_port=_target_port(entry["targetPort"]) or number,
        node_port=_node_port(entry["nodePort"], node_ports),
    )


def required_port(place: Field) -> int:
    """Read a port number that has to be there."""
    if not place.present:
        place.error("is missing")
    return place.number(PORT_MIN, PORT_MAX)


def read_protocol(place: Field) -> Protocol:
    """Read TCP, UDP or SCTP; TCP when absent."""
    text = place.text()
    if not text:
        return Protocol.TCP
    if text not in Protocol.__members__:
        place.error(f"must be one of TCP, UDP, SCTP, is {text!r}")
        return Protocol.TCP
    return Protocol[text]


def _target_port(place: Field) -> int | str:
    if place.node is None or place.node.kind != "string":
        # 0 is what the API has for "not set"
        return place.number(0, PORT_MAX)
    name = place.text()
    if name:
        place.check(syntax.port_name(name))
    return name


def _node_port(place: Field, node_ports: range) -> int:
    number = place.number(0, PORT_MAX)
    if number and number not in node_ports:
        place.error(f"must be in the node port range {node_ports.start}-{node_ports.stop - 1}, is {number}")
    return number


def _cluster_ips(spec: Fields, kind: ServiceType) -> tuple[tuple[IPAddress, ...], bool]:
    """Return the addresses and whether the Service is headless."""
    single, several = spec["clusterIP"], spec["clusterIPs"].items()
    places = several or ([single] if single.text() else [])
    if several and not single.text():
        single.error("is missing; it must equal clusterIPs[0]")
    elif several and several[0].text() != single.text():
        several[0].error(f"must equal clusterIP, {single.text()!r}, is {several[0].text()!r}")
    if not places:
        return (), False
    if kind is ServiceType.EXTERNAL_NAME:
        single.error("may not be set when type is ExternalName")
    if places[0].text() == "None":
        if len(places) > 1:
            places[1].error("nothing may follow None")
        if kind in _EXPOSED:
            single.error(f"may not be None when type is {kind}")
        return (), True
    addresses = [address for place in places if (address := place.address()) is not None]
    if len(places) > 2 or len({address.version for address in addresses}) < len(addresses):
        spec["clusterIPs"].error("may hold at most one address of each family")
    return tuple(addresses), False


def _families(
    spec: Fields, cluster_ips: tuple[IPAddress, ...], *, headless: bool, selected: bool
) -> tuple[tuple[int, ...], _FamilyPolicy]:
    """Return the IP versions that the Service names, else those of its cluster IPs, and its policy.

    The policy that is not set is SingleStack, but RequireDualStack for a headless Service without selector.
    """
    policy = spec["ipFamilyPolicy"].choice(_FamilyPolicy, _FamilyPolicy.UNSET)
    place = spec["ipFamilies"]
    families = tuple(4 if item.choice(_Family, _Family.V4) is _Family.V4 else 6 for item in place.items())
    given = tuple(address.version for address in cluster_ips)
    if len(set(families)) < len(families):
        place.error("names a family twice")
    elif families and given != families[: len(given)]:
        place.error(f"must agree with the cluster IPs, which are IPv{' and IPv'.join(map(str, given))}")
    if policy is _FamilyPolicy.UNSET:
        policy = _FamilyPolicy.REQUIRE_DUAL if headless and not selected else _FamilyPolicy.SINGLE
    if policy is _FamilyPolicy.SINGLE and max(len(set(families)), len(set(given))) > 1:
        two = "cluster IPs" if len(set(given)) > 1 else "families"
        spec["ipFamilyPolicy"].error(f"must be PreferDualStack or RequireDualStack for two {two}")
    return families or given, policy


def read_address(place: Field) -> IPAddress | None:
    """Read an address that packets are sent to."""
    address = place.address()
    return address if address is not None and place.check(syntax.endpoint_address(address)) else None


def _load_balancer_ips(status: Field, kind: ServiceType) -> tuple[IPAddress, ...]:
    balancer = status.fields(frozenset(("conditions", "loadBalancer")))["loadBalancer"]
    result = []
    for place in balancer.fields(frozenset(("ingress",)))["ingress"].items():
        entry = place.fields(frozenset(("hostname", "ip", "ipMode", "ports")))
        mode = entry["ipMode"].choice(_IpMode, _IpMode.VIP)
        if not entry["ip"].present:
            if entry["ipMode"].present:
                entry["ipMode"].error("may only be set together with ip")
            continue
        address = entry["ip"].address()
        # Kubernetes empties this status when the type is another one
        if address is not None and mode is _IpMode.VIP and kind is ServiceType.LOAD_BALANCER:
            result.append(address)
    return tuple(result)


def _external_name(spec: Fields, kind: ServiceType) -> str:
    name = spec["externalName"].text()
    if kind is not ServiceType.EXTERNAL_NAME:
        return ""
    if not name:
        spec["externalName"].error("is required when type is ExternalName")
    else:
        spec["externalName"].check(syntax.dns_subdomain(name.removesuffix(".")))
    return name


def _affinity(spec: Fields) -> int:
    affinity = spec["sessionAffinity"].choice(_Affinity, _Affinity.NONE)
    config = spec["sessionAffinityConfig"]
    client = config.fields(frozenset(("clientIP",)))["clientIP"]
    seconds = client.fields(frozenset(("timeoutSeconds",)))["timeoutSeconds"].number(
        1, AFFINITY_MAX, AFFINITY_DEFAULT
    )
    if affinity is _Affinity.CLIENT_IP:
        return seconds
    if client.present:
        config.error("may not be set when sessionAffinity is None")
    return 0


def _external_policy(spec: Fields, kind: ServiceType) -> TrafficPolicy:
    place = spec["externalTrafficPolicy"]
    policy = place.choice(TrafficPolicy, TrafficPolicy.CLUSTER)
    if place.text() and kind not in _EXPOSED and not spec["externalIPs"].items():
        place.error(f"may not be set when type is {kind} and there are no externalIPs")
    return policy


def _source_ranges(spec: Fields, kind: ServiceType) -> tuple[IPNetwork, ...]:
    result = []
    place = spec["loadBalancerSourceRanges"]
    if place.items() and kind is not ServiceType.LOAD_BALANCER:
        place.error("may only be set when type is LoadBalancer")
    for item in place.items():
        text = item.text().strip()
        try:
            if "/" not in text:
                raise ValueError(f"{text!r} has no prefix length")
            result.append(ipaddress.ip_network(text, strict=False))
        except ValueError as error:
            item.error(f"must be a network such as 10.0.0.0/8: {error}")
    return tuple(result)


def _health_check_port(spec: Fields, kind: ServiceType, node_ports: range) -> int:
    place = spec["healthCheckNodePort"]
    number = _node_port(place, node_ports)
    local = spec["externalTrafficPolicy"].text() == TrafficPolicy.LOCAL
    if number and not (kind is ServiceType.LOAD_BALANCER and local):
        place.error("may only be set when type is LoadBalancer and externalTrafficPolicy is Local")
    return number
