# SPDX-License-Identifier: Apache-2.0
"""Other network namespaces of this machine: entering one, and who listens in a pod's.

Only the network namespace is entered: ``ip netns exec`` would also remount /sys and hide the BPF file system.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from lb.datapath.attach.netlink import Netlink
from lb.errors import DatapathError
from lb.model import IPAddress, Protocol

_NAMED = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_TCP_LISTEN = 0x0A
_libc = ctypes.CDLL(None, use_errno=True)


def find(inode: int, pid: int | None) -> Path | None:
    """Return a file that stands for the network namespace of this number (an inode), None when it is gone.

    pid: a process that was seen in it. Else it may have a name (``ip netns``).
    """
    candidates = [Path(f"/proc/{pid}/ns/net")] if pid else []
    with contextlib.suppress(OSError):
        candidates += sorted(_NAMED.iterdir())
    for path in candidates:
        with contextlib.suppress(OSError):
            if path.stat().st_ino == inode:
                return path
    return None


@contextlib.contextmanager
def entered(path: Path) -> Iterator[None]:
    """Let the calling thread, and the processes that it starts, be in a network namespace meanwhile.

    Raises
    ------
    DatapathError: it is gone, or the kernel refused.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(path)
        try:
            yield
        finally:
            _set(home, "back")
    finally:
        os.close(home)


@contextlib.contextmanager
def present() -> Iterator[Path]:
    """Give a file that stands for the calling thread's network namespace of now, whatever it enters later."""
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _enter(path: Path) -> None:
    try:
        there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DatapathError(f"network namespace {path}: {error.strerror}") from error
    try:
        _set(there, str(path))
    finally:
        os.close(there)


def _set(fd: int, name: str) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        raise DatapathError(f"entering network namespace {name}: {os.strerror(ctypes.get_errno())}")


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that takes connections or datagrams. address: as it was bound, 0.0.0.0 or :: for any."""

    protocol: Protocol
    address: IPAddress
    port: int
    uid: int = 0

    def takes(self, address: IPAddress) -> bool:
        """Tell whether it takes what is sent to an address; ``::`` is taken to mean both families."""
        mapped = getattr(self.address, "ipv4_mapped", None)
        if self.address.is_unspecified:
            return self.address.version in (address.version, 6)
        return (mapped or self.address) == address

    @property
    def loopback_only(self) -> bool:
        """Whether only its own network namespace reaches it."""
        mapped = getattr(self.address, "ipv4_mapped", None)
        return (mapped or self.address).is_loopback


def listeners(address: IPAddress) -> list[Listener] | None:
    """Return who listens in the network namespace of a pod of this node; None: it cannot be told.

    It is the namespace that has the address and is linked to that of the calling thread by a pair of veths:
    another lab's or another runtime's pod may have the same address. It takes the right to look into other
    processes (CAP_SYS_PTRACE), and to see them (the host's PID namespace).
    """
    seen: set[int] = set()
    with Netlink() as net:
        for process in Path("/proc").iterdir():
            if not process.name.isdecimal():
                continue
            with contextlib.suppress(OSError):
                inode = (process / "ns" / "net").stat().st_ino
                if inode in seen:
                    continue
                seen.add(inode)
                if _has(process, address) and net.linked(int(process.name)):
                    return listening(process / "net")
    return None


def _has(process: Path, address: IPAddress) -> bool:
    """Tell whether an address is one of a process's network namespace."""
    if address.version == 6:
        lines = (process / "net" / "if_inet6").read_text().splitlines()
        return any(line.split()[0] == address.packed.hex() for line in lines)
    lines = (process / "net" / "fib_trie").read_text().splitlines()
    return any(
        line.split()[-1] == str(address) and "host LOCAL" in after
        for line, after in itertools.pairwise(lines)
    )


def listening(net: Path) -> list[Listener]:
    """Return the sockets that ``tcp``, ``tcp6``, ``udp``, ``udp6`` of a /proc/PID/net tell of (proc(5))."""
    found = set()
    for name, protocol in (("tcp", Protocol.TCP), ("udp", Protocol.UDP)):
        for family in ("", "6"):
            with contextlib.suppress(FileNotFoundError), (net / f"{name}{family}").open() as lines:
                next(lines, None)
                for line in lines:
                    _, local, peer, state, _, _, _, uid, *_ = line.split()
                    if protocol is Protocol.TCP and int(state, 16) != _TCP_LISTEN:
                        break  # the kernel lists those that listen before all connections
                    if int(peer.rpartition(":")[2], 16) == 0:
                        place, _, port = local.partition(":")
                        found.add(Listener(protocol, _address(place), int(port, 16), int(uid)))
    return sorted(found, key=lambda one: (one.protocol, one.port, str(one.address)))


def _address(text: str) -> IPAddress:
    """Return an address of /proc/net: words of 32 bits in hexadecimal, each as the CPU reads it."""
    words = (int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8))
    return ip_address(b"".join(words))
