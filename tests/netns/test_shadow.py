# SPDX-License-Identifier: Apache-2.0
"""Shadow mode beside kube-proxy's rules: it touches nothing, agrees with right rules, and finds wrong ones.

The rules are the lab's own (lb/lab/kube_proxy.py), in both modes. What is wrong is planted: Services change
without the rules, or the rules without the Services.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lb.datapath.kernel.pins import instances
from lb.errors import LabError
from lb.lab import kube_proxy
from lb.lab.addressing import POD_NETWORKS, Family, node_address
from lb.lab.lab import Lab
from lb.lab.processes import environment
from lb.rundir import RunDir
from lb.served.api import SHADOW
from lb.served.ask import ask as ask_agent
from tests.netns.conftest import MakeLab
from tests.netns.host_services import POD, POOLED_SERVICE

NODE = "node1"
PODS = (("here", "web", "node1"), ("there", "web", "node2"), ("asker", "self", "node1"))
WEB, ITSELF, EMPTY, MOVED, ADDED, GONE, LIMITED, EMPTIED, NARROWED = range(51, 60)
MASQUERADE = {
    kube_proxy.Mode.NFTABLES: "insert rule {family} kube-proxy nat-postrouting"
    " {family} daddr {pods} masquerade",
    kube_proxy.Mode.IPTABLES: "-t nat -I POSTROUTING -d {pods} -j MASQUERADE",
}


def service(name: str, app: str, number: int, more: str = "") -> str:
    """Return the manifest of a Service."""
    return POOLED_SERVICE.format(name=name, app=app, number=number, node_port=30400 + number, more=more)


def manifests(*services: str) -> str:
    """Return the pods, and these Services."""
    return "".join(POD.format(name=name, app=app, node=node) for name, app, node in PODS) + "".join(services)


STAYS = (service("web", "web", WEB), service("self", "self", ITSELF), service("empty", "nobody", EMPTY))
BEFORE = (
    service("moved", "web", MOVED),
    service("gone", "web", GONE),
    service("limited", "web", LIMITED),
    service("emptied", "web", EMPTIED),
    service("narrowed", "web", NARROWED),
)
AFTER = (
    service("moved", "self", MOVED),
    service("added", "web", ADDED),
    service("limited", "web", LIMITED, "  loadBalancerSourceRanges: [198.51.100.0/24, 'fd99::/64']\n"),
    service("emptied", "nobody", EMPTIED),
    service("narrowed", "web", NARROWED, "  internalTrafficPolicy: Local\n"),
)
ASK = """
import json, socket, sys
def tcp(address):
    with socket.create_connection(address, 1) as channel:
        channel.sendall(b"GET /hostname HTTP/1.0\\r\\n\\r\\n")
        return channel.makefile().read().split()[-1]
def udp(address, connects):
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as channel:
        channel.settimeout(1)
        if connects:
            channel.connect(address)
            channel.send(b"who?")
            assert channel.getpeername()[:2] == address
        else:
            channel.sendto(b"who?", address)
        return channel.recv(100).decode().split()[0]
def asked(how, *args):
    try:
        return how(*args)
    except OSError:
        return "error"
found = []
for address in map(tuple, json.loads(sys.argv[1])):
    found += [asked(tcp, address), asked(udp, address, True), asked(udp, address, False)]
print(json.dumps(found))
"""


def places(number: int, where: str) -> Iterator[tuple[str, int]]:
    """Yield the addresses and ports by which a place asks a Service."""
    for version in (4, 6):
        cluster = {4: f"10.66.5.{number}", 6: f"fd00:66::5:{number}"}[version]
        balancer = {4: f"203.0.113.{number}", 6: f"2001:db8:203::{number}"}[version]
        yield (balancer if where == "client" else cluster), 80
        yield str(node_address(NODE, version)), 30400 + number


def ask(lab: Lab, where: str, number: int, times: int = 1) -> list[str]:
    """Ask a Service from a place over TCP and UDP, so often; return who answered, or "error"."""
    wanted = json.dumps([*places(number, where)] * times)
    done = lab.run(where, [sys.executable, "-S", "-c", ASK, wanted])
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def run(lab: Lab, *argv: str, code: int = 0) -> str:
    """Run lbctl on the node; return its output."""
    done = lab.run(NODE, [sys.executable, "-m", "lb", *argv], env=environment())
    assert done.returncode == code, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def report(lab: Lab) -> dict[str, Any]:
    """Return what ``lbctl shadow`` says."""
    found: dict[str, Any] = ask_agent(RunDir(lab.spec.instance(NODE)), SHADOW)
    return found


def compared(found: dict[str, Any]) -> int:
    """Return how many connections a report has compared."""
    return int(found["agreed"] + sum(found["meant"].values()) + sum(found["different"].values()))


def until(lab: Lab, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait for a report that is as wanted; return it."""
    for _ in range(200):
        found = report(lab)
        if wanted(found):
            return found
        time.sleep(0.2)
    raise AssertionError(json.dumps(found, indent=1))


