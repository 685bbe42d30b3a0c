# SPDX-License-Identifier: Apache-2.0
"""Servers of the distribution that pods run in the place of the lab's own, by the image of their container.

Such a pod has what every pod has: network, host name, probes, an end with a grace period. Its files are in a
folder of its own on the machine, whose subfolders are mounted where the server looks for them.
"""

from __future__ import annotations

import importlib
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lb.errors import LabError
from lb.lab import pod
from lb.lab.addressing import LabSpec
from lb.lab.store import PodRecord, Store


class Prepare(Protocol):
    """Writes what a server needs before it starts."""

    def __call__(self, store: Store, spec: LabSpec, record: PodRecord, folder: Path) -> None:
        """Write files into the subfolders of the pod's folder, all of which exist.

        Raises LabError: says why the server cannot be started.
        """
        ...


@dataclass(frozen=True, slots=True)
class Server:
    """A server that pods can run.

    argv: its command; it has to stay in the foreground.
    package: the Debian package that has it.
    mounts: where subfolders of the pod's folder are mounted; below /var, or a folder of the package.
    prepare: ``module:function``, a :class:`Prepare`; imported when a pod starts.
    stop: the signal that ends it without breaking what it is at.
    """

    argv: tuple[str, ...]
    package: str
    mounts: Mapping[str, str] = field(default_factory=dict)
    prepare: str = ""
    stop: signal.Signals = signal.SIGTERM


SERVERS = {
    "lab/named": Server(
        argv=("named", "-g", "-n", "1", "-c", "/etc/bind/named.conf"),
        package="bind9",
        mounts={"etc": "/etc/bind", "work": "/var/cache/bind"},
        prepare="lb.lab.dns:prepare",
    ),
    "lab/nginx": Server(
        argv=("nginx", "-p", "/var", "-c", "/var/nginx/nginx.conf"),
        package="nginx",
        mounts={"conf": "/var/nginx"},
        prepare="lb.lab.ingress:prepare",
        stop=signal.SIGQUIT,
    ),
}
"""By image: names that no registry has, so that no manifest means another one."""

LINGER_SECONDS = 1.0
"""How long a server serves on before it is told to end: clients hear of its end only after it has begun."""


def check(image: str) -> Server | None:
    """Return the server of an image, None for the lab's own.

    Raises LabError: the machine lacks the server.
    """
    server = SERVERS.get(image)
    if server and shutil.which(server.argv[0], path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
        raise LabError(f"{server.argv[0]} is missing: install the Debian package {server.package}")
    return server


def missing(image: str) -> str:
    """Return why an image's server cannot run on this machine, ``""`` when it can."""
    try:
        check(image)
    except LabError as error:
        return str(error)
    return ""


def container(host: str, mounts: Sequence[str], argv: Sequence[str]) -> list[str]:
    """Return the command that becomes argv in namespaces of its own; see :mod:`lb.lab.pod`."""
    return [sys.executable, "-I", "-S", str(pod.__file__), f"@{host}", "-", *mounts, "--", *argv]


def prepare(server: Server, store: Store, spec: LabSpec, record: PodRecord) -> list[str]:
    """Make the pod's folder and the files in it; return its mounts as pod.py takes them.

    Raises LabError: see :class:`Prepare`.
    """
    folder = store.pod_folder(record)
    for name in server.mounts:
        (folder / name).mkdir(parents=True, exist_ok=True)
    if server.prepare:
        module, _, function = server.prepare.partition(":")
        write: Prepare = getattr(importlib.import_module(module), function)
        write(store, spec, record, folder)
    return [f"{folder / name}:{target}" for name, target in server.mounts.items()]
