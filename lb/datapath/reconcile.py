"""Bring the maps in step with the plans, so that no packet ever sees a half-written Service.

The order of writes is names, source ranges, backends, lookup tables, VIPs: a VIP leads only to what is
complete. A changed set of backends gets a new lookup table, and one map update switches the VIP over. What no
VIP leads to any more goes in reverse order, and its ids and rows rest for a while before somebody else gets
them: a packet that read the VIP a moment ago still finds the old rows, and never those of another Service.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network

import numpy as np

from lb.datapath.changes import Change, prepare
from lb.datapath.grace import wait_for_running_programs
from lb.datapath.layouts import BACKEND4, ID, SERVICE_NAME, BackendStateCode
from lb.datapath.ledger import NodeNames, Port, PortKey, new_ledger, range_keys, vip_keys, vip_values
from lb.datapath.maps import Maps
from lb.datapath.pools import Region
from lb.datapath.recover import nodes_in_use, read_ledger
from lb.errors import LbError
from lb.model import ObjectKey
from lb.plan.types import ServicePlan

_LOG = logging.getLogger(__name__)

QUARANTINE_SECONDS = 1.0
"""How long freed backend ids and table rows rest; a program run takes microseconds."""


@dataclass(slots=True)
class SyncReport:
    """What one sync wrote, in map entries, and which Services it could not bring in step."""

    names: int = 0
    ranges: int = 0
    backends: int = 0
    table_rows: int = 0
    vips: int = 0
    vips_deleted: int = 0
    ranges_deleted: int = 0
    backends_freed: int = 0
    names_deleted: int = 0
    errors: dict[ObjectKey, LbError] = field(default_factory=dict)

    @property
    def writes(self) -> int:
        """Entries written or deleted, in all maps."""
        return (
            self.names + self.ranges + self.backends + self.table_rows + self.vips
            + self.vips_deleted + self.ranges_deleted + self.backends_freed + self.names_deleted
        )  # fmt: skip


@dataclass(slots=True)
class _Unused:
    """Ids and rows that no Service has any more.

    exposed: a packet on its way may still choose one of the backends.
    """

    backends: list[int] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    exposed: bool = False


class Reconciler:
    """Owns the maps that Python writes. Not thread-safe; one per node.

    clock: seconds, monotonic. settle: returns when no packet can still hold what it read before the call.
    """

    def __init__(
        self,
        maps: Maps,
        clock: Callable[[], float],
        settle: Callable[[], None] = wait_for_running_programs,
    ) -> None:
        self._maps = maps
        self._clock = clock
        self._settle = settle
        self._ledger = new_ledger(maps, {}, NodeNames(maps, {}, None))
        self._quarantine: deque[tuple[float, _Unused]] = deque()  # with the time that it ends
        self._pending: dict[ObjectKey, ServicePlan | None] = {}
        self._report = SyncReport()
        self._said_ipv6 = False

    @property
    def retry(self) -> frozenset[ObjectKey]:
        """Services that a sync has failed on; each further sync, also one of nothing, tries them again."""
        return frozenset(self._pending)

    def recover(self) -> None:
        """Take over what the maps hold. Call it once, before the first sync.

        Raises
        ------
        BpfError: the maps could not be read.
        """
        self._ledger = read_ledger(self._maps)

    def known(self) -> set[ObjectKey]:
        """Return the Services that have something in the maps."""
        return set(self._ledger.services)

    def sync(self, plans: Mapping[ObjectKey, ServicePlan | None]) -> SyncReport:
        """Write what differs between the plans and the maps; None: the Service is gone.

        A Service that fails (a full map, a refused write) keeps what it had, is named in the report and is
        tried again with the next sync; the others are not affected. The cost is that of the Services given.
        """
        self._report = SyncReport()
        self._end_quarantine()
        if self._ledger.nodes.full:
            self._ledger.nodes.forget_unused(nodes_in_use(self._maps))
        todo = {**self._pending, **plans}
        self._pending = {}
        changes = [self._prepared(key, plan) for key, plan in todo.items()]

        self._each(changes, self._write_names)
        self._each(changes, self._write_ranges, self._undo_ranges)
        self._report.names += self._ledger.nodes.write()
        ready = [change for change in changes if change.error is None]
        self._write_backends(ready)
        self._write_tables(ready)
        self._each(changes, self._put_vips, self._restore_vips)
        self._each(changes, self._delete_vips)
        self._each(changes, self._delete_ranges)
        self._collect(changes)

        for change in changes:
            if change.error is not None:
                self._report.errors[change.key] = change.error
                self._pending[change.key] = todo[change.key]
        return self._report

    def _prepared(self, key: ObjectKey, plan: ServicePlan | None) -> Change:
        if not self._said_ipv6 and plan and any(port.version == 6 for port in plan.ports):
            self._said_ipv6 = True
            _LOG.info("Service %s: IPv6 is not translated yet; this is said once", key)
        change = prepare(self._ledger, self._maps.array("backends4"), key, plan)
        if change.error is not None:
            # Nothing has been written: what was allocated is free at once.
            unused = self._detach(change)
            self._release(unused.backends, unused.regions)
        return change

    def _end_quarantine(self) -> None:
        """Hand back what has rested long enough."""
        now = self._clock()
        while self._quarantine and self._quarantine[0][0] <= now:
            _, unused = self._quarantine.popleft()
            self._release(unused.backends, unused.regions)

    def _release(self, backends: list[int], regions: list[Region]) -> None:
        self._ledger.backend_ids.release(backends)
        for region in regions:
            self._ledger.rows.release(region)

    @staticmethod
    def _each(
        changes: Sequence[Change],
        write: Callable[[Sequence[Change]], None],
        undo: Callable[[Change], None] = lambda _: None,
    ) -> None:
        """Write the entries of all Services with one call; should it fail, Service by Service."""
        left = [change for change in changes if change.error is None]
        try:
            write(left)
        except LbError as error:
            for change in left:
                undo(change)
            if len(left) == 1:
                left[0].error = error
                return
            for change in left:
                try:
                    write([change])
                except LbError as its_error:
                    change.error = its_error
                    undo(change)

    def _write_names(self, changes: Sequence[Change]) -> None:
        names = [(port, names) for change in changes for port, names in change.names]
        if not names:
            return
        self._maps.update(
            "services",
            np.array([port.id for port, _ in names], ID),
            np.array([row for _, row in names], SERVICE_NAME),
        )
        for port, _ in names:
            port.named = True
        self._report.names += len(names)

    def _write_ranges(self, changes: Sequence[Change]) -> None:
        ranges = [each for change in changes for each in change.new_ranges]
        if not ranges:
            return
        keys = range_keys((port.id, network) for port, network in ranges)
        for port, network in ranges:
            port.ranges[network] = False
        self._maps.update("source_ranges4", keys, np.ones(len(keys), ID))
        for port, network in ranges:
            port.ranges[network] = True
        self._report.ranges += len(ranges)

    def _undo_ranges(self, change: Change) -> None:
        """Delete what a failed write of a Service's source ranges may have left."""
        try:
            self._forget_ranges([(port, net) for port, net in change.new_ranges if net in port.ranges])
        except LbError as error:
            _LOG.warning("Service %s: source ranges are in an unknown state: %s", change.key, error)

    def _delete_ranges(self, changes: Sequence[Change]) -> None:
        """Delete source ranges that are not wanted any more.

        A packet on its way may have read that its VIP has ranges: it gets to look them up first.
        """
        ranges = [each for change in changes for each in change.old_ranges]
        if not ranges:
            return
        if any(port.vips for port, _ in ranges):
            self._settle()
        self._forget_ranges(ranges)
        self._report.ranges_deleted += len(ranges)

    def _forget_ranges(self, ranges: Sequence[tuple[Port, IPv4Network]]) -> None:
        self._maps.delete("source_ranges4", range_keys((port.id, network) for port, network in ranges))
        for port, network in ranges:
            port.ranges.pop(network, None)

    def _write_backends(self, changes: Sequence[Change]) -> None:
        slots = self._maps.array("backends4")
        new = {slot: row for change in changes for slot, row in change.new.items()}
        if new:
            rows = np.array(list(new.values()), BACKEND4)
            ids = np.array(list(new), ID)
            rows["generation"] = slots["generation"][ids] + np.uint32(1)
            slots[ids] = rows
        edits = [edit for change in changes for edit in change.edits]
        if edits:
            ids, flags, nodes = np.array(edits, ID).T
            slots["flags"][ids] = flags
            slots["node"][ids] = nodes
        # The state comes last: a slot is in use only once the rest of its row is there.
        states = {slot: state for change in changes for slot, state in change.states.items()}
        if states:
            slots["state"][np.array(list(states), ID)] = np.array(list(states.values()), ID)
        self._report.backends += len(states.keys() | {slot for slot, _, _ in edits})

    def _write_tables(self, changes: Sequence[Change]) -> None:
        tables = self._maps.array("tables")
        for change in changes:
            for region, rows in change.tables:
                tables[region.offset : region.offset + region.size] = rows
                self._report.table_rows += region.size

    def _put_vips(self, changes: Sequence[Change]) -> None:
        puts = {vip: put for change in changes for vip, put in change.puts.items()}
        if not puts:
            return
        values = vip_values([row for _, row in puts.values()])
        self._maps.update("vips4", vip_keys(list(puts)), values)
        owners = self._ledger.owners
        for vip, (port, row) in puts.items():
            if owners.get(vip, port) is not port:
                del owners[vip].vips[vip]
            owners[vip] = port
            port.vips[vip] = row
        self._report.vips += len(puts)

    def _restore_vips(self, change: Change) -> None:
        """Undo a failed write of a Service's VIPs, of which some may have reached the kernel."""
        owners = self._ledger.owners
        new = [vip for vip in change.puts if vip not in owners]
        old = {vip: row for vip in change.puts if vip in owners and (row := owners[vip].vips[vip])}
        try:
            if old:
                self._maps.update("vips4", vip_keys(list(old)), vip_values(list(old.values())))
            if new:
                self._maps.delete("vips4", vip_keys(new))
        except LbError as error:
            _LOG.warning("Service %s: its VIPs are in an unknown state: %s", change.key, error)
            for vip, (port, _) in change.puts.items():
                owners.setdefault(vip, port).vips[vip] = None
                port.vips[vip] = None

    def _delete_vips(self, changes: Sequence[Change]) -> None:
        owners = self._ledger.owners
        gone = []
        for change in changes:
            for vip, port in change.deletes.items():
                if owners.get(vip) is port:
                    gone.append(vip)
                else:  # another port has taken it over
                    port.vips.pop(vip, None)
        if not gone:
            return
        self._maps.delete("vips4", vip_keys(gone))
        for vip in gone:
            del owners.pop(vip).vips[vip]
        self._report.vips_deleted += len(gone)

    def _collect(self, changes: Sequence[Change]) -> None:
        """Free what no VIP leads to any more: table regions, then backends, then names."""
        unused = _Unused()
        for change in changes:
            more = self._detach(change)
            unused.backends += more.backends
            unused.regions += more.regions
            unused.exposed |= more.exposed
        if unused.exposed:
            self._settle()
        if unused.backends:
            self._maps.array("backends4")["state"][np.array(unused.backends, ID)] = BackendStateCode.FREE
            self._report.backends_freed += len(unused.backends)
        if unused.backends or unused.regions:
            self._quarantine.append((self._clock() + QUARANTINE_SECONDS, unused))
        for change in changes:
            try:
                self._delete_names(change.key)
            except LbError as error:
                change.error = change.error or error

    def _detach(self, change: Change) -> _Unused:
        """Take what a Service does not use any more out of the ledger and return it."""
        wanted = change.before if change.error is not None else change.wanted
        unused = _Unused()
        dropped: set[int] = set()
        for port_key, port in self._ledger.services.get(change.key, {}).items():
            for ids, region in list(port.unreferenced()):
                del port.regions[ids]
                unused.regions.append(region)
                dropped |= ids
            keep = wanted.get(port_key, set())
            listed = port.listed()
            gone = [s for s, slot in port.backends.items() if s not in keep and slot not in listed]
            unused.backends += [port.backends.pop(socket) for socket in gone]
        unused.exposed = not dropped.isdisjoint(unused.backends)
        return unused

    def _delete_names(self, key: ObjectKey) -> None:
        """Drop the ports of a Service that have nothing left, and the Service with its last port."""
        ports = self._ledger.services.get(key, {})
        empty: list[PortKey] = [
            k for k, port in ports.items() if not (port.vips or port.ranges or port.backends)
        ]
        named = [ports[port_key].id for port_key in empty if ports[port_key].named]
        if named:
            self._maps.delete("services", np.array(named, ID))
            self._report.names_deleted += len(named)
        self._ledger.service_ids.release(ports.pop(port_key).id for port_key in empty)
        if not ports:
            self._ledger.services.pop(key, None)
