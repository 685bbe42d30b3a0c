# SPDX-License-Identifier: Apache-2.0
"""Contract rows fail-open and self-repair, with real traffic: pins that go, hooks that somebody detaches."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lb.datapath.kernel.pins import Pins, remove_tree
from lb.lab import namespaces
from lb.lab.addressing import node_address, on_segment
from lb.lab.lab import Lab
from lb.lab.processes import environment, spawn
from tests.netns.conftest import MakeLab
from tests.netns.test_changes import kept_connection, steady_client
from tests.netns.test_icmp import PING
from tests.netns.waiting import eventually, held_agent

NODE = "node1"
NODE_PORT = (str(node_address(NODE)), 30123)
PLAIN_PORT = 2222

# A server of the node itself, which no Service leads to: what sshd is on other nodes.
PLAIN_SERVER = f"""\
import socket
with socket.create_server(("::", {PLAIN_PORT}), family=socket.AF_INET6, dualstack_ipv6=True) as server:
    print("listens", flush=True)
    while True:
        server.accept()[0].close()
"""
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()"
# A second is enough for an answer here; nothing at all within it is a drop.
TRY_VIP = """\
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 1).close()
    print("answered")
except OSError as error:
    print(type(error).__name__)
"""


DETACH = """\
from lb.datapath.attach.netlink import Netlink
with Netlink() as net:
    (uplink,) = [one for one in net.interfaces() if one.name == "eth0"]
    print(net.detach_tc(uplink))
"""


@contextmanager
def plain_server(lab: Lab) -> Iterator[None]:
    """Have a server on node1 meanwhile that is none of lbctl's business."""
    argv = lab.command(NODE, [sys.executable, "-I", "-S", "-c", PLAIN_SERVER])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "listens\n"
        yield
        server.kill()


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab) -> Iterator[Lab]:
    """A lab of two nodes with such a server."""
    lab = make_lab()
    with plain_server(lab):
        yield lab


def python(lab: Lab, place: str, code: str, *words: object) -> list[str]:
    """Run Python code at a place, and return the lines that it prints."""
    done = lab.run(place, [sys.executable, "-I", "-S", "-c", code, *map(str, words)])
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def check_node(lab: Lab) -> None:
    """The node answers its neighbours, who have forgotten it, pings and connections, in both families."""
    for version in (4, 6):
        node, client = node_address(NODE, version), on_segment(100, version)
        for place, other in (("client", node), (NODE, client)):
            assert lab.run(place, ["ip", "neigh", "flush", "all"]).returncode == 0
            assert python(lab, place, PING, other, 2) == [f"answer {other}"] * 2
        python(lab, "client", CONNECT, node, PLAIN_PORT)


def served(lab: Lab) -> bool:
    return python(lab, "client", TRY_VIP, *NODE_PORT) == ["answered"]


def test_fail_open_without_agent_and_pins_the_nodes_own_network_works(lab: Lab) -> None:
    """`rm -r` of the pins: no array of programs has anything in it any more."""
    lab.stop_agent(NODE)
    try:
        remove_tree(Pins(lab.spec.instance(NODE)).base)
        check_node(lab)
        assert python(lab, "client", TRY_VIP, *NODE_PORT) == ["TimeoutError"], (
            "nothing reaches the node's stack"
        )
    finally:
        lab.start_agent(NODE)
        lab.wait_agent(NODE)
    check_node(lab)
    assert served(lab)


def test_self_repair_with_an_agent_removed_pins_cost_nothing(lab: Lab) -> None:
    base = Pins(lab.spec.instance(NODE)).base
    before = {path.relative_to(base) for path in base.rglob("*") if not path.is_dir()}
    with steady_client(lab, "client", NODE_PORT) as result:
        remove_tree(base)
        check_node(lab)
        eventually(
            lambda: base.exists() and before <= {path.relative_to(base) for path in base.rglob("*")}, "back"
        )
    assert result["failures"] == []
    assert "somebody removed" in lab.store.log(NODE).read_text()


