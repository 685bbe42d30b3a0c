# SPDX-License-Identifier: Apache-2.0
"""What the kernel wants a process to be allowed before it is an agent: capabilities(7)."""

from __future__ import annotations

import errno
import re
import struct
from collections.abc import Mapping
from pathlib import Path

from lb.datapath.kernel.syscall import Command, syscall
from lb.errors import BpfError, DatapathError

_SYS_ADMIN = 21
_NO_MAP = struct.pack("=i4xQQQ", -1, 0, 0, 0)
"""A look-up that fails where bpf() is allowed: there is no such descriptor (EBADF)."""

NEEDED: Mapping[str, tuple[int, str]] = {
    "CAP_BPF": (39, "makes maps and loads programs"),
    "CAP_NET_ADMIN": (12, "attaches programs to interfaces and control groups"),
    "CAP_PERFMON": (38, "lets programs compare packet pointers"),
}
"""By name: number and purpose. Before Linux 5.8 there is neither CAP_BPF nor CAP_PERFMON; there, and still
today, CAP_SYS_ADMIN allows what they allow. It is also what mounting a bpf file system takes."""


def effective(status: str | None = None) -> int:
    """Return this process's effective capabilities as bits; status is the text of /proc/self/status."""
    text = Path("/proc/self/status").read_text() if status is None else status
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", text, re.MULTILINE)
    return int(found[1], 16) if found else -1


def missing(capabilities: int) -> list[str]:
    """Return the names of the needed ones that are not among these bits."""
    held = capabilities
    if held & 1 << _SYS_ADMIN:
        held |= 1 << NEEDED["CAP_BPF"][0] | 1 << NEEDED["CAP_PERFMON"][0]
    return [name for name, (number, _) in NEEDED.items() if not held & 1 << number]


def check(capabilities: int | None = None) -> None:
    """Return if this process, or one with these capabilities, may do what an agent does.

    Raises DatapathError: names each capability that is missing, and what it is for.
    """
    absent = missing(effective() if capabilities is None else capabilities)
    if absent:
        reasons = ", ".join(f"{name}, which {NEEDED[name][1]}" for name in absent)
        raise DatapathError(f"this process lacks {reasons}; deploy/ has them for systemd and for a DaemonSet")
    if forbidden():
        raise DatapathError(
            "bpf() is forbidden to this process although it has the capabilities: by a seccomp profile, as"
            " older container runtimes have it (Docker before 23, containerd before 1.7): run it without one"
        )


def forbidden() -> bool:
    """Tell whether somebody else than the kernel's capabilities forbids bpf()."""
    try:
        syscall(Command.MAP_LOOKUP_ELEM, bytearray(_NO_MAP), "no map")
    except BpfError as error:
        return error.errno == errno.EPERM
    return False
