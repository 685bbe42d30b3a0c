# SPDX-License-Identifier: Apache-2.0
"""The way from kube-proxy and back, as docs/migration.md says: node by node, while requests run all the time.

Each node in turn is drained, goes over, and takes traffic again. A drained node is one that no client uses,
whether it is a pod there or a load balancer outside; its pods go on answering what comes by other nodes.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from lb.datapath.kernel.pins import instances
from lb.lab import kube_proxy
from lb.lab.addressing import node_address
from lb.lab.lab import Lab
from lb.lab.processes import environment
from tests.netns.conftest import MakeLab
from tests.netns.waiting import eventually

NODES = ("node1", "node2")
CLUSTER_IP, NODE_PORT = "http://10.66.5.6", 30123
FIND = "from lb.diagnose.kube_proxy import find; print(*find(), sep='\\n')"
ENOUGH = 5
PAUSE = 0.05  # seconds between requests, for the programs under test to have a CPU as well


class Traffic:
    """Requests without end, from outside and from a pod of each node, to the nodes that are in rotation."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._change = threading.Condition()
        self._stop = False
        self._drained: set[str] = set()
        self._flying: Counter[str] = Counter()
        self.answered: Counter[tuple[str, str]] = Counter()
        self.failures: list[str] = []
        self.clients = {
            (node, where): url
            for node in NODES
            for where, url in (
                ("client", f"http://{node_address(node)}:{NODE_PORT}"),
                (next(str(pod["name"]) for pod in lab.pods() if pod["node"] == node), CLUSTER_IP),
            )
        }
        self._threads = [threading.Thread(target=self._ask, args=client) for client in self.clients]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._change:
            self._stop = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()

    def _ask(self, node: str, where: str) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._stop or node not in self._drained)
                if self._stop:
                    return
                self._flying[node] += 1
            done = self._lab.run(where, ["curl", "-sS", "-m", "20", self.clients[node, where]])
            with self._change:
                self._flying[node] -= 1
                if "You've hit" in done.stdout:
                    self.answered[node, where] += 1
                else:
                    self.failures.append(f"{where} by {node}: {done.stderr.strip()}")
                self._change.notify_all()
            time.sleep(PAUSE)

    @contextlib.contextmanager
    def drained(self, node: str) -> Iterator[None]:
        """Let nobody use the node meanwhile; the others have gone on taking requests when it comes back."""
        with self._change:
            self._drained.add(node)
            self._change.wait_for(lambda: not self._flying[node])
        yield
        self.served(*(other for other in NODES if other != node))
        with self._change:
            self._drained.discard(node)
            self._change.notify_all()

    def served(self, *nodes: str) -> None:
        """Wait until each client of these nodes has had some more answers."""
        before = self.answered.copy()
        wanted = [client for client in self.clients if client[0] in nodes]
        eventually(
            lambda: all(self.answered[client] >= before[client] + ENOUGH for client in wanted),
            f"answers by {nodes}; failures: {self.failures}",
            seconds=60,
        )


def run(lab: Lab, node: str, *argv: str) -> str:
    """Run Python on a node with this package; return its output."""
    done = lab.run(node, [sys.executable, *argv], env=environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("mode", kube_proxy.Mode)
def test_over_and_back_without_a_failed_request(make_lab: MakeLab, mode: kube_proxy.Mode) -> None:
    lab = make_lab(agents=False, replicas=4)

    def proxy_starts(node: str) -> None:
        run(lab, node, "-m", "lb", "lab", "kube-proxy", "--id", lab.spec.id, mode, node)

    def proxy_cleans_up(node: str) -> None:
        run(lab, node, "-m", "lb", "lab", "kube-proxy", "--id", lab.spec.id, "off", node)

    for node in NODES:
        proxy_starts(node)
    with Traffic(lab) as traffic:
        traffic.served(*NODES)
        for node in NODES:
            with traffic.drained(node):
                lab.start_agent(node)
                lab.wait_agent(node, 120)
                assert f"kube-proxy ({mode})" in run(lab, node, "-c", FIND)
                proxy_cleans_up(node)
                assert run(lab, node, "-c", FIND).strip() == ""
            traffic.served(node)
        traffic.served(*NODES)
        for node in NODES:
            with traffic.drained(node):
                proxy_starts(node)
                lab.stop_agent(node)
                run(lab, node, "-m", "lb", "unload", "--instance", lab.spec.instance(node))
                assert lab.spec.instance(node) not in instances()
            traffic.served(node)
        traffic.served(*NODES)
    assert traffic.failures == []
