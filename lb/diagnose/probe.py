# SPDX-License-Identifier: Apache-2.0
"""Real connections to see who answers; ``python -m lb.diagnose.probe [CGROUP]`` makes those on its stdin.

See :mod:`lb.cgroup_query` for why that is a process of its own.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lb import cgroup_query
from lb.model import IPAddress, Protocol, socket_text

TIMEOUT_SECONDS = 1.5
AT_ONCE = 16
_UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EADDRNOTAVAIL, errno.EINVAL)


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect. kind: ``"endpoint"`` or the kind of a VIP; port_name: of the Service's port."""

    kind: str
    address: str
    port: int
    protocol: str
    port_name: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it: ``answers``, ``refused``, ``silent``, ``unreachable`` or ``untried``.

    A UDP server need not answer a datagram: only a refusal (ICMP port unreachable) tells something.
    """

    target: Target
    result: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{text(self.target)} {self.result}"


def text(target: Target) -> str:
    """Return address, port and protocol."""
    from ipaddress import ip_address  # noqa: PLC0415

    return f"{socket_text(ip_address(target.address), target.port)}/{target.protocol}"


def target(kind: str, address: IPAddress, port: int, protocol: Protocol, port_name: str) -> Target:
    """Return a target."""
    return Target(kind, str(address), port, protocol.name, port_name)


def probe(one: Target, timeout: float = TIMEOUT_SECONDS) -> Outcome:
    """Connect, or send a datagram; timeout in seconds."""
    family = socket.AF_INET6 if ":" in one.address else socket.AF_INET
    kind = socket.SOCK_DGRAM if one.protocol == "UDP" else socket.SOCK_STREAM
    try:
        with socket.socket(family, kind, int(Protocol[one.protocol])) as sock:
            sock.settimeout(timeout)
            sock.connect((one.address, one.port))
            if kind == socket.SOCK_DGRAM:
                sock.send(b"")
                sock.recv(1)
        return Outcome(one, "answers")
    except TimeoutError:
        return Outcome(one, "silent" if kind == socket.SOCK_STREAM else "untried", "no answer")
    except ConnectionRefusedError:
        return Outcome(one, "refused")
    except OSError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
            return Outcome(one, "untried", f"this kernel has no {one.protocol} sockets")
        if error.errno in _UNREACHABLE:
            return Outcome(one, "unreachable", os.strerror(error.errno or 0))
        return Outcome(one, "silent", os.strerror(error.errno or 0))


def probe_all(targets: Sequence[Target], cgroup: str = "") -> list[Outcome]:
    """Probe all from this network namespace, as a process of this control group; "" for the present one.

    Raises LbError: the process that does it failed.
    """
    if not targets:
        return []
    answers = cgroup_query.ask("lb.diagnose.probe", targets, cgroup, "probing")
    return [Outcome(Target(**each.pop("target")), **each) for each in answers]


def main(argv: Sequence[str]) -> int:
    """Join the control group, probe what stdin says, write what came of it."""
    targets = [Target(**each) for each in cgroup_query.asked(argv)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        cgroup_query.answer(list(pool.map(probe, targets)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
