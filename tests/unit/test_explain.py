# SPDX-License-Identifier: Apache-2.0
"""``lbctl explain``: each planted fault is named, that one and no other."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import pytest

from lb.cli import main
from lb.cli.explain import render
from lb.cli.nodes import service_key
from lb.datapath.attach.netns import Listener, listening
from lb.datapath.sync.ledger import vip_keys
from lb.diagnose.attachment import MissingHook
from lb.diagnose.explain import explain
from lb.diagnose.facts import Result, causes
from lb.diagnose.gather import spread
from lb.errors import ConfigError
from lb.model import ObjectKey, Protocol
from lb.plan import health_port_taken
from lb.words import some
from tests.unit.plan_builders import vip_key
from tests.unit.worlds import ONE, SERVICE, TWO, WEB, WELL, world

TEXTS = Path(__file__).parent / "texts"
UNREADY = [
    ('{type: ContainersReady, status: "True"}', '{type: ContainersReady, status: "False", reason: NotYet}'),
    ('{type: Ready, status: "True"}', '{type: Ready, status: "False"}'),
]

CHECKED = "spec:\n  type: LoadBalancer\n  externalTrafficPolicy: Local\n  healthCheckNodePort: 30777"


def edited(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


ROWS: dict[str, tuple[str, list[str], str]] = {
    "well": (WELL, [], "no cause found"),
    "no service": (ONE, ["no-such-service"], "there is no Service default/web"),
    "another namespace": (
        edited(WELL, ("{name: web}", "{name: web, namespace: shop}")),
        ["no-such-service"],
        "there is shop/web",
    ),
    "unusable": (
        edited(WELL, ("port: 80", "port: 80000")),
        ["service-unusable"],
        "spec.ports[0].port",
    ),
    "another proxy": (
        edited(WELL, ("{name: web}", "{name: web, labels: {service.kubernetes.io/service-proxy-name: x}}")),
        ["not-ours"],
        "another proxy",
    ),
    "external name": (
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n"
        "spec: {type: ExternalName, externalName: www.example.org}\n",
        [],
        "www.example.org",
    ),
    "headless": (edited(WELL, ("10.96.0.10", "None")), [], "headless"),
    "selector": (
        edited(WELL, ("selector: {app: web}", "selector: {app: wep}")),
        ["selector-matches-nothing"],
        "app=web",
    ),
    "nothing given": (
        edited(WELL, ("  selector: {app: web}\n", "")),
        ["no-endpoints-given"],
        "neither EndpointSlices nor Endpoints",
    ),
    "unready": (edited(WELL, *UNREADY), ["pods-not-ready"], "ContainersReady is False (NotYet)"),
    "one unready": (SERVICE + edited(ONE, *UNREADY) + TWO, [], "1 of 2 ready"),
    "unready but published": (
        edited(WELL, *UNREADY, ("\n  clusterIP", "\n  publishNotReadyAddresses: true\n  clusterIP")),
        [],
        "publishNotReadyAddresses",
    ),
    "port name": (
        edited(WELL, ("targetPort: http", "targetPort: www")),
        ["target-port-unresolved"],
        "no port name of one, two",
    ),
    "port name of one pod": (
        SERVICE + ONE + edited(TWO, ("name: http", "name: www")),
        ["target-port-unresolved"],
        "no port name of two",
    ),
    "undeclared": (edited(WELL, ("targetPort: http", "targetPort: 9090")), [], "pods declare 8080, not"),
    "mixed up": (
        edited(WELL, ("port: 80, targetPort: http", "port: 8080, targetPort: 80")),
        [],
        "mixed up",
    ),
    "names of ports differ": (
        edited(SERVICE, ("  selector: {app: web}\n", ""))
        + "apiVersion: v1\nkind: Endpoints\nmetadata: {name: web}\n"
        "subsets: [{addresses: [{ip: 192.0.2.1}], ports: [{name: other, port: 80}]}]\n",
        ["endpoint-port-mismatch", "part-refused"],
        "their ports are other/TCP",
    ),
    "nobody here, inside": (
        edited(SERVICE, ("spec:", "spec:\n  internalTrafficPolicy: Local")) + TWO,
        [],
        "internalTrafficPolicy Local and no endpoint on node1, but on node2",
    ),
    "nobody here, outside": (
        edited(SERVICE, ("spec:", "spec:\n  type: NodePort\n  externalTrafficPolicy: Local")) + TWO,
        [],
        "externalTrafficPolicy Local and no endpoint on node1, but on node2",
    ),
    "source range": (
        edited(
            WELL,
            ("spec:\n  clusterIP", "spec:\n  type: LoadBalancer\n"
             "  loadBalancerSourceRanges: [203.0.113.0/24]\n  clusterIP"),
            ("targetPort: http}]\n", "targetPort: http}]\n"
             "status: {loadBalancer: {ingress: [{ip: 198.51.100.1}]}}\n"),
        ),
        ["source-ranges"],
        "only 203.0.113.0/24 may connect; 192.168.77.11 is dropped",
    ),
    "no address, and why": (
        edited(WELL, ("spec:\n  clusterIP", "spec:\n  type: LoadBalancer\n  clusterIP"))
        + "---\napiVersion: lbctl/v1\nkind: ServiceAddresses\nmetadata: {name: web}\nnote: pool is full\n",
        ["no-load-balancer-address"],
        "LoadBalancer without an address: pool is full",
    ),
    "no address": (
        edited(WELL, ("spec:\n  clusterIP", "spec:\n  type: LoadBalancer\n  clusterIP")),
        [],
        "without an address",
    ),
    "conflict": (
        WELL + edited(SERVICE, ("{name: web}", "{name: elder, creationTimestamp: 2020-01-01T00:00:00Z}"))
,
        ["vip-conflict"],
        "default/web claims it too",
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_each_fault_of_the_source_is_named(row: str, tmp_path: Path) -> None:
    text, expected, words = ROWS[row]
    facts = world(tmp_path, text).facts()
    if row == "another namespace":
        facts.near = ["shop/web"]
    findings = explain(facts)
    assert causes(findings) == expected
    told = re.sub(r"\s+", " ", render(WEB, "node1", findings))
    assert words in told
    for one in findings:
        assert one.next or one.result is not Result.CAUSE


def test_a_map_that_was_changed_behind_our_back(tmp_path: Path) -> None:
    node = world(tmp_path)
    node.maps.delete("vips4", vip_keys(4, [vip_key("10.96.0.10:80")]))
    findings = explain(node.facts(vip="silent"))
    assert causes(findings) == ["maps-differ"]
    told = " ".join(one.found for one in findings)
    assert "vips4 10.96.0.10:80/TCP: is missing, should be default/web" in told
    assert "follows from the cause above" in told


def test_a_hook_that_is_gone(tmp_path: Path) -> None:
    facts = world(tmp_path).facts(vip="silent")
    facts.hooks = [MissingHook("eth0", "uplink", "tc ingress", "lb_tc_uplink_in")]
    findings = explain(facts)
    assert causes(findings) == ["hook-missing"]
    assert "uplink eth0, tc ingress: lb_tc_uplink_in is not attached" in render(WEB, "n", findings)


def heard(address: str, port: int, protocol: Protocol = Protocol.TCP) -> Listener:
    return Listener(protocol, ip_address(address), port)


LISTENING = {
    "localhost": ([heard("127.0.0.1", 8080)], "localhost-only", "listens on 127.0.0.1 only"),
    "localhost of IPv6": ([heard("::ffff:127.0.0.1", 8080)], "localhost-only", "only"),
    "another port": ([heard("0.0.0.0", 8081)], "wrong-target-port", "listen on 8081"),
    "another protocol": ([heard("0.0.0.0", 8080, Protocol.UDP)], "nothing-listens", "no process"),
    "nobody": ([], "nothing-listens", "no process of the pod listens"),
    "all is well": ([heard("::", 8080)], "endpoint-refuses", "though a process listens"),
    "not to be seen": (None, "endpoint-refuses", "at most on localhost"),
}


@pytest.mark.parametrize("row", LISTENING)
def test_who_listens_behind_a_refusal(row: str, tmp_path: Path) -> None:
    listeners, cause, words = LISTENING[row]
    facts = world(tmp_path, SERVICE + ONE).facts(endpoint="refused", vip="refused")
    facts.listeners = {"10.244.1.2": listeners}
    findings = explain(facts)
    assert causes(findings) == [cause]
    assert words in re.sub(r"\s+", " ", render(WEB, "node1", findings))


def test_port_and_target_port_that_are_mixed_up(tmp_path: Path) -> None:
    text = edited(SERVICE + ONE, ("port: 80, targetPort: http", "port: 8080, targetPort: 80"))
    facts = world(tmp_path, text).facts(endpoint="refused", vip="refused")
    for known, cause in (([heard("0.0.0.0", 8080)], "wrong-target-port"), (None, "endpoint-refuses")):
        facts.listeners = {"10.244.1.2": known}
        findings = explain(facts)
        assert causes(findings) == [cause]
        assert "mixed up" in " ".join(one.found for one in findings)


def test_a_pod_elsewhere_that_listens_on_localhost_is_not_taken_for_a_wrong_port(tmp_path: Path) -> None:
    text = edited(SERVICE + TWO, ("targetPort: http", "targetPort: 9099"))
    findings = explain(world(tmp_path, text).facts(endpoint="refused", vip="refused"))
    assert causes(findings) == ["endpoint-refuses"]
    told = re.sub(r"\s+", " ", render(WEB, "node1", findings))
    assert "nothing listens on 9099 of the pod's address, at most on localhost; the pod declares 8080" in told


def test_policy_local_without_a_pod_here_is_a_note_and_so_is_what_follows(tmp_path: Path) -> None:
    facts = world(tmp_path, ROWS["nobody here, inside"][0]).facts(vip="silent")
    findings = explain(facts)
    assert causes(findings) == []
    assert [one.result for one in findings if one.cause == "no-local-endpoint"] == [Result.NOTE] * 2


def test_endpoints_that_were_not_tried_are_counted(tmp_path: Path) -> None:
    facts = world(tmp_path).facts()
    facts.not_tried = 1330
    (found,) = [one for one in explain(facts) if one.cause == "endpoints-not-tried"]
    assert (found.found, found.next) == (
        "2 of 1332 were tried, some of each port",
        "--all tries every one",
    )


def test_endpoints_are_tried_from_all_over() -> None:
    assert spread(range(100), 4) == [0, 25, 50, 75]
    assert spread(range(3), 4) == [0, 1, 2]


def test_evictions_and_missing_nodes_are_notes(tmp_path: Path) -> None:
    made = world(tmp_path)
    facts = made.facts()
    facts.evicted, facts.missing_nodes = {"flows4": 456}, ["node2"]
    findings = explain(facts)
    assert causes(findings) == []
    told = re.sub(r"\s+", " ", render(WEB, "node1", findings))
    assert "endpoints name node2, of which there is no Node: they get their share" in told
    assert "made room for new ones, since the maps were made: 456 of flows4" in told


def test_a_health_check_port_that_is_anothers_node_port_is_named(tmp_path: Path) -> None:
    local = edited(
        SERVICE,
        (
            "spec:",
            "spec:\n  type: LoadBalancer\n  externalTrafficPolicy: Local\n  healthCheckNodePort: 30777",
        ),
    )
    other = edited(
        SERVICE, ("{name: web}", "{name: other}"), ("10.96.0.10", "10.96.0.11"),
        ("spec:", "spec:\n  type: NodePort"), ("port: 80,", "port: 80, nodePort: 30777,"),
    )  # fmt: skip
    state = world(tmp_path, local + other + ONE).snapshot().state
    taken = health_port_taken(state.services())
    assert taken == {WEB: "spec.healthCheckNodePort 30777: service default/other has it as a nodePort"}
    facts = world(tmp_path, local + other + ONE).facts()
    facts.health_port = taken[WEB]
    assert causes(explain(facts)) == ["health-port-taken"]


def test_a_health_check_port_that_two_ask_for_is_the_firsts(tmp_path: Path) -> None:
    local = edited(
        SERVICE,
        (
            "spec:",
            "spec:\n  type: LoadBalancer\n  externalTrafficPolicy: Local\n  healthCheckNodePort: 30777",
        ),
    )
    other = edited(local, ("{name: web}", "{name: other}"), ("10.96.0.10", "10.96.0.11"))
    taken = health_port_taken(world(tmp_path, local + other).snapshot().state.services())
    assert taken == {WEB: "spec.healthCheckNodePort 30777: service default/other has it"}


def test_nodes_are_missed_where_some_are_known(tmp_path: Path) -> None:
    assert world(tmp_path).reader.missing_nodes(["node1", "node2"]) == []
    node = "apiVersion: v1\nkind: Node\nmetadata: {name: node1}\n"
    assert world(tmp_path, WELL + node).reader.missing_nodes(["node1", "node2"]) == ["node2"]


@pytest.mark.parametrize(
    ("outcome", "cause"), [("silent", "endpoint-silent"), ("unreachable", "endpoint-unreachable")]
)
def test_an_endpoint_that_does_not_answer(outcome: str, cause: str, tmp_path: Path) -> None:
    findings = explain(world(tmp_path).facts(endpoint=outcome, vip="silent"))
    assert causes(findings) == [cause]


def test_a_vip_that_does_not_answer_though_all_else_is_well(tmp_path: Path) -> None:
    assert causes(explain(world(tmp_path).facts(vip="silent"))) == ["vip-does-not-answer"]


def test_what_udp_does_not_tell_is_no_fault(tmp_path: Path) -> None:
    facts = world(tmp_path).facts(endpoint="untried", vip="untried")
    assert causes(explain(facts)) == []


def test_no_agent(tmp_path: Path) -> None:
    facts = world(tmp_path).facts()
    facts.agent = False
    findings = explain(facts)
    assert causes(findings) == []
    assert any(one.cause == "agent-not-running" and "lbctl run" in one.next for one in findings)


def test_an_agent_that_does_not_get_on_is_a_cause_where_maps_are_behind(tmp_path: Path) -> None:
    node = world(tmp_path)
    facts = node.facts()
    facts.sick = ("the agent, process 77, is stopped", "kill -CONT 77")
    assert causes(explain(facts)) == []
    node.maps.delete("vips4", vip_keys(4, [vip_key("10.96.0.10:80")]))
    facts = node.facts(vip="silent")
    facts.sick = ("the agent, process 77, is stopped", "kill -CONT 77")
    assert causes(explain(facts)) == ["maps-differ", "agent-silent"]
    assert "→ kill -CONT 77" in render(WEB, "node1", explain(facts))


def test_a_takeover_that_is_not_finished_is_no_cause(tmp_path: Path) -> None:
    facts = world(tmp_path).facts()
    facts.between = ("Services are not taken over yet", "lbctl cutover")
    assert causes(explain(facts)) == []
    assert "→ lbctl cutover" in render(WEB, "node1", explain(facts))


def test_no_kernel(tmp_path: Path) -> None:
    facts = world(tmp_path).facts()
    facts.kernel, facts.outcomes = False, ()
    assert [one.cause for one in explain(facts) if one.step in ("maps", "hooks")] == ["no-kernel"]


@pytest.mark.parametrize("name", ["well", "unready", "source range"])
def test_the_text(name: str, tmp_path: Path) -> None:
    shown = render(WEB, "node1", explain(world(tmp_path, ROWS[name][0]).facts()))
    assert shown == (TEXTS / f"explain-{name.replace(' ', '-')}.txt").read_text()
    assert max(map(len, shown.splitlines())) <= 100


def test_colours_are_for_terminals(tmp_path: Path) -> None:
    findings = explain(world(tmp_path).facts())
    assert "\033[" not in render(WEB, "node1", findings)
    assert "\033[32mok" in render(WEB, "node1", findings, colours=True)


def test_names_of_services() -> None:
    assert service_key("web") == ObjectKey("default", "web")
    assert service_key("shop/web") == ObjectKey("shop", "web")
    for wrong in ("/web", "shop/", "a/b/c", ""):
        with pytest.raises(ConfigError, match="is no Service"):
            service_key(wrong)


def test_some() -> None:
    assert some([1, 2]) == "1, 2"
    assert some(range(8)) == "0, 1, 2, 3, 4 and 3 more"


def test_who_listens_is_read_from_proc(tmp_path: Path) -> None:
    head = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    )
    rest = "00000000:00000000 00:00000000 00000000     0        0 4242 1"

    def word(text: str) -> str:
        raw = np.frombuffer(ip_address(text).packed, "=u4")
        return "".join(f"{each:08X}" for each in raw)

    (tmp_path / "tcp").write_text(
        f"{head}   0: {word('127.0.0.1')}:1F90 00000000:0000 0A {rest}\n"
        f"   1: {word('10.0.0.1')}:0050 {word('10.0.0.2')}:0051 01 {rest}\n"
    )
    (tmp_path / "tcp6").write_text(f"{head}   0: {word('::1')}:1F91 {'0' * 32}:0000 0A {rest}\n")
    (tmp_path / "udp").write_text(f"{head}   0: 00000000:0035 00000000:0000 07 {rest}\n")
    found = listening(tmp_path)
    assert found == [heard("127.0.0.1", 8080), heard("::1", 8081), heard("0.0.0.0", 53, Protocol.UDP)]
    assert [one.loopback_only for one in found] == [True, True, False]


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["explain"])
    assert stopped.value.code == 2
    assert "SERVICE" in capsys.readouterr().err
