# SPDX-License-Identifier: Apache-2.0
"""Bring maps and programs into the kernel, or find them there.

:func:`load` is called on every start. Maps are reused when their shape is right; programs are reused when
nothing that they were built from has changed, so that a restart loads nothing. Otherwise they are loaded from
instructions that :mod:`lb.datapath.programs.build` has or has made. Nothing pinned changes before that has
succeeded: after a failure the old programs and maps work on.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from lb.config import Limits
from lb.datapath.kernel import batch, bpf, privileges
from lb.datapath.kernel.bpf import ProgType
from lb.datapath.kernel.pins import Pins, ensure_bpffs, remove_tree
from lb.datapath.maps import crc32c, layouts, map_table
from lb.datapath.maps.map_pins import MapSlot, open_maps, pin_maps
from lb.datapath.maps.map_table import MapType
from lb.datapath.programs import build, features
from lb.datapath.programs.build import HANDOVER, PROGRAM_ARRAY
from lb.errors import BpfError, CompileError, DatapathError
from lb.folders import entries

_log = logging.getLogger(__name__)
T = TypeVar("T")

_LOG_SIZE = 1 << 24  # bytes for the verifier's log
_LOG_LINES = 40


@dataclass(frozen=True, slots=True)
class Program:
    """One program of the data plane: the file in bpf/ that holds it, its type, and its number there.

    Each file is compiled for IPv4 and for IPv6. A hook runs the IPv4 program, which goes on by tail call:
    with an IPv6 packet in its twin, and with what is rare in a step. For that an array for each file, pinned
    as :func:`program_array`, holds the IPv4 programs under their numbers, and the twins under
    ``PROGRAMS_PER_FAMILY`` more. A socket hook has a program for each family, and no steps.

    instances: the IP versions for which it is loaded, and what each is loaded to be attached to: a number of
    enum bpf_attach_type, 0 where that is of no matter.
    """

    source: str
    type: ProgType
    number: int
    instances: Mapping[int, int] = field(default_factory=lambda: dict.fromkeys(layouts.FAMILIES, 0))

    def place(self, version: int) -> int:
        """Return the index of an instance in the array of its file's programs."""
        return self.number + (0 if version == 4 else layouts.PROGRAMS_PER_FAMILY)

    @property
    def at_sockets(self) -> bool:
        """True for a program of a socket hook, which :mod:`lb.datapath.attach.sockets` attaches."""
        return self.type is ProgType.CGROUP_SOCK_ADDR


_SOCKET_HOOKS = {"connect": (10, 11), "sendmsg": (14, 15), "recvmsg": (19, 20), "getpeername": (29, 30)}
"""By name: what the programs for IPv4's and IPv6's sockets are attached to, of enum bpf_attach_type."""
_NEVER_MAPPED = "sendmsg"
_TC_ALONE = frozenset({"EGRESS", "PIECES"})
"""The steps for packets that leave, which XDP does not see, and for fragments, which XDP leaves to tc."""


def _programs() -> Iterator[tuple[str, Program]]:
    for number, (hook, _) in enumerate(layouts.HOOKS):
        if hook.startswith("XDP"):
            yield f"lb_{hook.lower()}", Program("xdp_lb.c", ProgType.XDP, number)
        elif hook.startswith("SOCK_"):
            yield from _socket_programs(hook.lower().removeprefix("sock_"), number)
        else:
            yield f"lb_{hook.lower()}", Program("tc_lb.c", ProgType.SCHED_CLS, number)
    for number, (step, _) in enumerate(layouts.STEPS, len(layouts.HOOKS)):
        if step not in _TC_ALONE:
            yield f"lb_xdp_{step.lower()}", Program("xdp_lb.c", ProgType.XDP, number)
        yield f"lb_tc_{step.lower()}", Program("tc_lb.c", ProgType.SCHED_CLS, number)


def _socket_programs(hook: str, number: int) -> Iterator[tuple[str, Program]]:
    """Yield a socket hook's program, and the one for IPv4 spoken by a socket of IPv6."""
    four, six = _SOCKET_HOOKS[hook]
    file, kind = "sock_lb.c", ProgType.CGROUP_SOCK_ADDR
    yield f"lb_sock_{hook}", Program(file, kind, number, {4: four, 6: six})
    if hook != _NEVER_MAPPED:
        yield f"lb_sock_{hook}_mapped", Program(file, kind, number, {4: six})


