# SPDX-License-Identifier: Apache-2.0
"""Which sockets a network namespace listens on: that of the calling thread, or that of a pod of this node."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from lb.datapath.attach.netlink import Netlink
from lb.model import IPAddress, Protocol

_TCP_LISTEN = 0x0A


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


def packets_in(names: Collection[str]) -> int:
    """Return how many packets have come in by these interfaces of the calling thread's network namespace."""
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]  # two lines of headings
    rows = (line.partition(":") for line in lines)
    return sum(int(counts.split()[1]) for name, _, counts in rows if name.strip() in names)


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