def kinds(found: dict[str, Any]) -> dict[str, set[str]]:
    """Return the kinds of difference by the Service's name."""
    different: dict[str, set[str]] = {}
    for one in found["services"]:
        name = one["service"].removeprefix("default/").partition(":")[0]
        different.setdefault(name, set()).update(one["different"])
    return {name: which for name, which in different.items() if which}


def masquerade_pods(lab: Lab, mode: kube_proxy.Mode) -> None:
    """Have netfilter masquerade what goes to pods, as kube-proxy does with --masquerade-all."""
    for version, (family, program) in {4: ("ip", "iptables"), 6: ("ip6", "ip6tables")}.items():
        words = MASQUERADE[mode].format(family=family, pods=POD_NETWORKS[version]).split()
        done = lab.run(NODE, ["nft" if mode is kube_proxy.Mode.NFTABLES else program, *words])
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mode", kube_proxy.Mode)
def test_shadow_agrees_with_right_rules_and_finds_wrong_ones(
    make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory, mode: kube_proxy.Mode
) -> None:
    folder: Path = tmp_path_factory.mktemp("shadow")
    file = folder / "all.yaml"
    file.write_text(manifests(*STAYS, *BEFORE))
    lab = make_lab(manifests=folder, agents=False, family=Family.DUAL)
    name = lab.spec.instance(NODE)
    run(lab, "lab", "kube-proxy", "--id", lab.spec.id, mode, NODE)
    lab.start_agent(NODE, shadow=True)
    lab.wait_agent(NODE, 120)
    for where in ("client", "asker", NODE):
        assert set(ask(lab, where, WEB, 2)) <= {"here", "there"}
        assert set(ask(lab, where, EMPTY)) == {"error"}
    assert set(ask(lab, "asker", ITSELF)) == {"asker"}
    found = until(lab, lambda one: compared(one) >= 12 * 10)
    assert found["different"] == {}
    assert compared(found) == 12 * 10
    assert set(found["meant"]) == {"source-address-kept"}
    assert set(found["not_compared"].values()) == {0}
    assert "mode       shadow" in run(lab, "status", "--instance", name)
    assert "is in shadow mode" in run(lab, "cutover", "--instance", name, code=1)
    assert "nothing to give back" in run(lab, "cutover", "--back", "--instance", name, code=1)
    assert "different as meant" in run(lab, "shadow", "--instance", name)

    masquerade_pods(lab, mode)
    ask(lab, "asker", WEB, 2)
    assert kinds(until(lab, lambda one: bool(one["different"]))) == {"web": {"masqueraded-there"}}

    file.write_text(manifests(*STAYS, *AFTER))
    wanted = {
        "web": {"masqueraded-there"},
        "moved": {"other-service"},
        "limited": {"dropped-here-served-there"},
        "emptied": {"refused-here-served-there"},
        "narrowed": {"other-backend"},
        "-": {"no-service-here"},
    }

    def asked() -> bool:
        for number in (MOVED, ADDED, GONE, LIMITED, EMPTIED):
            ask(lab, "client", number)
        ask(lab, NODE, NARROWED, 2)
        seen = kinds(report(lab))
        added = seen.pop("added", set())
        return seen == wanted and bool(added)

    for _ in range(12):
        if asked():
            break
    else:
        raise AssertionError(json.dumps(report(lab), indent=1))
    added = kinds(report(lab))["added"]
    assert added <= {f"served-here-{word}-there" for word in ("untouched", "refused", "dropped")}, added
    assert "masqueraded-there" in run(lab, "shadow", "--instance", name, code=1)

    file.write_text(manifests(*STAYS))
    lab.stop_agent(NODE)
    run(lab, "lab", "kube-proxy", "--id", lab.spec.id, mode, NODE)
    lab.start_agent(NODE)
    lab.wait_agent(NODE, 120)
    assert json.loads(run(lab, "maps", "dump", "-o", "json", "--instance", name))["flows"] == []
    assert json.loads(run(lab, "status", "-o", "json", "--instance", name, code=1))["shadow"] is False
    run(lab, "cutover", "--instance", name)
    for where in ("client", "asker", NODE):
        assert set(ask(lab, where, WEB)) <= {"here", "there"}
    lab.stop_agent(NODE)
    assert "serves Services here" in refused(lab)
    assert name in instances()


def refused(lab: Lab) -> str:
    """Start an agent in shadow mode that must not start; return why."""
    lab.start_agent(NODE, shadow=True)
    with pytest.raises(LabError) as told:
        lab.wait_agent(NODE, 120)
    return str(told.value)
