# SPDX-License-Identifier: Apache-2.0
"""Services, pods and hand-made endpoints to EndpointSlices: pure.

In a cluster two controllers do this. The EndpointSlice controller watches Services with a selector and
writes slices of the pods that it matches; the mirroring controller writes slices for Endpoints objects of
Services without selector. EndpointSlices made by hand are kept as they are, whether or not the Service has
a selector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from lb.manifests.objects import Endpoints, HandAddress
from lb.model import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    IPAddress,
    ObjectKey,
    Pod,
    Service,
    ServiceType,
    TrafficDistribution,
    name_lines,
)

_BOTH = (4, 6)


def endpoint_slices(
    services: Iterable[Service],
    pods: Iterable[Pod],
    slices: Iterable[EndpointSlice],
    endpoints: Iterable[Endpoints],
    zones: Mapping[str, str],
    *,
    families: Mapping[ObjectKey, Sequence[int]] = MappingProxyType({}),
) -> list[EndpointSlice]:
    """Return all slices: those of selectors, mirrors of Endpoints, and slices as they are.

    zones gives each node's zone by the node's name. families gives a Service's ``ipFamilies`` as IP versions;
    those of its cluster IPs where it gives none. A mirror exists only beside a Service without selector;
    an empty selector counts as none. A Service of type ExternalName has no endpoints of its own. Names are
    deterministic.
    """
    index = _PodIndex(pods)
    by_key = {service.key: service for service in services}
    result = list(slices)
    for service in by_key.values():
        if service.selector and service.type is not ServiceType.EXTERNAL_NAME:
            matching = index.select(service.key.namespace, service.selector)
            versions = families.get(service.key) or [address.version for address in service.cluster_ips]
            result.extend(selected_slices(service, matching, zones, versions))
    for hand_made in endpoints:
        mirrored_for = by_key.get(hand_made.key)
        if mirrored_for is not None and not mirrored_for.selector and hand_made.mirrored:
            result.extend(mirrored_slices(hand_made))
    return result


def selected_slices(
    service: Service, pods: Iterable[Pod], zones: Mapping[str, str], families: Collection[int]
) -> list[EndpointSlice]:
    """Return the slices of the pods that a Service's selector matches.

    One slice holds the pods of one address family for which the Service's ports resolve to the same
    numbers: a targetPort by name may be another number in each pod. A pod that lacks the name is no
    endpoint of that port. families are the Service's, as IP versions; none stands for both. A pod without an
    address of a family is no endpoint of it.

    A pod counts from when it has an address until its phase is Succeeded or Failed. serving is its Ready
    condition; ready is serving and not terminating; publishNotReadyAddresses makes every pod ready, also a
    terminating one.

    A trafficDistribution gives each ready endpoint hints: its own zone, and with PreferSameNode its own node.
    """
    groups: dict[tuple[int, tuple[EndpointPort, ...]], list[tuple[Endpoint, str]]] = {}
    for pod in pods:
        ports = _resolve_ports(service, pod)
        if pod.finished or (service.ports and not ports):
            continue
        for version in sorted(families) or _BOTH:
            address = next((address for address in pod.addresses if address.version == version), None)
            if address is not None:
                endpoint = _endpoint(service, pod, address, zones)
                hostname = pod.hostname if pod.subdomain == service.key.name else ""
                groups.setdefault((version, ports), []).append((endpoint, hostname))
    for group in groups.values():
        group.sort(key=lambda each: _order(each[0]))
    return [
        EndpointSlice(
            key=_slice_key(service.key, version, ports),
            service=service.key,
            ports=ports,
            endpoints=tuple(endpoint for endpoint, _ in group),
            hostnames=name_lines(hostname for _, hostname in group),
            origin=service.origin,
        )
        for (version, ports), group in groups.items()
    ]


def _resolve_ports(service: Service, pod: Pod) -> tuple[EndpointPort, ...]:
    result = []
    for port in service.ports:
        number: int | None
        if isinstance(port.target_port, int):
            number = port.target_port
        else:
            wanted = (port.target_port, port.protocol)
            declared = (
                declared for declared in pod.container_ports if (declared.name, declared.protocol) == wanted
            )
            number = next((container.port for container in declared), None)
        if number is not None:
            result.append(EndpointPort(port.name, port.protocol, number))
    return tuple(result)


def _endpoint(service: Service, pod: Pod, address: IPAddress, zones: Mapping[str, str]) -> Endpoint:
    zone = zones.get(pod.node, "")
    ready = service.publish_not_ready or (pod.ready and not pod.terminating)
    hinted = ready and service.distribution is not TrafficDistribution.NONE
    by_node = ready and service.distribution is TrafficDistribution.PREFER_SAME_NODE
    return Endpoint(
        address=address,
        ready=ready,
        serving=pod.ready,
        terminating=pod.terminating,
        node=pod.node,
        zone=zone,
        target=str(pod.key),
        hint_zones=frozenset({zone} if hinted and zone else ()),
        hint_nodes=frozenset({pod.node} if by_node and pod.node else ()),
        weight=pod.weight,
    )


def mirrored_slices(endpoints: Endpoints) -> list[EndpointSlice]:
    """Return the slices of an Endpoints object: one for each subset and address family.

    Subsets with the same ports share a slice. An address is ready or not; there is nothing between in
    Endpoints.
    """
    groups: dict[tuple[int, tuple[EndpointPort, ...]], dict[HandAddress, None]] = {}
    for subset in endpoints.subsets:
        for hand_made in subset.addresses:
            groups.setdefault((hand_made.address.version, subset.ports), {})[hand_made] = None
    return [
        EndpointSlice(
            key=_slice_key(endpoints.key, version, ports),
            service=endpoints.key,
            ports=ports,
            endpoints=tuple(map(_as_given, ordered)),
            hostnames=name_lines(each.hostname for each in ordered),
            origin=endpoints.origin,
        )
        for (version, ports), group in groups.items()
        if (ordered := sorted(group, key=lambda each: (int(each.address), each.target)))
    ]


def _as_given(hand_made: HandAddress) -> Endpoint:
    return Endpoint(
        hand_made.address, hand_made.ready, hand_made.ready, node=hand_made.node, target=hand_made.target
    )


def _order(endpoint: Endpoint) -> tuple[int, str]:
    return int(endpoint.address), endpoint.target


def _slice_key(service: ObjectKey, version: int, ports: Sequence[EndpointPort]) -> ObjectKey:
    """Name a slice by what it is: its Service, its family, and a short hash of its ports."""
    text = ",".join(f"{port.name}/{port.protocol}/{port.port}" for port in ports)
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return ObjectKey(service.namespace, f"{service.name}-ipv{version}-{digest}")


class _PodIndex:
    """Pods by label, so that selection costs the pods that share a label and not all there are."""

    def __init__(self, pods: Iterable[Pod]) -> None:
        self._by_label: dict[tuple[str, str, str], list[Pod]] = {}
        for pod in pods:
            for name, value in pod.labels.items():
                self._by_label.setdefault((pod.key.namespace, name, value), []).append(pod)

    def select(self, namespace: str, selector: Mapping[str, str]) -> Iterator[Pod]:
        """Yield the namespace's pods that have all labels of a selector, which is not empty."""
        lists = [self._by_label.get((namespace, *label), []) for label in selector.items()]
        for pod in min(lists, key=len):
            if selector.items() <= pod.labels.items():
                yield pod
