# SPDX-License-Identifier: Apache-2.0
"""Objects that cannot be used: each is told of once, harms no other, and its last good version stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.kube import faults
from tests.kube.double import ApiDouble
from tests.kube.harness import client_of, fill, running, settle
from tests.kube.objects import (
    BACKEND_A,
    BACKEND_B,
    NAMESPACE,
    Object,
    endpoint,
    endpoint_slice,
    service,
)


def broken_service() -> Object:
    """Return a Service whose second port is no number."""
    ports: list[dict[str, Any]] = [{"name": "http", "port": 80}, {"name": "metrics", "port": "many"}]
    return service(ports=ports)


BROKEN: dict[str, tuple[Callable[[], Object], str, str]] = {
    "a type": (broken_service, "Service shop/web: spec.ports[1].port", "must be a whole number, is a string"),
    "a range": (
        lambda: service(ports=[{"port": 70000}]),
        "Service shop/web: spec.ports[0].port",
        "must be from 1 to 65535, is 70000",
    ),
    "a choice": (lambda: service(type="Magic"), "Service shop/web: spec.type", "must be one of ClusterIP, "),
    "an address": (
        lambda: service(externalIPs=["192.0.2.1", "nowhere"]),
        "Service shop/web: spec.externalIPs[1]",
        "must be an IP address",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_an_object_that_is_wrong_in(what: str, double: ApiDouble) -> None:
    make, where, message = BROKEN[what]
    fill(double)
    with running(client_of(double)) as run:
        settle(run, double)
        good = run.service()
        double.put(make())
        double.put(service("other", "10.96.0.11"))
        run.wait(lambda: run.service("other"))
        assert run.service() == good, "the last good version stays"
        (error,) = run.errors
        assert str(error).startswith(f"/api/v1/namespaces/shop/services/web: {where}: {message}")
        run.wait(lambda: double.objects["events"])
        (event,) = double.objects["events"].values()
        assert event["regarding"]["uid"] == double.objects["services"]["shop", "web"]["metadata"]["uid"]
        assert run.source.health()[0].broken == len(run.source.refused()) == 1

        double.compact()
        double.disturb("services", faults.error_event(410, "Expired"))
        run.wait(lambda: len(double.asked("list", "services")) == 2)
        run.wait(lambda: double.watching("services"))
        assert run.service() == good, "a new list does not delete it"
        assert len(run.errors) == 1, "reported once for as long as it stands"

        double.put(service(sessionAffinity="ClientIP"))
        run.wait(lambda: (web := run.service()) and web.affinity_seconds == 10_800)
        assert run.source.health()[0].broken == len(run.source.refused()) == 0
        double.put(make())
        run.wait(lambda: len(run.errors) == 2)
        double.remove(make())
        run.wait(lambda: run.service() is None)


def test_bytes_that_are_no_utf_8_harm_no_other_object(double: ApiDouble) -> None:
    fill(double)
    broken = json.dumps(service("other", selector={"app": "X"})).encode().replace(b"X", b"\xff")
    good = json.dumps(service()).encode()
    body = b'{"metadata": {"resourceVersion": "1000"}, "items": [' + broken + b", " + good + b"]}"
    double.fault("list", "services", faults.garbage(body))
    with running(client_of(double)) as run:
        run.wait(lambda: run.synced)
        assert run.services() == {"web"}
        (error,) = run.errors
        assert "Service shop/other: is not UTF-8 text, from byte " in str(error)


def test_an_object_without_a_name_harms_no_other(double: ApiDouble) -> None:
    fill(double)
    item = json.dumps({"type": "ADDED", "object": {"kind": "Service", "spec": {}}}).encode()
    double.fault("watch", "services", faults.stream(item + b"\n"))
    nameless = {"metadata": {"resourceVersion": "1"}, "items": [{"spec": {}}, service()]}
    double.fault("list", "services", faults.garbage(json.dumps(nameless).encode()))
    with running(client_of(double)) as run:
        settle(run, double)
        assert run.services() == {"web"}
        assert [(error.field, error.message) for error in run.errors] == [("metadata", "is missing")]


def test_a_list_with_a_broken_object_has_all_others(double: ApiDouble) -> None:
    fill(double)
    double.put(endpoint_slice("web-2", endpoint("not-an-address")))
    double.put(endpoint_slice("web-3", endpoint(BACKEND_B)))
    with running(client_of(double)) as run:
        run.wait(lambda: run.synced)
        assert run.endpoints() == {BACKEND_A, BACKEND_B}
        assert [error.field for error in run.errors] == ["endpoints[0].addresses[0]"]


def test_a_slice_of_host_names_is_told_of_once_and_has_no_endpoints(double: ApiDouble) -> None:
    fill(double)
    names = {**endpoint_slice("web-2", endpoint("db.example.com")), "addressType": "FQDN"}
    double.put(names)
    with running(client_of(double)) as run:
        settle(run, double)
        names["endpoints"].append(endpoint("db2.example.com"))
        double.put(names)
        double.put(endpoint_slice("web-3", endpoint(BACKEND_B)))
        run.wait(lambda: run.endpoints() == {BACKEND_A, BACKEND_B})
        assert [(error.object, error.field) for error in run.errors] == [
            (f"EndpointSlice {NAMESPACE}/web-2", "addressType")
        ]
        [slices] = [each for each in run.source.health() if each.resource == "endpointslices"]
        assert (slices.objects, slices.broken) == (3, 1)
        double.remove(names)
        run.wait(lambda: len(run.slices()) == 2)
        [slices] = [each for each in run.source.health() if each.resource == "endpointslices"]
        assert slices.broken == 0


def test_a_slice_of_host_names_in_place_of_another_leaves_none_of_its_endpoints(double: ApiDouble) -> None:
    fill(double)
    double.put(endpoint_slice("web-2", endpoint(BACKEND_B)))
    with running(client_of(double)) as run:
        settle(run, double)
        double.put({**endpoint_slice("web-2", endpoint("db.example.com")), "addressType": "FQDN"})
        run.wait(lambda: run.endpoints() == {BACKEND_A})
        assert [error.field for error in run.errors] == ["addressType"]
