# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.soak.nodes [WAY [CONNECTIONS [ROUNDS [SEED]]]]``: nodes come and go, Deployments roll.

A client behind a router keeps connections to a load-balancer address of two families and asks on each of them
again and again; beside them it opens new ones. The router spreads what it gets over all nodes (ECMP by BGP).
In each round one node is killed, with its pods, while a Deployment on another rolls; it comes back with empty
maps and new pods; and a third is drained while another Deployment rolls. A connection may be lost when its
own pod has ended, and is opened anew; ends with 1 when another one was lost.

WAY: ``direct``, the default: direct return with its second chance; ``hash``: the consistent hash alone;
``kube-proxy``: its rules (nftables) in our place. The latter two are there to compare with.
"""

from __future__ import annotations

import functools
import io
import math
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

from lb.cli import main as cli
from lb.config import Forward
from lb.datapath.kernel.pins import Pins, unload
from lb.lab import kube_proxy, namespaces, router
from lb.lab.addressing import Announce, LabSpec
from lb.lab.lab import Lab
from tests.netns.bgp_bench import ways
from tests.netns.conftest import fresh_id, remove, silent
from tests.netns.held import Holder, Target
from tests.netns.waiting import dumped, eventually

NODES, PODS = 4, 2
"""Nodes, and pods of each."""
ADDRESSES = ("203.0.113.30", "2001:db8:203::30")
PAUSE = 4.0
"""Seconds between two requests of a kept connection."""
PATIENCE = 20.0
"""Seconds after which the client calls a request lost; see tests/netns/held.py."""
GRACE = 15
"""Seconds that a pod which is told to end has for its connections."""
SLACK = 0.5
"""Seconds by which clocks and times of files may differ."""

SERVICE = f"""\
apiVersion: v1
kind: Service
metadata: {{name: web, annotations: {{lbctl/addresses: "{",".join(ADDRESSES)}"}}}}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: http}}]
"""
DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {pods}
  selector: {{matchLabels: {{app: web, of: {name}}}}}
  template:
    metadata: {{labels: {{app: web, of: {name}}}}}
    spec:
      nodeName: {node}
      terminationGracePeriodSeconds: {grace}
      containers:
        - name: web
          image: lab
          ports: [{{name: http, containerPort: 8080}}]
"""


@dataclass(slots=True)
class Tally:
    """What became of connections. lost: in words; excused: those whose own pod had ended."""

    excused: int = 0
    lost: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    asked: int = 0


