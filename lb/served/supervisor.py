# SPDX-License-Identifier: Apache-2.0
"""Telling the service manager how the agent is: sd_notify(3), for a systemd unit with ``Type=notify``.

A message is a datagram of ``NAME=value`` lines to the Unix socket that ``$NOTIFY_SOCKET`` names; ``@`` in
front means an abstract one. Without that variable nobody is told.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

from lb.served.notes import AgentReport
from lb.words import several

_log = logging.getLogger(__name__)


class Supervisor:
    """The service manager that started this process; without one, every method does nothing."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._ready = False
        self._deaf = False

    def starting(self) -> None:
        """Say that programs are compiled and loaded, which may take a while."""
        self._tell("STATUS=loading programs and maps")

    def synced(self, agent: AgentReport) -> None:
        """Say after the first sync, and only then, that the start is over."""
        if not self._ready:
            self._ready = True
            self._tell("READY=1", _status(agent))

    def beat(self, agent: AgentReport) -> None:
        """Say that the agent's loop goes on, and how things are; to be called well within WatchdogSec=."""
        waiting = "STATUS=waiting for the source's first list; connections are served as before"
        self._tell("WATCHDOG=1", _status(agent) if self._ready else waiting)

    def stopping(self) -> None:
        """Say that the agent ends because it was told to."""
        self._tell("STOPPING=1", "STATUS=stopping; the data plane stays as it is")

    def _tell(self, *lines: str) -> None:
        """Send a message; one that does not go out costs nothing but itself, and the first is a warning."""
        if not self._address:
            return
        where = self._address.replace("@", "\0", 1) if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as notify:
                notify.sendto("\n".join(lines).encode(), where)
            self._deaf = False
        except OSError as error:
            if not self._deaf:
                _log.warning("the service manager cannot be told at %s: %s", self._address, error.strerror)
            self._deaf = True


def _status(agent: AgentReport) -> str:
    """Return the line that ``systemctl status`` shows."""
    problems, services = agent.problems(), several(agent.service_count(), "Service")
    if not problems:
        return f"STATUS=in step: {services}"
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"STATUS={services}; problem: {' '.join(problems[0].text.split())}{more}"
