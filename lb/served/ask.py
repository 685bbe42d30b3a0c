# SPDX-License-Identifier: Apache-2.0
"""Asks the agent of an instance, at the socket in its run directory, for what only its memory holds."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from typing import Any
from urllib.parse import urlencode

from lb.errors import LbError
from lb.rundir import RunDir

_SECONDS = 10.0


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path
        self._seconds = seconds

    def connect(self) -> None:
        """Connect to the socket's path."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._seconds)
        self.sock.connect(self._path)


def ask(run_dir: RunDir, path: str, *, seconds: float = _SECONDS, **query: str) -> Any:
    """Return the JSON that an agent answers with; seconds: how long it is waited for.

    Raises LbError: no agent runs, it is of a version that cannot be asked, or it says what is wrong.
    Raises PermissionError: not root.
    """
    pid = run_dir.holder()
    if pid is None:
        raise LbError(
            f"instance {run_dir.instance}: no agent runs, and this is in an agent's memory alone;"
            " what the maps hold: lbctl maps dump"
        )
    connection = _Connection(str(run_dir.socket_path), seconds)
    try:
        with contextlib.closing(connection):
            connection.request("GET", f"{path}?{urlencode(query)}" if query else path)
            response = connection.getresponse()
            body = response.read()
        found = json.loads(body)
    except PermissionError as error:
        error.filename = str(run_dir.socket_path)
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise LbError(
            f"instance {run_dir.instance}: the agent, process {pid}, does not answer at"
            f" {run_dir.socket_path}: {error}; it is starting, or of a version that cannot be asked"
        ) from error
    if response.status != 200:
        raise LbError(f"instance {run_dir.instance}: {found.get('error', response.reason)}")
    return found