PROGRAMS: Mapping[str, Program] = dict(_programs())
"""Every program, by the name of its function: those of the hooks, which :mod:`lb.datapath.attach.hooks` and
:mod:`lb.datapath.attach.sockets` attach, and those of the steps, which the others enter."""


_DIRECT_STEPS = ("direct_in", "direct_out", "former")


def serving(*, direct: bool, xdp: bool) -> Mapping[str, Program]:
    """Return the programs that a node needs: what it does not load it need not wait for the verifier to read.

    direct: whether for direct return, too (bpf/direct.h); its steps are a quarter of the verifier's work.
    xdp: whether for XDP, too; its programs are a third of the rest.
    """
    return {
        name: program
        for name, program in PROGRAMS.items()
        if (direct or not name.endswith(_DIRECT_STEPS)) and (xdp or program.type is not ProgType.XDP)
    }


_SHADOW_STEPS = ("INGRESS", "EGRESS", "CONNECT", "OWNER", "WEIGH")
_SHADOW_CALLS = ("lb_sock_connect", "lb_sock_sendmsg", "lb_sock_connect_mapped")


def _shadow_programs() -> Iterator[tuple[str, Program]]:
    for name, program in PROGRAMS.items():
        if program.source == "tc_lb.c" and (
            program.number < len(layouts.HOOKS) or name.removeprefix("lb_tc_").upper() in _SHADOW_STEPS
        ):
            yield name, replace(program, source="shadow_lb.c")
        elif name in _SHADOW_CALLS:
            yield name, replace(program, source="shadow_sock.c")


SHADOW_PROGRAMS: Mapping[str, Program] = dict(_shadow_programs())
"""Those of shadow mode (bpf/shadow.h), by the names of the programs that serve, in whose place they are."""


def twin(name: str) -> str:
    """Return the name under which the IPv6 instance of a program is pinned."""
    return f"{name}_6"


def pin_name(name: str, version: int) -> str:
    """Return the name under which a program's instance for an IP version is pinned."""
    return name if version == 4 else twin(name)


def program_array(source: str) -> str:
    """Return the name under which the array of a file's programs is pinned."""
    return f"{Path(source).stem}_programs"


def pinned_programs(pins: Pins) -> Iterator[tuple[Path, bpf.ProgInfo]]:
    """Yield each pinned program of an instance; what is replaced meanwhile is left out.

    Raises BpfError: the kernel refused.
    """
    arrays = {program_array(file) for file in sources(PROGRAMS) | sources(SHADOW_PROGRAMS)}
    for path in (path for folder in pins.builds() for path in entries(folder) if path.name not in arrays):
        try:
            with bpf.obj_get(path) as program:
                info = bpf.prog_info(program)
        except BpfError as error:
            if error.errno == errno.ENOENT:
                continue
            raise
        yield path, info


