# SPDX-License-Identifier: Apache-2.0
"""Least privilege: deploy/base/rbac.yaml allows exactly what is done."""

from __future__ import annotations

import itertools
from typing import Any

import yaml

from lb.model import ObjectKey
from tests.kube import faults
from tests.kube.double import ApiDouble
from tests.kube.envtest import RBAC
from tests.kube.harness import client_of, running
from tests.kube.objects import NAMESPACE, service

Right = tuple[str, str, str]
"""API group, resource, verb."""


def manifests() -> dict[str, Any]:
    """Return the objects of the file by kind."""
    return {item["kind"]: item for item in yaml.safe_load_all(RBAC.read_text())}


def granted() -> set[Right]:
    """Return what the ClusterRole allows."""
    return rights(manifests()["ClusterRole"])


def rights(role: dict[str, Any]) -> set[Right]:
    """Return what a ClusterRole allows."""
    found: set[Right] = set()
    for rule in role["rules"]:
        found |= set(itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"]))
    return found


def test_the_role_allows_exactly_the_requests_that_are_made(double: ApiDouble, monkeypatch: Any) -> None:
    monkeypatch.setattr("lb.kube.events.SERIES_SECONDS", -1.0)  # so that a series is written at once
    double.put(service())
    with running(client_of(double)) as run:
        run.wait(lambda: run.synced and double.watching("services", "endpointslices", "nodes"))
        double.compact()
        double.disturb("services", faults.error_event(410, "Expired"))
        run.wait(lambda: len(double.asked("list", "services")) == 2)

        def recur() -> object:
            """Announce one thing again and again, until it is counted up."""
            web = ObjectKey(NAMESPACE, "web")
            run.source.announce(web, reason="MapFull", action="SkipService", note="vips is full")
            return double.asked("patch", "events")

        run.wait(recur)
    assert {(each.group, each.resource, each.verb) for each in double.requests} == granted()


def test_the_role_names_no_wildcard_and_is_bound_to_the_service_account() -> None:
    assert not [right for right in granted() if "*" in right]
    items = manifests()
    account, binding = items["ServiceAccount"]["metadata"], items["ClusterRoleBinding"]
    assert binding["roleRef"]["name"] == items["ClusterRole"]["metadata"]["name"]
    (subject,) = binding["subjects"]
    assert (subject["namespace"], subject["name"]) == (account["namespace"], account["name"])
