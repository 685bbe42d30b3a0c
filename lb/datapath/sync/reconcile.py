# SPDX-License-Identifier: Apache-2.0
"""Bring the maps in step with the plans, so that no packet ever sees a half-written Service.

The order of writes is names, source ranges, backends, lookup tables, VIPs: a VIP leads only to what is
complete. A changed set of backends gets a new lookup table, and one map update switches the VIP over. What no
VIP leads to any more goes in reverse order, and its ids and rows rest for a while before somebody else gets
them: a packet that read the VIP a moment ago still finds the old rows, and never those of another Service.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lb.datapath.kernel.grace import wait_for_running_programs
from lb.datapath.maps.interface import Maps
from lb.datapath.maps.layouts import FAMILIES, ID, SERVICE_NAME, VipKindCode
from lb.datapath.sync import accounts
from lb.datapath.sync.changes import Change, compare, prepare
from lb.datapath.sync.cluster_network import ClusterNetworks
from lb.datapath.sync.differences import damaged_sets, repair
from lb.datapath.sync.direct_return import DirectReturn
from lb.datapath.sync.drift import Drift
from lb.datapath.sync.former_sets import FormerSets
from lb.datapath.sync.gone_vips import PART_SECONDS, REST_SECONDS, Sweep, gone_row, used
from lb.datapath.sync.ledger import (
    NodeNames,
    PortKey,
    VipRow,
    new_ledger,
    no_services,
    set_of,
    vip_keys,
    vip_values,
)
from lb.datapath.sync.quarantine import Quarantine, Unused
from lb.datapath.sync.recover import nodes_in_use, read_ledger
from lb.datapath.sync.slots import Slots
from lb.datapath.sync.source_ranges import SourceRanges
from lb.datapath.sync.sync_record import SyncReport, Written, written
from lb.datapath.sync.tables import write_sets
from lb.errors import CapacityError, LbError
from lb.model import ObjectKey
from lb.plan.types import ServicePlan, VipKey

_LOG = logging.getLogger(__name__)

AT_ONCE = 512
"""How many Services are prepared and written together."""


def _nothing(_what: Change | Written) -> None:
    """Stand for an undo or a notification that is not needed."""


class Reconciler:
    """Owns the maps that Python writes. Not thread-safe; one per node.

    clock: seconds, monotonic. settle: returns when no packet can still hold what it read before the call.
    begin: the same without waiting, it returns what tells whether that is so; then call :meth:`free`.
    tell: called with what was written for a Service in a family, once it is in the maps.
    direct: what direct return needs beside it; None without direct return.
    """

    def __init__(
        self,
        maps: Maps,
        clock: Callable[[], float],
        settle: Callable[[], None] = wait_for_running_programs,
        begin: Callable[[], Callable[[], bool]] | None = None,
        tell: Callable[[Written], None] = _nothing,
        *,
        direct: DirectReturn | None = None,
    ) -> None:
        self._maps = maps
        self._direct = direct
        self._tell = tell
        self._slots = Slots(maps)
        self._clock = clock
        self._settle = settle
        self._ranges = SourceRanges(maps, settle)
        self._quarantine = Quarantine(self._slots, clock, begin or self._settle_now)
        self._ledger = new_ledger(maps, no_services(), NodeNames(maps, {}, None))
        self._networks = ClusterNetworks(maps)
        self._pending: dict[ObjectKey, ServicePlan | None] = {}
        self._report = SyncReport()
        self._sweep: Sweep | None = None
        self._drift = Drift(maps)
        self._former = FormerSets(maps, self._slots)
        self._orphans = False  # some port has lost its last VIP, which lingered, to another

    def recover(self) -> None:
        """Take over what the maps hold. Call it once, before the first sync.

        Raises BpfError: the maps could not be read.
        """
        self._ledger = read_ledger(self._maps)
        services = self._ledger.services.values()
        self._former.count(port for each in services for ports in each.values() for port in ports.values())
        self._drift.forget()
        self.narrow()

    def narrow(self) -> None:
        """Let the cluster networks hold the clusterIPs that there are, and no others that there were."""
        rows = ((vip, port.row(vip)) for vip, port in self._ledger.owners.items())
        self._networks.start(vip.address for vip, row in rows if row and row.kind == VipKindCode.CLUSTER_IP)

    def reread(self) -> bool:
        """Take over what the maps hold now, whoever wrote it, and mend damaged sets; then sync all Services.

        False: not yet, since what was freed a moment ago rests still.

        Raises BpfError: the maps could not be read, or written.
        """
        self.free()
        self._quarantine.end(self._ledger)
        if not self._quarantine.empty:
            return False
        self.recover()
        repair(self._maps, damaged_sets(self._ledger, self._maps, self._maps))
        return True

    def drift(self) -> dict[str, int] | None:
        """Return by map how many entries are not as they were written; None: not now, backends rest still.

        Raises BpfError: a map could not be read.
        """
        self.free()
        return None if self._quarantine.settling or self._pending else self._drift.look(self._ledger)

    def known(self) -> set[ObjectKey]:
        """Return the Services that have something in the maps."""
        return set().union(*self._ledger.services.values())

    def holders(self) -> dict[VipKey, ObjectKey]:
        """Return which Service has each VIP in the maps."""
        return {
            vip: key
            for services in self._ledger.services.values()
            for key, ports in services.items()
            for port in ports.values()
            for vip in port.vips
        }

    def sync(self, plans: dict[ObjectKey, ServicePlan | None]) -> SyncReport:
        """Write what differs between the plans and the maps; None: the Service is gone.

        A Service that fails (a full map, a refused write) keeps what it had, is named in the report and is
        tried again with the next sync; the others are not affected, nor is its other family. The cost is that
        of the Services given. plans is empty afterwards: what is written is let go on the way, so that the
        plans of a whole cluster and what follows from them are never there together.
        """
        self._report = SyncReport()
        self._drift.forget()
        self.free()
        self._quarantine.end(self._ledger)
        if self._ledger.nodes.full:
            self._ledger.nodes.forget_unused(nodes_in_use(self._maps))
        for key, plan in self._pending.items():
            plans.setdefault(key, plan)
        self._pending = {}
        left: list[Change] = []
        kept: dict[ObjectKey, ServicePlan | None] = {}
        keys = list(plans)
        for start in range(0, max(len(keys), 1), AT_ONCE):  # without any: what is left of node names
            some = {key: plans.pop(key) for key in keys[start : start + AT_ONCE]}
            changes = self._add(some)
            left += changes
            kept |= {change.key: some[change.key] for change in changes}
        # What moves from one Service to another is at its new place before it is missing at its old one.
        for delete in (self._delete_vips, self._delete_ranges):
            for version in FAMILIES:
                self._each([change for change in left if change.version == version], delete)
        self._collect(left)

        for change in left:
            if change.error is not None:
                self._report.errors.setdefault(change.key, change.error)
                self._pending[change.key] = kept[change.key]
            else:
                self._told(change)
        if any(isinstance(error, CapacityError) for error in self._report.errors.values()):
            self._end_lingering(list(self._ledger.lingering))  # new Services come first
        if self._orphans:
            self._collect_orphans()
        self.place_nodes()
        return self._report

    def place_nodes(self) -> None:
        """Write where the other nodes are, for direct return: when one has come, moved or gone."""
        if self._direct:
            self._direct.write_hosts(self._ledger.nodes.known)

    def linger(self) -> float:
        """Let those of the lingering VIPs go that no flow uses any more; call it again and again.

        Returns after how many seconds: each call looks at a part of the flows. Infinity: not before a sync.

        Raises BpfError: the kernel refused.
        """
        lingering = self._ledger.lingering
        if not lingering:
            self._sweep = None
            return math.inf
        if self._sweep is None:
            self._sweep = Sweep(self._maps, sorted(lingering, key=str))
        unused = self._sweep.step(int(self._clock() * 1e9))
        if unused is None:
            return PART_SECONDS
        self._sweep = None
        self._end_lingering([vip for vip in unused if vip in lingering])
        return REST_SECONDS

    def _end_lingering(self, vips: Sequence[VipKey]) -> None:
        """Delete VIPs that linger, and what their ports still have when it is the last of them."""
        self._drift.forget()
        for version in FAMILIES:
            some = [vip for vip in vips if vip.address.version == version]
            if not some:
                continue
            self._maps.delete(f"vips{version}", vip_keys(version, some))
            for vip in some:
                del self._ledger.owners.pop(vip).gone[vip]
                self._ledger.lingering.discard(vip)
        self._collect_orphans()

    def _collect_orphans(self) -> None:
        """Free what ports have that have neither a VIP nor one that lingers."""
        self._orphans = False
        for version in FAMILIES:
            changes = [
                Change(key, version, {}, {of: set(port.backends) for of, port in ports.items() if port.vips})
                for key, ports in self._ledger.services[version].items()
                if key not in self._pending and any(not (port.vips or port.gone) for port in ports.values())
            ]
            self._collect(changes)

    def _told(self, change: Change) -> None:
        what = written(change, self._ledger.services[change.version].get(change.key, {}))
        if what is not None:
            self._tell(what)

    def _add(self, plans: Mapping[ObjectKey, ServicePlan | None]) -> list[Change]:
        """Write what is new, from the names to the VIPs; return the changes that may leave things to delete.

        Some Services at a time: what all of a large cluster's have to write would be large.
        """
        families = {version: self._prepared(version, plans) for version in FAMILIES}
        changes = [change for family in families.values() for change in family]
        self._each(changes, self._write_names)
        for family in families.values():
            self._each(family, self._write_ranges, self._ranges.undo)
        self._report.names += self._ledger.nodes.write()
        ready = [change for change in changes if change.error is None]
        for version in FAMILIES:
            mine = [change for change in ready if change.version == version]
            self._report.backends += self._slots.write(version, mine) if mine else 0
        if self._direct:
            self._direct.write_endpoints(self._slots)
        self._each(changes, self._write_tables)
        for family in families.values():
            self._each(family, self._put_vips, self._restore_vips)
        for change in changes:
            if not change.leaves:
                self._told(change)
        return [change for change in changes if change.leaves]

    def _prepared(self, version: int, plans: Mapping[ObjectKey, ServicePlan | None]) -> list[Change]:
        """Return the changes in one family."""
        changes = []
        for key, plan in plans.items():
            change = prepare(self._ledger, key, version, plan)
            if change is None:
                continue
            changes.append(change)
            if change.error is not None:
                # Nothing has been written: what was allocated is free at once.
                unused = Unused()
                self._detach(change, unused)
                unused.release(self._ledger)
        present = [change for change in changes if change.error is None and change.kept]
        if present:
            compare(self._slots[version], present)
        return changes

    def _settle_now(self) -> Callable[[], bool]:
        self._settle()
        return lambda: True

    def free(self) -> None:
        """Free the backends that no packet on its way can choose any more."""
        self._quarantine.free()

    @staticmethod
    def _each(
        changes: Sequence[Change],
        write: Callable[[Sequence[Change]], None],
        undo: Callable[[Change], None] = _nothing,
    ) -> None:
        """Write the entries of all changes with one call; should it fail, change by change.

        What concerns the maps of a family gets changes of that family alone.
        """
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
        ids = [port.id for port, _ in names]
        accounts.begin(self._maps, ids)
        self._maps.update("services", np.array(ids, ID), np.array([row for _, row in names], SERVICE_NAME))
        for port, _ in names:
            port.named = True
        self._report.names += len(names)

    def _write_ranges(self, changes: Sequence[Change]) -> None:
        self._report.ranges += self._ranges.write(changes)

    def _delete_ranges(self, changes: Sequence[Change]) -> None:
        self._report.ranges_deleted += self._ranges.delete(changes)

    def _write_tables(self, changes: Sequence[Change]) -> None:
        tables = [table for change in changes for table in change.tables]
        if tables:
            write_sets(self._maps, tables)
            self._report.table_rows += sum(region.size for region, _ in tables)

    def _put_vips(self, changes: Sequence[Change]) -> None:
        puts = {vip: put for change in changes for vip, put in change.puts.items()}
        if not puts:
            return
        version = changes[0].version
        self._networks.cover(
            version, (vip.address for vip, (_, row) in puts.items() if row.kind == VipKindCode.CLUSTER_IP)
        )
        values = vip_values([row for _, row in puts.values()])
        self._maps.update(f"vips{version}", vip_keys(version, puts), values)
        owners = self._ledger.owners
        for vip, (port, row) in puts.items():
            self._former.retire(port, port.vips.get(vip), row)
            if (owner := owners.get(vip)) is not None:
                lingered = vip in owner.gone
                owner.forget(vip)
                self._orphans |= lingered and owner is not port and not (owner.vips or owner.gone)
            owners[vip] = port
            port.vips[vip] = row
            self._ledger.lingering.discard(vip)
        self._report.vips += len(puts)

    def _restore_vips(self, change: Change) -> None:
        """Undo a failed write of a Service's VIPs, of which some may have reached the kernel."""
        owners = self._ledger.owners
        new = [vip for vip in change.puts if vip not in owners]
        old = {vip: row for vip in change.puts if vip in owners and (row := owners[vip].row(vip))}
        try:
            name = f"vips{change.version}"
            if old:
                self._maps.update(name, vip_keys(change.version, old), vip_values(list(old.values())))
            if new:
                self._maps.delete(name, vip_keys(change.version, new))
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
        version = changes[0].version
        lingering = self._lingering(version, gone)
        if lingering:
            rows = vip_values(list(lingering.values()))
            self._maps.update(f"vips{version}", vip_keys(version, lingering), rows)
        deleted = [vip for vip in gone if vip not in lingering]
        if deleted:
            self._maps.delete(f"vips{version}", vip_keys(version, deleted))
        for vip in gone:
            port = owners[vip] if vip in lingering else owners.pop(vip)
            del port.vips[vip]
        for vip, row in lingering.items():
            owners[vip].gone[vip] = row
        self._ledger.lingering |= lingering.keys()
        if self._sweep is not None:
            self._sweep.leave(lingering)
        self._report.vips_deleted += len(gone)

    def _lingering(self, version: int, vips: Sequence[VipKey]) -> dict[VipKey, VipRow]:
        """Return those of the VIPs that connections may be open through, with the rows that they get now."""
        owners = self._ledger.owners
        ever = used(self._maps, version, [owners[vip] for vip in vips])
        rows = {vip: owners[vip].vips[vip] for vip in vips if vip.port and owners[vip].id in ever}
        return {vip: gone_row(row) for vip, row in rows.items() if row is not None}

    def _collect(self, changes: Sequence[Change]) -> None:
        """Free what no VIP leads to any more: table regions, then backends, then names."""
        unused = Unused()
        for change in changes:
            self._detach(change, unused)
        self._report.backends_freed += sum(map(len, unused.backends.values()))
        self._former.write()
        self._quarantine.take(unused)
        for change in changes:
            try:
                self._delete_names(change)
            except LbError as error:
                change.error = change.error or error

    def _detach(self, change: Change, unused: Unused) -> None:
        """Move what a Service does not use any more from the ledger to unused."""
        wanted = change.before if change.error is not None else change.wanted
        backends = []
        dropped: set[int] = set()
        for port_key, port in self._ledger.services[change.version].get(change.key, {}).items():
            if not port.vips:
                unused.regions += self._former.forget(port)
            for key, region in list(port.unreferenced()):
                del port.regions[key]
                unused.regions += self._former.keep(port, region)
                dropped.update(set_of(key)[0])
            keep = wanted.get(port_key, set())
            listed = port.listed()
            if port.gone and not port.vips:
                continue  # its backends are those of the connections that are still open
            gone = [s for s, slot in port.backends.items() if s not in keep and slot not in listed]
            backends += [port.backends.pop(socket) for socket in gone]
            unused.regions += self._former.follow(port, change.version, self._ledger.rows)
        unused.backends[change.version] += backends
        unused.exposed |= not dropped.isdisjoint(backends)

    def _delete_names(self, change: Change) -> None:
        """Drop the ports of a Service that have nothing left, and the Service with its last port."""
        services = self._ledger.services[change.version]
        ports = services.get(change.key, {})
        empty: list[PortKey] = [
            k for k, port in ports.items() if not (port.vips or port.gone or port.ranges or port.backends)
        ]
        named = [ports[port_key].id for port_key in empty if ports[port_key].named]
        if named:
            self._maps.delete("services", np.array(named, ID))
            accounts.end(self._maps, named)
            self._report.names_deleted += len(named)
        self._ledger.service_ids.release(ports.pop(port_key).id for port_key in empty)
        if not ports:
            services.pop(change.key, None)