@dataclass(frozen=True, slots=True)
class Loaded:
    """What :func:`load` left in the kernel.

    programs: by name, the pinned path.
    ids: by name, the kernel's program id.
    sockets: the programs of socket hooks by the name of their pin: path and enum bpf_attach_type. Empty when
        the kernel refused them.
    refused: its words, else ``""``.
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
    sockets: Mapping[str, tuple[Path, int]] = field(default_factory=dict)
    refused: str = ""


def load(
    pins: Pins,
    limits: Limits,
    *,
    traffic_counters: bool = True,
    bpf_dir: Path = layouts.BPF_DIR,
    programs: Mapping[str, Program] = PROGRAMS,
) -> Loaded:
    """Make sure that the maps and programs of this build are pinned, and return them.

    traffic_counters: whether there is room to count the packets of each backend.

    Raises CompileError: clang or the verifier refused a program other than one for sockets; nothing pinned
    has changed.
    Raises BpfError: the kernel refused a map or a pin.
    Raises DatapathError: a capability is missing, the kernel has no bpf file system, or the child could not
    run.
    """
    privileges.check()
    ensure_bpffs()
    bpf.unlimit_memory()
    sizes = map_table.sizes(limits, traffic_counters=traffic_counters)
    own_build = fingerprint(sizes, bpf_dir, programs)
    refused = ""
    with pins.lock(), contextlib.ExitStack() as stack:
        slots = open_maps(pins, sizes, stack)
        handover = stack.enter_context(_open_handover(pins))
        directory = pins.programs(own_build)
        known = {bpf.map_info(fd).id for fd in (handover, *(slot.fd for slot in slots))}
        ids = _pinned_programs(directory, programs, known)
        compiled = ids is None
        if ids is None:
            staging = pins.staging(own_build)
            remove_tree(staging)
            staging.mkdir()
            try:
                load_and_pin = partial(_build, staging, slots, handover, programs)
                ids, refused = _from_cache_or_anew(bpf_dir, programs, staging, load_and_pin)
            except DatapathError:
                remove_tree(staging)
                raise
        _write_constants(slots)
        fresh = pin_maps(pins, slots)
        if compiled:
            _set_aside(directory)
            pins.staging(own_build).rename(directory)
    paths = {name: directory / name for name, program in programs.items() if not program.at_sockets}
    sockets = {
        pin: (directory / pin, program.instances[version])
        for pin, (_, version, program) in _instances(programs).items()
        if program.at_sockets and not refused
    }
    return Loaded(paths, ids, own_build, compiled, fresh, sockets, refused)


def instances() -> Iterator[tuple[str, int, Program]]:
    """Yield every program in each of its instances: function, IP version and program."""
    yield from _instances(PROGRAMS).values()


def _set_aside(directory: Path) -> None:
    """Give the programs of a build another place, until :func:`prune` removes them: hooks may run them.

    With the last pin of their array gone they would find no step to go on in.
    """
    if directory.is_dir():
        names = (directory.with_name(f"{directory.name}~{number}") for number in itertools.count())
        directory.rename(next(name for name in names if not name.exists()))


def _instances(programs: Mapping[str, Program]) -> dict[str, tuple[str, int, Program]]:
    """Return what is to be loaded by the name of its pin: function, IP version and program."""
    return {
        pin_name(name, version): (name, version, program)
        for name, program in programs.items()
        for version in program.instances
    }


def _arrays(programs: Mapping[str, Program]) -> dict[str, str]:
    """Return the pin name of the array of each file that has one."""
    sources = dict.fromkeys(program.source for program in programs.values() if not program.at_sockets)
    return {source: program_array(source) for source in sources}


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


def fingerprint(
    sizes: Mapping[str, int],
    bpf_dir: Path = layouts.BPF_DIR,
    programs: Mapping[str, Program] = PROGRAMS,
) -> str:
    """Return 16 hex digits over everything that loaded programs depend on."""
    parts = [
        build.fingerprint(bpf_dir),
        sorted(sizes.items()),
        sorted(programs),
        platform.release(),
        features.may_ask_module(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _pinned_programs(
    directory: Path, programs: Mapping[str, Program], map_ids: set[int]
) -> dict[str, int] | None:
    """Return the ids of the pinned programs; None unless all are there and use these very maps."""
    ids: dict[str, int] = {}
    arrays = list(_arrays(programs).values())
    names = list(_instances(programs))
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
    return {name: ids[name] for name, program in programs.items() if not program.at_sockets}


def _from_cache_or_anew(
    bpf_dir: Path, programs: Mapping[str, Program], staging: Path, attempt: Callable[[build.Code], T]
) -> T:
    """Attempt to load what the cache holds; if the kernel refuses that, compile it anew and attempt it again.

    Raises CompileError: clang or the verifier refused a program; carries their words.
    """
    code, kept = build.obtain(bpf_dir, sources(programs))
    try:
        return attempt(code)
    except CompileError as error:
        if not kept:
            raise
        words = str(error).splitlines()[0]
        _log.warning("what is kept in %s is of no use, compiling the programs anew: %s", build.CACHE, words)
    remove_tree(staging)
    staging.mkdir()
    code, _ = build.obtain(bpf_dir, sources(programs), anew=True)
    return attempt(code)


def _build(
    staging: Path,
    slots: Sequence[MapSlot],
    handover: bpf.FD,
    programs: Mapping[str, Program],
    code: build.Code,
) -> tuple[dict[str, int], str]:
    """Load and pin every program in all of its instances.

    Returns the ids of the IPv4 ones but for sockets, and the kernel's words if it refused those for sockets.

    Raises CompileError: clang or the verifier refused a program; carries their words.
    """
    for name, version, program in _instances(programs).values():
        if name not in code[version]:
            raise CompileError(f"bpf/{program.source}: there is no function {name}")
    ids: dict[str, int] = {}
    refused = ""
    with contextlib.ExitStack() as stack:
        # The kernel verifies on the caller's CPU, and lets others do so at the same time.
        functions = stack.enter_context(features.kernel_functions())
        has = features.optional(functions)
        pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
        arrays = {
            source: stack.enter_context(_make_array(staging, name))
            for source, name in _arrays(programs).items()
        }
        loads = []
        maps = {slot.spec.name: slot.fd.fileno() for slot in slots}
        named = {
            version: {c_name: maps[name] for c_name, name in map_table.named_in_c(version).items()}
            for version in layouts.FAMILIES
        }
        for pin, (name, version, program) in _instances(programs).items():
            fds = {**named[version], HANDOVER: handover.fileno()}
            if program.source in arrays:
                fds[PROGRAM_ARRAY] = arrays[program.source].fileno()
            instructions = build.relocate(code[version][name], fds, has, functions)
            attach_type = program.instances[version]
            load = pool.submit(load_program, program, name, instructions, attach_type, functions.fds)
            loads.append((pin, version, program, load))
        for pin, version, program, load in loads:
            try:
                fd = stack.enter_context(load.result())
            except CompileError as error:
                if not program.at_sockets:
                    raise
                refused = refused or str(error)
                continue
            bpf.obj_pin(fd, staging / pin)
            if program.at_sockets:
                continue
            array = arrays[program.source]
            bpf.map_update(array, np.array([program.place(version)], "u4"), np.array([fd.fileno()], "u4"))
            if version == 4:
                ids[pin] = bpf.prog_info(fd).id
    return ids, refused


def sources(programs: Mapping[str, Program]) -> set[str]:
    """Return the files in bpf/ that hold the programs."""
    return {program.source for program in programs.values()}


def compile_ahead() -> None:
    """Have the instructions of all programs in the cache, so that the first start of an agent need not wait.

    Raises CompileError: clang refused a file; carries its words.
    """
    build.instructions(layouts.BPF_DIR, sources(PROGRAMS) | sources(SHADOW_PROGRAMS))


_PASS_ON = bytes.fromhex("b7000000ffffffff9500000000000000")
"""Two instructions: return TC_ACT_UNSPEC, on to the next program."""


def _open_handover(pins: Pins) -> bpf.FD:
    """Return the array of one tc program by which programs without steps know that another version serves.

    It is pinned beside the builds: a version that removes those of others leaves it alone, while whoever
    removes all pins empties it. See strand() in bpf/stranded.h.
    """
    try:
        return bpf.obj_get(pins.handover)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
    array = bpf.map_create(MapType.PROG_ARRAY, 4, 4, 1, name="lb_handover")
    program, _, code = bpf.prog_load(ProgType.SCHED_CLS, _PASS_ON, "lb_pass_on")
    if program is None:
        raise BpfError("PROG_LOAD", "lb_pass_on", code)
    with program:
        bpf.map_update(array, np.array([0], "u4"), np.array([program.fileno()], "u4"))
    bpf.obj_pin(array, pins.handover)
    return array


def _make_array(staging: Path, name: str) -> bpf.FD:
    array = bpf.map_create(MapType.PROG_ARRAY, 4, 4, 2 * layouts.PROGRAMS_PER_FAMILY, name=name)
    bpf.obj_pin(array, staging / name)
    return array


def load_program(
    program: Program, name: str, instructions: bytes, attach_type: int, fds: Sequence[int]
) -> bpf.FD:
    """Load one program; attach_type and fds are those of :func:`lb.datapath.kernel.bpf.prog_load`.

    Raises CompileError: the kernel refused it; carries the end of the verifier's log.
    """
    fd, _, _ = bpf.prog_load(program.type, instructions, name, attach_type=attach_type, fds=fds)
    if fd is None:
        fd, log, error = bpf.prog_load(
            program.type, instructions, name, attach_type=attach_type, log_size=_LOG_SIZE, fds=fds
        )
    if fd is None:
        words = "\n".join(log.splitlines()[-_LOG_LINES:])
        raise CompileError(f"the kernel refused the program {name}: {os.strerror(error)}\n{words}".rstrip())
    return fd
