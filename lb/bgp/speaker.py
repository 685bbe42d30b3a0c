# SPDX-License-Identifier: Apache-2.0
"""The loop: ask the agent, decide what routers are told, have BIRD tell them, look how that goes."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lb.announce.damping import Damping
from lb.announce.report import Report, from_dict
from lb.announce.servable import Standing, Verdict
from lb.bgp.bird import NO_SESSION, Bird
from lb.bgp.config import bird_conf, chosen, protocol_name, router_id, routes
from lb.bgp.peers import Peer, PeersFile
from lb.bgp.status import NETSTAT, SIGNED_WRONG_SECONDS, PeerNow, SpeakerStatus, signature_failures
from lb.errors import LbError
from lb.folders import read_file, replace_file
from lb.model import IPAddress

_log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often BIRD is asked how its sessions are."""
AGAIN_SECONDS = 2.0
"""After how long an engine that ended or refused is tried again; twice as long each time, to a minute."""
_MOST_AGAIN = 60.0
_MOST_MEMORY = 16 << 20


@dataclass(frozen=True, slots=True)
class Memory:
    """What outlives the process, in a file: what was told, and of which node."""

    path: Path

    def read(self) -> Report | None:
        """Return what was told last; None where nothing is known."""
        try:
            return from_dict(json.loads(read_file(self.path, _MOST_MEMORY)))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LbError) as error:
            _log.warning("%s: what was told before is not known: %s", self.path, error)
            return None

    def write(self, told: Report) -> None:
        """Write it; a failure is a warning: a restart without it may withdraw routes for a moment."""
        try:
            replace_file(self.path, json.dumps(told.as_dict()).encode())
        except OSError as error:
            _log.warning("%s: cannot be written: %s", self.path, error.strerror)


