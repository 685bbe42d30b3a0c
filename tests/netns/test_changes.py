# SPDX-License-Identifier: Apache-2.0
"""What clients notice of changes: affinity, readiness, pods that die, agents that die.."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lb.cli import main
from lb.lab.addressing import CLIENTS, node_address
from lb.lab.lab import Lab
from tests.netns.conftest import EXAMPLES, MakeLab
from tests.netns.waiting import dumped, eventually, scrape

STICKY = ("10.66.13.240", 80)  # examples/kubia-service.yaml: ClientIP affinity
SPREAD = (str(node_address("node1")), 30123)  # examples/kubia-nodeport.yaml
BALANCED = ("203.0.113.22", 80)  # examples/kubia-loadbalancer.yaml

# Asks HOST PORT over a new connection each time until a line comes on stdin; then tells what came of it.
STEADY_CLIENT = """\
import collections, http.client, json, select, sys
answers, failures = collections.Counter(), []
while not select.select([sys.stdin], [], [], 0.002)[0]:
    asking = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=5)
    try:
        asking.request("GET", "/hostname")
        answers[asking.getresponse().read().decode().strip()] += 1
    except OSError as error:
        failures.append(repr(error))
    asking.close()
    if sum(answers.values()) + len(failures) == 1:
        print("started", flush=True)
print(json.dumps({"answers": answers, "failures": failures}))
"""

# Keeps one connection; each line on stdin is a request over it.
KEPT_CONNECTION = """\
import http.client, sys
asking = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=5)
for line in sys.stdin:
    asking.request("GET", "/hostname")
    print(asking.getresponse().read().decode().strip(), flush=True)
"""


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Two nodes, the examples, five pods; every test leaves it whole."""
    manifests = tmp_path_factory.mktemp("changes") / "m"
    shutil.copytree(EXAMPLES, manifests, ignore=shutil.ignore_patterns("*ingress*"))
    return make_lab(manifests=manifests, replicas=5)


def ask(lab: Lab, place: str, address: tuple[str, int], count: int = 1, source: str = "") -> Counter[str]:
    """Send requests, each over its own connection, and count the answers by pod."""
    interface = f"--interface {source} " if source else ""
    one = f"curl -sS -m 5 {interface}http://{address[0]}:{address[1]}/hostname || exit 1; echo"
    done = lab.run(place, ["sh", "-c", f"for i in $(seq {count}); do {one}; done"])
    assert done.returncode == 0, done.stderr
    return Counter(done.stdout.split())


def kubia(lab: Lab, *, ready: bool = True) -> list[dict[str, Any]]:
    return [pod for pod in lab.pods() if pod["name"].startswith("kubia") and pod["ready"] is ready]


def backends_of(lab: Lab, node: str, service: str) -> set[str]:
    """Return the active backends of a Service in a node's maps, as addresses."""
    vips = dumped(lab, node, "vips", "--service", service)["vips"]
    return {one["address"] for vip in vips for one in vip["backends"] if one["state"] == "active"}


def in_step(lab: Lab, service: str = "default/kubia-nodeport") -> bool:
    addresses = {pod["address"] for pod in kubia(lab)}
    return all(backends_of(lab, node, service) == addresses for node in lab.spec.node_names)


@contextmanager
def steady_client(lab: Lab, place: str, address: tuple[str, int]) -> Iterator[dict[str, Any]]:
    """Let requests run meanwhile; the dict has ``answers`` and ``failures`` at the end."""
    argv = lab.command(place, [sys.executable, "-I", "-S", "-c", STEADY_CLIENT, address[0], str(address[1])])
    result: dict[str, Any] = {}
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        try:
            yield result
        finally:
            process.stdin.write("stop\n")
            process.stdin.flush()
            result.update(json.loads(process.stdout.readline()))


@contextmanager
def kept_connection(lab: Lab, place: str, address: tuple[str, int]) -> Iterator[Any]:
    """Give a function that sends a request over one connection and returns the answer."""
    argv = lab.command(
        place, [sys.executable, "-I", "-S", "-c", KEPT_CONNECTION, address[0], str(address[1])]
    )
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def request() -> str:
            stdin.write("\n")
            stdin.flush()
            return stdout.readline().strip()

        yield request
        stdin.close()


