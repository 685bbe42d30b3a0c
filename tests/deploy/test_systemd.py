# SPDX-License-Identifier: Apache-2.0
"""The units under a real systemd, process 1 of namespaces of its own: start, beats, ends of all kinds.

See boot.sh for what this systemd is kept from. Of the units only the watchdog's time is shorter here.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.agent import BEAT_SECONDS
from lb.errors import LabError
from lb.lab import cgroups
from tests.deploy.conftest import ROOT
from tests.netns.waiting import eventually

BOOT = Path(__file__).with_name("boot.sh")
SYSTEMD = ROOT / "deploy" / "systemd"
UNITS = ("lbctl", "lbctl-addresses", "lbctl-bgp")
TARGETS = ("basic", "multi-user", "network-online", "shutdown", "sysinit")
WATCHDOG_SECONDS = 4 * BEAT_SECONDS
PATIENCE = 300.0
WATCHDOG = f"[Service]\nWatchdogSec={WATCHDOG_SECONDS}\n"
LOG = """\
[Service]
StandardOutput=append:/run/lbctl.log
StandardError=append:/run/lbctl.log
"""
SETTINGS = """\
sources: [manifests:/etc/lbctl/manifests]
uplinks: [uplink]
node_name: node1
"""
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}
"""
ADDRESS = "192.0.2.48"
BALANCED = """\
apiVersion: v1
kind: Service
metadata: {name: edge}
spec: {clusterIP: 10.96.0.10, type: LoadBalancer, ports: [{port: 80}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: edge}
subsets: [{addresses: [{ip: 192.0.2.2}], ports: [{port: 8080}]}]
"""
POOLS = "pools: [{name: edge, addresses: [192.0.2.48/28]}]\n"
PEERS = """\
asn: 64512
peers: [{name: router, address: 192.0.2.2, asn: 64500}]
advertise: [{addresses: [192.0.2.48/28]}]
"""
ROUTER = """\
router id 192.0.2.2;
protocol device { }
protocol bgp node { local as 64500; neighbor 192.0.2.1 as 64512; ipv4 { import all; export none; }; }
"""
CONNECT = """\
ip netns add router
ip link set peer netns router
ip -n router address add 192.0.2.2/24 dev peer
ip -n router link set peer up
"""


class Machine:
    """Namespaces with systemd in them, on a folder with its units and its /etc."""

    def __init__(self, folder: Path) -> None:
        units, etc = folder / "units", folder / "etc"
        for name in UNITS:
            (units / f"{name}.service.d").mkdir(parents=True)
            (units / f"{name}.service.d" / "log.conf").write_text(LOG)
        (etc / "lbctl" / "manifests").mkdir(parents=True)
        for name in TARGETS:
            text = f"[Unit]\nDescription={name}\nDefaultDependencies=no\n"
            (units / f"{name}.target").write_text(text)
        for name in UNITS:
            shutil.copy(SYSTEMD / f"{name}.service", units)
        (units / "lbctl.service.d" / "watchdog.conf").write_text(WATCHDOG)
        (etc / "lbctl" / "lbctl.yaml").write_text(SETTINGS)
        (etc / "lbctl" / "manifests" / "web.yaml").write_text(SERVICE)
        self._group = cgroups.of_lab(f"systemd{os.getpid()}")
        cgroups.create(self._group)
        alone = "exec unshare --pid --mount --net --uts --ipc --cgroup --fork --kill-child"
        script = f'echo 0 >"$0/cgroup.procs" && {alone} "$@"'
        argv = [str(BOOT), str(units), str(etc), sys.prefix]
        with (folder / "console").open("wb") as console:
            self._process = subprocess.Popen(
                ["sh", "-c", script, str(self._group), *argv], stdout=console, stderr=console
            )
        self._console = folder / "console"

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        eventually(self._removed, "every process has ended")

    def _removed(self) -> bool:
        with contextlib.suppress(LabError):  # the kernel is still at it
            cgroups.remove_lab(self._group.name)
            return True
        return False

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside; what it says has the console beside it when the test fails."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        command = ["nsenter", "--target", *children[:1], "--all", *argv]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    def shows(self, name: str, unit: str = "lbctl") -> str:
        """Return a property of a service; empty while systemd does not answer."""
        assert self._process.poll() is None, self._console.read_text()
        return self.run("systemctl", "show", unit, "--value", "-p", name).stdout.strip()

    def systemctl(self, *words: str) -> None:
        done = self.run("systemctl", *words)
        assert done.returncode == 0, f"{done.stderr}{self._console.read_text()}"

    def log(self) -> str:
        return self.run("cat", "/run/lbctl.log").stdout

    def write(self, path: str, text: str) -> None:
        """Write a file inside."""
        done = self.run("sh", "-c", 'mkdir -p "${1%/*}" && printf %s "$2" >"$1"', "sh", path, text)
        assert done.returncode == 0, done.stderr

    def router(self, *argv: str) -> str:
        """Run a command in the router's network; return what it says."""
        return self.run("ip", "netns", "exec", "router", *argv).stdout

    def serves(self, after: str = "") -> bool:
        """Tell whether the service is started, with another process than that of before."""
        return self.shows("ActiveState") == "active" and self.shows("MainPID") not in ("0", after)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("systemd"))
    yield made
    made.end()


