# SPDX-License-Identifier: Apache-2.0
"""An agent that takes Services over by itself (setting cutover), once kube-proxy has gone.

Its first start beside kube-proxy's rules has left open connections to netfilter (:mod:`beginning`); map
``cutover`` says so until they are moved, also to an agent that was started again meanwhile. kube-proxy itself
has to be gone, or it would write its rules again. Whether it is, its ports tell, which lbctl waits for as
well: nobody but this process listens there. ``lbctl cutover``, a process of its own, moves the connections.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from lb.datapath.maps.interface import Maps
from lb.datapath.maps.layouts import Cutover
from lb.stop_event import StopEvent

_log = logging.getLogger(__name__)

PORTS = frozenset({10249, 10256})
"""kube-proxy's metrics and health checks, by default."""
_ROUND_SECONDS = 2.0
_AGAIN_SECONDS = 30.0
_PATIENCE_SECONDS = 600.0
_LISTENS = "0A"


def listeners(network: Path = Path("/proc/thread-self/net"), own: Path = Path("/proc/self/fd")) -> set[int]:
    """Return the ports of TCP at which somebody else listens in this network namespace."""
    mine = set(_sockets(own))
    found = set()
    for name in ("tcp", "tcp6"):
        for line in (network / name).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == _LISTENS and words[9] not in mine:
                found.add(int(words[1].rpartition(":")[2], 16))
    return found


def _sockets(folder: Path) -> Iterator[str]:
    """Yield the inodes of a process's sockets."""
    for each in folder.iterdir():
        try:
            yield os.readlink(each).removeprefix("socket:[").removesuffix("]")
        except OSError:
            continue  # closed meanwhile


class FirstStart:
    """Waits until Services can be taken over, and has it done, in :meth:`run`.

    opened: opens the maps. serves: tells whether all programs are attached and all that is known is written.
    ports: at which ports somebody else listens.
    """

    def __init__(
        self,
        instance: str,
        opened: Callable[[], AbstractContextManager[Maps]],
        serves: Callable[[], bool],
        *,
        ports: Callable[[], set[int]] = listeners,
    ) -> None:
        self._argv = [sys.executable, "-m", "lb", "cutover", "--instance", instance]
        self._opened, self._serves, self._ports = opened, serves, ports
        self._told: set[int] = set()

    def run(self, stop: StopEvent) -> None:
        """Do it; returns when there is nothing to take over, or nothing more, or stop is set."""
        pause = _ROUND_SECONDS
        while self._open() and not stop.wait(pause):
            if self._serves() and not self._kube_proxy():
                pause = _ROUND_SECONDS if self._take_over() else _AGAIN_SECONDS

    def _open(self) -> bool:
        with self._opened() as maps:
            return int(maps.array("cutover")[0]) == Cutover.TAKE

    def _kube_proxy(self) -> bool:
        """Tell whether kube-proxy runs; it is logged once."""
        theirs = self._ports() & PORTS
        if theirs and theirs != self._told:
            _log.info("cutover: waiting until kube-proxy has gone; it listens at %s", sorted(theirs))
        self._told = theirs
        return bool(theirs)

    def _take_over(self) -> bool:
        """Have ``lbctl cutover`` run, and log what it says. False: it failed, or did not move all."""
        try:
            done = subprocess.run(
                self._argv, capture_output=True, text=True, check=False, timeout=_PATIENCE_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            _log.error("cutover: %s; it is tried again", error)
            return False
        words = "; ".join(" ".join(line.split()) for line in f"{done.stdout}{done.stderr}".splitlines())
        if done.returncode:
            _log.error("cutover: %s; lbctl cutover may be called again", words)
        else:
            _log.info("cutover: %s", words)
        return not done.returncode