class Speaker:
    """Does one step at a time.

    ask: returns the agent's report; raises LbError while it does not answer.
    unloaded: whether the data plane has been removed from the node; asked while the agent is silent.
    router: the router id, ``""`` to derive it from the node. clock: seconds, monotonic; wall: since 1970.
    """

    def __init__(
        self,
        peers: PeersFile,
        engine: Bird,
        ask: Callable[[], Report],
        memory: Memory,
        status: SpeakerStatus,
        *,
        unloaded: Callable[[], bool],
        router: str = "",
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        netstat: Path = NETSTAT,
    ) -> None:
        self._peers = peers
        self._engine = engine
        self._ask = ask
        self._memory = memory
        self._status = status
        self._unloaded = unloaded
        self._router = router
        self._clock, self._wall = clock, wall
        self._netstat = netstat
        before = memory.read()
        self._node = before or Report("", False, "")
        told = before.verdicts.values() if before else ()
        self._damping = Damping(peers.peers.hold, told, clock())
        self._written = ""
        self._remembered: Report | None = before
        self._again = (0.0, AGAIN_SECONDS)
        self._look_due = 0.0
        self._signatures = (-1, -SIGNED_WRONG_SECONDS)
        self._silent_since: float | None = None
        self._leaving: frozenset[str] = frozenset()

    def step(self) -> None:
        """Do what is due; nothing that fails here is anybody else's, it is told and tried again."""
        now = self._clock()
        self._peers.refresh()
        self._damping.hold = self._peers.peers.hold
        self._damping.hear(self._listen(now), now)
        told = self._damping.told(now)
        if self._silent_since is not None and self._unloaded():
            why = "the data plane is not on this node"
            told = {key: replace(one, standing=Standing.CANNOT, why=why) for key, one in told.items()}
        self._tell(told, now)
        if now >= self._look_due:
            self._look_due = now + LOOK_SECONDS
            self._look(now)

    def _listen(self, now: float) -> Report | None:
        try:
            report = self._ask()
        except LbError as error:
            if self._silent_since is None:
                self._silent_since = now
                _log.warning("the agent does not answer; what was told stays: %s", error)
            self._status.agent_answers, self._status.silent_seconds = False, now - self._silent_since
            return None
        if self._silent_since is not None:
            _log.info("the agent answers again")
        self._silent_since = None
        self._status.agent_answers, self._status.silent_seconds = True, 0.0
        if report.ready:
            self._node = report
        return report

    def _tell(self, told: Mapping[IPAddress, Verdict], now: float) -> None:
        """Bring BIRD in step."""
        status, node = self._status, self._node
        status.errors = self._peers.errors
        status.told = tuple(told.values())
        if not node.node:
            return  # nothing is known: neither what to tell, nor who we are
        peers = chosen(self._peers.peers, node.labels)
        advertise = [
            each for each in self._peers.peers.advertise if each.nodes.items() <= node.labels.items()
        ]
        wanted = [
            (peer, routes(peer, advertise, status.told, leaving=peer.name in self._leaving)) for peer in peers
        ]
        status.node = node.node
        status.router_id = self._router or router_id(node.node_addresses, node.node)
        known = status.peers
        status.peers = {peer.name: self._now(known.get(peer.name), peer) for peer, _ in wanted}
        for peer, each in wanted:
            status.peers[peer.name].routes = each
        self._remember(status.told)
        self._bring(bird_conf(status.router_id, wanted), now)

    @staticmethod
    def _now(known: PeerNow | None, peer: Peer) -> PeerNow:
        if known is None:
            return PeerNow(peer)
        known.peer = peer
        return known

    def _remember(self, told: tuple[Verdict, ...]) -> None:
        standing = {one.address: one for one in told if one.standing is not Standing.CANNOT}
        memory = replace(self._node, verdicts=standing, version="")
        if memory != self._remembered:
            self._memory.write(memory)
            self._remembered = memory

    def _bring(self, text: str, now: float) -> None:
        """Have BIRD run with a configuration."""
        due, wait = self._again
        if now < due:
            return
        alive = self._engine.alive()
        if alive and text == self._written:
            return
        try:
            if text != self._written:
                self._engine.write(text)
            if alive:
                self._engine.configure()
            else:
                if self._status.running:
                    self._status.restarts += 1
                    for each in self._status.peers.values():
                        each.note(NO_SESSION, self._wall())
                    _log.error("bird has ended: starting it again; routers keep routes meanwhile if they can")
                self._engine.start()
        except LbError as error:
            self._again = (now + wait, min(2 * wait, _MOST_AGAIN))
            if str(error) != self._status.problem:
                _log.error("%s", error)
            self._status.problem = str(error)
            return
        self._again = (0.0, AGAIN_SECONDS)
        self._written, self._status.running, self._status.problem = text, True, ""

    def _look(self, now: float) -> None:
        """See how sessions are; what has changed is told in the log."""
        status = self._status
        status.wrongly_signed = self._wrongly_signed(now)
        try:
            found = self._engine.sessions() if status.running else {}
        except LbError:
            return  # it is started again at the next step
        for name, each in status.peers.items():
            was = each.session.up
            each.note(found.get(protocol_name(name), NO_SESSION), self._wall())
            if each.session.up and not was:
                _log.info("peer %s (%s): up", name, each.peer.address)
            elif was and not each.session.up:
                _log.warning(
                    "peer %s (%s): lost: %s", name, each.peer.address, each.why(wrongly_signed=False)
                )

    def _wrongly_signed(self, now: float) -> bool:
        """Tell whether segments with a wrong MD5 signature came lately."""
        try:
            count = signature_failures(self._netstat.read_text())
        except OSError:
            return False
        before, when = self._signatures
        if before >= 0 and count > before:
            when = now
        self._signatures = (count, when)
        return now - when < SIGNED_WRONG_SECONDS

    def leave(self, wait: Callable[[float], object]) -> None:
        """End the sessions, without losing a packet.

        Peers that keep our routes while we are away (graceful restart, and no BFD that would tell them to
        forget) are left as they are: whoever comes next takes them over. The others are told that we leave,
        have drain_seconds to follow, and are told to forget; so are all from a node that is to be left, which
        may not come back. wait: sleeps for so many seconds.
        """
        peers = [each.peer for each in self._status.peers.values()]
        returns = any(one.standing is Standing.SERVES for one in self._status.told)
        staying = [peer for peer in peers if returns and peer.graceful_restart_seconds and not peer.bfd]
        going = [peer for peer in peers if peer not in staying]
        try:
            if not self._engine.alive():
                return
            if any(self._status.peers[peer.name].routes for peer in going):
                self._leaving = frozenset(peer.name for peer in going)
                self._again = (0.0, AGAIN_SECONDS)
                self._tell({one.address: one for one in self._status.told}, self._clock())
                wait(self._peers.peers.hold.drain_seconds)
            if not staying:
                self._engine.end()
            else:
                for peer in going:
                    self._engine.disable(protocol_name(peer.name))
                self._engine.pause()
            self._engine.ended()
        except LbError as error:
            _log.error("bird could not be ended: %s", error)
