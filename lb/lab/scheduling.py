# SPDX-License-Identifier: Apache-2.0
"""Which pods to start and which to stop: pure, the lab's ReplicaSet controller and scheduler."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lb.lab.workloads import Workload, pod_name
from lb.model import ObjectKey


@dataclass(frozen=True, slots=True)
class Placed:
    """A pod that exists: its owner is the workload's key, order rises with its start."""

    key: ObjectKey
    owner: ObjectKey
    node: str
    ready: bool
    order: int


@dataclass(frozen=True, slots=True)
class Start:
    """A pod to start."""

    key: ObjectKey
    node: str
    workload: Workload


def plan_pods(
    workloads: Mapping[ObjectKey, Workload],
    pods: Sequence[Placed],
    nodes: Sequence[str],
    draw: random.Random,
    removed: Iterable[ObjectKey] = (),
) -> tuple[list[Start], list[ObjectKey]]:
    """Return the pods to start and those to stop, so that every workload has its replicas.

    A new pod goes to the node with the fewest pods of its workload, then the fewest at all, then the first.
    Too many pods are stopped as a ReplicaSet does: not ready ones first, then from the node that has most,
    then the youngest. Pods whose workload is gone are stopped. removed: bare pods that were killed; no
    controller brings them back.
    """
    gone = set(removed)
    stop = [pod.key for pod in pods if pod.owner not in workloads]
    start: list[Start] = []
    taken = {pod.key for pod in pods}
    load = Counter(pod.node for pod in pods if pod.owner in workloads)
    for key in sorted(workloads):
        workload = workloads[key]
        mine = [pod for pod in pods if pod.owner == key]
        share = Counter(pod.node for pod in mine)
        for pod in _surplus(mine, workload.replicas):
            stop.append(pod.key)
            load[pod.node] -= 1
        if workload.kind == "Pod" and key in gone:
            continue
        for _ in range(workload.replicas - len(mine)):
            node = workload.node or least_loaded(nodes, share, load)
            name = _new_key(workload, taken, draw)
            taken.add(name)
            share[node] += 1
            load[node] += 1
            start.append(Start(name, node, workload))
    return start, stop


def least_loaded(nodes: Sequence[str], share: Mapping[str, int], load: Mapping[str, int]) -> str:
    """Return the node with the fewest pods of a workload (share), then the fewest at all (load)."""
    return min(nodes, key=lambda name: (share.get(name, 0), load.get(name, 0), nodes.index(name)))


def _surplus(pods: list[Placed], replicas: int) -> list[Placed]:
    left = list(pods)
    surplus = []
    while len(left) > replicas:
        share = Counter(pod.node for pod in left)
        victim = max(left, key=lambda pod: (not pod.ready, share[pod.node], pod.order))
        left.remove(victim)
        surplus.append(victim)
    return surplus


def _new_key(workload: Workload, taken: set[ObjectKey], draw: random.Random) -> ObjectKey:
    if workload.kind == "Pod":
        return workload.key
    while True:
        key = ObjectKey(workload.key.namespace, pod_name(workload.key.name, draw))
        if key not in taken:
            return key
