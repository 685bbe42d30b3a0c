# SPDX-License-Identifier: Apache-2.0
"""The agent: what Kubernetes says goes in at one end, the kernel's maps come out at the other.

``source threads → inbox → ClusterState → plan_service → Claims → Reconciler → maps``

One thread does all the work, so nothing here needs a lock. Sources and the interface watcher have threads of
their own and only put messages into the inbox. :func:`lb.serve.serve` builds the parts and runs them.
"""

from __future__ import annotations

import logging
import math
import queue
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from lb.attachments import Attachments
from lb.datapath.sync.reconcile import Reconciler
from lb.errors import CapacityError, LbError
from lb.hook_watch import HookWatch
from lb.inbox import (
    Announcement,
    Failed,
    Inbox,
    InterfacesChanged,
    Message,
    Reread,
    Settled,
    SourceEvents,
    Stop,
)
from lb.model import IPAddress, ObjectKey
from lb.plan import Claims, Conflict, concerned, health_check, node_ports, plan_service
from lb.plan.slow_start import SlowStart
from lb.plan.types import ServicePlan, Topology
from lb.refused_claims import RefusedClaims
from lb.retries import Retries
from lb.served.health import HealthChecks
from lb.served.history import CLAIM, HEAL, INTERFACES, Cause, History
from lb.served.problems import NEXT, Problem
from lb.state import ClusterState

_log = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
"""How often others are told how the agent is doing."""

AUDIT_SECONDS = 300.0
"""How often the agent looks whether the maps still hold what it wrote."""
LOOK_AGAIN_SECONDS = 1.0
"""After how long it looks again whether interfaces differ: what has just changed is on its way to it."""
LOOK_AFTER_SECONDS = 3.0
"""How often the agent looks whether somebody detached its programs or removed their pins."""
LINGER_SECONDS = 1.0
"""After how long since a sync it looks whether VIPs that are gone linger without need."""
LINGER_AGAIN_SECONDS = 60.0
"""After how long it looks again when that has failed."""
REREAD_SECONDS = 0.2
"""How often it is tried again to read the maps anew, while freed ids rest."""


