# SPDX-License-Identifier: Apache-2.0
"""Nodes that tell a real router, BIRD or FRR, which addresses they serve; requests from behind it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lb.cli import main
from lb.lab import namespaces, router
from lb.lab.addressing import Announce, RouterKind
from lb.lab.lab import Lab
from lb.lab.processes import kill
from lb.rundir import RunDir
from lb.served.ask import ask
from tests.netns.bgp_bench import (
    BOTH,
    EVERYWHERE,
    MANIFEST,
    NEAR,
    SECONDS,
    answered,
    attributes,
    changed_node,
    changed_peers,
    expect,
    load,
    settle,
    told,
    watched,
    ways,
    without_bfd,
)
from tests.netns.conftest import MakeLab, remove
from tests.netns.ingress_load import THREADS
from tests.netns.waiting import dumped, eventually

each_router = pytest.mark.parametrize("lab", list(RouterKind), indirect=True, scope="module")
at_bird = pytest.mark.parametrize("lab", [RouterKind.BIRD], indirect=True, scope="module")


@pytest.fixture(scope="module")
def lab(
    request: pytest.FixtureRequest, make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    manifests = tmp_path_factory.mktemp("manifests")
    (manifests / "all.yaml").write_text(MANIFEST)
    made = make_lab(manifests=manifests, announce=Announce.BGP, router=request.param)
    yield made
    remove(made.spec.id)


@each_router
def test_announce_bgp_connections_spread_over_all_nodes_in_both_families(lab: Lab) -> None:
    settle(lab)
    for address in (*EVERYWHERE, *NEAR):
        assert answered(lab, address, 10) == 10
        said = attributes(lab, address)
        assert router.COMMUNITY in said or router.COMMUNITY.replace(":", ",") in said
    for node in BOTH:  # none of 40 connections to one of two nodes: once in 10^12
        assert dumped(lab, node, "flows")["flows"]
    assert lab.status()["errors"] == []
    out = io.StringIO()
    main(["explain", "near", "--no-probes", "--instance", lab.spec.instance("node1")], out=out)
    assert f"{NEAR[0]}: told to router" in out.getvalue()
    page = ask(RunDir(lab.spec.instance("node1")), "/api/service", service="default/near")
    of_near = {one["address"]: one["routers"] for each in page["balanced"] for one in each["addresses"]}
    assert of_near == {address: ["told to router"] for address in NEAR}


@each_router
def test_policy_local_follows_readiness(lab: Lab) -> None:
    settle(lab)
    [there] = [each["name"] for each in lab.pods() if each["node"] == "node2"]
    lab.ask_kubelet("unready", pod=there)
    try:
        expect(lab, NEAR, frozenset(("node1",)), "node2, without a ready pod, is left")
        expect(lab, EVERYWHERE, BOTH, "policy Cluster is served everywhere")
        [one] = [each for each in told(lab, "node2")["addresses"] if each["address"] == NEAR[0]]
        assert (one["standing"], one["peers"]) == ("cannot", [])
        assert "no ready endpoint on node node2: default/near" in one["why"]
        assert answered(lab, NEAR[0], 5) == 5
    finally:
        lab.ask_kubelet("ready", pod=there)
    expect(lab, NEAR, BOTH, "node2 is back")


@each_router
def test_a_cordoned_node_is_the_last_resort(lab: Lab) -> None:
    settle(lab)

    def cordon(node: dict[str, Any]) -> None:
        node["spec"]["unschedulable"] = True

    with changed_node(lab, "node2", cordon):
        expect(lab, (*EVERYWHERE, *NEAR), frozenset(("node1",)), "the router prefers node1")
        assert "65535" in attributes(lab, EVERYWHERE[0]) or "graceful-shutdown" in attributes(
            lab, EVERYWHERE[0]
        )
        with changed_node(lab, "node1", cordon):
            expect(lab, (*EVERYWHERE, *NEAR), BOTH, "all are as good as each other")
    expect(lab, (*EVERYWHERE, *NEAR), BOTH, "node2 is as good as node1")


@each_router
def test_one_route_for_all_addresses_of_services_with_a_label(lab: Lab) -> None:
    """Connections come by the one route; a Service without the label is told to nobody."""
    settle(lab)
    several = ("203.0.113.0/28", "2001:db8:203::10/124")

    def aggregate(peers: dict[str, Any]) -> None:
        networks = [network for entry in peers["advertise"] for network in entry["addresses"]]
        one = {"addresses": networks, "labels": {"tier": "front"}, "aggregate": 28, "aggregate_ipv6": 124}
        peers["advertise"] = [one]

    with changed_peers(lab, aggregate):
        expect(lab, several, BOTH, "both nodes lead to the network")
        expect(lab, (*EVERYWHERE, *NEAR), frozenset(), "and to no single address")
        for address in EVERYWHERE:
            assert answered(lab, address, 10) == 10
        [one] = [each for each in told(lab, "node1")["addresses"] if each["address"] == NEAR[0]]
        assert one["peers"] == []
    expect(lab, (*EVERYWHERE, *NEAR), BOTH, "as before")
    assert ways(lab, several[0]) == frozenset()


@each_router
def test_an_engine_that_is_killed_loses_no_route(lab: Lab) -> None:
    """Graceful restart (RFC 4724), where no BFD tells the router that something ended."""
    settle(lab)
    with without_bfd(lab):
        restarts = told(lab, "node2")["engine"]["restarts"]
        with watched(lab, EVERYWHERE[0]) as seen, load(lab, EVERYWHERE[0]) as requests:
            kill_engine(lab, "node2")
            eventually(lambda: came_back(lab, "node2", restarts), "the session is back", SECONDS)
        assert seen == {BOTH}
        assert requests["failed"] == []
    eventually(lambda: told(lab, "node2")["peers"][0]["up"], "the session is back", SECONDS)


def kill_engine(lab: Lab, node: str) -> None:
    """Kill a node's BIRD, which is the one process of that name in its network."""
    [pid] = [each for each in namespaces.pids(lab.spec.namespace(node)) if name_of(each) == "bird"]
    os.kill(pid, signal.SIGKILL)


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def came_back(lab: Lab, node: str, restarts: int) -> bool:
    """Tell whether the engine was started again, and its session is up."""
    found = told(lab, node)
    return bool(found["engine"]["restarts"] > restarts and found["peers"][0]["up"])


