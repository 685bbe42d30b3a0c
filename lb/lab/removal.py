# SPDX-License-Identifier: Apache-2.0
"""Taking a lab down, however far it was made."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable

from lb.datapath.kernel.pins import Pins, unload
from lb.errors import LabError
from lb.lab import cgroups, namespaces
from lb.lab.addressing import LabSpec
from lb.lab.processes import ProcessRef, kill
from lb.lab.runtime import kill_all
from lb.lab.store import LabRecord, Store
from lb.rundir import RunDir

Report = Callable[[str], None]
"""Takes one line of progress."""


def down(lab: str, report: Report) -> None:
    """Remove everything of a lab, however far it was made: processes, pins, namespaces, files.

    Raises LabError: there is no such lab, another process is bringing it up, or a process does not end.
    """
    namespaces.check_machine()
    store = Store(lab)
    if not store.exists():
        raise LabError(f"there is no lab {lab}")
    try:
        record: LabRecord | None = store.read_lab()
    except LabError:
        record = None  # interrupted before its record was written: nothing else was made
    if record and not record.complete and record.owner.alive() and record.owner.pid != os.getpid():
        raise LabError(f"lab {lab} is being brought up by process {record.owner.pid}: end that first")
    if record:
        _kill_everything(store, record.spec, report)
        report("pins: unloading")
        for node in record.spec.node_names:
            unload(Pins(record.spec.instance(node)))
            run_dir = RunDir(record.spec.instance(node))
            run_dir.speaker.remove()
            shutil.rmtree(run_dir.speaker.folder, ignore_errors=True)
            run_dir.remove()
        names = [*record.spec.namespaces, *(each.netns for each in store.pods())]
        report(f"namespaces: removing {len(names)}")
        for name in names:
            namespaces.delete(name)
        cgroups.remove_lab(lab)
    store.remove()


def _kill_everything(store: Store, spec: LabSpec, report: Report) -> None:
    """Kill the kubelet first, so that no pod comes anew, then all others."""
    report("processes: ending")
    kubelet = store.process("kubelet")
    _kill([kubelet] if kubelet else [])
    _kill(store.processes())
    group = cgroups.of_lab(spec.id)
    for name in (*spec.namespaces, *(each.netns for each in store.pods())):
        kill_all(name, group)


def _kill(processes: Iterable[ProcessRef]) -> None:
    left = kill(processes)
    if left:
        raise LabError(f"processes do not end: {', '.join(str(each.pid) for each in left)}")
