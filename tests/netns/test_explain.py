# SPDX-License-Identifier: Apache-2.0
"""Faults are planted in a lab, and ``lbctl explain``, run on the machine, must name each: that one alone.

The network is real, and so are pods, programs and maps; ``lbctl audit`` finds and heals what was changed.
"""

from __future__ import annotations

import contextlib
import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lb.cli import main
from lb.config import Timeouts
from lb.datapath.attach.netlink import Netlink
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.layouts import ID, BackendStateCode
from lb.datapath.sync.ledger import vip_keys
from lb.lab import namespaces
from lb.lab.addressing import UPLINK
from lb.lab.lab import Lab
from tests.netns.conftest import MakeLab, remove
from tests.netns.waiting import eventually, held_agent
from tests.unit.plan_builders import vip_key

HIDDEN = 9099
"""A port on which a socket listens on the loopback address alone, in the pods ``here`` and ``there``."""

POD = """\
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec: {{nodeName: {node}, containers: [{{ports: [{{name: http, containerPort: 8080}}]}}]}}
---
"""
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  clusterIP: 10.66.9.{number}
  selector: {{app: {app}}}
  ports: [{{port: 80, targetPort: {target}}}]
{more}---
"""
LIMITED = """\
  type: LoadBalancer
  loadBalancerSourceRanges: [203.0.113.0/24]