def test_the_unit_starts_is_watched_over_and_ends(machine: Machine) -> None:
    eventually(machine.serves, "started means that the first sync is in the kernel", seconds=PATIENCE)
    assert (machine.shows("Type"), machine.shows("NRestarts")) == ("notify", "0")
    assert machine.shows("StatusText") == "in step: 1 Service", machine.log()
    done = machine.run("/opt/lbctl/bin/lbctl", "status", "-o", "json")
    assert json.loads(done.stdout)["problems"] == [], machine.log()
    # It beats.
    beat = machine.shows("WatchdogTimestampMonotonic")
    eventually(lambda: machine.shows("WatchdogTimestampMonotonic") != beat, "a beat", seconds=PATIENCE)
    # Killed, it is started again, and the data plane has been there all the time.
    first = machine.shows("MainPID")
    pins = machine.run("ls", "/sys/fs/bpf/lbctl/node1").stdout
    assert "maps" in pins
    machine.systemctl("kill", "--signal", "KILL", "lbctl")
    eventually(lambda: machine.serves(after=first), "another process", seconds=PATIENCE)
    assert machine.run("ls", "/sys/fs/bpf/lbctl/node1").stdout == pins
    # Without beats it is ended, and started again.
    second = machine.shows("MainPID")
    before = int(machine.shows("NRestarts"))
    machine.systemctl("kill", "--signal", str(int(signal.SIGSTOP)), "lbctl")
    eventually(lambda: machine.serves(after=second), "the watchdog ends it", seconds=PATIENCE)
    assert int(machine.shows("NRestarts")) > before
    # Stopped, it ends well, and the data plane stays.
    machine.systemctl("stop", "lbctl")
    assert (machine.shows("ActiveState"), machine.shows("Result")) == ("inactive", "success")
    assert machine.run("ls", "/sys/fs/bpf/lbctl/node1").stdout == pins


def test_addresses_are_given_and_the_network_is_told_of_them(machine: Machine) -> None:
    """The three units beside each other: pool, agent with ARP, and BGP to a router that is BIRD, too."""
    assert machine.run("sh", "-ec", CONNECT).returncode == 0
    machine.write("/run/router.conf", ROUTER)
    machine.router("bird", "-c", "/run/router.conf", "-s", "/run/router.ctl", "-P", "/run/router.pid")
    for name, text in (("pools", POOLS), ("peers", PEERS), ("manifests/edge", BALANCED)):
        machine.write(f"/etc/lbctl/{name}.yaml", text)
    sources = "sources: [manifests:/etc/lbctl/manifests, manifests:/var/lib/lbctl]"
    settings = SETTINGS.replace("sources: [manifests:/etc/lbctl/manifests]", sources)
    machine.write("/etc/lbctl/lbctl.yaml", f"{settings}announce: arp\n")
    machine.write("/run/units/lbctl.service.d/announce.conf", (SYSTEMD / "announce.conf").read_text())
    machine.systemctl("daemon-reload")
    machine.systemctl("start", *UNITS)

    def bird(words: str) -> str:
        return machine.router("birdc", "-s", "/run/router.ctl", *words.split())

    def answers() -> bool:
        return " 0% packet loss" in machine.router("ping", "-c", "1", "-W", "1", ADDRESS)

    eventually(answers, "the segment is told", seconds=PATIENCE)
    eventually(lambda: f"{ADDRESS}/32" in bird("show route"), "the router is told", seconds=PATIENCE)
    status = machine.run("/opt/lbctl/bin/lbctl", "status", "-o", "json").stdout
    assert json.loads(status)["problems"] == [], machine.log()
    # Killed, both are there again; what they gave and told has stayed meanwhile.
    session = bird("show protocols node")
    assert "Established" in session
    before = {unit: machine.shows("MainPID", unit) for unit in UNITS[1:]}
    machine.systemctl("kill", "--signal", "KILL", "--kill-whom", "main", *before)
    for unit, process in before.items():
        eventually(
            functools.partial(lambda u, p: machine.shows("MainPID", u) not in ("0", p), unit, process),
            f"another process of {unit}",
            seconds=PATIENCE,
        )
    eventually(
        lambda: machine.run("/opt/lbctl/bin/lbctl", "announce", "status").returncode == 0, "it speaks again"
    )
    assert bird("show protocols node") == session
    assert answers()
    # Stopped, BIRD has ended as well.
    machine.systemctl("stop", *UNITS[1:])
    for unit in UNITS[1:]:
        assert (machine.shows("ActiveState", unit), machine.shows("Result", unit)) == ("inactive", "success")
    assert "Established" not in bird("show protocols node")
