# SPDX-License-Identifier: Apache-2.0
import random
from collections import Counter

from lb.lab.scheduling import Placed, plan_pods
from lb.lab.workloads import Workload
from lb.model import ObjectKey

NODES = ("node1", "node2", "node3")
WEB = ObjectKey("default", "web")
ALONE = ObjectKey("default", "alone")


def replicaset(replicas: int, key: ObjectKey = WEB, node: str = "") -> dict[ObjectKey, Workload]:
    return {key: Workload("ReplicaSet", key, replicas, node=node)}


def pod(name: str, node: str, *, owner: ObjectKey = WEB, ready: bool = True, order: int = 0) -> Placed:
    return Placed(ObjectKey("default", name), owner, node, ready, order)


def draw() -> random.Random:
    return random.Random(1)


def test_new_pods_spread_over_the_nodes() -> None:
    start, stop = plan_pods(replicaset(7), [], NODES, draw())
    assert stop == []
    assert sorted(Counter(each.node for each in start).values()) == [2, 2, 3]
    assert len({each.key for each in start}) == 7


def test_a_second_workload_goes_where_the_first_is_not() -> None:
    other = ObjectKey("default", "zeta")
    start, _ = plan_pods(replicaset(1) | replicaset(2, other), [], NODES, draw())
    assert [(each.workload.key.name, each.node) for each in start] == [
        ("web", "node1"),
        ("zeta", "node2"),
        ("zeta", "node3"),
    ]


def test_a_lost_pod_is_replaced_on_the_node_that_lacks_one() -> None:
    start, stop = plan_pods(replicaset(3), [pod("a", "node1"), pod("b", "node3")], NODES, draw())
    assert ([each.node for each in start], stop) == (["node2"], [])


def test_nothing_to_do() -> None:
    assert plan_pods(replicaset(1), [pod("a", "node1")], NODES, draw()) == ([], [])


def test_fewer_replicas_take_the_not_ready_then_the_crowded_then_the_young() -> None:
    pods = [
        pod("a", "node1", order=0),
        pod("b", "node2", order=1),
        pod("c", "node2", order=2),
        pod("d", "node3", order=3, ready=False),
        pod("e", "node3", order=4),
    ]
    stopped = [plan_pods(replicaset(left), pods, NODES, draw())[1] for left in (4, 3, 2)]
    assert [[key.name for key in keys] for keys in stopped] == [["d"], ["d", "c"], ["d", "c", "e"]]


def test_pods_of_a_workload_that_is_gone_are_stopped() -> None:
    start, stop = plan_pods({}, [pod("a", "node1"), pod("b", "node2")], NODES, draw())
    assert (start, [key.name for key in stop]) == ([], ["a", "b"])


def test_a_bare_pod_keeps_its_name_and_is_not_replaced_after_a_kill() -> None:
    bare = {ALONE: Workload("Pod", ALONE)}
    [started], _ = plan_pods(bare, [], NODES, draw())
    assert started.key == ALONE
    assert plan_pods(bare, [], NODES, draw(), removed=[ALONE]) == ([], [])


def test_a_named_node_is_obeyed() -> None:
    start, _ = plan_pods(replicaset(2, node="node2"), [], NODES, draw())
    assert [each.node for each in start] == ["node2", "node2"]
