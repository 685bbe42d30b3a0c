# SPDX-License-Identifier: Apache-2.0
"""The objects of all files to what a cluster would show: pure."""

from __future__ import annotations

from collections.abc import Collection

from lb.errors import InputError
from lb.manifests.addresses import with_addresses
from lb.manifests.complete import Pools, complete, ip_families
from lb.manifests.endpoints import endpoint_slices
from lb.manifests.objects import Endpoints, Parsed, ServiceAddresses, ServiceRequest
from lb.model import EndpointSlice, Node, ObjectKey, Pod, Resource, ResourceKind, Service

ResourceId = tuple[ResourceKind, ObjectKey]


def assemble(
    objects: Collection[Parsed], pools: Pools
) -> tuple[dict[ResourceId, Resource], list[InputError]]:
    """Return what a source hands on, and errors that only show when all objects are seen together.

    Services have the addresses and node ports that they did not name, selectors and Endpoints objects have
    become EndpointSlices. The order is nodes, Services, EndpointSlices.
    """
    nodes = [each for each in objects if isinstance(each, Node)]
    written = [each for each in objects if isinstance(each, ServiceRequest)]
    requests = with_addresses(written, (each for each in objects if isinstance(each, ServiceAddresses)))
    services, errors = complete(requests, pools)
    slices = endpoint_slices(
        services,
        (each for each in objects if isinstance(each, Pod)),
        (each for each in objects if isinstance(each, EndpointSlice)),
        (each for each in objects if isinstance(each, Endpoints)),
        {node.name: node.zone for node in nodes},
        families={request.service.key: ip_families(request, pools) for request in requests},
    )
    resources: dict[ResourceId, Resource] = {(Node, ObjectKey("", node.name)): node for node in nodes}
    resources.update({(Service, service.key): service for service in services})
    resources.update({(EndpointSlice, each.key): each for each in slices})
    return resources, errors
