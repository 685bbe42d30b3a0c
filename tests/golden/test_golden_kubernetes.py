# SPDX-License-Identifier: Apache-2.0
"""The golden cases once more, as the API server would tell them: both sources lead to the same maps.

The manifests' Services get what the API server fills in (defaults, cluster IPs, node ports), the
EndpointSlices are those that its controllers would write; ``lb.kube`` reads both as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lb.kube.convert import ENDPOINT_SLICES, SERVICES
from lb.lab.controllers import slice_object
from lb.manifests import ManifestSource
from lb.model import EndpointSlice, Event, ObjectKey, Service, Upsert
from tests.golden import test_golden

CASES = [case for case in test_golden.CASES if case != "broken-input"]  # the API server refuses such objects
SKIPPED = ("service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless")
"""Labels that the agent's list request rules out, so that such Services are never told."""


class ApiSource(ManifestSource):
    """Tells what the manifests say in the words of the API."""

    def __init__(self, paths: Sequence[Path], **options: Any) -> None:
        super().__init__(paths, **options)
        self._documents = [
            document
            for path in paths
            for file in path.glob("*.yaml")
            for document in yaml.load_all(file.read_text(), Loader=yaml.BaseLoader)
            if document["kind"] == "Service"
        ]

    def scan(self) -> list[Event]:
        """Return the manifests' events, each resource as ``lb.kube`` reads it."""
        events = super().scan()
        resources = [event.resource for event in events if isinstance(event, Upsert)]
        services = {each.key: each for each in resources if isinstance(each, Service)}
        told: list[Event] = []
        for event in events:
            if not isinstance(event, Upsert):
                told.append(event)
            elif isinstance(event.resource, Service):
                document = self._document(event.resource.key)
                if not set(SKIPPED) & set(document["metadata"].get("labels", {})):
                    told.append(Upsert(_read(SERVICES, as_stored(document, event.resource))))
            elif isinstance(event.resource, EndpointSlice):
                service = services[event.resource.service]
                item = as_stored(self._document(service.key), service)
                told.append(Upsert(_read(ENDPOINT_SLICES, slice_object(event.resource, service, item))))
        return told

    def _document(self, key: ObjectKey) -> dict[str, Any]:
        found: list[dict[str, Any]] = [
            document
            for document in self._documents
            if document["metadata"]["name"] == key.name
            and document["metadata"].get("namespace", "default") == key.namespace
        ]
        return found[0]


def _read(kind: Any, item: dict[str, Any]) -> Any:
    read = kind.read(json.dumps(item).encode())
    assert read.resource is not None, read.error
    return read.resource


NUMBERS = ("port", "nodePort", "targetPort", "timeoutSeconds", "healthCheckNodePort")


def as_stored(document: Any, service: Service) -> Any:
    """Return a manifest's Service as the API server stores it; document holds texts alone."""
    stored = json.loads(json.dumps(document), object_pairs_hook=_typed)
    stored["metadata"].setdefault("namespace", "default")
    stored["metadata"]["uid"] = f"uid of {service.key}"
    spec = stored["spec"]
    spec.setdefault("type", "ClusterIP")
    if service.cluster_ips:
        spec["clusterIPs"] = [str(address) for address in service.cluster_ips]
        spec["clusterIP"] = spec["clusterIPs"][0]
    for entry, port in zip(spec.get("ports", []), service.ports, strict=True):
        entry.setdefault("protocol", "TCP")
        entry.setdefault("targetPort", entry["port"])
        if port.node_port:
            entry["nodePort"] = port.node_port
    return stored


def _typed(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {
        name: int(value)
        if name in NUMBERS and isinstance(value, str) and value.isdecimal()
        else value == "true"
        if value in ("true", "false")
        else value
        for name, value in pairs
    }


@pytest.mark.parametrize("case", CASES)
def test_golden_from_the_api(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_golden, "ManifestSource", ApiSource)
    result = test_golden.outcome(test_golden.HERE / case)
    for name in ("expected.ipvsadm", "expected.json"):
        assert result[name] == (test_golden.HERE / case / name).read_text()
