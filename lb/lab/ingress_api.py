# SPDX-License-Identifier: Apache-2.0
"""Ingress in a lab that lives from an API server: what its objects say, and the ones that the lab makes."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import msgspec

from lb.errors import InputError
from lb.ingress.objects import Ingress
from lb.ingress.plan import ours
from lb.ingress.read import Content, read
from lb.kube import convert
from lb.lab import ingress, servers
from lb.lab.api import (
    ENDPOINT_SLICES,
    INGRESS_CLASSES,
    INGRESSES,
    PODS,
    SECRETS,
    SERVICES,
    Api,
    GoneError,
    Object,
    Resource,
    gone,
    key_of,
)
from lb.lab.apply import make_namespace
from lb.lab.ingress import Front
from lb.lab.watch import Cache, Converted

FOLLOWED = (INGRESSES, INGRESS_CLASSES, SECRETS, SERVICES, ENDPOINT_SLICES, PODS)
_KINDS = {
    INGRESSES: ("networking.k8s.io/v1", "Ingress"),
    INGRESS_CLASSES: ("networking.k8s.io/v1", "IngressClass"),
    SECRETS: ("v1", "Secret"),
}
_READERS: dict[Resource, convert.Reader[Any, Any]] = {
    SERVICES: convert.SERVICES,
    ENDPOINT_SLICES: convert.ENDPOINT_SLICES,
}


class IngressApi:
    """The Ingresses of an API server; what objects became is remembered: most stay as they are."""

    def __init__(self, api: Api, front: Front) -> None:
        self._api, self._front = api, front
        self._converted = Converted(_model)
        self._errors: list[InputError] = []

    async def reconcile(self, cache: Cache) -> None:
        """Make the objects that follow from the Ingresses, and have what there is now served.

        Raises ApiError: the API server did not take something.
        """
        content = Content()
        for resource in _KINDS:
            for part in self._converted.of(cache, resource):
                content.add(part)
        served, wrong = ours(content.ingresses.values(), content.classes)
        self._errors = [*content.errors, *wrong]
        if served and (why := servers.missing(ingress.IMAGE)):
            path = INGRESSES.object(served[0].key)
            self._errors.append(InputError(path, 0, f"Ingress {served[0].key}", "", why))
            served = []
        await self._make(cache, served)
        if served:
            services, slices = (self._converted.of(cache, each) for each in (SERVICES, ENDPOINT_SLICES))
            self._front.plan(served, filter(None, services), filter(None, slices), content.certificates)
            self._errors += (replace(each, line=0) for each in self._front.errors())

    def errors(self) -> list[InputError]:
        """Return what is wrong."""
        return self._errors

    async def _make(self, cache: Cache, served: list[Ingress]) -> None:
        """Make what there has to be while there is an Ingress, and remove it when there is none."""
        nodes = self._front.spec.node_names if served else ()
        wanted = {ingress.pod_key(node): ingress.pod_object(node) for node in nodes}
        pods, service = cache.of(PODS), cache.of(SERVICES).get(ingress.SERVICE)
        if served and service is None:
            await asyncio.to_thread(make_namespace, self._api, ingress.SERVICE.namespace)
            service = await asyncio.to_thread(
                self._api.ensure, SERVICES, ingress.service_object(self._front.spec)
            )
            cache.put(SERVICES, service)
        for key, pod in wanted.items():
            if key not in pods:
                cache.put(PODS, await asyncio.to_thread(self._api.create, PODS, pod))
        for node in self._front.spec.node_names:
            key = ingress.pod_key(node)
            if key in pods and key not in wanted and not pods[key]["metadata"].get("deletionTimestamp"):
                await asyncio.to_thread(self._api.delete, PODS, key, pods[key]["metadata"]["uid"])
        if service is not None and not served:
            await asyncio.to_thread(self._api.delete, SERVICES, ingress.SERVICE, service["metadata"]["uid"])
            cache.drop(SERVICES, service)
        if service is not None and served:
            await self._report(cache, SERVICES, service)
        for each in served:
            await self._report(cache, INGRESSES, cache.of(INGRESSES)[each.key])

    async def _report(self, cache: Cache, resource: Resource, item: Object) -> None:
        """Write the addresses into the status of an object that does not name them."""
        status = ingress.status_object(self._front.spec)
        told = ((item.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
        if [each.get("ip") for each in told] == [each["ip"] for each in status["loadBalancer"]["ingress"]]:
            return
        try:
            with gone():
                uid = item["metadata"]["uid"]
                made = await asyncio.to_thread(self._api.patch_status, resource, key_of(item), uid, status)
        except GoneError:
            return
        cache.put(resource, made)


def _content(resource: Resource, item: Object) -> Content:
    """Return what an object is to an Ingress, and what is wrong with it."""
    api_version, kind = _KINDS[resource]
    meta = {name: value for name, value in item["metadata"].items() if name != "managedFields"}
    text = json.dumps({**item, "apiVersion": api_version, "kind": kind, "metadata": meta})
    content = read(resource.object(key_of(item)), text)
    content.errors = [replace(error, line=0) for error in content.errors]
    return content


def _model(resource: Resource, item: Object) -> Any:
    """Return what an Ingress needs of an object; None for a Service that cannot be read, which others say."""
    if resource in _KINDS:
        return _content(resource, item)
    return _READERS[resource].read(msgspec.json.encode(item)).resource
