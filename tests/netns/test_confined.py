# SPDX-License-Identifier: Apache-2.0
"""The agent as the systemd unit and the DaemonSet run it: what they leave it is enough, and none too much.

tests/deploy/confine.py plays their parts. Not played, as it takes systemd or a container runtime: private
/tmp and hostname (/tmp is read-only here), device groups, the runtime's seccomp profile, AppArmor, SELinux.
"""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lb.datapath.kernel.pins import Pins, unload
from lb.datapath.kernel.privileges import NEEDED
from lb.lab.addressing import node_address
from lb.lab.lab import Lab
from lb.lab.processes import environment
from lb.rundir import RunDir
from tests.deploy.confine import Policy
from tests.deploy.conftest import ROOT
from tests.netns.conftest import MakeLab
from tests.netns.waiting import eventually

UNIT = ROOT / "deploy" / "systemd" / "lbctl.service"
NODE = "node1"
_SYS_ADMIN = 21  # linux/capability.h
UNCHECKED = """\
import sys
from lb.cli import main
from lb.datapath.kernel import privileges
from lb.datapath.programs import build
privileges.check = lambda: None
obtain = build.obtain
build.obtain = lambda *wanted: (obtain(*wanted)[0], False)
sys.exit(main(sys.argv[1:]))
"""
"""Runs lbctl without its own look at the capabilities; refused programs are not compiled anew."""


def unit() -> dict[str, list[str]]:
    """Return the words of each directive of the unit; SystemCallFilter may stand several times."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE):
        words = value.split()
        inverted = bool(words) and words[0].startswith("~")
        found.setdefault(name, []).extend(
            f"~{word.removeprefix('~')}" if inverted else word for word in words
        )
    return found


def numbers(names: list[str]) -> list[int]:
    return [_SYS_ADMIN if name == "CAP_SYS_ADMIN" else NEEDED[name][0] for name in names]


def calls(word: str) -> set[str]:
    """Return the system calls of one word of a filter: itself, or what systemd's set of that name holds."""
    if not word.startswith("@"):
        return {word}
    argv = ["systemd-analyze", "syscall-filter", word]
    listing = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()[1:]
    lines = [line.strip() for line in listing]
    return set().union(*(calls(line) for line in lines if line and not line.startswith("#")))


def unit_policy() -> Policy:
    """Return what the unit leaves."""
    found = unit()
    allowed: set[str] = set()
    for word in found["SystemCallFilter"]:
        allowed = allowed - calls(word[1:]) if word.startswith("~") else allowed | calls(word)
    assert found["ProtectSystem"] == ["strict"]
    assert found["NoNewPrivileges"] == ["yes"]
    return Policy(
        capabilities=numbers(found["CapabilityBoundingSet"]),
        writable=[
            *(path.removeprefix("-") for path in found["ReadWritePaths"]),
            *(f"/run/{name}" for name in found["RuntimeDirectory"]),
            *(f"/var/cache/{name}" for name in found["CacheDirectory"]),
        ],
        hidden=found["ProtectProc"] == ["invisible"] and found["PrivateDevices"] == ["yes"],
        deny_write_execute=found["MemoryDenyWriteExecute"] == ["yes"],
        syscalls=sorted(allowed),
        families=[getattr(socket, name) for name in found["RestrictAddressFamilies"]],
    )


def pod_container(overlay: str) -> dict[str, Any]:
    """Return the container of the DaemonSet of an overlay."""
    argv = [str(Path(sys.executable).with_name("kubectl")), "kustomize", str(ROOT / "deploy" / overlay)]
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    [found] = [each for each in yaml.safe_load_all(text) if each["kind"] == "DaemonSet"]
    [container] = found["spec"]["template"]["spec"]["containers"]
    return dict(container)


def pod_policy(overlay: str = "base") -> Policy:
    """Return what the DaemonSet leaves."""
    container = pod_container(overlay)
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    return Policy(
        capabilities=numbers([f"CAP_{name}" for name in context["capabilities"]["add"]]),
        writable=[each["mountPath"] for each in container["volumeMounts"] if not each.get("readOnly")],
    )


@pytest.fixture
def bare(make_lab: MakeLab) -> Iterator[Lab]:
    """A lab of one node without an agent."""
    lab = make_lab(nodes=1, agents=False)
    Path("/var/cache/lbctl").mkdir(mode=0o700, exist_ok=True)
    Path("/sys/fs/bpf/lbctl").mkdir(mode=0o700, exist_ok=True)  # as the unit's ExecStartPre does
    yield lab
    unload(Pins(lab.spec.instance(NODE)))


