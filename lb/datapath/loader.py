"""Bring maps and programs into the kernel, or find them there.

:func:`load` is called on every start. Maps are reused when their shape is right; programs are reused when
nothing that they were built from has changed, so that a restart compiles nothing. Otherwise a child process
(:mod:`lb.datapath.compile`) builds them. Nothing pinned changes before the build has succeeded: after a
failed compile the old programs and maps work on.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lb.config import Limits
from lb.datapath import batch, bpf, crc32c, layouts
from lb.datapath.bpf import ProgType
from lb.datapath.map_pins import MapSlot, open_maps, pin_maps
from lb.datapath.pins import Pins, ensure_bpffs, remove_tree
from lb.errors import CompileError, DatapathError


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
    build = fingerprint(limits, bpf_dir)
    with pins.lock(), contextlib.ExitStack() as stack:
        slots = open_maps(pins, limits, stack)
        directory = pins.programs(build)
        ids = _pinned_programs(directory, programs, {bpf.map_info(slot.fd).id for slot in slots})
        compiled = ids is None
        if ids is None:
            staging = pins.staging(build)
            remove_tree(staging)
            staging.mkdir()
            try:
                ids = _compile(staging, slots, bpf_dir, programs)
            except DatapathError:
                remove_tree(staging)
                raise
        _write_constants(slots)
        fresh = pin_maps(pins, slots)
        if compiled:
            remove_tree(directory)
            pins.staging(build).rename(directory)
    paths = {name: directory / name for name in programs}
    return Loaded(paths, ids, build, compiled, fresh)


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
    """Return 16 hex digits over everything that a build depends on."""
    digest = hashlib.sha256()
    for path in sorted((*bpf_dir.rglob("*.c"), *bpf_dir.rglob("*.h"))):
        digest.update(f"{path.relative_to(bpf_dir)}\0".encode() + path.read_bytes() + b"\0")
    parts = {
        "assertions": [layouts.static_assertions(version) for version in layouts.FAMILIES],
        "limits": limits.as_dict(),
        "bcc": _bcc_version(),
        "kernel": platform.release(),
    }
    digest.update(json.dumps(parts, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _bcc_version() -> str:
    """Return the text of bcc's version file without importing bcc; empty when bcc is not installed."""
    spec = importlib.util.find_spec("bcc")
    if spec is None or spec.origin is None:
        return ""
    path = Path(spec.origin).with_name("version.py")
    return path.read_text() if path.is_file() else ""


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


def _compile(
    staging: Path, slots: Sequence[MapSlot], bpf_dir: Path, programs: Mapping[str, Program]
) -> dict[str, int]:
    """Run the child; return the program ids by name.

    Raises
    ------
    CompileError: with clang's or the verifier's words.
    """
    sources: dict[str, dict[str, tuple[int, int]]] = {}
    for name, program in programs.items():
        sources.setdefault(program.source, {})[name] = (int(program.type), program.number)
    maps = {slot.spec.name: slot.fd.fileno() for slot in slots}
    request = {
        "bpf_dir": str(bpf_dir),
        "maps": maps,
        "pin_dir": str(staging),
        "sources": [
            {
                "file": source,
                "array": program_array(source),
                "programs": rows,
                "twins": {n: twin(n) for n in rows},
            }
            for source, rows in sources.items()
        ],
    }
    package_root = Path(__file__).resolve().parent.parent.parent
    child = subprocess.run(
        [sys.executable, "-m", "lb.datapath.compile"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        pass_fds=tuple(maps.values()),
        process_group=0,  # Ctrl-C at the terminal is for the agent, which waits for the end of this
        env={**os.environ, "PYTHONPATH": f"{package_root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )
    try:
        answer = json.loads(child.stdout)
    except ValueError:
        answer = {"error": f"the compile process ended with code {child.returncode}"}
    if "error" in answer:
        raise CompileError(f"{answer['error']}\n{useful_lines(child.stderr)}".rstrip())
    return dict(answer["programs"])


def useful_lines(stderr: str, last: int = 40) -> str:
    """Shorten what clang and the verifier wrote: clang's errors with their context, else the last lines.

    The child announces each file as a line of NUL and its name; clang calls that file ``/virtual/main.c``.
    """
    file, _, words = stderr.rpartition("\0")[2].partition("\n")
    lines = words.replace("/virtual/main.c", file).splitlines()
    errors = [number for number, line in enumerate(lines) if "error:" in line]
    if errors:
        shown = sorted({at for number in errors[:5] for at in range(number, min(number + 3, len(lines)))})
        return "\n".join(lines[number] for number in shown)
    return "\n".join(lines[-last:])