def test_without_affinity_requests_spread_over_all_pods(lab: Lab) -> None:
    for place, address in (("client", SPREAD), ("client", BALANCED), (kubia(lab)[0]["name"], BALANCED)):
        assert set(ask(lab, place, address, 80)) == {pod["name"] for pod in kubia(lab)}


def test_with_affinity_each_client_stays_with_its_backend(lab: Lab) -> None:
    """Six clients: each with one pod, the same on each port's own terms, and not all with the same pod."""
    chosen = {}
    for client in CLIENTS[:6]:
        answers = ask(lab, "client", STICKY, 12, str(client))
        assert len(answers) == 1, f"{client} was spread: {answers}"
        [chosen[str(client)]] = answers
    assert len(set(chosen.values())) > 1
    names = {pod["address"]: pod["name"] for pod in lab.pods()}
    entries = dumped(lab, "node1", "affinity", "--service", "default/kubia")["affinity"]
    shown = {
        entry["client"]: names[entry["backend"].partition(":")[0]]
        for entry in entries
        if entry["port_name"] == "http-default" and entry["client"] in chosen
    }
    assert shown == chosen


def test_affinity_is_the_same_on_every_node(lab: Lab) -> None:
    """No node has seen the client before: the hash over its address decides, and it is everybody's."""
    client = str(CLIENTS[7])
    answers = set()
    for node in lab.spec.node_names:
        via = ["ip", "route", "replace", f"{STICKY[0]}/32", "via", str(node_address(node))]
        assert lab.run("client", via).returncode == 0
        answers |= set(ask(lab, "client", STICKY, 3, client))
    lab.run("client", ["ip", "route", "del", f"{STICKY[0]}/32"])
    assert len(answers) == 1


def test_an_unready_pod_gets_no_new_connection_and_a_ready_one_does(lab: Lab) -> None:
    pod = kubia(lab)[0]
    for round_ in ("unready", "ready"):
        lab.ask_kubelet(round_, pod=pod["name"])
        eventually(lambda: in_step(lab), f"the maps follow {round_}")
        assert (pod["name"] in ask(lab, "client", SPREAD, 80)) is (round_ == "ready")


