# SPDX-License-Identifier: Apache-2.0
"""The unit under a real systemd, process 1 of namespaces of its own: start, beats, ends of all kinds.

See boot.sh for what this systemd is kept from. Of the unit only the watchdog's time is shorter here.
"""

from __future__ import annotations

import contextlib
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
UNIT = ROOT / "deploy" / "systemd" / "lbctl.service"
TARGETS = ("basic", "multi-user", "network-online", "shutdown", "sysinit")
WATCHDOG_SECONDS = 4 * BEAT_SECONDS
PATIENCE = 120.0
DROP_IN = f"""\
[Service]
WatchdogSec={WATCHDOG_SECONDS}
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


class Machine:
    """Namespaces with systemd in them, on a folder with its units and its /etc."""

    def __init__(self, folder: Path) -> None:
        units, etc = folder / "units", folder / "etc"
        (units / "lbctl.service.d").mkdir(parents=True)
        (etc / "lbctl" / "manifests").mkdir(parents=True)
        for name in TARGETS:
            text = f"[Unit]\nDescription={name}\nDefaultDependencies=no\n"
            (units / f"{name}.target").write_text(text)
        shutil.copy(UNIT, units)
        (units / "lbctl.service.d" / "test.conf").write_text(DROP_IN)
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

    def shows(self, name: str) -> str:
        """Return a property of the service; empty while systemd does not answer."""
        assert self._process.poll() is None, self._console.read_text()
        return self.run("systemctl", "show", "lbctl", "--value", "-p", name).stdout.strip()

    def systemctl(self, *words: str) -> None:
        done = self.run("systemctl", *words)
        assert done.returncode == 0, f"{done.stderr}{self._console.read_text()}"

    def log(self) -> str:
        return self.run("cat", "/run/lbctl.log").stdout

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