@contextlib.contextmanager
def agent(lab: Lab, policy: Policy, log: Path, *flags: str, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the node's agent under a policy meanwhile; its words go to log. more: of its environment."""
    argv = lab.command(NODE, policy.command([*lab.agent_command(NODE), *flags]))
    lab.store.ready_file(NODE).unlink(missing_ok=True)
    with (
        log.open("w") as words,
        subprocess.Popen(argv, env=environment() | more, stdout=words, stderr=words) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()


@pytest.mark.parametrize("policy", [unit_policy, pod_policy])
def test_a_service_answers(bare: Lab, policy: Callable[[], Policy], tmp_path: Path) -> None:
    allowed = policy()
    instance = bare.spec.instance(NODE)
    log = tmp_path / "log"
    ready = bare.store.ready_file(NODE)
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(60)
    with manager, agent(bare, allowed, log, NOTIFY_SOCKET=str(tmp_path / "notify")) as process:
        eventually(lambda: ready.exists() or process.poll() is not None, "the agent", seconds=200)
        assert process.poll() is None, log.read_text()
        status = Path(f"/proc/{process.pid}/status").read_text()
        bits = f"{sum(1 << number for number in allowed.capabilities):016x}"
        for kind in ("Prm", "Eff", "Bnd"):
            assert f"Cap{kind}:\t{bits}\n" in status
        assert "NoNewPrivs:\t1\n" in status
        assert f"Seccomp:\t{2 if allowed.syscalls else 0}\n" in status
        node_port = f"http://{node_address(NODE)}:30123"
        for where, url in (("client", node_port), (NODE, node_port)):
            done = bare.run(where, ["curl", "-sS", "-m", "5", url])
            assert "You've hit" in done.stdout, (where, done.stderr, log.read_text())
        for path in ("/healthz", "/livez"):
            done = bare.run(NODE, ["curl", "-sf", "-m", "5", f"http://127.0.0.1:10256{path}"])
            assert done.returncode == 0, path
        assert RunDir(instance).notes()["problems"] == []
        assert "connect4" in log.read_text()  # the socket hooks are attached as well
        told = [manager.recv(4096).decode()]
        while "READY=1" not in told[-1]:
            assert ready.exists(), told
            told.append(manager.recv(4096).decode())
        while "WATCHDOG=1" not in told[-1]:
            told.append(manager.recv(4096).decode())
        assert "STATUS=in step" in told[-1]
        process.terminate()
        while "STOPPING=1" not in told[-1]:
            told.append(manager.recv(4096).decode())


def test_other_programs_replace_those_at_xdp(bare: Lab, tmp_path: Path) -> None:
    """Whose program is attached is asked of the pins: the kernel tells its name to CAP_SYS_ADMIN alone."""
    ready = bare.store.ready_file(NODE)
    for number, (flags, said) in enumerate(
        (
            (("--uplink-mode=xdp-generic",), "attached: eth0 xdp-generic"),
            (("--uplink-mode=xdp-generic", "--limits-flows=2000"), "attached: eth0 xdp-generic"),
            (("--uplink-mode=tc",), "detached: eth0 XDP"),
        )
    ):
        log = tmp_path / str(number)
        with agent(bare, pod_policy(), log, *flags) as process:
            eventually(lambda: ready.exists() or process.poll() is not None, "the agent", seconds=90)
            assert process.poll() is None, log.read_text()
        assert said in log.read_text()
        assert " ERROR " not in log.read_text()


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_capability_is_named(bare: Lab, name: str, tmp_path: Path) -> None:
    whole = pod_policy()
    left = [number for number in whole.capabilities if number != NEEDED[name][0]]
    with agent(bare, Policy(left, whole.writable), tmp_path / "log") as process:
        assert process.wait(60) == 1
    words = (tmp_path / "log").read_text()
    assert f"lbctl: this process lacks {name}, which {NEEDED[name][1]}" in words
    assert words.count("CAP_") == 1


@pytest.mark.parametrize("name", NEEDED)
def test_the_kernel_refuses_without_it(bare: Lab, name: str) -> None:
    unload(Pins(bare.spec.instance(NODE)))
    whole = pod_policy()
    left = [number for number in whole.capabilities if number != NEEDED[name][0]]
    python, _, _, *argv = bare.agent_command(NODE)
    confined = Policy(left, whole.writable).command([python, "-c", UNCHECKED, *argv])
    done = bare.run(NODE, confined, env=environment(), timeout=380)
    assert done.returncode == 1
    assert re.search(r"^lbctl: .*(Operation not permitted|Permission denied)", done.stderr, re.MULTILINE)
