# SPDX-License-Identifier: Apache-2.0
"""Contract row announce: an address is found by ARP and NDP, has one owner, and a dead one is replaced."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lb.cli import main
from lb.lab.addressing import UPLINK, Announce, node_address, node_mac
from lb.lab.api import NODES
from lb.lab.lab import Lab
from lb.lab.objects import node_object, to_yaml
from lb.model import IPAddress, ObjectKey
from lb.rundir import RunDir
from lb.served.ask import ask
from tests.cluster_programs import make_assets
from tests.netns.conftest import MakeLab
from tests.netns.segments import (
    MANIFESTS,
    NEAR,
    WEB,
    WEB6,
    Asker,
    Load,
    asker,
    halves,
    set_bridged,
    set_port,
    watch_two,
)
from tests.netns.waiting import eventually, scrape

FRESH = 2
EVERY = (NEAR, WEB, WEB6)
MERGE = "application/merge-patch+json"
RIVAL_MAC = "02:00:00:00:00:66"
NOBODYS = """\
---
apiVersion: v1
kind: Service
metadata: {name: empty, annotations: {lbctl/addresses: 192.168.77.227}}
spec: {type: LoadBalancer, selector: {app: none}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: far}
spec: {type: LoadBalancer, loadBalancerClass: other, selector: {app: web}, ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 198.51.100.9}]}}
"""
"""Services whose addresses nobody answers for: without an endpoint, and outside of the segment's networks."""
OWN = [
    ", ".join(f'{{ip: "{node_address(name, version)}"}}' for name in names for version in (4, 6))
    for names in (("node1", "node2"), ("node3",))
]
OF_NODES = f"""\
---
apiVersion: v1
kind: Service
metadata: {{name: ported}}
spec:
  type: LoadBalancer
  loadBalancerClass: other
  ipFamilyPolicy: RequireDualStack
  externalTrafficPolicy: Local
  selector: {{app: web}}
  ports: [{{port: 88, targetPort: 8080}}]
status: {{loadBalancer: {{ingress: [{OWN[0]}]}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: portless}}
spec:
  type: LoadBalancer
  loadBalancerClass: other
  ipFamilyPolicy: RequireDualStack
  selector: {{app: none}}
  ports: [{{port: 89}}]
status: {{loadBalancer: {{ingress: [{OWN[1]}]}}}}
"""
"""Services whose load-balancer addresses are those of nodes, as k3s' servicelb has them."""
AFTER_SECONDS = 1.5
"""For how long it is looked after a change whether what came of it stays so: announcements are repeated."""