class Agent:
    """The main loop of a node.

    Parameters
    ----------
    inbox: where sources and watchers put their messages.
    node_name: the Node object of this name is about us.
    serving: the maps in the kernel hold what an earlier agent wrote, so programs may be attached at once;
        otherwise they are attached after the first sync, and what ran before serves until then.
    checks: serves the health-check ports of Services.
    history: is told why Services are planned, and when they are in the maps.
    announce: called once for everything that an operator should see at the Service itself.
    synced: called after every sync.
    beat: called every BEAT_SECONDS.
    drained: tells whether an operator has the node drained; from any thread.
    clock: seconds, monotonic.

    Attributes
    ----------
    stopping: it was told to stop.
    drift: by map, how many entries were not as written when that was last looked at; empty before.
    repairs: the hooks and pins that somebody else had taken away and that were put back.
    last_beat: when it last told others how it is doing, by clock.
    sync_seconds: how long the last sync took, from planning to the last write; 0 before the first.
    """

    def __init__(
        self,
        *,
        inbox: Inbox,
        state: ClusterState,
        node_name: str,
        attachments: Attachments,
        reconciler: Reconciler,
        serving: bool,
        checks: HealthChecks,
        history: History,
        announce: Callable[[ObjectKey, Announcement], None],
        synced: Callable[[Agent], None],
        beat: Callable[[Agent], None],
        drained: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stopping = False
        self.sync_seconds = 0.0
        self._inbox = inbox
        self._state = state
        self._node_name = node_name
        self._attachments = attachments
        self._reconciler = reconciler
        self._checks = checks
        self._history = history
        self._announce = announce
        self._synced = synced
        self._beat = beat
        self._drained = drained
        self._clock = clock
        self._claims = Claims(self._plan_again, reconciler.holders())
        self._refused_claims = RefusedClaims(announce)
        self._services = Retries[ObjectKey]()
        self._slow = SlowStart()
        self._hooks = HookWatch(attachments, clock)
        self._dirty: set[ObjectKey] = set()
        self._topology: Topology | None = None
        self._topology_is_old = True
        self._claimed: frozenset[IPAddress] = frozenset()
        self._moved: tuple[Cause, float] = (INTERFACES, clock())
        self._first_sync = True
        self._attached = serving
        self._node_known = False
        self._nodes_moved = False
        self._reread_due = math.inf
        self._audit_due = clock() + AUDIT_SECONDS
        self._linger_due = math.inf
        self.drift: dict[str, int] = {}
        self._around: dict[str, int] = {}
        self._busy_since: float | None = None
        self._beat_due = clock() + BEAT_SECONDS
        self._look_after_due = clock() + LOOK_AFTER_SECONDS
        self.repairs = self._hooks.repairs
        self.last_beat = clock()
        if serving:
            self._hooks.attach(None)

    def run(self) -> None:
        """Work until :class:`Stop` comes.

        Raises LbError: a source failed for good, or the kernel refused the maps as a whole.
        """
        while not self.stopping:
            self.step()

    def step(self) -> None:
        """Wait for something to do, and do it.

        Raises LbError: a source failed for good, or the kernel refused the maps as a whole.
        """
        messages = self._gather()
        self._busy_since = self._clock()
        self._work(messages)
        self._busy_since = None

    def _work(self, messages: Sequence[Message]) -> None:
        self._take(messages)
        if self.stopping:
            return
        now = self._clock()
        if self._attached:
            self._hooks.retry(now)
        if self._state.synced:
            if self._dirty:
                self._dirty |= self._state.settle()
            self._look_around()
            self._dirty |= self._services.due(now)
            self._dirty |= self._slow.due(now)
            if self._reread_due <= now:
                self._reread(now)
            if self._first_sync:
                self._dirty |= self._reconciler.known()
            if self._dirty or self._first_sync:
                self._sync()
            elif self._nodes_moved:
                self._reconciler.place_nodes()
            self._nodes_moved = False
        if now >= self._linger_due and not self._first_sync:
            self._linger(now)
        if now >= self._audit_due and not self._first_sync:
            self._audit_due = now + AUDIT_SECONDS
            self._audit(now)
        if now >= self._look_after_due:
            self._look_after(now)
        if now >= self._beat_due:
            self._topology_is_old |= bool(self._claimed)  # nobody tells that a process listens
            self._beat(self)
            self._beat_due, self.last_beat = now + BEAT_SECONDS, now

    def problems(self) -> list[Problem]:
        """Return what is wrong at present: Services and hooks that failed, and VIP conflicts."""
        by_kind: tuple[tuple[Iterable[object], str], ...] = (
            (self._services.messages(), NEXT["service"]),
            *self._hooks.wrong(),
            ([self._drift_text()] if any(self.drift.values()) else [], NEXT["drift"]),
            (self.conflicts(), NEXT["conflict"]),
            (self.refusals(), NEXT["refusal"]),
        )
        found = [Problem(str(text), then) for texts, then in by_kind for text in texts]
        return found + self.repairs.problems()

    def conflicts(self) -> list[Conflict]:
        """Return the VIPs that several Services claim at present, in the order of their texts."""
        return sorted(self._refused_claims.conflicts, key=str)

    def refusals(self) -> list[str]:
        """Return what Services ask for and cannot have on this node, a text for each of them."""
        return [text for _, text in sorted(self._refused_claims.refusals.items())]

    def problem_counts(self) -> dict[str, int]:
        """Return how many problems there are, by kind; may be called from any thread."""
        return {
            "service": len(self._services),
            "hook": self._hooks.count(),
            "repairs": len(self.repairs.problems()),
            "conflict": len(self._refused_claims.conflicts),
            "refusal": len(self._refused_claims.refusals),
        }

    def service_count(self) -> int:
        """Return how many Services the sources have told of; may be called from any thread."""
        return len(self._state.service_keys())

    @property
    def in_service(self) -> bool:
        """Whether programs are attached and the maps were written once; may be read from any thread.

        Not so while an uplink or a tunnel has lost a program and the agent cannot attach it again, or while
        there is no uplink.
        """
        if not self._attached or not self._attachments.faces_outside():
            return False
        return not self._hooks.outward_lost()

    @property
    def in_step(self) -> bool:
        """Whether all that the source listed at first is in the kernel; may be read from any thread."""
        return not self._first_sync

    @property
    def own_addresses(self) -> frozenset[IPAddress]:
        """The addresses that the node's own stack answers for; may be read from any thread."""
        topology = self._topology
        return topology.node_addresses if topology else frozenset()

    @property
    def drained(self) -> bool:
        """Whether an operator has the node drained; may be read from any thread."""
        return self._drained()

    @property
    def node_eligible(self) -> bool:
        """Whether the node is to stay: it was not there, or is there and not leaving.

        May be read from any thread.
        """
        node = self._state.node(self._node_name)
        return not self._node_known if node is None else not node.terminating

    def busy_seconds(self) -> float:
        """Return how long the present step has been at work, 0 while all that was told is done.

        What comes in meanwhile is younger. May be called from any thread.
        """
        since = self._busy_since
        return 0.0 if since is None else self._clock() - since

    def _gather(self) -> list[Message]:
        """Return the messages there are; none when it is time for something else."""
        now = self._clock()
        due = min(
            self._beat_due,
            self._look_after_due,
            self._services.next_due(),
            self._slow.next_due(),
            self._hooks.next_due(),
            self._reread_due,
            math.inf if self._first_sync else self._audit_due,
            self._linger_due,
        )
        try:
            messages = [self._inbox.get(timeout=max(0.0, due - now))]
        except queue.Empty:
            return []
        return [*messages, *(self._inbox.get() for _ in range(self._inbox.qsize()))]

    def _take(self, messages: Sequence[Message]) -> None:
        """Note what the messages say."""
        interfaces: frozenset[int] = frozenset()
        for message in messages:
            if isinstance(message, Stop):
                self.stopping = True
            elif isinstance(message, Failed):
                raise LbError(f"{message.what} failed: {message.error}") from message.error
            elif isinstance(message, InterfacesChanged):
                interfaces |= message.indexes
            elif isinstance(message, Reread):
                self._reread_due = self._clock()
            elif isinstance(message, Settled):
                self._reconciler.free()
            else:
                self._apply(message)
        if interfaces:
            self._topology_is_old, self._moved = True, (INTERFACES, self._clock())
            if self._attached:
                self._hooks.interfaces_changed(interfaces)

    def _apply(self, told: SourceEvents) -> None:
        """Take in what a source has told; before the first sync nothing is late, the start is the cause."""
        if self._first_sync:
            changes = self._state.apply(told.events)
            self._dirty |= changes.services
            self._note_nodes(changes.nodes, told.arrived)
            return
        for event in told.events:
            changes = self._state.apply((event,))
            if changes.services:
                self._dirty |= changes.services
                self._history.due_by(changes.services, event, told.arrived)
            self._note_nodes(changes.nodes, told.arrived)

    def _note_nodes(self, changed: Collection[str], arrived: float) -> None:
        self._nodes_moved |= bool(changed)
        if self._node_name in changed:
            self._topology_is_old, self._moved = True, (Cause("Node", self._node_name), arrived)
            self._node_known |= self._state.node(self._node_name) is not None

    def _look_after(self, now: float) -> None:
        """Have what somebody detached or unpinned put back; before the first attaching there is nothing."""
        self._look_after_due = now + LOOK_AFTER_SECONDS
        if self._attached:
            self._hooks.look_after()

    def _linger(self, now: float) -> None:
        """Look for VIPs that linger without need; a failure is one warning, and it is tried again."""
        try:
            self._linger_due = now + self._reconciler.linger()
        except LbError as error:
            _log.warning("flows could not be looked at: %s; VIPs that are gone linger on", error)
            self._linger_due = now + LINGER_AGAIN_SECONDS

    def _audit(self, now: float) -> None:
        """Look whether somebody else has written to the maps; it is told, and left to an operator."""
        try:
            found = self._reconciler.drift()
            if found is None:
                return
            around = self._attachments.drift()
        except LbError as error:
            _log.warning("the maps could not be compared with what was written: %s", error)
            return
        lasting = {name: min(count, self._around.get(name, 0)) for name, count in around.items()}
        if lasting != around:
            self._audit_due = now + LOOK_AGAIN_SECONDS
        self._around = around
        before, self.drift = self.drift, found | lasting
        if self.drift != before and any(self.drift.values()):
            _log.error("%s", self._drift_text())

    def _drift_text(self) -> str:
        words = ", ".join(f"{count} of {name}" for name, count in sorted(self.drift.items()) if count)
        return f"somebody else has written to the maps: {words}; lbctl audit names and heals it"

    def _reread(self, now: float) -> None:
        """Compare everything anew, interfaces as well; what was freed a moment ago is waited for."""
        if not self._reconciler.reread():
            self._reread_due = now + REREAD_SECONDS
            return
        self._reread_due = math.inf
        self.drift = {}
        _log.info("comparing the maps and the hooks with the source anew")
        self._dirty |= self._state.service_keys() | self._reconciler.known()
        self._history.otherwise = HEAL
        if self._attached:
            self._hooks.attach(None)

    def _look_around(self) -> None:
        """See where we stand; when that has changed, the Services that it concerns are planned anew."""
        if not (self._topology_is_old or (self._dirty and self._own_claims() != self._claimed)):
            return
        self._topology_is_old = False
        topology = self._attachments.topology(self._state.node(self._node_name), self._state.claims)
        before, self._topology = self._topology, topology
        self._claimed = self._own_claims()
        if topology == before:
            return
        if before is not None and before.internal_addresses != topology.internal_addresses and self._attached:
            self._hooks.attach(frozenset())  # the node's source addresses follow its Node object
        if before is None or not before.same_place(topology):
            _log.info(
                "node %s: zone %s, NodePorts on %s",
                topology.node_name,
                topology.zone or "unknown",
                ", ".join(map(str, topology.node_port_addresses)) or "no address",
            )
            self._checks.move(topology.node_port_addresses)
        for key in self._state.service_keys():
            service = self._state.service(key)
            if service is not None and concerned(service, before, topology):
                self._dirty.add(key)
                if not self._first_sync:
                    self._history.due((key,), *self._moved)

    def _own_claims(self) -> frozenset[IPAddress]:
        """Return the node's own addresses that Services claim: it matters who listens there."""
        topology = self._topology
        return frozenset(filter(self._state.claims, topology.node_addresses)) if topology else frozenset()

    def _sync(self) -> None:
        """Plan the dirty Services and bring the maps in step."""
        dirty, self._dirty = self._dirty, set()
        now = self._clock()
        plans: dict[ObjectKey, ServicePlan | None] = {}
        failed: dict[ObjectKey, Exception] = {}
        for key in sorted(dirty):
            try:
                plans[key] = self._plan(key)
            except Exception as error:  # a bug that one Service meets must not cost the others
                failed[key] = error
        decision = self._claims.update(plans)
        self._refused_claims.settle(self._claims.conflicts())
        self._refused_claims.planned(plans)
        checks = {key: health_check(self._state.service(key), plan) for key, plan in plans.items()}
        taken = {key: node_ports(self._state.service(key)) for key in plans}
        plans.clear()
        tried = list(decision.plans)
        report = self._reconciler.sync(decision.plans)
        self.sync_seconds = self._clock() - now
        failed |= report.errors
        self._history.settled(key for key in checks if key not in failed)
        self._history.otherwise = CLAIM
        self._checks.update(checks, failed.keys(), taken)
        _log.debug("%d Services planned, %d map entries written", len(checks), report.writes)
        for key, problem in failed.items():
            self._service_failed(key, problem, now)
        for key in tried:
            if key not in failed and self._services.succeeded(key):
                _log.info("service %s: no longer failing", key)
        if not self._attached:
            self._attached = True
            self._hooks.attach(None)
        self._first_sync = False
        self._linger_due = min(self._linger_due, self._clock() + LINGER_SECONDS)
        self._synced(self)

    def _plan(self, key: ObjectKey) -> ServicePlan | None:
        service = self._state.service(key)
        if service is None:
            self._slow.forget(key)
            return None
        assert self._topology is not None
        slices = self._state.slices(key)
        percents = self._slow.percents(service, slices, self._clock(), begun=not self._first_sync)
        return plan_service(service, slices, self._topology, self._state.overlaps(key), percents)

    def _plan_again(self, key: ObjectKey) -> ServicePlan | None:
        """Return what :meth:`_plan` does; None where that fails: it is told when the Service is due."""
        try:
            return self._plan(key)
        except Exception:
            return None

    def _service_failed(self, key: ObjectKey, error: Exception, now: float) -> None:
        message = f"service {key}: {'' if isinstance(error, LbError) else f'{type(error).__name__}: '}{error}"
        if self._services.failed(key, message, now):
            _log.error("%s", message)
            _log.debug("service %s", key, exc_info=error)
            reason = "MapFull" if isinstance(error, CapacityError) else "NotProgrammed"
            self._announce(key, Announcement(reason, "KeepLastGood", str(error)))