class Campaign:
    """The lab, the client, and what is done to them."""

    def __init__(self, way: str, connections: int, chance: random.Random, stack: ExitStack) -> None:
        self._way, self._chance = way, chance
        self._manifests = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (self._manifests / "service.yaml").write_text(SERVICE)
        self._generation = 0
        self._deployed = {f"node{number}": self._deploy(f"node{number}") for number in range(1, NODES + 1)}
        self._up = set(self._deployed)
        spec = LabSpec(
            id=fresh_id(),
            manifests=str(self._manifests),
            nodes=NODES,
            announce=Announce.BGP,
            forward=Forward.DSR if way == "direct" else Forward.SNAT,
        )
        stack.callback(remove, spec.id)
        self.lab = Lab.up(spec, silent)
        self._seen: dict[str, str] = {}
        self._ended: dict[str, float] = {}
        self._judged = self._failed = 0
        self.tally = Tally()
        if way == "kube-proxy":
            self._hand_over()
        self._look()
        half = connections // len(ADDRESSES)
        self._holder = Holder(
            self.lab,
            "client",
            [Target("kept", f"kept {each}", each, 80, half, PAUSE) for each in ADDRESSES]
            + [Target("again", f"new {each}", each, 80, 5, 0.5) for each in ADDRESSES],
            stack,
        )
        eventually(lambda: self._holder.told()["open"] >= self._holder.wanted, "all are open", 120)

    # --- kube-proxy -----------------------------------------------------------------------------------------

    def _hand_over(self) -> None:
        """Put kube-proxy's rules in the place of our programs; routes stay without an agent."""
        for node in self.lab.spec.node_names:
            self.lab.stop_agent(node, signal.SIGKILL)
            unload(Pins(self.lab.spec.instance(node)))

    def _write_rules(self) -> None:
        for node in self._up if self._way == "kube-proxy" else ():
            inside = self.lab.spec.namespace(node)
            run = kube_proxy.run_with(functools.partial(namespaces.command, inside))
            kube_proxy.write_in_lab(kube_proxy.Mode.NFTABLES, self.lab, node, run)

    # --- looking --------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Note which pods there are."""
        pods = self.lab.pods()
        names = {str(pod["name"]): str(pod["phase"]) for pod in pods if str(pod["name"]).startswith("web")}
        if names != self._seen:
            self._seen = names
            self._write_rules()

    def wait(self, seconds: float) -> None:
        """Let time pass, and look."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._look()
            time.sleep(0.3)

    def _until(self, done: Any, what: str, seconds: float = 60.0) -> None:
        def look() -> bool:
            self._look()
            return bool(done())

        eventually(look, what, seconds)

    def judge(self) -> None:
        """Say of the connections that have ended since the last call which of them had to."""
        told = self._holder.told()
        for pod, when, why in told["ended"][self._judged :]:
            if not pod:
                self.tally.failed.append(f"a kept one, at its beginning: {why}")
                continue
            ended = self._ended.get(pod, math.inf)
            if when >= ended - SLACK:
                self.tally.excused += 1
            else:
                self.tally.lost.append(f"of {pod}, {ended - when:.1f} s before that ends: {why}")
        self._judged = len(told["ended"])
        self.tally.failed += told["failures"][self._failed :]
        self._failed = len(told["failures"])
        self.tally.asked = sum(told["asked"].values())

    # --- doing ----------------------------------------------------------------------------------------------

    def _deploy(self, node: str) -> Path:
        """Write a new Deployment whose pods are on a node."""
        self._generation += 1
        name = f"web{self._generation}"
        path = self._manifests / f"{name}.yaml"
        path.write_text(DEPLOYMENT.format(name=name, pods=PODS, node=node, grace=GRACE))
        return path

    def _pods(self, path: Path) -> list[str]:
        return [name for name, phase in self._seen.items() if name.startswith(f"{path.stem}-")]

    def _wait_for(self, path: Path) -> None:
        """Wait until its pods are ready, and every node that is up knows them."""
        self._until(lambda: len(self._pods(path)) == PODS, "pods are there")
        assert not self.lab.wait_ready(60)
        self._look()
        if self._way == "kube-proxy":
            return
        addresses = {
            each for pod in self.lab.pods() if pod["name"] in self._pods(path) for each in pod["addresses"]
        }
        for node in self._up:
            self._until(lambda node=node: addresses <= self._known(node), f"{node} knows the new pods")

    def _known(self, node: str) -> set[str]:
        rows = dumped(self.lab, node, "backends", "--service", "default/web")["backends"]
        return {row["address"] for row in rows}

    def roll(self, node: str) -> None:
        """Replace the pods of a node: new ones first, then the old ones are told to end."""
        old, self._deployed[node] = self._deployed[node], self._deploy(node)
        self._wait_for(self._deployed[node])
        self._end(old, time.time() + GRACE)

    def _end(self, path: Path, when: float, *, told: bool = True) -> None:
        """Note when the pods of a Deployment end; told: the cluster is told to end them."""
        self._ended.update(dict.fromkeys(self._pods(path), when))
        if told:
            path.unlink()

    def _cable(self, node: str, state: str) -> None:
        with namespaces.inside(self.lab.spec.switch):
            subprocess.run(["ip", "link", "set", node, state], check=True)

    def kill(self, node: str) -> None:
        """Take a node out of the world, with its agent and its pods."""
        self._up.discard(node)
        self._cable(node, "down")
        self._end(self._deployed[node], time.time(), told=False)
        if self._way != "kube-proxy":
            self.lab.stop_agent(node, signal.SIGKILL)

    def evict(self, node: str) -> None:
        """Have the cluster notice that a node has gone."""
        self._deployed[node].unlink()

    def revive(self, node: str, *, pods_first: bool) -> None:
        """Bring a node back, which remembers nothing; its pods are new, too."""
        if pods_first:
            self._deployed[node] = self._deploy(node)
        if self._way == "kube-proxy":
            with namespaces.inside(self.lab.spec.namespace(node)), NFCTSocket() as table:
                table.flush()
        else:
            unload(Pins(self.lab.spec.instance(node)))
            self.lab.start_agent(node)
            self.lab.wait_agent(node)
        self._up.add(node)
        self._write_rules()
        self._cable(node, "up")
        if not pods_first:
            self._deployed[node] = self._deploy(node)
        self._wait_for(self._deployed[node])
        self._routed(self._up)

    def _routed(self, nodes: set[str]) -> None:
        self._until(
            lambda: all(ways(self.lab, each) == nodes for each in ADDRESSES), f"routes lead to {nodes}", 90
        )

    def _session(self, node: str, what: str) -> None:
        """Have the router end its session with a node, or begin it again."""
        control = str(router.folder(self.lab.store) / "bird.ctl")
        subprocess.run(["birdc", "-s", control, what, node], check=True, capture_output=True)

    @contextmanager
    def drained(self, node: str) -> Iterator[None]:
        """Drain a node meanwhile."""
        self._drain(node)
        self._routed(self._up - {node})
        yield
        self._drain(node, "--undo")
        self._routed(self._up)

    def _drain(self, node: str, *flags: str) -> None:
        argv = ["node", "drain", *flags, "--instance", self.lab.spec.instance(node)]
        assert cli(argv, out=io.StringIO(), err=io.StringIO()) == 0

    def round(self, number: int) -> None:
        """Kill, roll, revive, drain, roll."""
        killed, rolled, drained = self._chance.sample(sorted(self._up), 3)
        self.kill(killed)
        self.roll(rolled)
        self.evict(killed)
        self._routed(self._up)
        self.wait(GRACE / 2)
        self.revive(killed, pods_first=number % 2 == 0)
        if self._way == "kube-proxy":  # of which no node can be drained: the router ends its session
            self._session(drained, "disable")
            self._routed(self._up - {drained})
            self.roll(killed)
            self._session(drained, "enable")
            self._routed(self._up)
        else:
            with self.drained(drained):
                self.roll(killed)
        self.wait(PAUSE + 1)
        self.judge()


def main(way: str = "direct", connections: int = 2000, rounds: int = 10, seed: int | None = None) -> int:
    """Run the campaign; return the exit code."""
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    with ExitStack() as stack:
        begun = time.monotonic()
        campaign = Campaign(way, connections, random.Random(seed), stack)
        tally = campaign.tally
        print(
            f"nodes: {way}, {connections} connections are open, {time.monotonic() - begun:.0f} s", flush=True
        )
        for number in range(1, rounds + 1):
            campaign.round(number)
            print(
                f"round {number}: {tally.excused} ended with their pods, {len(tally.lost)} others lost,"
                f" {len(tally.failed)} requests failed of {tally.asked}",
                flush=True,
            )
        campaign.wait(PATIENCE + PAUSE)
        campaign.judge()
        for line in (*tally.lost[:20], *tally.failed[:20]):
            print(f"  {line}")
        print(
            f"nodes: {way}, seed {seed}, {connections} connections, {rounds} rounds,"
            f" {time.monotonic() - begun:.0f} s: {tally.asked} requests, {tally.excused} connections ended"
            f" with their pods, {len(tally.lost)} others lost, {len(tally.failed)} new requests failed"
        )
    return bool(tally.lost)


if __name__ == "__main__":
    kinds = (str, int, int, int)
    sys.exit(main(*(kind(text) for kind, text in zip(kinds, sys.argv[1:], strict=False))))
