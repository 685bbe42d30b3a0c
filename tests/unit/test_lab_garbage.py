# SPDX-License-Identifier: Apache-2.0
"""What the lab takes away in place of kube-controller-manager, over a real socket, from a double."""

import asyncio
from collections.abc import Iterator

import pytest

from lb.lab import garbage
from lb.lab.api import DEPLOYMENTS, NAMESPACES, PODS, REPLICA_SETS, SERVICES, Api, Object
from lb.lab.apply import make_namespace
from lb.lab.watch import Cache
from lb.model import ObjectKey, Upsert
from tests.cluster_double import ClusterDouble
from tests.kube.harness import client_of
from tests.kube.same import pod, replica_set, service

KEY = ObjectKey("shop", "web")
FOLLOWED = (REPLICA_SETS, DEPLOYMENTS, PODS, NAMESPACES)


@pytest.fixture
def double() -> Iterator[ClusterDouble]:
    server = ClusterDouble()
    with server:
        yield server


@pytest.fixture
def api(double: ClusterDouble) -> Api:
    api = Api(client_of(double))
    make_namespace(api, "shop")
    make_namespace(api, "other")
    return api


def in_shop(item: Object) -> Object:
    item["metadata"]["namespace"] = "shop"
    return item


def collect(api: Api) -> None:
    cache = Cache(FOLLOWED)
    for resource in FOLLOWED:
        cache.take(resource, list(map(Upsert, api.send("GET", resource.path)["items"])), 0)
    asyncio.run(garbage.collect(api, cache))


def make_owner(api: Api) -> str:
    """Make a ReplicaSet with one pod; return its uid."""
    uid = api.create(REPLICA_SETS, in_shop(replica_set("web")))["metadata"]["uid"]
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": uid, "controller": True}
    other = {"apiVersion": "v1", "kind": "Service", "name": "other", "uid": "other"}
    api.create(PODS, in_shop(pod("web", {"ownerReferences": [owner, other]}, nodeName="node1")))
    return str(uid)


def test_orphans_are_let_go(double: ClusterDouble, api: Api) -> None:
    make_owner(api)
    api.send("DELETE", REPLICA_SETS.object(KEY), {"propagationPolicy": "Orphan"})
    assert double.objects["replicasets"]
    collect(api)
    assert not double.objects["replicasets"]
    [left] = double.objects["pods"].values()
    assert [each["uid"] for each in left["metadata"]["ownerReferences"]] == ["other"]


def test_an_owner_in_the_foreground_goes_after_its_pods(double: ClusterDouble, api: Api) -> None:
    make_owner(api)
    api.send("DELETE", REPLICA_SETS.object(KEY), {"propagationPolicy": "Foreground"})
    collect(api)
    assert double.objects["replicasets"]
    api.send("DELETE", PODS.object(KEY), {"gracePeriodSeconds": "0"})
    collect(api)
    assert not double.objects["replicasets"]


def test_what_lives_or_is_held_by_others_stays(double: ClusterDouble, api: Api) -> None:
    api.create(REPLICA_SETS, in_shop(replica_set("web", finalizers=["example.org/hold"])))
    collect(api)
    api.send("DELETE", REPLICA_SETS.object(KEY), {"propagationPolicy": "Orphan"})
    collect(api)
    [left] = double.objects["replicasets"].values()
    assert left["metadata"]["finalizers"] == ["example.org/hold"]
    assert {name for _, name in double.objects["namespaces"]} == {"shop", "other"}


def test_a_namespace_ends_with_all_that_is_in_it(double: ClusterDouble, api: Api) -> None:
    make_owner(api)
    api.create(SERVICES, in_shop(service("web")))
    elsewhere = service("web")
    elsewhere["metadata"]["namespace"] = "other"
    api.create(SERVICES, elsewhere)
    api.send("DELETE", NAMESPACES.object(ObjectKey("", "shop")))
    collect(api)
    assert [place for place, _ in double.objects["services"]] == ["other"]
    assert not double.objects["replicasets"]
    assert ("", "shop") in double.objects["namespaces"], "its pod ends in time"
    api.send("DELETE", PODS.object(KEY), {"gracePeriodSeconds": "0"})
    collect(api)
    assert [name for _, name in double.objects["namespaces"]] == ["other"]
