# SPDX-License-Identifier: Apache-2.0
"""A disk with Debian 12 as a Vagrant box has it, made by debootstrap and kept in a cache.

It has what such boxes have (the user ``vagrant`` with sudo, sshd, an address on the first card), and what the
provisioning would fetch, since the machines have no way out: the Debian packages, and in the virtual
environment the packages that lbctl depends on, which would take many minutes under emulation. What builds the
wheel is in a directory that pip is told of.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.kernels import debian

TREE = Path(__file__).resolve().parents[2]
REQUIREMENTS = TREE / "requirements"
CACHE = Path("/var/cache/lbctl-vm")
SUITE = "bookworm"
BOX = (
    *("systemd-sysv", "dbus", "udev", "kmod", "procps", "linux-image-amd64", "initramfs-tools", "zstd"),
    *("ifupdown", "openssh-server", "sudo", "rsync"),
)
PROVISIONED = (
    "curl",
    "iproute2",
    "linux-libc-dev",
    "python3",
    "python3-bpfcc",
    "python3-venv",
    "bind9",
    "nginx",
)
_VENV = "/opt/lbctl"
_WHEELS = "var/lib/wheels"
_LOCKS = ("build.txt", "run.txt")
_DISK = "3G"

_FILES = {
    "etc/fstab": "/dev/vda / ext4 defaults 0 1\n",
    # The first card; what is on the segment is the lab's business. qemu's own network gives this address.
    "etc/network/interfaces": (
        "auto lo enp0s2\niface lo inet loopback\niface enp0s2 inet static\n"
        "  address 10.0.2.15/24\n  gateway 10.0.2.2\n"
    ),
    "etc/sudoers.d/vagrant": "vagrant ALL=(ALL) NOPASSWD: ALL\n",
    "etc/pip.conf": f"[global]\nno-index = true\nfind-links = /{_WHEELS}\n",
    "etc/initramfs-tools/conf.d/box": "MODULES=list\n",
    "etc/initramfs-tools/modules": "virtio_pci\nvirtio_blk\next4\n",
    "etc/systemd/system.conf.d/box.conf": "[Manager]\nDefaultTimeoutStartSec=900\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 node1 node2 client\n",
}
_COMMANDS = (
    "useradd --create-home --shell /bin/bash vagrant",
    "install -d -m 700 -o vagrant -g vagrant /home/vagrant/.ssh",
    "systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer"
    " fstrim.timer e2scrub_reap.service networking-wait-online.service",
    "update-initramfs -u",
    f"python3 -m venv --system-site-packages {_VENV}",
)


@dataclass(frozen=True, slots=True)
class Image:
    """What a machine boots from; key is the private key that lets the user vagrant in."""

    kernel: Path
    initrd: Path
    disk: Path
    key: Path


def image() -> Image:
    """Return the image, made unless the cache has it.

    Raises
    ------
    LookupError: this machine has no package archive of Debian.
    subprocess.CalledProcessError: a step failed, and has said why.
    """
    packages = ",".join((*BOX, *PROVISIONED))
    with _locked():
        base = _made("debian", (SUITE, packages), lambda place: _bootstrap(place, packages))
        recipe = (base.name, _FILES, _COMMANDS, _requirements(), _DISK)
        place = _made("image", recipe, lambda place: _fill(place, base))
    return Image(place / "vmlinuz", place / "initrd.img", place / "disk", place / "key")


def _made(kind: str, recipe: object, make: Callable[[Path], None]) -> Path:
    """Return the directory of a recipe, made unless it is there; those of other recipes are removed."""
    place = CACHE / f"{kind}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]}"
    if not place.exists():
        for old in CACHE.glob(f"{kind}-*"):
            shutil.rmtree(old)
        making = place.with_suffix(".new")
        making.mkdir()
        make(making)
        making.rename(place)
    return place


@contextmanager
def _locked() -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _requirements() -> list[str]:
    """Return the locks of what builds lbctl and of what it needs."""
    return [(REQUIREMENTS / name).read_text() for name in _LOCKS]


def _bootstrap(place: Path, packages: str) -> None:
    _run("debootstrap", "--variant=minbase", f"--include={packages}", SUITE, str(place), debian.archive())
    for left in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
        shutil.rmtree(place / left)


def _fill(place: Path, base: Path) -> None:
    root = place / "root"
    _run("cp", "-a", str(base), str(root))
    for name, text in _FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for command in _COMMANDS:
        _inside(root, command)
    download = "-m pip --quiet --disable-pip-version-check download --only-binary=:all: --python-version=3.11"
    locks = [argument for name in _LOCKS for argument in ("-r", str(REQUIREMENTS / name))]
    _run(sys.executable, *download.split(), "--require-hashes", f"--dest={root / _WHEELS}", *locks)
    for name in _LOCKS:
        shutil.copy(REQUIREMENTS / name, root / _WHEELS)
    _inside(root, f"{_VENV}/bin/pip --quiet install --require-hashes -r /{_WHEELS}/{_LOCKS[-1]}")
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(place / "key"))
    shutil.copy(place / "key.pub", root / "home/vagrant/.ssh/authorized_keys")
    for name in ("vmlinuz", "initrd.img"):
        (found,) = (root / "boot").glob(f"{name}-*")
        shutil.copy(found, place / name)
    _run("mkfs.ext4", "-q", "-d", str(root), str(place / "disk"), _DISK)
    shutil.rmtree(root)


def _inside(root: Path, command: str) -> None:
    """Run a command in the root, without the variables of this machine's pip and the like."""
    path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
    _run("env", "-i", path, "LANG=C.UTF-8", "chroot", str(root), *command.split())


def _run(*argv: str) -> None:
    print(f"image: {' '.join(argv)[:100]}", flush=True)
    subprocess.run(
        ("nice", "-n", "10", *argv), check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