def told(lab: Lab, service: str, *options: str) -> str:
    """Return what ``lbctl history`` prints about a Service of node1, asked from outside of its namespace."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["history", service, "--instance", lab.spec.instance("node1"), *options]
    assert main(argv, out=out, err=err) == 0, err.getvalue()
    return out.getvalue()


def test_history_has_the_change_with_its_cause_and_its_latency(lab: Lab) -> None:
    pod = kubia(lab)[0]
    latency = "lbctl_programming_duration_seconds_count"
    before = scrape(lab, "node1")[latency, "arrival"]
    for round_ in ("unready", "ready"):
        lab.ask_kubelet(round_, pod=pod["name"])
        eventually(lambda: in_step(lab), f"the maps follow {round_}")
    gone, come = json.loads(told(lab, "default/kubia-nodeport", "-o", "json"))["changes"][-2:]
    place = f"{pod['address']}:8080"
    for entry, verb in ((gone, "removed"), (come, "added")):
        assert re.fullmatch(r"EndpointSlice kubia-nodeport\S*", entry["causes"][0])
        assert 0 < entry["seconds"] < 10
        (backends,) = [one for one in entry["changes"] if one["what"] == "backends"]
        assert (backends["verb"], backends["names"]) == (verb, [place])
    assert gone["time"] < come["time"]
    lines = told(lab, "default/kubia-nodeport").splitlines()
    assert f"    + 1 backend {place} ({pod['name']})" in lines
    assert lines[0].endswith("IPv4: start")
    assert scrape(lab, "node1")[latency, "arrival"] >= before + 2


def test_history_needs_an_agent_and_says_so(lab: Lab) -> None:
    lab.stop_agent("node2")
    try:
        out, err = io.StringIO(), io.StringIO()
        argv = ["history", "default/kubia", "--instance", lab.spec.instance("node2")]
        assert main(argv, out=out, err=err) == 1
        assert "no agent runs, and this is in an agent's memory alone" in err.getvalue()
    finally:
        lab.start_agent("node2")
        lab.wait_agent("node2")


def test_a_connection_to_an_unready_pod_goes_on(lab: Lab) -> None:
    with kept_connection(lab, "client", SPREAD) as request:
        name = request()
        lab.ask_kubelet("unready", pod=name)
        eventually(lambda: in_step(lab), "the maps follow")
        assert {request() for _ in range(5)} == {name}
    lab.ask_kubelet("ready", pod=name)
    eventually(lambda: in_step(lab), "the maps follow")


def test_affinity_to_a_backend_that_went_is_replaced_at_once(lab: Lab) -> None:
    client = str(CLIENTS[0])
    [before] = ask(lab, "client", STICKY, 1, client)
    lab.ask_kubelet("unready", pod=before)
    eventually(lambda: in_step(lab, "default/kubia"), "the maps follow")
    [after] = ask(lab, "client", STICKY, 5, client)
    assert after != before
    lab.ask_kubelet("ready", pod=before)
    eventually(lambda: in_step(lab, "default/kubia"), "the maps follow")
    assert set(ask(lab, "client", STICKY, 5, client)) == {after}, "it stays with the one it has now"


def test_a_killed_pod_is_left_and_its_successor_found(lab: Lab) -> None:
    victim = kubia(lab)[0]
    [successor] = lab.ask_kubelet("kill", pod=victim["name"])["replaced_by"]
    assert lab.wait_ready() == []
    eventually(lambda: in_step(lab), "the maps follow")
    answers = ask(lab, "client", SPREAD, 80)
    assert victim["name"] not in answers
    assert successor in answers


def test_no_request_fails_while_pods_come_and_go_from_readiness(lab: Lab) -> None:
    with steady_client(lab, "client", SPREAD) as result:
        for pod in kubia(lab)[:3]:
            lab.ask_kubelet("unready", pod=pod["name"])
            eventually(lambda: in_step(lab), "the maps follow")
            lab.ask_kubelet("ready", pod=pod["name"])
            eventually(lambda: in_step(lab), "the maps follow")
    assert result["failures"] == []
    assert len(result["answers"]) == len(kubia(lab))


def test_no_request_fails_while_the_agent_is_killed_and_started_again(lab: Lab) -> None:
    """SIGKILL: no goodbye. The data plane carries on, and the new agent disturbs nothing."""
    programs = status(lab, "node1")["programs"]
    with steady_client(lab, "client", SPREAD) as result, kept_connection(lab, "client", BALANCED) as request:
        name = request()
        lab.stop_agent("node1", signal.SIGKILL)
        assert set(ask(lab, "client", SPREAD, 40)) == {pod["name"] for pod in kubia(lab)}
        lab.start_agent("node1")
        lab.wait_agent("node1")
        assert {request() for _ in range(3)} == {name}
    assert result["failures"] == []
    assert status(lab, "node1")["programs"] == programs, "nothing was compiled or loaded anew"
    pod = kubia(lab)[0]
    lab.ask_kubelet("unready", pod=pod["name"])
    eventually(lambda: in_step(lab), "the new agent follows")
    lab.ask_kubelet("ready", pod=pod["name"])
    eventually(lambda: in_step(lab), "the new agent follows")


def test_changes_while_the_agent_is_down_are_caught_up_with(lab: Lab) -> None:
    manifests = Path(lab.spec.manifests)
    lab.stop_agent("node2")
    (manifests / "late.yaml").write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: late}\n"
        "spec: {clusterIP: 10.66.7.7, selector: {app: kubia}, ports: [{port: 80, targetPort: 8080}]}\n"
    )
    nodeport = manifests / "kubia-nodeport.yaml"
    text = nodeport.read_text()
    nodeport.unlink()
    lab.start_agent("node2")
    lab.wait_agent("node2")
    assert backends_of(lab, "node2", "default/late") == {pod["address"] for pod in kubia(lab)}
    assert dumped(lab, "node2", "vips", "--service", "default/kubia-nodeport")["vips"] == []
    nodeport.write_text(text)
    (manifests / "late.yaml").unlink()
    eventually(lambda: in_step(lab), "the nodes follow")
    eventually(lambda: not backends_of(lab, "node2", "default/late"), "the Service goes")


def test_without_endpoints_a_connection_is_refused_at_once(lab: Lab) -> None:
    """TCP reset, ICMP port unreachable: the client's kernel reports a refusal, not a timeout."""
    manifest = Path(lab.spec.manifests) / "empty.yaml"
    manifest.write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: empty}\n"
        "spec: {clusterIP: 10.66.8.8, ports: [{name: a, port: 80}, {name: b, port: 80, protocol: UDP}]}\n"
    )
    eventually(
        lambda: all(
            len(dumped(lab, node, "vips", "--service", "default/empty")["vips"]) == 2
            for node in lab.spec.node_names
        ),
        "the Service is in the maps",
    )
    probe = (
        "import socket\n"
        "for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):\n"
        "    with socket.socket(socket.AF_INET, kind) as asking:\n"
        "        asking.settimeout(5)\n"
        "        try:\n"
        "            asking.connect(('10.66.8.8', 80)); asking.send(b'x'); asking.recv(1)\n"
        "        except OSError as error:\n"
        "            print(type(error).__name__)\n"
    )
    for place in ("client", kubia(lab)[0]["name"]):
        done = lab.run(place, [sys.executable, "-I", "-S", "-c", probe])
        assert done.stdout.split() == [ConnectionRefusedError.__name__] * 2, f"{place}: {done.stderr}"
    manifest.unlink()