@pytest.fixture(scope="module")
def segment(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Three nodes with an agent and a pod each; leave cables, agents and pods as they are."""
    manifests = tmp_path_factory.mktemp("announced")
    (manifests / "web.yaml").write_text(MANIFESTS + NOBODYS + OF_NODES)
    return make_lab(manifests=manifests, nodes=3, announce=Announce.ARP)


@pytest.fixture
def asking(segment: Lab) -> Iterator[Asker]:
    with asker(segment) as found:
        yield found


@pytest.fixture
def owner(segment: Lab, asking: Asker) -> str:
    """The node that owns the address of the Service web, when nothing has changed for a while."""
    eventually(lambda: all(settled(segment, asking, address) for address in EVERY), "one owner for each", 30)
    return asking.owner(WEB)


def settled(lab: Lab, asking: Asker, address: Any) -> bool:
    """Tell whether one node answers for an address, and all agree that it is to be that one."""
    told = {
        one["owner"]
        for node in lab.spec.node_names
        for one in owners(lab, node)
        if one["address"] == str(address)
    }
    return len(told) == 1 and asking.owners(address, 0.1) == told


def owners(lab: Lab, node: str) -> list[dict[str, Any]]:
    """Return what a node's agent says of owners."""
    found: list[dict[str, Any]] = listed(lab, node)["owners"]
    return found


def listed(lab: Lab, node: str, *command: str) -> dict[str, Any]:
    out, err = io.StringIO(), io.StringIO()
    argv = [*(command or ("service", "list")), "-o", "json", "--instance", lab.spec.instance(node)]
    main(argv, out=out, err=err)
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def curl(lab: Lab, address: Any) -> str:
    host = f"[{address}]" if address.version == 6 else str(address)
    done = lab.run("client", ["curl", "-sS", "-m", "10", f"http://{host}/hostname"])
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def served(lab: Lab, address: Any) -> bool:
    """Tell whether a connection succeeds; one in three may lead to a pod on a node that is cut off."""
    done = lab.run("client", ["curl", "-sS", "-m", "2", f"http://{address}/hostname"])
    return done.returncode == 0


def noted_as_answered(lab: Lab, asking: Asker, address: Any) -> bool:
    """Tell whether the client has noted who answers; after a hand-over it is told for three seconds."""
    [node] = asking.owners(address)
    return node_mac(node) in lab.run("client", ["ip", "neigh", "show", str(address)]).stdout


def others(lab: Lab, node: str) -> set[str]:
    return set(lab.spec.node_names) - {node}


def test_announce_arp_a_client_finds_addresses_on_its_segment(
    segment: Lab, asking: Asker, owner: str
) -> None:
    """It has no route that leads to them: it asks, one node answers, and connections work."""
    assert owner in segment.spec.node_names
    for address in EVERY:
        assert curl(segment, address).startswith("web-")
        way = segment.run("client", ["ip", "route", "get", str(address)]).stdout
        assert " via " not in way
        assert f" dev {UPLINK} " in way
        eventually(partial(noted_as_answered, segment, asking, address), "the client notes who answers")


def test_announce_arp_the_owner_s_own_processes_find_them(segment: Lab, owner: str) -> None:
    """Nobody else answers what the owner asks; the answer is the node's own."""
    for node in (owner, next(iter(others(segment, owner)))):
        for address in (WEB, WEB6):
            done = segment.run(node, ["ping", "-c", "1", "-W", "5", str(address)])
            assert done.returncode == 0, (node, done.stdout)


def test_announce_arp_it_is_said_who_owns_what(segment: Lab, owner: str) -> None:
    for node in segment.spec.node_names:
        [told] = [one for one in owners(segment, node) if one["address"] == str(WEB)]
        assert (told["owner"], told["interface"], told["here"]) == (owner, UPLINK, node == owner)
        assert bool(told["why"]) == (node != owner)
        figures = scrape(segment, node)
        assert figures[("lbctl_segment_members",)] == 2
        assert figures[("lbctl_announced_addresses",)] == sum(one["here"] for one in owners(segment, node))
    out = io.StringIO()
    main(["service", "list", "--instance", segment.spec.instance(owner)], out=out, err=out)
    assert f"{WEB}  on {UPLINK}: this node answers" in out.getvalue()
    page = ask(RunDir(segment.spec.instance(owner)), "/api/service", service="default/web")
    [of_web] = [one for one in page["balanced"][0]["addresses"] if one["address"] == str(WEB)]
    assert of_web["segment"] == [f"on {UPLINK}: this node answers"]
    main(["service", "show", "web", "--instance", segment.spec.instance(owner)], out=out, err=out)
    assert f"  {WEB}: on {UPLINK}: this node answers\n" in out.getvalue()
    findings = listed(segment, owner, "explain", "web", "--no-probes")["findings"]
    assert [one["found"] for one in findings if one["step"] == "announced"] == [
        f"{address}: node {asked['owner']} answers for it on {UPLINK}"
        for address in (WEB, WEB6)
        for asked in owners(segment, owner)
        if asked["address"] == str(address)
    ]


def test_announce_arp_an_address_that_nobody_answers_for_is_told(segment: Lab, owner: str) -> None:
    """Each reason is a problem with its address and its Service, in the log and the metrics as well."""
    reasons = {
        ", 192.168.77.227 of default/empty: no ready endpoint on any node": "lbctl explain",
        f", 198.51.100.9 of default/far: it is in no network of {UPLINK}": "announce_networks",
    }

    def told() -> dict[str, str]:
        problems = listed(segment, owner, "status")["problems"]
        return {one["text"]: one["next"] for one in problems if "answered for by nobody" in one["text"]}

    eventually(lambda: len(told()) == len(reasons), "the problems", 60)
    log = segment.store.log(owner).read_text()
    for reason, step in reasons.items():
        [(text, after)] = [one for one in told().items() if reason in one[0]]
        assert text.startswith("1 load-balancer address is answered for by nobody on the segment")
        assert step in after
        assert f"WARNING {text}" in log
    figures = scrape(segment, owner)
    assert figures[("lbctl_unanswered_addresses",)] == 2
    assert figures[("lbctl_problems", "announce")] >= 2


def test_announce_arp_a_nodes_own_address_stays_its_own(segment: Lab, asking: Asker, owner: str) -> None:
    """No other node answers for it, even without its agent; nor does one answer what is for no Service."""
    segment.stop_agent("node2", signal.SIGKILL)
    try:
        eventually(lambda: scrape(segment, "node1")[("lbctl_segment_members",)] == 1, "it is taken for dead")
        for node in segment.spec.node_names:
            for version in (4, 6):
                assert asking.owners(node_address(node, version)) == {node}
    finally:
        segment.start_agent("node2")
        segment.wait_agent("node2")
    address = str(node_address("node2"))
    [told] = [one for one in owners(segment, "node1") if one["address"] == address]
    assert (told["owner"], told["why"]) == (None, "it is an address of node node2")
    for pod in (each["name"] for each in segment.pods()):
        for node in segment.spec.node_names:
            for version in (4, 6):
                done = segment.run(pod, ["ping", "-c", "1", "-W", "5", str(node_address(node, version))])
                assert done.returncode == 0, (pod, node, done.stdout)
        for node in ("node1", "node2"):
            done = segment.run(pod, ["curl", "-sS", "-m", "10", f"http://{node_address(node)}:88/hostname"])
            assert done.stdout.startswith("web-"), done.stderr


def test_announce_arp_another_host_that_claims_an_address_is_told(
    segment: Lab, asking: Asker, owner: str
) -> None:
    """It is a problem with an end: a minute after the host was heard for the last time."""
    asking.claim(WEB, RIVAL_MAC)

    def told() -> bool:
        problems = listed(segment, owner, "status")["problems"]
        return any(str(WEB) in one["text"] and RIVAL_MAC in one["text"] for one in problems)

    eventually(told, "the problem")
    assert asking.owner(WEB) == owner


def test_announce_arp_policy_local_has_an_owner_with_a_ready_endpoint(
    segment: Lab, asking: Asker, owner: str
) -> None:
    node = asking.owner(NEAR)
    [pod] = [one["name"] for one in segment.pods() if one["node"] == node]
    segment.ask_kubelet("unready", pod=pod)
    try:
        eventually(
            lambda: asking.owners(NEAR) <= others(segment, node) and bool(asking.owners(NEAR)),
            "another owner",
        )
        [why] = [one["why"] for one in owners(segment, node) if one["address"] == str(NEAR)]
        assert "no ready endpoint" in why
        assert curl(segment, NEAR) != pod
    finally:
        segment.ask_kubelet("ready", pod=pod)
    eventually(lambda: asking.owners(NEAR) == {node}, "it comes back")


def check_one(asking: Asker, address: IPAddress = WEB) -> None:
    """Look for a while whether two nodes answer at once: at most in the moment of a hand-over.

    On a machine without time for its agents the address may change hands meanwhile; that is no fault.
    """
    __tracebackhide__ = True
    assert watch_two(asking, address, AFTER_SECONDS) <= 2


def write_node(lab: Lab, node: str, *, cordoned: bool) -> None:
    item = node_object(lab.spec, node, "2024-01-01T00:00:00Z")
    item["spec"]["unschedulable"] = cordoned
    lab.store.write_object(f"node.{node}.yaml", to_yaml(item))


def test_announce_arp_a_cordoned_node_hands_over_and_nothing_is_lost(
    segment: Lab, asking: Asker, owner: str
) -> None:
    """Connections that are open go on, those that begin meanwhile begin; so when the address comes back."""
    with Load(segment, WEB) as load:
        eventually(partial(under_way, load), "the load")
        write_node(segment, owner, cordoned=True)
        eventually(
            lambda: asking.owners(WEB) <= others(segment, owner) and bool(asking.owners(WEB)), "another owner"
        )
        check_one(asking)
        write_node(segment, owner, cordoned=False)
        eventually(lambda: asking.owners(WEB) == {owner}, "it comes back")
        check_one(asking)
    assert load.failed == []


def drain(lab: Lab, node: str, *words: str) -> tuple[int, dict[str, Any]]:
    """Call ``lbctl node drain``; return its exit code and what it tells."""
    out = io.StringIO()
    code = main(["node", "drain", *words, "--instance", lab.spec.instance(node), "-o", "json"], out=out)
    found: dict[str, Any] = json.loads(out.getvalue())
    return code, found


def test_drain_hands_over_loses_nothing_and_tells_when_the_last_connection_is_over(
    segment: Lab, asking: Asker, owner: str
) -> None:
    """Connections through the drained node go on there, new ones elsewhere; ``--wait`` waits for the old."""
    healthz = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:10256/healthz"]

    def left_alone() -> bool:
        """Tell whether others answer for the address, and the node's agent says that it is drained."""
        answering = asking.owners(WEB)
        [why] = [one["why"] for one in owners(segment, owner) if one["address"] == str(WEB)]
        return bool(answering) and owner not in answering and "lbctl node drain" in why

    try:
        with Load(segment, WEB) as load:
            eventually(partial(under_way, load), "the load")
            code, found = drain(segment, owner, "--wait", "--timeout", "1")
            assert code == 1
            assert found["drained_since"] is not None
            eventually(left_alone, "another owner")
            check_one(asking)
            assert segment.run(owner, healthz).stdout == "503"
            left = {one["service"]: one["connections"] for one in drain(segment, owner)[1]["services"]}
            assert left["default/web"] > 0
        assert load.failed == []
        code, found = drain(segment, owner, "--wait", "--timeout", "60")
        assert (code, found["connections"], found["told"]) == (0, 0, [])
        with Load(segment, WEB) as load:
            eventually(partial(under_way, load), "the load")
            segment.stop_agent(owner, signal.SIGKILL)  # the mark outlives the agent
            segment.start_agent(owner)
            segment.wait_agent(owner)
            eventually(left_alone, "it is drained as before", 30)
            assert segment.run(owner, healthz).stdout == "503"
            assert drain(segment, owner, "--undo")[1]["drained_since"] is None
            eventually(lambda: asking.owners(WEB) == {owner}, "it comes back", 30)
            check_one(asking)
        assert load.failed == []
    finally:
        drain(segment, owner, "--undo")
    assert segment.run(owner, healthz).stdout == "200"


def under_way(load: Load) -> bool:
    """Tell whether connections of either kind were answered for a while."""
    return load.answered["kept"] > 20 and load.answered["fresh"] > 20


def test_announce_arp_an_agent_that_ends_hands_over_and_nothing_is_lost(
    segment: Lab, asking: Asker, owner: str
) -> None:
    """Datagrams of one socket, in pieces or not, reach the same pod through whichever node."""
    with Load(segment, WEB, udp=1) as load:
        eventually(partial(under_way, load), "the load")
        eventually(lambda: load.answered["datagrams"] > 20, "the datagrams")
        segment.stop_agent(owner)
        assert asking.owner(WEB) in others(segment, owner)
        check_one(asking)
        segment.start_agent(owner)
        eventually(lambda: asking.owners(WEB) == {owner}, "it comes back", 60)
        check_one(asking)
    assert load.failed == []
    assert len(load.echoed_by) == 1


def test_announce_arp_a_killed_owner_is_replaced_and_answers_no_more(
    segment: Lab, asking: Asker, owner: str
) -> None:
    """The programs it leaves behind stop by themselves; they go on leading what still comes there."""
    with Load(segment, WEB, kept=0, fresh=FRESH) as load:
        eventually(lambda: load.answered["fresh"] > 20, "the load")
        segment.stop_agent(owner, signal.SIGKILL)
        eventually(lambda: bool(asking.owners(WEB) & others(segment, owner)), "another owner")
        check_one(asking)
    # A connection that is open in just that moment breaks; every later one is served.
    assert len([one for one in load.failed if one.startswith("fresh")]) <= FRESH
    segment.start_agent(owner)
    eventually(lambda: asking.owners(WEB) == {owner}, "it comes back", 60)


def test_announce_arp_an_agent_that_hangs_is_replaced(segment: Lab, asking: Asker, owner: str) -> None:
    process = segment.store.running(owner)
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        eventually(lambda: bool(asking.owners(WEB) & others(segment, owner)), "another owner")
        check_one(asking)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    eventually(lambda: asking.owners(WEB) == {owner}, "it comes back", 60)


def test_announce_arp_a_node_whose_cable_is_pulled_is_replaced(
    segment: Lab, asking: Asker, owner: str
) -> None:
    """And told, where it is asked: it owns nothing."""
    set_port(segment, owner, up=False)
    try:
        assert asking.owner(WEB) in others(segment, owner)
        eventually(lambda: served(segment, WEB), "the address is served")
        eventually(lambda: not any(one["here"] for one in owners(segment, owner)), "it owns nothing")
        told = {one["why"] for one in owners(segment, owner) if one["interface"]}
        assert told == {f"{UPLINK} has no carrier"}
    finally:
        set_port(segment, owner, up=True)
    eventually(lambda: asking.owners(WEB) == {owner}, "it comes back")
    check_one(asking)


def test_announce_arp_a_partition_heals_to_one_owner(segment: Lab, asking: Asker, owner: str) -> None:
    """The node sees nothing of the wall, and owns on its side; then one of the two is left at once."""
    set_bridged(segment, owner, bridged=False)
    try:
        assert asking.owner(WEB) in others(segment, owner)
        eventually(lambda: served(segment, WEB), "the address is served")
        assert any(one["here"] for one in owners(segment, owner))
    finally:
        set_bridged(segment, owner, bridged=True)
    eventually(lambda: asking.owners(WEB) == {owner}, "one owner")
    check_one(asking)
    eventually(lambda: served(segment, WEB), "the address is served")
    assert Path(segment.store.log(owner)).read_text().count("Traceback") == 0


def test_announce_arp_a_switch_that_is_restarted_is_got_over(segment: Lab, asking: Asker, owner: str) -> None:
    """Every node loses its cable, and gets it back at one moment: somebody answers, and knows that it does.

    Elsewhere the node that got the lease afterwards has never answered (cilium#48626).
    """
    for up in (False, True):
        for node in segment.spec.node_names:
            set_port(segment, node, up=up)
        if not up:
            eventually(lambda: not believed(segment, segment.spec.node_names, WEB), "nobody owns it")
    eventually(lambda: asking.owners(WEB) == {owner}, "one owner")
    check_one(asking)
    assert believed(segment, segment.spec.node_names, WEB) == {owner}
    eventually(lambda: served(segment, WEB), "the address is served")


def believed(lab: Lab, names: Iterable[str], address: Any) -> set[str]:
    """Return which nodes say that they own an address."""
    text = str(address)
    return {name for name in names for one in owners(lab, name) if one["here"] and one["address"] == text}


def test_announce_arp_two_halves_have_an_owner_each_and_heal_to_one(
    segment: Lab, asking: Asker, owner: str
) -> None:
    """On each side one node answers, and believes that it does; and when the wall has fallen, one in all."""

    def agreed(asker: Asker, names: Iterable[str]) -> bool:
        sides = [(asker.owners(each), believed(segment, names, each)) for each in EVERY]
        return all(answering == believing and len(answering) == 1 for answering, believing in sides)

    near, *rest = sorted(others(segment, owner))
    with halves(segment, [owner, *rest]) as there:
        eventually(lambda: agreed(asking, [near]), "an owner on the client's side", 30)
        eventually(lambda: agreed(there, [owner, *rest]), "an owner on the other side", 30)
        assert (asking.owners(WEB), there.owners(WEB)) == ({near}, {owner})
    eventually(lambda: asking.owners(WEB) == {owner}, "one owner")
    for address in EVERY:
        check_one(asking, address)
    eventually(lambda: agreed(asking, segment.spec.node_names), "who believes that it owns one answers")
    eventually(lambda: served(segment, WEB), "the address is served")


def answered_by(asking: Asker, node: str) -> bool:
    return asking.owners(node_address(node)) == {node}


def test_announce_arp_goes_on_without_the_api_server(
    make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A cordoned Node is heard of by the API; who lives, and who owns what, by the segment alone.

    Elsewhere leases that an API server does not renew in time end announcements (cilium#26586, #40735).
    """
    folder = tmp_path_factory.mktemp("kubebuilder")
    (manifests := folder / "manifests").mkdir()
    (manifests / "web.yaml").write_text(MANIFESTS + OF_NODES)
    assets = make_assets(folder / "assets", controllers=False)
    lab = make_lab(manifests=manifests, nodes=2, announce=Announce.ARP, kubernetes=str(assets))
    with asker(lab) as asking:
        owner = asking.owner(WEB)
        [other] = others(lab, owner)
        for node in lab.spec.node_names:  # as told by the API, where an agent would read its own Node alone
            eventually(partial(answered_by, asking, node), f"{node} alone answers for its own address")
            assert main(["audit", "--instance", lab.spec.instance(node)], out=io.StringIO()) == 0
        api = lab.api_host().api(patience=20)
        change = {"spec": {"unschedulable": True}}
        api.send("PATCH", NODES.object(ObjectKey("", owner)), body=change, content_type=MERGE)
        eventually(lambda: asking.owners(WEB) == {other}, "the other one owns it")
        assert curl(lab, WEB).startswith("web-")
        lab.api_host().stop(signal.SIGKILL)
        check_one(asking)
        assert asking.owner(WEB) == other
        lab.stop_agent(other, signal.SIGKILL)
        eventually(lambda: asking.owners(WEB) == {owner}, "it is replaced")