@each_router
def test_a_node_that_is_cut_off_is_forgotten_within_the_time_of_bfd(lab: Lab) -> None:
    """Without BFD the router would wait for HOLD_SECONDS; what is waited for here is shorter."""
    settle(lab)

    def cable(state: str) -> None:
        with namespaces.inside(lab.spec.switch):
            subprocess.run(["ip", "link", "set", "node2", state], check=True)

    cable("down")
    try:
        eventually(lambda: ways(lab, NEAR[0]) == {"node1"}, "node2 is forgotten", router.HOLD_SECONDS - 2)
        assert answered(lab, NEAR[0], 5) == 5  # at the pod of node1
    finally:
        cable("up")
    expect(lab, (*EVERYWHERE, *NEAR), BOTH, "node2 is back")


@at_bird
def test_a_node_that_is_being_deleted_is_drained_then_withdrawn(lab: Lab) -> None:
    settle(lab)

    def drain_fast(peers: dict[str, Any]) -> None:
        peers["drain_seconds"] = 2

    def taint(node: dict[str, Any]) -> None:
        node["spec"]["taints"] = [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]

    with changed_peers(lab, drain_fast), load(lab, EVERYWHERE[0]) as requests:
        with changed_node(lab, "node2", taint):
            expect(lab, EVERYWHERE, frozenset(("node1",)), "the router prefers node1")
            eventually(lambda: not any(told(lab, "node2")["peers"][0]["told"].values()), "withdrawn", SECONDS)
            assert "192.168.77.12" not in attributes(lab, EVERYWHERE[0])
        expect(lab, EVERYWHERE, BOTH, "node2 is back")
    # A connection that is open while its way changes meets a node that does not know it: at most the requests
    # on their way at that instant, and there are two such instants.
    assert len(requests["failed"]) <= 2 * THREADS
    assert sum(requests["answered"]) > 100


@at_bird
def test_drain_is_told_to_routers_and_taken_back(lab: Lab) -> None:
    settle(lab)

    def drain_fast(peers: dict[str, Any]) -> None:
        peers["drain_seconds"] = 2

    def drain(*words: str) -> dict[str, Any]:
        out = io.StringIO()
        argv = ["node", "drain", *words, "--instance", lab.spec.instance("node2"), "-o", "json"]
        assert main(argv, out=out) == 0
        found: dict[str, Any] = json.loads(out.getvalue())
        return found

    with changed_peers(lab, drain_fast):
        try:
            assert set(drain()["told"]) == {*EVERYWHERE, *NEAR}
            expect(lab, (*EVERYWHERE, *NEAR), frozenset(("node1",)), "the router prefers node1")
            eventually(lambda: drain()["told"] == [], "withdrawn", SECONDS)
        finally:
            drain("--undo")
        expect(lab, (*EVERYWHERE, *NEAR), BOTH, "node2 is back")
        assert set(drain("--undo")["told"]) == {*EVERYWHERE, *NEAR}


