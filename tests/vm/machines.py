# SPDX-License-Identifier: Apache-2.0
"""Machines under emulation on one switch, as the Vagrantfile has them, in a network namespace of our own."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.vm.image import TREE, Image

SYNCED = (".git", ".venv", "build", "*.egg-info", "__pycache__", ".mypy_cache", ".ruff_cache")
"""What is not copied to /vagrant; the Vagrantfile has the same."""

_BRIDGE = "br0"
_NEW_NETWORK_NAMESPACE = 0x40000000
_SSH_PORTS = 50100
_SSH = """\
Host {name}
  HostName 127.0.0.1
  Port {port}
  User vagrant
  IdentityFile {key}
  IdentitiesOnly yes
  UserKnownHostsFile /dev/null
  StrictHostKeyChecking no
  PasswordAuthentication no
  LogLevel ERROR
  ConnectTimeout 20
"""


class BootError(Exception):
    """A machine ended, or did not let anybody in."""


@dataclass
class Machine:
    """One of them; mac is that of its second card, which is on the segment. memory is in MiB."""

    name: str
    mac: str
    memory: int
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)


class Machines:
    """Starts them all, and is a context manager that ends them.

    logs gets what each says on its serial console, and ``ssh-config``. The process is in another network
    namespace from then on, which is gone when it ends; so are the machines, whatever ends it.
    """

    def __init__(self, image: Image, machines: Sequence[Machine], logs: Path) -> None:
        self.image = image
        self.machines = {machine.name: machine for machine in machines}
        self.logs = logs
        self.ssh_config = logs / "ssh-config"

    def __enter__(self) -> Machines:
        if ctypes.CDLL(None, use_errno=True).unshare(_NEW_NETWORK_NAMESPACE):
            raise OSError(ctypes.get_errno(), "unshare")
        _ip("link set lo up")
        _ip(f"link add {_BRIDGE} type bridge mcast_snooping 0")
        _ip(f"link set {_BRIDGE} up")
        hosts = []
        try:
            for index, machine in enumerate(self.machines.values()):
                _ip(f"tuntap add tap{index} mode tap vnet_hdr")
                _ip(f"link set tap{index} master {_BRIDGE} up")
                machine.process = subprocess.Popen(self._command(index, machine), stdin=subprocess.DEVNULL)
                port = _SSH_PORTS + index
                hosts.append(_SSH.format(name=machine.name, port=port, key=self.image.key))
            self.ssh_config.write_text("".join(hosts))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self.machines.values():
            if machine.process:
                machine.process.kill()
                machine.process.wait()

    def _command(self, index: int, machine: Machine) -> list[str]:
        """Return the command of one machine. What it writes to its disk is gone with it."""
        boot = f"root=/dev/vda rw console=ttyS0 net.ifnames=1 systemd.hostname={machine.name}"
        return [
            *("setpriv", "--pdeathsig", "KILL", "nice", "-n", "10", "qemu-system-x86_64"),
            *("-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "1", "-m", f"{machine.memory}M"),
            *(
                "-display",
                "none",
                "-vga",
                "none",
                "-monitor",
                "none",
                "-serial",
                f"file:{self.logs / machine.name}.console",
            ),
            *("-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd), "-append", boot),
            *("-drive", f"file={self.image.disk},if=none,id=disk,format=raw,snapshot=on"),
            *("-device", "virtio-blk-pci,drive=disk,addr=4"),
            *("-netdev", f"user,id=net0,hostfwd=tcp:127.0.0.1:{_SSH_PORTS + index}-:22"),
            *("-device", "virtio-net-pci,netdev=net0,addr=2"),
            *("-netdev", f"tap,id=lab,ifname=tap{index},script=no,downscript=no,vhost=off"),
            *("-device", f"virtio-net-pci,netdev=lab,mac={machine.mac},addr=3"),
        ]

    def wait(self, seconds: float) -> None:
        """Return when every machine lets the user in.

        Raises
        ------
        BootError: one does not within that time, or has ended.
        """
        until = time.monotonic() + seconds
        for machine in self.machines.values():
            assert machine.process is not None
            while self._ssh(machine.name, "true", capture_output=True).returncode:
                if machine.process.poll() is not None:
                    raise BootError(f"{machine.name}: qemu ended with {machine.process.returncode}")
                if time.monotonic() > until:
                    raise BootError(f"{machine.name} lets nobody in after {seconds:.0f} s")
                time.sleep(1)

    def sync(self, name: str) -> None:
        """Copy the tree to the machine's /vagrant, as Vagrant's synced folder of type rsync does."""
        self.copy(name, TREE, "/vagrant", "--delete", *(f"--exclude={each}" for each in SYNCED))

    def copy(self, name: str, source: Path, target: str, *options: str) -> None:
        """Copy what is in a directory to one of the machine's, which is root's."""
        remote = (f"--rsync-path=sudo mkdir -p {target} && sudo rsync", "-e", f"ssh -F {self.ssh_config}")
        subprocess.run(
            ["rsync", "-a", "--no-owner", "--no-group", *options, *remote, f"{source}/", f"{name}:{target}/"],
            check=True,
            stdin=subprocess.DEVNULL,
        )

    def run(self, name: str, command: str, *, log: str = "") -> str:
        """Run a shell command as root on a machine; return what it says, which also goes to a log.

        Raises
        ------
        subprocess.CalledProcessError: its exit code is not 0.
        """
        done = self._ssh(name, f"sudo {command}", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if log:
            with open(self.logs / log, "a") as file:
                file.write(f"{name}$ {command}\n{done.stdout}")
        done.check_returncode()
        return str(done.stdout)

    def _ssh(self, name: str, command: str, **how: object) -> subprocess.CompletedProcess[str]:
        argv = ["ssh", "-n", "-F", str(self.ssh_config), name, "--", command]
        return subprocess.run(argv, check=False, env=os.environ, **how)  # type: ignore[call-overload,no-any-return]


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)
