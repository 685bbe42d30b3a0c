# SPDX-License-Identifier: Apache-2.0
"""Readiness probes as the kubelet runs them: what a manifest asks for, the thresholds, and one attempt.

Meaning and defaults follow the Kubernetes API reference of ``Probe``: initialDelaySeconds 0, periodSeconds
10, timeoutSeconds 1, successThreshold 1, failureThreshold 3. A container is not ready before its first
success.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lb.lab import namespaces
from lb.manifests.fields import Field

_LONG = 2**31 - 1


class ProbeKind(enum.StrEnum):
    """How a probe asks."""

    HTTP = "httpGet"
    TCP = "tcpSocket"
    EXEC = "exec"


@dataclass(frozen=True, slots=True)
class Probe:
    """A readiness probe; times in seconds, port 0 for exec, path and headers for httpGet only."""

    kind: ProbeKind
    port: int = 0
    path: str = "/"
    headers: tuple[tuple[str, str], ...] = ()
    command: tuple[str, ...] = ()
    initial_delay: float = 0
    period: float = 10
    timeout: float = 1
    success_threshold: int = 1
    failure_threshold: int = 3


def read_probe(place: Field, ports: Mapping[str, int]) -> Probe:
    """Return the probe that a manifest describes; ports gives the container's named ports.

    What is wrong is noted at its field; the result is of no use then.
    """
    fields = place.fields()
    times: dict[str, Any] = {
        "initial_delay": fields["initialDelaySeconds"].number(0, _LONG, default=0),
        "period": fields["periodSeconds"].number(1, _LONG, default=10),
        "timeout": fields["timeoutSeconds"].number(1, _LONG, default=1),
        "success_threshold": fields["successThreshold"].number(1, _LONG, default=1),
        "failure_threshold": fields["failureThreshold"].number(1, _LONG, default=3),
    }
    kinds = [kind for kind in ProbeKind if fields[kind].present]
    if len(kinds) != 1:
        place.error("must have one of httpGet, tcpSocket, exec; the lab plays no other")
        return Probe(ProbeKind.TCP)
    action = fields[kinds[0]].fields()
    if kinds[0] is ProbeKind.EXEC:
        command = tuple(word.text() for word in action["command"].items())
        if not command:
            action["command"].error("is missing or empty")
        return Probe(ProbeKind.EXEC, command=command, **times)
    port = _read_port(action["port"], ports)
    if kinds[0] is ProbeKind.TCP:
        return Probe(ProbeKind.TCP, port, **times)
    if action["scheme"].text("HTTP") != "HTTP":
        action["scheme"].error("must be HTTP: the pods of the lab speak no TLS")
    entries = [header.fields() for header in action["httpHeaders"].items()]
    headers = tuple((entry["name"].text(), entry["value"].text()) for entry in entries)
    return Probe(ProbeKind.HTTP, port, action["path"].text("/") or "/", headers, **times)


def _read_port(place: Field, ports: Mapping[str, int]) -> int:
    if place.node is None or place.node.kind != "string":
        if not place.present:
            place.error("is missing")
        return place.number(1, 65535)
    if place.text() not in ports:
        place.error(f"{place.text()!r} is not the name of a port of this container")
    return ports.get(place.text(), 0)


class ProbeState:
    """Whether a container is ready, by the thresholds of its probe."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._run = 0
        self._last: bool | None = None
        self.ready = False

    def record(self, success: bool) -> bool:
        """Take the outcome of an attempt; return whether ready has changed."""
        self._run = self._run + 1 if success is self._last else 1
        self._last = success
        threshold = self._probe.success_threshold if success else self._probe.failure_threshold
        if self._run < threshold or self.ready is success:
            return False
        self.ready = success
        return True


async def attempt(probe: Probe, node: str, address: str, enter: Sequence[str]) -> str:
    """Run the probe once; return an empty text for success, else what went wrong.

    node: the network namespace that asks over the network, as the kubelet of that node would.
    address: the pod's. enter: the command that runs what follows it in the pod.
    """
    try:
        async with asyncio.timeout(probe.timeout):
            if probe.kind is ProbeKind.EXEC:
                return await _exec(probe, enter)
            return await _network(probe, node, address)
    except TimeoutError:
        return f"no answer within {probe.timeout:g} s"
    except OSError as error:
        return str(error.strerror or error)


async def _network(probe: Probe, node: str, address: str) -> str:
    with namespaces.inside(node):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        asking = socket.socket(family, socket.SOCK_STREAM)
    asking.setblocking(False)
    with asking:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(asking, (address, probe.port))
        if probe.kind is ProbeKind.TCP:
            return ""
        host = f"[{address}]" if ":" in address else address
        given = {"host": f"{host}:{probe.port}", "user-agent": "kube-probe/lab", "connection": "close"}
        given |= {name.lower(): value for name, value in probe.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        path = probe.path if probe.path.startswith("/") else f"/{probe.path}"
        await loop.sock_sendall(asking, f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
        answer = b""
        while b"\r\n" not in answer and (more := await loop.sock_recv(asking, 4096)):
            answer += more
    status = answer.partition(b"\r\n")[0].decode("latin-1")
    code = status.partition(" ")[2].partition(" ")[0]
    return "" if code.isdigit() and 200 <= int(code) < 400 else f"HTTP answer {status!r}"


async def _exec(probe: Probe, enter: Sequence[str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *enter,
        *probe.command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, words = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()
        raise
    if process.returncode == 0:
        return ""
    return words.decode(errors="replace").strip() or f"exit code {process.returncode}"