status: {loadBalancer: {ingress: [{ip: 198.51.100.77}]}}
"""
SERVICES = {
    "good": ("here", "http", ""),
    "wrong": ("here", "9999", ""),
    "hidden": ("here", str(HIDDEN), ""),
    "sleepy": ("sleepy", "http", ""),
    "far": ("there", "http", "  internalTrafficPolicy: Local\n"),
    "limited": ("here", "http", LIMITED),
    "lost": ("nobody", "http", ""),
    "veiled": ("there", str(HIDDEN), ""),
}
"""The app, the target port and further fields of each Service; their clusterIPs count from 10.66.9.1."""
CAUSES = {
    "good": [],
    "wrong": ["wrong-target-port"],
    "hidden": ["localhost-only"],
    "sleepy": ["pods-not-ready"],
    "far": [],
    "veiled": ["endpoint-refuses"],
    "limited": ["source-ranges"],
    "lost": ["selector-matches-nothing"],
    "goot": ["no-such-service"],
}


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    manifests: Path = tmp_path_factory.mktemp("explain")
    text = "".join(
        POD.format(name=name, node=node)
        for name, node in (("here", "node1"), ("sleepy", "node1"), ("there", "node2"))
    )
    for number, (name, (app, target, more)) in enumerate(SERVICES.items(), 1):
        text += SERVICE.format(name=name, number=number, app=app, target=target, more=more)
    (manifests / "all.yaml").write_text(text)
    made = make_lab(manifests)
    made.ask_kubelet("unready", pod="sleepy")
    hidden = []
    for pod in ("here", "there"):
        with namespaces.inside(made.spec.pod_namespace("default", pod)):
            hidden.append(socket.create_server(("127.0.0.1", HIDDEN)))
    yield made
    for one in hidden:
        one.close()
    remove(made.spec.id)


def said(lab: Lab, *argv: str) -> tuple[int, dict[str, Any]]:
    """Run a command about node1 and return its exit code and what it wrote."""
    out, err = io.StringIO(), io.StringIO()
    code = main([*argv, "--instance", lab.spec.instance("node1"), "-o", "json"], out=out, err=err)
    assert out.getvalue(), err.getvalue()
    report: dict[str, Any] = json.loads(out.getvalue())
    return code, report


@contextlib.contextmanager
def live(lab: Lab) -> Iterator[KernelMaps]:
    maps = KernelMaps(Pins(lab.spec.instance("node1")).maps)
    try:
        yield maps
    finally:
        maps.close()


def in_step(lab: Lab) -> bool:
    return said(lab, "audit")[0] == 0


@pytest.mark.parametrize("service", CAUSES)
def test_the_cause_is_named(lab: Lab, service: str) -> None:
    code, report = said(lab, "explain", service)
    assert report["causes"] == CAUSES[service], report["findings"]
    assert code == (1 if CAUSES[service] else 0)


def test_what_is_told_of_a_pod_that_listens_on_localhost(lab: Lab) -> None:
    _, report = said(lab, "explain", "hidden")
    (found,) = [one for one in report["findings"] if one["cause"] == "localhost-only"]
    assert f":{HIDDEN}/TCP: refused: the process listens on 127.0.0.1 only" in found["found"]


def test_what_is_told_of_a_pod_of_another_node_that_listens_on_localhost(lab: Lab) -> None:
    """Nobody sees from here who listens there: the port of the Service is not said to be wrong."""
    _, report = said(lab, "explain", "veiled")
    (found,) = [one for one in report["findings"] if one["cause"] == "endpoint-refuses"]
    told = f"refused: nothing listens on {HIDDEN} of the pod's address, at most on localhost"
    assert told in found["found"]
    assert "must listen on 0.0.0.0 or [::]" in found["next"]


def test_another_client_is_let_in(lab: Lab) -> None:
    _, report = said(lab, "explain", "limited", "--from", "203.0.113.9")
    assert "source-ranges" not in report["causes"]


@pytest.mark.parametrize("with_agent", [True, False])
def test_a_map_changed_behind_our_back(lab: Lab, *, with_agent: bool) -> None:
    assert in_step(lab)
    if not with_agent:
        lab.stop_agent("node1")
    with live(lab) as maps:
        maps.delete("vips4", vip_keys(4, [vip_key("10.66.9.1:80")]))
        slots = maps.array("backends4")
        used = np.flatnonzero(slots["state"] != BackendStateCode.FREE)
        slots["flags"][used[0]] ^= 2
    code, report = said(lab, "explain", "good")
    assert (code, report["causes"]) == (1, ["maps-differ"])
    code, report = said(lab, "audit")
    missing = [one for one in report["differences"] if one["sign"] == "+"]
    assert code == 1
    assert [(one["map"], one["entry"], one["service"]) for one in missing] == [
        ("vips4", "10.66.9.1:80/TCP", "default/good")
    ]
    code, report = said(lab, "audit", "--heal")
    assert (code, report["differences"]) == (0, [])
    assert len(report["healed"]) == 2
    assert said(lab, "explain", "good")[0] == 0
    if not with_agent:
        lab.start_agent("node1")
        lab.wait_agent("node1")
        eventually(lambda: in_step(lab), "the agent takes over what was healed")


@pytest.mark.parametrize("with_agent", [True, False])
def test_what_the_programs_know_of_the_node(lab: Lab, *, with_agent: bool) -> None:
    if not with_agent:
        lab.stop_agent("node1")
    with live(lab) as maps:
        index = int(maps.read("ifaces4")[0].max())
        maps.delete("ifaces4", np.array([index], ID))
        maps.array("settings6")["udp_ns"] = 1
        link = maps.array("links")["links"][0, :1]
        uplink, right = int(link["ifindex"][0]), link["mac"].tobytes().hex(":")
        link["mac"] = bytes(6)
    code, report = said(lab, "audit")
    assert code == 1
    found = {(one["map"], one["entry"]): (one["before"], one["after"]) for one in report["differences"]}
    assert found["settings6", "udp_ns"] == ("1", str(round(Timeouts().udp * 1e9)))
    assert found["links", f"#{uplink}"] == (f"link address {bytes(6).hex(':')}", f"link address {right}")
    assert found.keys() == {("settings6", "udp_ns"), ("ifaces4", f"#{index}"), ("links", f"#{uplink}")}
    assert not found["ifaces4", f"#{index}"][0]
    code, report = said(lab, "audit", "--heal")
    assert (code, len(report["healed"])) == (0, 3)
    if not with_agent:
        lab.start_agent("node1")
        lab.wait_agent("node1")
        eventually(lambda: in_step(lab), "the agent takes over what was healed")


def test_a_detached_hook(lab: Lab) -> None:
    with held_agent(lab, "node1"):
        with namespaces.inside(lab.spec.namespace("node1")), Netlink() as net:
            (uplink,) = [one for one in net.interfaces() if one.name == UPLINK]
            assert net.detach_tc(uplink) == 2
        code, report = said(lab, "explain", "good", "--no-probes")
        assert (code, report["causes"]) == (1, ["hook-missing"])
        assert f"uplink {UPLINK}, tc ingress" in json.dumps(report)
        code, report = said(lab, "status")
        problems = [one["text"] for one in report["problems"]]
        assert code == 1
        assert "is stopped by a signal or a debugger" in problems[0]
        assert report["problems"][0]["next"].startswith(f"kill -CONT {report['agent']['pid']}")
        assert f"uplink {UPLINK}, tc ingress: lb_tc_uplink_in is not attached" in problems
        err = io.StringIO()
        heal = ["audit", "--heal", "--instance", lab.spec.instance("node1")]
        assert main(heal, out=io.StringIO(), err=err) == 1
        assert "nothing was healed: the agent, process" in err.getvalue()
    eventually(
        lambda: said(lab, "status")[1]["agent"]["silent_seconds"] is None, "the agent goes on after SIGCONT"
    )
    code, report = said(lab, "audit", "--heal")
    assert code == 0
    # The agent may have attached them before it was asked to: it looks every few seconds.
    assert {one["map"] for one in report["healed"]} <= {"hooks"}
    with namespaces.inside(lab.spec.namespace("node1")), Netlink() as net:
        assert net.detach_tc(uplink) == 2, "both hooks have been attached again"
    eventually(lambda: said(lab, "explain", "good")[0] == 0, "the agent attaches them of its own accord")

    def repaired() -> bool:
        code, report = said(lab, "status")
        repairs = report["agent"]["repairs"]
        return code == 0 and repairs["count"] >= 2 and f"uplink {UPLINK}, tc" in repairs["what"]

    eventually(repaired, "status tells which hooks were put back, and that all is well again")


def test_what_a_manifest_would_change(lab: Lab, tmp_path: Path) -> None:
    manifest = tmp_path / "good.yaml"
    manifest.write_text(
        SERVICE.format(name="good", number=1, app="there", target="http", more="")
        + SERVICE.format(name="new", number=99, app="here", target="http", more="")
    )
    with lab_connection(lab):
        code, report = said(lab, "plan", "-f", str(manifest))
    assert code == 0
    assert report["flows"]["moved"] == 1
    new = [one for one in report["changes"] if one["sign"] == "+" and one["map"] == "vips4"]
    assert {one["entry"] for one in new} == {"10.66.9.99:80/TCP", "10.66.9.99"}
    assert said(lab, "audit")[0] == 0  # nothing was applied


@contextlib.contextmanager
def lab_connection(lab: Lab) -> Iterator[None]:
    """Hold a connection of the pod ``sleepy`` to the Service ``good``."""
    with namespaces.inside(lab.spec.pod_namespace("default", "sleepy")):
        connected = socket.create_connection(("10.66.9.1", 80), timeout=10)
    with connected:
        yield


def test_flows_and_a_service(lab: Lab) -> None:
    with lab_connection(lab):
        code, report = said(lab, "flows", "--service", "default/good")
        assert code == 0
        assert [one["vip"] for one in report["flows"]].count("10.66.9.1:80") >= 1
        code, shown = said(lab, "service", "show", "default/good")
    assert code == 0
    assert [one["vips"][0]["address"] for one in shown["ports"]] == ["10.66.9.1"]
    assert shown["flows"] >= 1
