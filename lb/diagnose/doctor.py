# SPDX-License-Identifier: Apache-2.0
"""What this machine has of what lbctl needs: what was found, what will not work, what to do about it.

Each check is a pure function of what :class:`Probes` have asked the machine; tests plant faults there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lb.config import Config
from lb.datapath.attach import sockets
from lb.datapath.kernel import bpf, pins, privileges
from lb.datapath.programs import build, features
from lb.datapath.programs.features import Need
from lb.diagnose import host
from lb.diagnose.findings import Check, Grade
from lb.diagnose.host import HostProbes

_JIT = Path("/proc/sys/net/core/bpf_jit_enable")
_MOUNTINFO = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Probes:
    """What the checks ask the machine.

    bcc: the text of its version file, ``""`` without bcc. jit: that of the kernel's setting, if any.
    """

    release: Callable[[], str] = lambda: os.uname().release
    missing_privileges: Callable[[], list[str]] = lambda: privileges.missing(privileges.effective())
    required: Callable[[], list[Need]] = features.required
    at_sockets: Callable[[], list[Need]] = features.at_sockets
    optional: Callable[[], Mapping[str, int]] = features.optional
    netns_cookie: Callable[[], int] = sockets.netns_cookie
    mountinfo: Callable[[], str] = _MOUNTINFO.read_text
    mounts: Callable[[], str] = sockets.MOUNTS.read_text
    bpffs_possible: Callable[[], bool] = pins.BPFFS.is_dir
    jit: Callable[[], str | None] = lambda: _JIT.read_text() if _JIT.exists() else None
    bcc: Callable[[], str] = build.bcc_version
    host: HostProbes = field(default_factory=HostProbes)


def examine(probes: Probes | None = None, config: Config | None = None) -> list[Check]:
    """Look at the machine, and return what was found, in the order in which things are needed.

    config: the settings of the agent that is to run; by default interfaces are detected.
    """
    ask = probes or Probes()
    bpf.unlimit_memory()
    found = [kernel(ask.release()), *rights(ask.missing_privileges())]
    if found[-1].result is Grade.OK:
        found += needs(ask.required())
        found.append(socket_hooks(ask.at_sockets(), ask.netns_cookie(), ask.optional()))
    return [
        *found,
        bpffs(ask.mountinfo(), ask.bpffs_possible()),
        cgroup(ask.mounts()),
        jit(ask.jit()),
        bcc(ask.bcc()),
        *host.examine(ask.host, config),
    ]


def healthy(findings: Sequence[Check]) -> bool:
    """Whether nothing fails."""
    return all(one.result is not Grade.FAILS for one in findings)


def kernel(release: str) -> Check:
    """Compare the version with the floor."""
    floor = ".".join(map(str, features.FLOOR))
    if tuple(int(number) for number in re.findall(r"\d+", release)[:2]) >= features.FLOOR:
        return Check("kernel", Grade.OK, f"Linux {release}, not older than {floor}")
    return Check(
        "kernel",
        Grade.FAILS,
        f"Linux {release}",
        f"on kernels older than {floor} nothing was tried, and lines below name what is known to be missing",
        f"boot a kernel of {floor} or later",
    )


def rights(missing: Sequence[str]) -> Iterator[Check]:
    """Look at this process's capabilities; without them the kernel cannot be asked."""
    if not missing:
        yield Check("capabilities", Grade.OK, ", ".join(privileges.NEEDED))
        return
    yield Check(
        "capabilities",
        Grade.FAILS,
        f"this process lacks {', '.join(missing)}",
        "no program can be loaded by whoever runs with these rights, and nothing more is known of the kernel",
        "run it as root, or with the capabilities that deploy/ gives the agent",
    )


def needs(tried: Sequence[Need]) -> Iterator[Check]:
    """Name each thing that the kernel lacks; those that it has are one line."""
    met = [need for need in tried if need.met]
    if met:
        yield Check(
            "kernel features", Grade.OK, f"{len(met)} of {len(tried)} map kinds, programs and helpers"
        )
    for need in tried:
        if not need.met:
            yield Check(
                "kernel feature",
                Grade.FAILS,
                f"no {need.what}: {os.strerror(need.error)}",
                "the programs cannot be loaded: no Service is served",
                f"boot a kernel that has it: Linux {need.since}, with CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF",
            )


def socket_hooks(tried: Sequence[Need], netns_cookie: int, optional: Mapping[str, int]) -> Check:
    """Tell whether processes of the node are served at the socket."""
    lacking = [f"{need.what} (Linux {need.since})" for need in tried if not need.met]
    if not netns_cookie:
        lacking.append("a socket's SO_NETNS_COOKIE (Linux 5.14)")
    check = "socket hooks"
    if lacking:
        return Check(
            check,
            Grade.LIMITED,
            f"the kernel lacks {', '.join(lacking)}",
            "processes of the node are served by tc, packet by packet, and not at connect()",
            "boot Linux 5.14 or later, or have socket_lb: off",
        )
    if not optional["SET_RETVAL"]:
        return Check(
            check,
            Grade.LIMITED,
            "the kernel lacks the helper set_retval (Linux 5.18)",
            "a process of the node that connects to a Service without endpoints gets EPERM, not ECONNREFUSED",
            "nothing, unless programs take EPERM for something else",
        )
    return Check(check, Grade.OK, "connect, sendmsg, recvmsg, getpeername")


def bpffs(mountinfo: str, possible: bool) -> Check:
    """Look for the file system that holds the pins."""
    if pins.is_bpffs(pins.BPFFS, mountinfo):
        return Check("bpffs", Grade.OK, f"mounted at {pins.BPFFS}")
    if possible:
        return Check("bpffs", Grade.OK, f"not mounted; lbctl run mounts it at {pins.BPFFS}")
    return Check(
        "bpffs",
        Grade.FAILS,
        f"{pins.BPFFS} does not exist",
        "maps and programs cannot be kept: lbctl run ends at once",
        "mount sysfs at /sys, and in a container the host's /sys/fs/bpf",
    )


def cgroup(mounts: str) -> Check:
    """Look for the hierarchy that socket hooks are attached to."""
    root = sockets.cgroup_root(mounts)
    if root is not None:
        return Check("cgroup v2", Grade.OK, f"mounted at {root}")
    return Check(
        "cgroup v2",
        Grade.LIMITED,
        "not mounted",
        "processes of the node are served by tc, packet by packet, not at connect()",
        "mount -t cgroup2 none DIRECTORY, and in a container the host's; --cgroup names another place",
    )


def jit(setting: str | None) -> Check:
    """Look whether programs are compiled to machine code."""
    if setting is not None and setting.strip() == "0":
        return Check(
            "JIT",
            Grade.LIMITED,
            "off: programs are interpreted",
            "each packet costs several times as much",
            "sysctl -w net.core.bpf_jit_enable=1",
        )
    return Check(
        "JIT", Grade.OK, "on" if setting is not None else "always on: the kernel has no setting for it"
    )


def bcc(version: str) -> Check:
    """Look for the compiler."""
    number = re.search(r"\d[\w.+~-]*", version)
    if number:
        return Check("bcc", Grade.OK, f"{number[0]}; it needs neither kernel headers nor BTF")
    return Check(
        "bcc",
        Grade.FAILS,
        "this Python has no module bcc",
        "programs that are not in the cache already cannot be compiled: lbctl run ends at once",
        "apt install python3-bpfcc, and run lbctl with that Python (scripts/setup does both)",
    )
