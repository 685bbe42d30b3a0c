"""Bring maps and programs into the kernel, or find them there.

:func:`load` is called on every start. Maps are reused when their shape is right; programs are reused when
nothing that they were built from has changed, so that a restart loads nothing. Otherwise they are loaded from
instructions that :mod:`lb.datapath.build` has or has made. Nothing pinned changes before that has succeeded:
after a failure the old programs and maps work on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lb.config import Limits
from lb.datapath import batch, bpf, build, crc32c, layouts
from lb.datapath.bpf import ProgType
from lb.datapath.compile import PROGRAM_ARRAY
from lb.datapath.layouts import MapType
from lb.datapath.map_pins import MapSlot, open_maps, pin_maps
from lb.datapath.pins import Pins, ensure_bpffs, remove_tree
from lb.errors import CompileError, DatapathError

_LOG_SIZE = 1 << 24  # bytes for the verifier's log
_LOG_LINES = 40


@dataclass(frozen=True, slots=True)
class Program:
    """One program of the data plane: the file in bpf/ that holds it, its type, and its number there.

    Each file is compiled for IPv4 and for IPv6. A hook runs the IPv4 program, which goes on by tail call:
    with an IPv6 packet in its twin, and with what is rare in a step. For that an array for each file, pinned
    as :func:`program_array`, holds the IPv4 programs under their numbers, and the twins under
    ``PROGRAMS_PER_FAMILY`` more.
    """

    source: str
    type: ProgType
    number: int


def _programs() -> Iterator[tuple[str, Program]]:
    for number, (hook, _) in enumerate(layouts.HOOKS):
        if hook.startswith("XDP"):
            yield f"lb_{hook.lower()}", Program("xdp_lb.c", ProgType.XDP, number)
        else:
            yield f"lb_{hook.lower()}", Program("tc_lb.c", ProgType.SCHED_CLS, number)
    for number, (step, _) in enumerate(layouts.STEPS, len(layouts.HOOKS)):
        yield f"lb_xdp_{step.lower()}", Program("xdp_lb.c", ProgType.XDP, number)
        yield f"lb_tc_{step.lower()}", Program("tc_lb.c", ProgType.SCHED_CLS, number)


PROGRAMS: Mapping[str, Program] = dict(_programs())
"""Every program, by the name of its function: those of the hooks, which :mod:`lb.datapath.hooks` attaches,
and those of the steps, which the others enter."""


def twin(name: str) -> str:
    """Return the name under which the IPv6 instance of a program is pinned."""
    return f"{name}_6"


def program_array(source: str) -> str:
    """Return the name under which the array of a file's programs is pinned."""
    return f"{Path(source).stem}_programs"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What :func:`load` left in the kernel.

    Attributes
    ----------
    programs: by name, the pinned path.
    ids: by name, the kernel's program id.
    fingerprint: names the build.
    compiled: False when the pinned programs were reused.
    fresh: maps that start empty, because they are new or their old contents could not be kept. With VIPs
        among them, attach only after the first sync: until then the old programs serve from the old maps.
    """

    programs: Mapping[str, Path]
    ids: Mapping[str, int]
    fingerprint: str
    compiled: bool
    fresh: frozenset[str]


def load(
    pins: Pins,
    limits: Limits,
    *,
    bpf_dir: Path = layouts.BPF_DIR,
    programs: Mapping[str, Program] = PROGRAMS,
) -> Loaded:
    """Make sure that the maps and programs of this build are pinned, and return them.

    Raises
    ------
    CompileError: clang or the verifier refused a program; nothing pinned has changed.
    BpfError: the kernel refused a map or a pin.
    DatapathError: the kernel has no bpf file system, or the child could not run.
    """
    ensure_bpffs()
    own_build = fingerprint(limits, bpf_dir)
    with pins.lock(), contextlib.ExitStack() as stack:
        slots = open_maps(pins, limits, stack)
        directory = pins.programs(own_build)
        ids = _pinned_programs(directory, programs, {bpf.map_info(slot.fd).id for slot in slots})
        compiled = ids is None
        if ids is None:
            staging = pins.staging(own_build)
            remove_tree(staging)
            staging.mkdir()
            try:
                ids = _build(staging, slots, bpf_dir, programs)
            except DatapathError:
                remove_tree(staging)
                raise
        _write_constants(slots)
        fresh = pin_maps(pins, slots)
        if compiled:
            remove_tree(directory)
            pins.staging(own_build).rename(directory)
    paths = {name: directory / name for name in programs}
    return Loaded(paths, ids, own_build, compiled, fresh)


def _write_constants(slots: Sequence[MapSlot]) -> None:
    """Fill the map that holds the same in every kernel."""
    rows = crc32c.shifts()
    for slot in slots:
        if slot.spec.name == "crc32c_shifts":
            batch.update_all(slot.fd, np.arange(len(rows), dtype=layouts.ID), rows)


def prune(pins: Pins, loaded: Loaded) -> None:
    """Remove the programs of other builds; call it once the hooks run those of this build."""
    with pins.lock():
        for path in pins.builds():
            if path != pins.programs(loaded.fingerprint):
                remove_tree(path)


def fingerprint(limits: Limits, bpf_dir: Path = layouts.BPF_DIR) -> str:
    """Return 16 hex digits over everything that loaded programs depend on."""
    parts = [build.fingerprint(bpf_dir), sorted(limits.as_dict().items()), platform.release()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _pinned_programs(
    directory: Path, programs: Mapping[str, Program], map_ids: set[int]
) -> dict[str, int] | None:
    """Return the ids of the pinned programs; None unless all are there and use these very maps."""
    ids: dict[str, int] = {}
    arrays = {program_array(program.source) for program in programs.values()}
    names = [*programs, *map(twin, programs)]
    if not all((directory / name).exists() for name in (*names, *arrays)):
        return None
    known = set(map_ids)
    for name in arrays:
        with bpf.obj_get(directory / name) as fd:
            known.add(bpf.map_info(fd).id)
    for name in names:
        with bpf.obj_get(directory / name) as fd:
            info = bpf.prog_info(fd)
        if not known.issuperset(info.map_ids):
            return None
        ids[name] = info.id
    return {name: ids[name] for name in programs}


def _build(
    staging: Path, slots: Sequence[MapSlot], bpf_dir: Path, programs: Mapping[str, Program]
) -> dict[str, int]:
    """Load and pin every program, both of its instances; return the ids of the IPv4 ones.

    Raises
    ------
    CompileError: with clang's or the verifier's words.
    """
    sources: dict[str, list[str]] = {}
    for name, program in programs.items():
        sources.setdefault(program.source, []).append(name)
    code = build.instructions(bpf_dir, sources)
    ids: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        # The kernel verifies on the caller's CPU, and lets others do so at the same time.
        pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
        arrays = {source: stack.enter_context(_make_array(staging, source)) for source in sources}
        loads = []
        for version in layouts.FAMILIES:
            maps = {slot.spec.c_name: slot.fd.fileno() for slot in slots if slot.spec.version in (0, version)}
            for name, program in programs.items():
                fds = {**maps, PROGRAM_ARRAY: arrays[program.source].fileno()}
                instructions = build.relocate(code[version][name], fds)
                loads.append((name, version, pool.submit(_load_program, program, name, instructions)))
        for name, version, load in loads:
            fd = stack.enter_context(load.result())
            bpf.obj_pin(fd, staging / (name if version == 4 else twin(name)))
            number = programs[name].number + (0 if version == 4 else layouts.PROGRAMS_PER_FAMILY)
            array = arrays[programs[name].source]
            bpf.map_update(array, np.array([number], "u4"), np.array([fd.fileno()], "u4"))
            if version == 4:
                ids[name] = bpf.prog_info(fd).id
    return ids


def _make_array(staging: Path, source: str) -> bpf.FD:
    name = program_array(source)
    array = bpf.map_create(MapType.PROG_ARRAY, 4, 4, 2 * layouts.PROGRAMS_PER_FAMILY, name=name)
    bpf.obj_pin(array, staging / name)
    return array


def _load_program(program: Program, name: str, instructions: bytes) -> bpf.FD:
    """Load one program.

    Raises
    ------
    CompileError: the kernel refused it; with the end of the verifier's log.
    """
    fd, _, _ = bpf.prog_load(program.type, instructions, name)
    if fd is None:
        fd, log, error = bpf.prog_load(program.type, instructions, name, log_size=_LOG_SIZE)
    if fd is None:
        words = "\n".join(log.splitlines()[-_LOG_LINES:])
        raise CompileError(f"the kernel refused the program {name}: {os.strerror(error)}\n{words}".rstrip())
    return fd