def start_apart(lab: Lab) -> int:
    """Start the agent anew with mounts of its own; return its process id."""
    lab.stop_agent(NODE)
    lab.store.ready_file(NODE).unlink(missing_ok=True)
    argv = ["unshare", "--mount", "--propagation", "private", *lab.agent_command(NODE)]
    process = spawn(namespaces.command(lab.spec.namespace(NODE), argv), lab.store.log(NODE), environment())
    lab.store.write_process(NODE, process)
    lab.wait_agent(NODE)
    return process.pid


def test_self_repair_a_bpf_file_system_that_is_unmounted_costs_nothing(lab: Lab) -> None:
    """The agent mounts it anew, where it may, and pins all that it holds."""
    agent = ["nsenter", "--mount", f"--target={start_apart(lab)}"]
    pinned = [*agent, "ls", str(Pins(lab.spec.instance(NODE)).maps)]
    status = [*agent, sys.executable, "-m", "lb", "status", "--instance", lab.spec.instance(NODE)]
    before = subprocess.run(pinned, capture_output=True, check=True).stdout
    try:
        with steady_client(lab, "client", NODE_PORT) as result:
            with held_agent(lab, NODE):
                subprocess.run([*agent, "umount", "--lazy", "/sys/fs/bpf"], check=True)
                asked = subprocess.run(status, env=environment(), capture_output=True, text=True, check=False)
            assert "mount -t bpf bpf /sys/fs/bpf" in asked.stderr
            eventually(
                lambda: subprocess.run(pinned, capture_output=True, check=False).stdout == before, "back"
            )
        assert result["failures"] == []
        eventually(
            lambda: subprocess.run(status, env=environment(), check=False).returncode == 0, "all is well"
        )
    finally:
        lab.stop_agent(NODE)
        lab.start_agent(NODE)
        lab.wait_agent(NODE)


def test_self_repair_a_detached_uplink_serves_again_within_seconds(lab: Lab) -> None:
    """The hook is taken by another tool: it is noticed without an event, said, and attached again."""
    log = lab.store.log(NODE)
    before = len(log.read_text())
    with held_agent(lab, NODE):
        done = lab.run(NODE, [sys.executable, "-c", DETACH])
        assert done.returncode == 0, done.stderr
        assert not served(lab)
    eventually(lambda: served(lab), "served again", 15)
    lost = "uplink eth0, tc ingress: lb_tc_uplink_in: somebody detached it; attaching it again"
    wanted = {lost, "attached: eth0 tc ingress"}
    eventually(lambda: all(words in log.read_text()[before:] for words in wanted), f"the log says {wanted}")
    health = lab.run(NODE, ["curl", "-sS", "-m", "5", "http://127.0.0.1:10256/healthz"])
    assert json.loads(health.stdout)["healthy"] is True


# The agent as a version would have it that knows no other hook than clsact, and whose programs differ.
OLDER_AGENT = """\
import sys
from lb.datapath.kernel import tcx
tcx.programs = lambda *_: None
from lb.cli import main
sys.exit(main(sys.argv[1:]))
"""


def start_older_agent(lab: Lab) -> None:
    lab.store.ready_file(NODE).unlink(missing_ok=True)
    argv = [sys.executable, "-c", OLDER_AGENT, *lab.agent_command(NODE)[3:], "--limits-sockets=1024"]
    argv = namespaces.command(lab.spec.namespace(NODE), argv)
    lab.store.write_process(NODE, spawn(argv, lab.store.log(NODE), environment()))
    lab.wait_agent(NODE)


def test_rollback_to_a_version_that_attaches_by_other_means_loses_nothing(lab: Lab) -> None:
    """Its filters run behind our hooks, which find no step any more: it has removed our programs."""
    with steady_client(lab, "client", NODE_PORT) as result, kept_connection(lab, "client", NODE_PORT) as ask:
        name = ask()
        lab.stop_agent(NODE)
        start_older_agent(lab)
        lab.wait_agent(NODE)
        check_node(lab)
        assert ask() == name
        lab.stop_agent(NODE)
        lab.start_agent(NODE)
        lab.wait_agent(NODE)
        check_node(lab)
        assert ask() == name
    assert result["failures"] == []
    argv = [sys.executable, "-m", "lb", "status", "--programs", "--instance", lab.spec.instance(NODE)]
    hooks = lab.run(NODE, argv)
    assert "lb_tc_uplink_in" in hooks.stdout
