# SPDX-License-Identifier: Apache-2.0
"""What an operator sees of faults that are planted in a lab, by the commands that are run on the node.

One node, whose agent has room for few flows and a misspelt variable in its environment. test_explain.py has
the faults of Services that ``explain`` names, test_fail_open.py what is detached and mended.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lb.cli import main
from lb.datapath.attach.netlink import Interface, Netlink
from lb.datapath.kernel import bpf, tcx
from lb.datapath.kernel.bpf import ProgType
from lb.datapath.kernel.pins import Pins
from lb.datapath.kernel.rtnl import Direction
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.layouts import BackendStateCode
from lb.errors import BpfError
from lb.lab import namespaces
from lb.lab.addressing import UPLINK
from lb.lab.lab import Lab
from lb.lab.processes import environment
from lb.rundir import RunDir
from tests.netns.conftest import MakeLab, remove
from tests.netns.waiting import eventually, held_agent, scrape

NODE = "node1"
WEB = "10.66.8.1"
NODE_PORT = 30201
CROWD = 60
"""How many endpoints a Service has of which some are tried alone; they are all this node, at one port."""
CROWDED = "10.77.0.0/24"
CROWD_PORT = 7070
PASS_ON = bytes.fromhex("b7000000ffffffff9500000000000000")
"""Two instructions: return TC_ACT_UNSPEC, on to the next program."""

HERE = f"""\
apiVersion: v1
kind: Pod
metadata: {{name: here, labels: {{app: here}}}}
spec: {{nodeName: {NODE}, containers: [{{ports: [{{name: http, containerPort: 8080}}]}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  type: NodePort
  clusterIP: {WEB}
  selector: {{app: here}}
  ports: [{{port: 80, targetPort: http, nodePort: {NODE_PORT}}}]
"""
PORT_TAKEN = f"""\
apiVersion: v1
kind: Service
metadata: {{name: checked}}
spec:
  type: LoadBalancer
  clusterIP: 10.66.8.2
  externalTrafficPolicy: Local
  healthCheckNodePort: {NODE_PORT}
  selector: {{app: here}}
  ports: [{{port: 80, targetPort: http}}]
status: {{loadBalancer: {{ingress: [{{ip: 198.51.100.78}}]}}}}
"""
BY_HAND = """\
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{clusterIP: 10.66.8.{number}, ports: [{{port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{port: {port}}}]
endpoints: [{endpoints}]
"""
NO_VIP = """\
apiVersion: v1
kind: Service
metadata: {name: bare}
spec: {clusterIP: None, selector: {app: here}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: other}
spec: {type: ExternalName, externalName: db.example.com}
"""
NOT_CARRIED = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
"""


MUTE = "10.77.0.201"
MUTE_RULES = f"""\
table ip mute {{
  chain input {{ type filter hook input priority 0; ip daddr {MUTE} tcp dport {CROWD_PORT} drop; }}
}}
"""
"""A firewall's rule on the way to a backend."""
KNOCK = """\
import socket
while True:
    with socket.socket() as one:
        one.settimeout(3)
        one.connect_ex(("10.66.8.5", 80))
"""


def by_hand(name: str, number: int, node: str, addresses: list[str]) -> str:
    """Return a Service whose endpoints are given by hand, all on one node."""
    endpoints = ", ".join(f"{{addresses: [{one}], nodeName: {node}}}" for one in addresses)
    return BY_HAND.format(name=name, number=number, port=CROWD_PORT, endpoints=endpoints)


MANIFESTS = {
    "here": HERE,
    "taken": PORT_TAKEN,
    "crowd": by_hand("crowd", 3, NODE, [f"10.77.0.{at}" for at in range(1, CROWD + 1)]),
    "stray": by_hand("stray", 4, "gone", ["10.77.0.200"]),
    "mute": by_hand("mute", 5, NODE, [MUTE]),
    "no-vip": NO_VIP,
    "not-carried": NOT_CARRIED,
}


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder: Path = tmp_path_factory.mktemp("faults")
    for name, text in MANIFESTS.items():
        (folder / f"{name}.yaml").write_text(text)
    command = Lab.agent_command
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lab, "agent_command", lambda *args: [*command(*args), "--limits-flows=64"])
        patch.setattr("lb.lab.lab.environment", lambda: environment() | {"LBCTL_LIMITS_FLOW": "9"})
        made = make_lab(folder, nodes=1)
    made.run(NODE, ["ip", "route", "add", "local", CROWDED, "dev", "lo"])
    with namespaces.inside(made.spec.namespace(NODE)):
        crowd = socket.create_server(("0.0.0.0", CROWD_PORT), backlog=200)
    made.run(NODE, ["nft", "-f", "-"], input=MUTE_RULES)
    knocking = subprocess.Popen(made.command("here", [sys.executable, "-c", KNOCK]))
    with crowd:
        yield made
    knocking.kill()
    knocking.wait()
    remove(made.spec.id)


def text(lab: Lab, *argv: str) -> tuple[int, str]:
    """Run a command about the node; return its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    code = main([*argv, "--instance", lab.spec.instance(NODE)], out=out, err=err)
    assert out.getvalue(), err.getvalue()
    return code, out.getvalue()


def said(lab: Lab, *argv: str) -> Any:
    """Return what a command writes as JSON."""
    return json.loads(text(lab, *argv, "-o", "json")[1])


def problems(lab: Lab) -> dict[str, dict[str, str]]:
    """Return the problems of the status by their texts."""
    return {one["text"]: one for one in said(lab, "status")["problems"]}


def finding(lab: Lab, service: str, cause: str, *flags: str) -> dict[str, str]:
    """Return the finding of ``explain`` that has this cause."""
    (found,) = [one for one in said(lab, "explain", service, *flags)["findings"] if one["cause"] == cause]
    return dict(found)


def test_the_first_line_of_the_status_decides(lab: Lab) -> None:
    eventually(lambda: len(problems(lab)) >= 2, "the agent tells of the Node and of the port")
    code, shown = text(lab, "status")
    first, *rest = shown.splitlines()
    assert code == 1
    assert re.fullmatch(r"\d problems: node1 \(instance \S+\)", first)
    summary, maps, _ = shown.partition("\nMAP ")
    assert maps
    assert len([line for line in summary.splitlines() if not line.startswith((" ", "-"))]) <= 20
    assert not re.search(r"lb_tc_\w+", shown), "programs are for --programs"
    assert any("since 20" in line for line in rest)


def test_a_node_that_is_not_there(lab: Lab) -> None:
    told = "there is no Node gone, but endpoints on it get their share of connections"
    eventually(lambda: told in problems(lab), "the status tells")
    assert "lbctl explain default/stray" in problems(lab)[told]["next"]
    assert problems(lab)[told]["since"].startswith("20")
    assert f"WARNING {told}; " in lab.store.log(NODE).read_text()
    assert "endpoints name gone" in finding(lab, "stray", "node-missing", "--no-probes")["found"]
    metrics = lab.run(NODE, ["curl", "-sSf", "http://127.0.0.1:10249/metrics"]).stdout
    assert 'lbctl_problems{kind="node"} 1.0' in metrics


def test_a_health_check_port_that_is_a_node_port(lab: Lab) -> None:
    told = f"spec.healthCheckNodePort {NODE_PORT}: service default/web has it as a nodePort"
    eventually(lambda: any(told in one for one in problems(lab)), "the status tells")
    assert finding(lab, "checked", "health-port-taken", "--no-probes")["found"] == told
    assert told in lab.store.log(NODE).read_text()
    answer = lab.run("client", ["curl", "-s", "-m", "5", f"http://192.168.77.11:{NODE_PORT}/hostname"])
    assert answer.stdout.strip() == "here", "the nodePort is served"


def test_how_many_endpoints_were_tried_is_said(lab: Lab) -> None:
    few = finding(lab, "crowd", "endpoints-not-tried")
    assert few["found"].startswith(f"50 of {CROWD} were tried")
    assert "--all" in few["next"]
    every = said(lab, "explain", "crowd", "--all")
    assert "endpoints-not-tried" not in {one["cause"] for one in every["findings"]}


def test_what_is_given_to_the_agent_in_vain_is_in_its_log(lab: Lab) -> None:
    log = lab.store.log(NODE).read_text()
    assert "environment variable LBCTL_LIMITS_FLOW is no setting; did you mean LBCTL_LIMITS_FLOWS?\n" in log
    assert "not read: 1 ConfigMap (v1), 1 NetworkPolicy (networking.k8s.io/v1); what is read: " in log
    assert re.match(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d\S* ", log), "with date and time"


def test_a_manifest_that_cannot_be_used(lab: Lab) -> None:
    broken = Path(lab.spec.manifests) / "broken.yaml"
    broken.write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec: {ports: [{port: 70000}]}\n"
    )
    told = f"{broken}:4: Service default/bad: spec.ports[0].port: must be from 1 to 65535, is 70000"
    try:
        eventually(lambda: told in problems(lab), "the status tells")
        assert "correct it" in problems(lab)[told]["next"]
        assert scrape(lab, NODE)["lbctl_problems", "input"] == 1
    finally:
        broken.unlink()
    eventually(lambda: told not in problems(lab), "nothing is told of it any more")


def test_services_without_a_vip_are_listed(lab: Lab) -> None:
    _, shown = text(lab, "service", "list")
    _, _, without = shown.partition("without a VIP, as asked for:\n")
    assert without.splitlines()[:2] == [
        "  default/bare  headless: DNS answers with the pods' addresses",
        "  other/alias  ExternalName: DNS answers with db.example.com",
    ]


def test_the_habits_of_kubectl(lab: Lab) -> None:
    assert said(lab, "service", "list", "-n", "other")["unserved"][0]["service"] == "other/alias"
    _, shown = text(lab, "service", "show", "svc/web", "-n", "default", "-o", "yaml")
    assert yaml.safe_load(shown)["service"] == "default/web"
    assert "TERMINATING" in text(lab, "service", "list", "-A", "-o", "wide")[1]


@contextlib.contextmanager
def connections(lab: Lab, count: int) -> Iterator[None]:
    """Hold so many connections of the client to the nodePort."""
    with contextlib.ExitStack() as stack:
        with namespaces.inside(lab.spec.namespace("client")):
            for _ in range(count):
                stack.enter_context(socket.create_connection(("192.168.77.11", NODE_PORT), timeout=10))
        yield


def test_closed_connections_are_not_live_and_pods_have_names(lab: Lab) -> None:
    def live() -> int:
        return int(said(lab, "service", "show", "web")["flows"])

    with connections(lab, 1):
        assert live() >= 1
        _, shown = text(lab, "service", "show", "web")
        assert re.search(r"→ \S+:8080, pod here, on this node", shown)
    eventually(lambda: live() == 0, "the connection is over")
    assert said(lab, "service", "show", "web")["closed"] >= 1


def test_evictions(lab: Lab) -> None:
    """The agent has room for 32 connections."""
    with connections(lab, 100):
        told = r"flows4 is too small: \d+ established connections made room for new ones within the last"
        eventually(lambda: any(re.match(told, one) for one in problems(lab)), "the status tells")
        (found,) = [one for each, one in problems(lab).items() if re.match(told, each)]
        assert "raise --limits-flows" in found["next"]
        assert re.search(r"^flows4 +\d+ +\d+ +[\d.]+ % +[1-9]\d*$", text(lab, "status")[1], re.MULTILINE)
        assert "of flows4" in finding(lab, "web", "evictions", "--no-probes")["found"]
        assert re.search(r"[1-9]\d* established entries evicted so far", text(lab, "top", "--once")[1])


def test_all_that_plan_is_given_is_planned(lab: Lab, tmp_path: Path) -> None:
    files = []
    for number in (91, 92):
        file = tmp_path / f"{number}.yaml"
        file.write_text(by_hand(f"new{number}", number, NODE, ["10.77.0.100"]))
        files.append(file)
    want = {f"10.66.8.{number}:80/TCP" for number in (91, 92)}

    def added(report: Any) -> set[str]:
        return {one["entry"] for one in report["changes"] if one["sign"] == "+" and ":80/" in one["entry"]}

    assert added(said(lab, "plan", "-f", str(files[0]), "-f", str(files[1]))) == want
    assert added(said(lab, "plan", "-f", str(tmp_path))) == want
    argv = [
        sys.executable,
        "-m",
        "lb",
        "plan",
        "-f",
        "-",
        "-o",
        "json",
        "--instance",
        lab.spec.instance(NODE),
    ]
    both = "---\n".join(file.read_text() for file in files)
    done = subprocess.run(argv, input=both, capture_output=True, text=True, check=False)
    assert added(json.loads(done.stdout)) == want, done.stderr
    (tmp_path / "other.yaml").write_text(NOT_CARRIED)
    assert "not read: 1 ConfigMap (v1)" in text(lab, "plan", "-f", str(tmp_path))[1]


def test_a_difference_is_told_in_words(lab: Lab) -> None:
    maps = KernelMaps(Pins(lab.spec.instance(NODE)).maps)
    with contextlib.closing(maps):
        slots = maps.array("backends4")
        used = np.flatnonzero(slots["state"] != BackendStateCode.FREE)
        slots["flags"][used[0]] ^= 2
        code, shown = text(lab, "audit")
        assert code == 1
        assert "1 entry of the maps differs from the source" in shown
        assert not re.search(r"flags \d", shown)
    assert text(lab, "audit", "--heal")[0] == 0


def test_a_start_that_fails_leaves_no_instance(lab: Lab) -> None:
    """It has no file descriptor left for a map, after it has pinned some."""
    instance = f"{lab.spec.instance(NODE)}-more"
    argv = [*lab.agent_command(NODE), f"--instance={instance}", "--metrics-address=off"]
    done = lab.run(NODE, ["prlimit", "--nofile=30:30", "unshare", "--net", *argv], env=environment())
    assert done.returncode == 1
    assert "Too many open files" in done.stderr
    assert not Pins(instance).base.exists()
    assert not list(RunDir(instance).notes_path.parent.glob(f"{instance}*"))


def test_a_second_agent_on_the_node_is_refused(lab: Lab) -> None:
    """Of another instance, so that no lock stands between them: each would take the other's hooks."""
    instance = f"{lab.spec.instance(NODE)}-more"
    done = lab.run(NODE, [*lab.agent_command(NODE), f"--instance={instance}"], env=environment())
    assert done.returncode == 1
    assert f"the agent of instance {lab.spec.instance(NODE)} runs in this network namespace" in done.stderr
    assert not Pins(instance).base.exists()
    assert not list(RunDir(instance).notes_path.parent.glob(f"{instance}*"))
    assert lab.run("client", ["curl", "-s", "-m", "5", f"http://192.168.77.11:{NODE_PORT}/"]).returncode == 0


def test_forwarding_that_another_tool_switches_off(lab: Lab) -> None:
    told = (
        "forwarding: net.ipv4.conf.all.forwarding off: packets for backends are dropped by the host's stack"
    )
    lab.run(NODE, ["sysctl", "-qw", "net.ipv4.ip_forward=0"])
    try:
        eventually(lambda: told in problems(lab), "the status tells", 40)
        assert problems(lab)[told]["next"].startswith("sysctl -w net.ipv4.conf.all.forwarding=1")
        assert f"ERROR   {told}" in lab.store.log(NODE).read_text()
        assert scrape(lab, NODE)["lbctl_problems", "host"] == 1
    finally:
        lab.run(NODE, ["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    eventually(lambda: told not in problems(lab), "nothing is told of it any more", 40)


def test_an_uplink_of_another_name(lab: Lab) -> None:
    """Nothing from outside is served meanwhile."""
    told = f"uplink {UPLINK}: there is no such interface"

    def rename(before: str, after: str) -> None:
        for argv in (["down"], ["name", after], ["up"]):
            name = after if argv == ["up"] else before
            done = lab.run(NODE, ["ip", "link", "set", name, *argv])
            assert done.returncode == 0, done.stderr

    rename(UPLINK, "other0")
    try:
        eventually(lambda: told in problems(lab), "the status tells")
        assert "--uplink" in problems(lab)[told]["next"]
        assert healthz(lab) == "503"
        assert told in lab.store.log(NODE).read_text()
    finally:
        rename("other0", UPLINK)
    eventually(lambda: healthz(lab) == "200", "it is served again")
    eventually(lambda: told not in problems(lab), "nothing is told of it any more")


def test_a_backend_whose_connections_a_firewall_drops(lab: Lab) -> None:
    """A pod has tried it since the lab is there."""
    told = f"connections to Service default/mute are refused or unanswered: {MUTE}:{CROWD_PORT}"
    eventually(lambda: any(one.startswith(told) for one in problems(lab)), "the status tells", 150)
    (found,) = [one for text, one in problems(lab).items() if text.startswith(told)]
    assert found["next"].startswith("lbctl explain default/mute")
    assert f"WARNING {told}" in lab.store.log(NODE).read_text()
    assert scrape(lab, NODE)["lbctl_problems", "loss"] >= 1


def healthz(lab: Lab) -> str:
    """Return the status of the node's health as an HTTP code."""
    url = "http://127.0.0.1:10256/healthz"
    done = lab.run(NODE, ["curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", url])
    return str(done.stdout)


@contextlib.contextmanager
def no_room(interface: Interface, direction: Direction) -> Iterator[None]:
    """Attach other programs at a tc hook meanwhile, as many as the kernel takes: 64."""
    with contextlib.ExitStack() as stack:
        while True:
            program, _, code = bpf.prog_load(ProgType.SCHED_CLS, PASS_ON, "another")
            assert program is not None, code
            stack.enter_context(program)
            try:
                tcx.attach(interface.index, direction, program, None)
            except BpfError as error:
                if error.errno != errno.ERANGE:
                    raise
                break
            stack.callback(tcx.detach, interface.index, direction, program)
        yield


@pytest.mark.skipif(
    tcx.programs(1, Direction.INGRESS) is None, reason="before tcx there is room for any number"
)
def test_an_uplink_whose_program_cannot_be_attached_again(lab: Lab) -> None:
    place = f"uplink {UPLINK}, tc ingress: lb_tc_uplink_in"
    assert healthz(lab) == "200"
    with namespaces.inside(lab.spec.namespace(NODE)), contextlib.ExitStack() as stack:
        with held_agent(lab, NODE), Netlink() as net:
            (uplink,) = [one for one in net.interfaces() if one.name == UPLINK]
            assert net.detach_tc(uplink) == 2
            stack.enter_context(no_room(uplink, Direction.INGRESS))
        eventually(lambda: healthz(lab) == "503", "the node tells that it serves nobody from outside")
        eventually(lambda: f"{place}: detached" in problems(lab), "the status tells of the hook")
        assert problems(lab)[f"{place}: detached"]["next"].startswith(
            "attached again every few seconds, in vain"
        )
        code, shown = text(lab, "status")
        assert code == 1
        assert f"{place}: detached" in shown
        code, shown = text(lab, "explain", "default/web", "--no-probes")
        assert code == 1
        assert place in shown
    eventually(lambda: healthz(lab) == "200", "it is attached again")
    eventually(lambda: not any("detached" in one for one in problems(lab)), "nothing is told of it any more")


def test_an_agent_that_was_killed(lab: Lab) -> None:
    """Last of all: what is told of it, and of the lab, while the data plane goes on."""
    lab.stop_agent(NODE)
    code, shown = text(lab, "status")
    assert code == 1
    assert "no agent runs: packets go on by what the maps hold" in shown
    assert "→ start it: systemctl start lbctl" in shown
    out = io.StringIO()
    assert main(["lab", "status", "--id", lab.spec.id], out=out, err=io.StringIO()) == 1
    assert re.search(rf"^{NODE} .*does not run +stands still", out.getvalue(), re.MULTILINE), out.getvalue()
    with connections(lab, 1):
        assert UPLINK in text(lab, "status")[1]
