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


@dataclass(eq=False)
class ProbeError(Exception):
    """A probe cannot be run as written; field is the path below ``readinessProbe``, with its dot."""

    field: str
    message: str


def parse_probe(raw: Mapping[str, Any], ports: Mapping[str, int]) -> Probe:
    """Return the probe that the mapping describes; ports gives the container's named ports.

    Raises
    ------
    ProbeError: names the field.
    """
    kinds = [kind for kind in ProbeKind if raw.get(kind) is not None]
    if len(kinds) != 1:
        other = "grpc is not played by the lab" if raw.get("grpc") is not None else "give exactly one"
        raise ProbeError("", f"has {len(kinds)} of httpGet, tcpSocket, exec; {other}")
    kind = kinds[0]
    action = raw[kind]
    if not isinstance(action, Mapping):
        raise ProbeError(f".{kind}", "must be a mapping")
    times = {
        "initial_delay": _seconds(raw, "initialDelaySeconds", 0, 0),
        "period": _seconds(raw, "periodSeconds", 10, 1),
        "timeout": _seconds(raw, "timeoutSeconds", 1, 1),
        "success_threshold": _seconds(raw, "successThreshold", 1, 1),
        "failure_threshold": _seconds(raw, "failureThreshold", 3, 1),
    }
    if kind is ProbeKind.EXEC:
        command = action.get("command")
        if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
            raise ProbeError(".exec.command", "must be a list of strings")
        return Probe(kind, command=tuple(command), **times)
    port = _port(action.get("port"), ports, f".{kind}.port")
    if kind is ProbeKind.TCP:
        return Probe(kind, port, **times)
    if action.get("scheme", "HTTP") != "HTTP":
        raise ProbeError(".httpGet.scheme", "the pods of the lab speak HTTP only")
    headers = tuple((str(item["name"]), str(item["value"])) for item in action.get("httpHeaders") or ())
    return Probe(kind, port, str(action.get("path") or "/"), headers, **times)


def _seconds(raw: Mapping[str, Any], name: str, default: int, least: int) -> int:
    value = raw.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ProbeError(f".{name}", f"is {value!r}, must be a whole number, {least} or more")
    return value


def _port(value: Any, ports: Mapping[str, int], where: str) -> int:
    if isinstance(value, str) and value in ports:
        return ports[value]
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535:
        return value
    raise ProbeError(where, f"is {value!r}, must be 1 to 65535 or the name of a port of this container")


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
        asking = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    asking.setblocking(False)
    with asking:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(asking, (address, probe.port))
        if probe.kind is ProbeKind.TCP:
            return ""
        given = {"host": f"{address}:{probe.port}", "user-agent": "kube-probe/lab", "connection": "close"}
        given |= {name.lower(): value for name, value in probe.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        path = probe.path if probe.path.startswith("/") else f"/{probe.path}"
        await loop.sock_sendall(asking, f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
        answer = b""
        while b"\r\n" not in answer and (more := await loop.sock_recv(asking, 4096)):
            answer += more
    status = answer.partition(b"\r\n")[0].decode("latin-1")
    code = (status.split(" ") + [""])[1]
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