def test_a_broken_manifest_is_reported_once_and_harms_nothing(lab: Lab) -> None:
    manifest = Path(lab.spec.manifests) / "kubia-nodeport.yaml"
    good = manifest.read_text()
    log = lab.store.log("node1")
    for broken, words in (
        (good.replace("nodePort: 30123", "nodePort: 99999"), "spec.ports[0].nodePort"),
        (good + "\n  indented: [", "kubia-nodeport.yaml:"),
    ):
        before = log.read_text()
        manifest.write_text(broken)
        eventually(lambda: words in log.read_text()[len(before) :], f"the log says {words}")  # noqa: B023
        assert log.read_text()[len(before) :].count("kubia-nodeport.yaml") == 1
        assert set(ask(lab, "client", SPREAD, 40)) <= {pod["name"] for pod in kubia(lab)}
    manifest.write_text(good)
    eventually(lambda: in_step(lab) and not say_status(lab, "node1").returncode, "all is well again")


def test_the_dump_shows_the_truth_in_all_three_forms(lab: Lab) -> None:
    """A flow as its two ends see it, and the grep for a clusterIP that people are used to."""
    with socket_in(lab, "client", BALANCED) as client:
        flows = dumped(lab, "node1", "flows", "--service", "default/kubia-loadbalancer")["flows"]
        [flow] = [one for one in flows if one["client"] == client]
        assert (flow["protocol"], flow["vip"], flow["state"]) == ("TCP", "203.0.113.22:80", "established")
        assert flow["backend"] in {f"{pod['address']}:8080" for pod in kubia(lab)}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "lb",
            "maps",
            "dump",
            "-o",
            "ipvsadm",
            "--instance",
            lab.spec.instance("node1"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if "10.66.13.240:80" in line]
    assert lines[0] == "-A -t 10.66.13.240:80 -s mh -p 10800"
    assert sorted(lines[1:]) == sorted(
        f"-a -t 10.66.13.240:80 -r {pod['address']}:8080 -m -w 1" for pod in kubia(lab)
    )


@contextmanager
def socket_in(lab: Lab, place: str, address: tuple[str, int]) -> Iterator[str]:
    """Hold a connection open from a place that has sent a request; gives its ``address:port``."""
    script = (
        "import socket, sys\n"
        "with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as held:\n"
        "    held.send(b'GET /hostname HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'); held.recv(1000)\n"
        "    print('%s:%d' % held.getsockname(), flush=True); sys.stdin.readline()\n"
    )
    argv = lab.command(place, [sys.executable, "-I", "-S", "-c", script, address[0], str(address[1])])
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate("done\n")


def say_status(lab: Lab, node: str) -> subprocess.CompletedProcess[str]:
    """Run ``lbctl status -o json`` of a node inside it; it ends with 1 while there are problems."""
    argv = [sys.executable, "-m", "lb", "status", "-o", "json", "--instance", lab.spec.instance(node)]
    return lab.run(node, argv)


def status(lab: Lab, node: str) -> dict[str, Any]:
    """Return what ``lbctl status -o json`` of a node says."""
    done = say_status(lab, node)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_status_shows_hooks_modes_programs_and_fill(lab: Lab) -> None:
    found = status(lab, "node1")
    hooks = {(hook["interface"], hook["hook"]) for hook in found["hooks"]}
    assert {("eth0", "tc ingress"), ("eth0", "tc egress")} <= hooks
    pods = [pod for pod in lab.pods() if pod["node"] == "node1"]
    assert len([hook for hook in hooks if hook[0].startswith("pod-")]) == 2 * len(pods)
    assert "segmentation offload" in json.dumps(found)
