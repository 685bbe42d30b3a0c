# SPDX-License-Identifier: Apache-2.0
"""Looking at the router of a lab with BGP, and changing what nodes tell it."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from lb.cli import main
from lb.lab import router
from lb.lab.addressing import RouterKind, node_address, node_mac
from lb.lab.lab import Lab
from tests.netns import ingress_load
from tests.netns.waiting import eventually

MANIFEST = """\
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
        - name: web
          image: lab
          ports: [{name: http, containerPort: 8080}]
          readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Service
metadata:
  name: everywhere
  labels: {tier: front}
  annotations: {lbctl/addresses: "203.0.113.10,2001:db8:203::10"}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: near, annotations: {lbctl/addresses: "203.0.113.20,2001:db8:203::20"}}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  externalTrafficPolicy: Local
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
"""
EVERYWHERE, NEAR = ("203.0.113.10", "2001:db8:203::10"), ("203.0.113.20", "2001:db8:203::20")
BOTH = frozenset(("node1", "node2"))
SECONDS = 90.0
"""How long something is waited for: an address that was withdrawn several times rests for up to a minute."""


def gateways(lab: Lab) -> dict[str, str]:
    """Return nodes by each address that a next hop may have; FRR takes link-local ones in IPv6."""
    found: dict[str, str] = {}
    for node in lab.spec.node_names:
        found |= {str(node_address(node, version)): node for version in lab.spec.versions}
        found[f"fe80::77:ff:fe00:{int(node_mac(node)[-2:], 16):x}"] = node
    return found


def ways(lab: Lab, address: str) -> frozenset[str]:
    """Return the nodes to which the router's kernel sends packets for an address."""
    family = "-6" if ":" in address else "-4"
    done = lab.run("router", ["ip", "-j", family, "route", "show", address])
    known = gateways(lab)
    return frozenset(
        known[hop["gateway"]]
        for route in json.loads(done.stdout or "[]")
        for hop in route.get("nexthops", [route])
    )


def expect(lab: Lab, addresses: tuple[str, ...], nodes: frozenset[str], what: str) -> None:
    """Wait until the router sends to these nodes, and no other."""
    seen: dict[str, frozenset[str]] = {}

    def so() -> bool:
        seen.update({address: ways(lab, address) for address in addresses})
        return set(seen.values()) == {nodes}

    try:
        eventually(so, what, SECONDS)
    except AssertionError as error:
        raise AssertionError(f"{error}: {seen}, {[told(lab, node) for node in BOTH]}") from error


def told(lab: Lab, node: str) -> dict[str, Any]:
    """Return a node's ``lbctl announce status``; empty while nothing answers."""
    out, err = io.StringIO(), io.StringIO()
    main(["announce", "status", "--instance", lab.spec.instance(node), "-o", "json"], out=out, err=err)
    found: dict[str, Any] = json.loads(out.getvalue() or "{}")
    return found


def attributes(lab: Lab, address: str) -> str:
    """Return what the router's own command line says of the ways to an address."""
    if lab.spec.router is RouterKind.BIRD:
        return router.ask(lab.store, lab.spec, f"show route all for {address}")
    family = "ipv6" if ":" in address else "ipv4"
    return router.ask(lab.store, lab.spec, f"show bgp {family} unicast {address}")


def answered(lab: Lab, address: str, count: int = 1) -> int:
    """Return how many of so many requests of the client, each over a connection of its own, are answered."""
    host = f"[{address}]" if ":" in address else address
    script = f"for i in $(seq {count}); do curl -s -m 10 http://{host}/; done"
    return str(lab.run("client", ["sh", "-c", script]).stdout).count("You've hit")


@contextlib.contextmanager
def changed_peers(lab: Lab, change: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Let change have its way with the nodes' file of peers meanwhile."""
    path = router.peers_file(lab.store)
    before = path.read_text()
    found = yaml.safe_load(before)
    change(found)
    path.write_text(yaml.safe_dump(found, sort_keys=False))
    try:
        yield
    finally:
        path.write_text(before)


def bfd_sessions(lab: Lab) -> int:
    """Return how many BFD sessions of the router are up."""
    bird = lab.spec.router is RouterKind.BIRD
    said = router.ask(lab.store, lab.spec, "show bfd sessions" if bird else "show bfd peers brief")
    return said.lower().split().count("up")


def settle(lab: Lab) -> None:
    """Wait until every node has told the router everything, and BFD is up: what a test before has shaken."""
    eventually(lambda: bfd_sessions(lab) == len(BOTH), "BFD is up", SECONDS)
    expect(lab, (*EVERYWHERE, *NEAR), BOTH, "the router knows both nodes")
    eventually(lambda: not any(told(lab, node)["problems"] for node in BOTH), "all is well", SECONDS)


@contextlib.contextmanager
def without_bfd(lab: Lab) -> Iterator[None]:
    """Do without BFD meanwhile: BIRD, as a router, ends a session whose BFD goes away, and begins another."""

    def switch_off(peers: dict[str, Any]) -> None:
        peers["peers"][0]["bfd"] = False

    with changed_peers(lab, switch_off):
        eventually(lambda: not bfd_sessions(lab), "BFD is off", SECONDS)
        eventually(lambda: all(told(lab, node)["peers"][0]["up"] for node in BOTH), "sessions", SECONDS)
        expect(lab, EVERYWHERE, BOTH, "the router knows both nodes")
        yield


@contextlib.contextmanager
def changed_node(lab: Lab, node: str, change: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Let change have its way with a Node object meanwhile."""
    name = f"node.{node}.yaml"
    before = (lab.store.cluster / name).read_text()
    found = yaml.safe_load(before)
    change(found)
    lab.store.write_object(name, yaml.safe_dump(found))
    try:
        yield
    finally:
        lab.store.write_object(name, before)


@contextlib.contextmanager
def load(lab: Lab, address: str) -> Iterator[dict[str, Any]]:
    """Send requests from the client meanwhile; afterwards found has answered (numbers) and failed (texts)."""
    argv = lab.command("client", [sys.executable, "-I", str(Path(ingress_load.__file__)), address, "any"])
    found: dict[str, Any] = {}
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield found
        finally:
            out, _ = process.communicate("")
            found |= json.loads(out)


@contextlib.contextmanager
def watched(lab: Lab, address: str) -> Iterator[set[frozenset[str]]]:
    """Look at the router's ways to an address again and again; afterwards all that were seen are told."""
    seen: set[frozenset[str]] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.add(ways(lab, address))
            time.sleep(0.05)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
