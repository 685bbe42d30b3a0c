# SPDX-License-Identifier: Apache-2.0
"""Debian's stock kernels, through apt, without installing them.

apt works in a directory of its own, on the archive that this machine has its packages from, but for another
suite.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

CACHE = Path("/var/lib/lbctl-kernels")
"""Not below /var/cache: there the guest sees a file system of its own, and would find no modules."""
SUITES = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie"}
"""By kernel: the suite whose linux-image-amd64 it is, of Debian 11, 12 and 13."""

_PACKAGE = "linux-image-amd64"
_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


def kernel(version: str) -> Path:
    """Return the image of a kernel, fetched unless it is there; its modules are where its package has them.

    Raises
    ------
    LookupError: this machine has no package archive of Debian, or that has no such kernel.
    subprocess.CalledProcessError: apt or dpkg failed, and has said why.
    """
    place = CACHE / version
    images = sorted(place.glob("boot/vmlinuz-*"))
    if not images:
        _fetch(SUITES[version], place)
        images = sorted(place.glob("boot/vmlinuz-*"))
    if len(images) != 1 or not images[0].name.startswith(f"vmlinuz-{version}."):
        raise LookupError(
            f"{place} holds {[image.name for image in images]}, not one kernel {version}: remove it"
        )
    return images[0]


def archive() -> str:
    """Return the address of the archive that this machine has Debian's packages from."""
    found = _said(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Origin: Debian", "Label: Debian"])
    if not found:
        raise LookupError("apt knows no archive of Debian on this machine")
    return found[0]


def _fetch(suite: str, place: Path) -> None:
    apt = place / "apt"
    shutil.rmtree(place, ignore_errors=True)
    for directory in ("lists/partial", "archives/partial"):
        (apt / directory).mkdir(parents=True)
    (apt / "sources.list").write_text(f"deb [signed-by={_KEYS}] {archive()} {suite} main\n")
    options = [
        f"-oDir::Etc::sourcelist={apt / 'sources.list'}",
        "-oDir::Etc::sourceparts=/dev/null",
        f"-oDir::State::lists={apt / 'lists'}",
        f"-oDir::Cache={apt}",
        "-oAPT::Sandbox::User=root",
        "-oAcquire::Languages=none",
        "-qq",
    ]
    subprocess.run(["apt-get", *options, "update"], check=True)
    depends = _said(["apt-cache", *options, "depends", "--important", f"{_PACKAGE}/{suite}"])
    images = [line.split()[-1] for line in depends if "Depends: linux-image-" in line]
    if len(images) != 1:
        raise LookupError(f"{_PACKAGE} of {suite} depends on {images}: one image was expected")
    subprocess.run(["apt-get", *options, "download", images[0]], check=True, cwd=apt)
    (package,) = apt.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", package, place], check=True)
    if not (place / "lib").exists():  # since Debian 13 the modules are below /usr alone
        (place / "lib").symlink_to("usr/lib")
    shutil.rmtree(apt)


def _said(argv: Sequence[str]) -> list[str]:
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
