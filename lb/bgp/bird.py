# SPDX-License-Identifier: Apache-2.0
"""BIRD, the engine: starting it, telling it what to do, and asking how it is, at its control socket.

The protocol of the socket: a line is asked; lines are answered that begin with a code of four digits, then
``-`` if more follow, or a space in the last. A line that begins with a space has the code of the one before.
Codes from 8000 on are errors. BIRD lives on when the process that started it ends: sessions outlive it, and
the next one finds it at the socket.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lb.errors import LbError
from lb.folders import read_file, replace_file

PACKAGE = "bird2"
ANSWER_SECONDS = 10.0
"""How long an answer is waited for; one that takes longer hangs, and is killed."""
_START_SECONDS = 10.0
_ERRORS = 8000
_LINE = re.compile(r"(\d{4})([- ])(.*)")
_SEARCH = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin"


def program() -> str:
    """Return the path of BIRD 2.

    Raises LbError: it is not installed.
    """
    found = shutil.which("bird", path=f"{os.environ.get('PATH', '')}:{_SEARCH}")
    if found is None:
        raise LbError(f"bird is missing: install the Debian package {PACKAGE}")
    return found


@dataclass(frozen=True, slots=True)
class SessionState:
    """How a protocol is.

    up: the session is established. state: BIRD's word for how far it is. error: the last one, in its words.
    exported: how many routes the peer has been told, by IP version; nothing of a channel that is down.
    """

    up: bool
    state: str
    error: str = ""
    exported: tuple[tuple[int, int], ...] = ()


NO_SESSION = SessionState(up=False, state="")
"""Of a protocol that BIRD does not have."""


class Bird:
    """An engine that runs, or is to run, with its files in a folder of its own.

    seconds: see ANSWER_SECONDS.
    """

    def __init__(self, folder: Path, seconds: float = ANSWER_SECONDS) -> None:
        self._folder = folder
        self._seconds = seconds
        self.config = folder / "bird.conf"
        self.socket = folder / "bird.ctl"
        self._pid_file = folder / "bird.pid"
        self._child: subprocess.Popen[bytes] | None = None

    def alive(self) -> bool:
        """Tell whether it runs; one that was started by another process, too."""
        if self._child is not None and self._child.poll() is not None:
            self._child = None
        try:
            with self._connected():
                return True
        except (OSError, LbError):
            return False

    def write(self, text: str) -> None:
        """Put a configuration into its file, which only root may read: it holds passwords.

        Raises LbError: BIRD refuses it, or it cannot be written; what was there stays.
        """
        draft = self._folder / "draft.conf"
        try:
            replace_file(draft, text.encode())
            done = subprocess.run(
                [program(), "-p", "-c", str(draft)], check=False, capture_output=True, text=True, timeout=30
            )
            if done.returncode:
                raise LbError(f"bird refuses its configuration: {(done.stderr + done.stdout).strip()}")
            draft.rename(self.config)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LbError(f"{self.config}: cannot be written or checked: {error}") from error

    def start(self) -> None:
        """Start it on the configuration that is there, and wait until it answers.

        Peers that know it from before keep its routes until it has told them again (RFC 4724).

        Raises LbError: it ended, or does not answer.
        """
        self._kill_former()
        self.socket.unlink(missing_ok=True)
        files = ["-c", str(self.config), "-s", str(self.socket), "-P", str(self._pid_file)]
        self._child = subprocess.Popen(
            [program(), "-f", "-R", *files],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + _START_SECONDS
        while not self.alive():
            if self._child is None or time.monotonic() > deadline:
                raise LbError("bird ended at once, or does not answer; its last lines are above")
            time.sleep(0.02)

    def _kill_former(self) -> None:
        """Kill one that runs and does not answer: it has the port, and two would speak for one node."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None
        with contextlib.suppress(OSError, ValueError):
            pid = int(read_file(self._pid_file, 32))
            # The number may be another process's by now, or be of another pod.
            if os.fsencode(self.socket) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)
                deadline = time.monotonic() + _START_SECONDS
                while Path(f"/proc/{pid}/cmdline").read_bytes() and time.monotonic() < deadline:
                    time.sleep(0.02)

    def configure(self) -> None:
        """Have it read its configuration again; it changes what differs.

        Raises LbError: it refuses, or does not answer.
        """
        self.call("configure")

    def sessions(self) -> dict[str, SessionState]:
        """Return the state of each BGP protocol by name.

        Raises LbError: it does not answer.
        """
        return parse_protocols(self.call("show protocols all"))

    def disable(self, protocol: str) -> None:
        """End a session, and tell its peer so: routes are withdrawn.

        Raises LbError: it does not answer, or has no such protocol.
        """
        self.call(f"disable {protocol}")

    def pause(self) -> None:
        """End it; peers keep its routes for as long as they have promised to (RFC 4724).

        Raises LbError: it does not answer.
        """
        self.call("graceful restart")

    def end(self) -> None:
        """End it; peers forget its routes.

        Raises LbError: it does not answer.
        """
        self.call("down")

    def ended(self, seconds: float = _START_SECONDS) -> bool:
        """Wait until it has ended; one of this process that does not is killed, and False is returned."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not self.alive() and (self._child is None or self._child.poll() is not None):
                self._child = None
                return True
            time.sleep(0.05)
        self._kill_former()
        return False

    def call(self, command: str) -> list[str]:
        """Send a command; return the lines of the answer, without codes.

        Raises LbError: it does not answer, or the answer is an error.
        """
        try:
            with self._connected() as line, line.makefile("rwb") as stream:
                stream.write(command.encode() + b"\n")
                stream.flush()
                return _answer(iter(stream.readline, b""), command)
        except OSError as error:
            raise LbError(f"bird does not answer at {self.socket}: {error}") from error

    @contextlib.contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(self._seconds)
            line.connect(str(self.socket))
            greeting = b""
            while not greeting.endswith(b"\n"):
                piece = line.recv(1)
                if not piece:
                    raise LbError(f"bird closes {self.socket}")
                greeting += piece
            yield line


def _answer(lines: Iterator[bytes], command: str) -> list[str]:
    found: list[str] = []
    for raw in lines:
        text = raw.decode(errors="replace").rstrip("\r\n")
        match = _LINE.match(text)
        if match is None:
            found.append(text[1:])
            continue
        code, more, rest = match.groups()
        if int(code) >= _ERRORS:
            raise LbError(f"bird refuses {command.partition(' ')[0]!r}: {rest}")
        found.append(rest)
        if more == " ":
            return found
    raise LbError(f"bird ended while it answered {command!r}")


_HEAD = re.compile(r"(\S+)\s+BGP\s+\S+\s+(\S+)\s+\S+\s*(.*)")
_EXPORTED = re.compile(r"Routes:.*?(\d+) exported")


def parse_protocols(lines: list[str]) -> dict[str, SessionState]:
    """Return the BGP protocols of an answer to ``show protocols all``."""
    found: dict[str, SessionState] = {}
    name, version, info = "", 0, ""
    fields: dict[str, str] = {}
    exported: dict[int, int] = {}

    def close() -> None:
        if name:
            state = fields.get("BGP state", info)
            error = fields.get("Last error", "")
            counted = tuple(sorted(exported.items()))
            found[name] = SessionState(state == "Established", state, error, counted)

    for line in lines:
        if head := re.match(r"(\S+)\s+(\S+)\s+\S+\s+(?:up|down|start|stop)\b", line):
            close()
            fields, exported, version = {}, {}, 0
            match = _HEAD.match(line)
            name, info = (head[1], match[3].strip()) if match else ("", "")
        elif channel := re.match(r"\s+Channel ipv([46])\b", line):
            version = int(channel[1])
        elif name:
            key, colon, value = line.strip().partition(":")
            if counted := _EXPORTED.search(line):
                exported[version] = int(counted[1])
            elif colon:
                fields.setdefault(key, value.strip())
    close()
    return found
