# SPDX-License-Identifier: Apache-2.0
"""An agent takes Services over by itself, and they are given back, as the pods of deploy and the unit do it.

kube-proxy is played as lbctl sees it: its rules are there, and somebody listens at its port.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lb.datapath.kernel.pins import instances
from lb.lab.addressing import node_address
from lb.lab.kube_proxy import Mode
from lb.lab.lab import Lab
from lb.lab.processes import environment
from tests.deploy.confine import Policy
from tests.netns.held import Holder, Target
from tests.netns.test_confined import NODE, agent, bare, numbers, pod_container, pod_policy, unit_policy
from tests.netns.waiting import eventually

__all__ = ["bare"]  # a fixture
LBCTL = [sys.executable, "-m", "lb"]
KUBE_PROXY = """\
import socket, sys
listening = socket.create_server(("127.0.0.1", 10249))
print(flush=True)
sys.stdin.read()
"""
FIND = [sys.executable, "-c", "from lb.diagnose.kube_proxy import find; print(*find())"]


def pod() -> tuple[Policy, dict[str, str], list[str]]:
    """Return policy and settings of the pod that takes over, and the command of the one that gives back."""
    container = pod_container("overlays/cutover")
    assert container["args"] == ["run"]
    given = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    settings = {name: value for name, value in given.items() if name.startswith("LBCTL_")}
    back = pod_policy("overlays/removal").command(pod_container("overlays/removal")["command"])
    return pod_policy("overlays/cutover"), settings, back


def unit() -> tuple[Policy, dict[str, str], list[str]]:
    """Return the same of the unit, with what docs/migration.md adds to it; root gives back."""
    policy = unit_policy()
    capabilities = [*policy.capabilities, *numbers(["CAP_SYS_ADMIN"])]
    back = ["sh", "-c", 'lbctl cutover --back --instance "$LBCTL_NODE_NAME"']
    return replace(policy, capabilities=capabilities), {"LBCTL_CUTOVER": "on"}, back


def rules(lab: Lab) -> str:
    return lab.run(NODE, FIND, env=environment()).stdout.strip()


def write_rules(lab: Lab, mode: Mode) -> None:
    done = lab.run(NODE, [*LBCTL, "lab", "kube-proxy", "--id", lab.spec.id, mode, NODE], env=environment())
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def kube_proxy(lab: Lab) -> Iterator[None]:
    """Have somebody listen where kube-proxy does, meanwhile."""
    argv = lab.command(NODE, [sys.executable, "-c", KUBE_PROXY])
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.stdin.close()


@pytest.mark.parametrize(("way", "mode"), [(pod, Mode.IPTABLES), (unit, Mode.NFTABLES)])
def test_an_agent_takes_over_by_itself_and_its_connections_are_given_back(
    bare: Lab,
    way: Callable[[], tuple[Policy, dict[str, str], list[str]]],
    mode: Mode,
    tmp_path: Path,
) -> None:
    over, settings, back = way()
    log, ready, instance = tmp_path / "log", bare.store.ready_file(NODE), bare.spec.instance(NODE)
    write_rules(bare, mode)
    with contextlib.ExitStack() as stack:
        held = Holder(bare, "client", [Target("tcp", "web", str(node_address(NODE)), 30123, 4)], stack)

        def goes_on() -> None:
            before = held.told()["asked"].get("web", 0)
            eventually(lambda: held.told()["asked"].get("web", 0) > before + 8, "the connections go on")
            assert (held.told()["open"], held.told()["failures"]) == (4, [])

        goes_on()
        with kube_proxy(bare), agent(bare, over, log, **settings) as process:
            eventually(lambda: ready.exists() or process.poll() is not None, "the agent", seconds=200)
            eventually(lambda: "waiting until kube-proxy has gone" in log.read_text(), "it waits")
            assert rules(bare)
        goes_on()
        with agent(bare, over, log, **settings):
            eventually(lambda: "cutover: 4 connections moved" in log.read_text(), "it takes over", seconds=90)
            assert not rules(bare)
            goes_on()
        write_rules(bare, mode)
        names = {"LBCTL_NODE_NAME": instance, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        with subprocess.Popen(bare.command(NODE, back), env=environment() | names) as removal:
            try:
                eventually(lambda: instance not in instances(), "they are given back", seconds=60)
            finally:
                removal.kill()
        goes_on()