@at_bird
def test_without_an_agent_routes_stay(lab: Lab) -> None:
    settle(lab)
    with watched(lab, NEAR[0]) as seen, load(lab, NEAR[0]) as requests:
        lab.stop_agent("node2", signal.SIGKILL)
        eventually(lambda: told(lab, "node2")["problems"] != [], "it is told", SECONDS)
        assert "the agent has not answered" in told(lab, "node2")["problems"][0]
        # Who speaks for the node ends, too, and the next one finds no agent.
        restart_speaker(lab, "node2", signal.SIGKILL)
        assert told(lab, "node2")["peers"][0]["addresses"] == sorted((*EVERYWHERE, *NEAR), key=by_family)
        lab.start_agent("node2")
        lab.wait_agent("node2")
        eventually(lambda: told(lab, "node2")["problems"] == [], "all is well", SECONDS)
    assert seen == {BOTH}
    assert requests["failed"] == []


def by_family(address: str) -> tuple[bool, str]:
    return ":" in address, address


def restart_speaker(lab: Lab, node: str, how: signal.Signals) -> None:
    """End what speaks for a node and start it again; BIRD outlives a kill."""
    name = router.speaker_name(node)
    process = lab.store.process(name)
    assert process is not None
    assert not kill([process], how, within=SECONDS)
    router.start_speaker(lab.store, lab.spec, node)
    eventually(lambda: bool(told(lab, node).get("peers")), "it speaks again", SECONDS)
    eventually(lambda: told(lab, node)["peers"][0]["up"], "its session is up", SECONDS)


@at_bird
def test_an_upgrade_of_everything_loses_no_route(lab: Lab) -> None:
    """SIGTERM, as a pod that is replaced gets it: BIRD ends as well, and the router keeps what it knows."""
    settle(lab)
    with without_bfd(lab):
        with watched(lab, EVERYWHERE[0]) as seen, load(lab, EVERYWHERE[0]) as requests:
            restart_speaker(lab, "node2", signal.SIGTERM)
        assert seen == {BOTH}
        assert requests["failed"] == []


@at_bird
def test_a_wrong_password_is_named(lab: Lab) -> None:
    settle(lab)
    (lab.store.base / "wrong.key").write_text("not the router's\n")

    def sign(peers: dict[str, Any]) -> None:
        peers["peers"][0]["password_file"] = "wrong.key"

    with changed_peers(lab, sign):
        eventually(lambda: "MD5" in str(told(lab, "node1")["problems"]), "the reason is told", SECONDS)
        assert any("MD5" in error for error in lab.status()["errors"])
    eventually(lambda: all(lasts(lab, node) for node in BOTH), "sessions are up again, and stay so", SECONDS)


def lasts(lab: Lab, node: str) -> bool:
    """Tell whether a session has been up for some seconds.

    One that began anew ends once more when the router's BFD misses the former one, within its time.
    """
    [peer] = told(lab, node)["peers"]
    return bool(peer["up"] and time.time() - peer["since"] > 4 * router.BFD_MS * router.BFD_MULTIPLIER / 1000)


@at_bird
def test_a_peer_that_is_wrong_costs_only_itself(lab: Lab) -> None:
    settle(lab)

    def break_it(peers: dict[str, Any]) -> None:
        peers["peers"].append({"name": "other", "address": "192.168.77.300", "asn": 0})

    with watched(lab, EVERYWHERE[0]) as seen:
        with changed_peers(lab, break_it):
            eventually(lambda: len(told(lab, "node1")["problems"]) == 2, "both errors are told", SECONDS)
            first, second = told(lab, "node1")["problems"]
            assert f"{router.peers_file(lab.store)}:" in first
            assert "peers[1].address" in first
            assert "peers[1].asn" in second
        eventually(lambda: told(lab, "node1")["problems"] == [], "all is well", SECONDS)
    assert seen == {BOTH}
