# SPDX-License-Identifier: Apache-2.0
"""Run a command under a policy: ``python confine.py JSON COMMAND…``, as systemd or a container runtime would.

What a policy says is what these do with system calls; no more than the kernel is needed for it. It is applied
to this process, as root, in a mount namespace of its own; then the command takes its place.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_NOSUID, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 32, 4096, 16384, 1 << 18
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_SET_MDWE = 24, 38, 65
_SCMP_ACT_ALLOW, _SCMP_ACT_EPERM, _SCMP_CMP_EQ = 0x7FFF0000, 0x00050001, 4
_DEVICES = ("null", "zero", "full", "random", "urandom")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Policy:
    """What is left to a command.

    capabilities: numbers. writable: directories; everything else is read-only, but for /proc. mounts: pairs
    of a directory and where it is mounted, read-only; that has to exist. user: number, also of the group.
    hidden: at /proc no processes but those of the same user, at /dev nothing but what needs no driver.
    syscalls, families: names and numbers of what may be called and be given to socket(); empty: all.
    """

    capabilities: list[int]
    writable: list[str]
    hidden: bool = False
    deny_write_execute: bool = False
    syscalls: list[str] = field(default_factory=list)
    families: list[int] = field(default_factory=list)
    mounts: list[tuple[str, str]] = field(default_factory=list)
    user: int = 0

    def command(self, argv: list[str]) -> list[str]:
        """Return the command line that runs argv under this policy."""
        return [sys.executable, "-I", __file__, json.dumps(asdict(self)), *argv]


class _Compare(ctypes.Structure):
    """struct scmp_arg_cmp of libseccomp."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


def _check(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    argv = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())
    _check(_libc.mount(*argv), f"mount {target}")


def _prctl(option: int, argument: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0), f"prctl {option}")


def _restrict_mounts(policy: Policy) -> None:
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    for path in policy.writable:
        _mount(path, path, "", _MS_BIND)
    for source, target in policy.mounts:
        _mount(source, target, "", _MS_BIND)
    if policy.hidden:
        _mount("none", "/proc", "proc", 0, "hidepid=invisible")
        kept = {name: os.open(f"/dev/{name}", os.O_PATH) for name in _DEVICES}
        _mount("none", "/dev", "tmpfs", _MS_NOSUID, "mode=0755")
        for name, fd in kept.items():
            Path("/dev", name).touch()
            _mount(f"/proc/self/fd/{fd}", f"/dev/{name}", "", _MS_BIND)
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    for target in sorted({line.split(" ")[4].replace("\\040", " ") for line in lines}, reverse=True):
        if target not in policy.writable and not target.startswith(("/proc", "/dev/")):
            _mount("none", target, "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY)


def _restrict_syscalls(policy: Policy) -> None:
    if not policy.syscalls:
        return
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_SCMP_ACT_EPERM)))

    def allow(number: int, compared: _Compare | None = None) -> None:
        rules = ctypes.byref(compared) if compared else None
        count = ctypes.c_uint(1 if compared else 0)
        allowed = ctypes.c_uint32(_SCMP_ACT_ALLOW)
        if code := library.seccomp_rule_add_array(context, allowed, number, count, rules):
            raise OSError(-code, f"seccomp rule for system call {number}")

    for name in policy.syscalls:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            continue  # of another machine
        if name == "socket" and policy.families:
            for family in policy.families:
                allow(number, _Compare(0, _SCMP_CMP_EQ, family, 0))
        else:
            allow(number)
    if code := library.seccomp_load(context):
        raise OSError(-code, "seccomp_load")


def main(text: str, argv: list[str]) -> None:
    policy = Policy(**json.loads(text))
    _restrict_mounts(policy)
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for number in set(range(last + 1)) - set(policy.capabilities):
        _prctl(_PR_CAPBSET_DROP, number)
    if policy.user:
        os.setgroups([])
        os.setresgid(policy.user, policy.user, policy.user)
        os.setresuid(policy.user, policy.user, policy.user)
    if policy.deny_write_execute:
        _prctl(_PR_SET_MDWE, 1)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _restrict_syscalls(policy)
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
