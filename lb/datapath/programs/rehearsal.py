# SPDX-License-Identifier: Apache-2.0
"""A second data plane to try packets on: the programs that run, with copies of the maps that they write.

What Python writes (VIPs, backends, tables, settings, …) is read from the live maps. What the programs write
(flows, affinity, fragments, counters, …) is a copy, pinned nowhere and gone with this process: a packet that
is run here by BPF_PROG_TEST_RUN leaves the live state as it was, byte for byte.

Each program is compared with the one that runs: the kernel's tag of a program is a hash of its instructions
without the maps that they name, and a program whose tag differs from that of the pinned one is refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from lb.datapath.kernel import batch, bpf, privileges
from lb.datapath.kernel.bpf import FD, ProgType
from lb.datapath.kernel.closing import Closing
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps import cache, layouts
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.map_pins import create_map, read_rows
from lb.datapath.maps.map_table import MAP_SPECS, MAPS, MapType, Writer, named_in_c
from lb.datapath.programs import build, features, loader
from lb.datapath.programs.loader import PROGRAMS
from lb.errors import BpfError, DatapathError

PRIVATE = tuple(spec.name for spec in MAPS if spec.writer is not Writer.PYTHON)
"""The maps that the programs write. The others they only read: here those are the live ones. That somebody
watches the live programs is in a map that they write, so nobody is told of what is tried here."""


class Verdict(StrEnum):
    """What a hook does with a packet.

    PASS: on, to the stack or out of the interface; SEND: past both; HELD: it waits for the first piece of its
    datagram.
    """

    PASS = "pass"  # noqa: S105 - a verdict, no password
    DROP = "drop"
    SEND = "send"
    HELD = "held"


_SHORTEST = 14
"""Bytes of the shortest frame that the kernel tries: an Ethernet header."""

_XDP_VERDICTS = {1: Verdict.DROP, 2: Verdict.PASS, 3: Verdict.SEND, 4: Verdict.SEND}
_TC_VERDICTS = {-1: Verdict.PASS, 2: Verdict.DROP, 4: Verdict.HELD, 7: Verdict.SEND}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one program did with one packet: frame is what came out, hook and reason are as counted."""

    program: str
    hook: str
    reason: str
    meaning: str
    verdict: Verdict
    frame: bytes


class Shadow(Closing):
    """The programs of one build on their private maps; close it.

    Parameters
    ----------
    directory: the pinned programs that are to be matched, one of :meth:`lb.datapath.kernel.pins.Pins.builds`.
    programs: the names of those that hooks run and that :meth:`run` is to be called for.
    versions: the IP versions of the packets.

    Attributes
    ----------
    maps: what the programs see: live maps and, of :data:`PRIVATE`, their own.

    Raises DatapathError: the pinned programs are of another build than this source, or use other maps.
    Raises BpfError, CompileError: the kernel refused.
    """

    def __init__(self, pins: Pins, directory: Path, programs: Iterable[str], versions: Iterable[int]) -> None:
        privileges.check()
        bpf.unlimit_memory()
        self._stack = contextlib.ExitStack()
        try:
            self.maps = self._copy_state(pins, set(versions))
            self._programs = self._load(directory, list(programs), set(versions))
        except BaseException:
            self._stack.close()
            raise

    def close(self) -> None:
        """Let programs and maps go."""
        self._stack.close()

    def _copy_state(self, pins: Pins, versions: set[int]) -> KernelMaps:
        """Make the private maps; flows, affinity and fragments of these IP versions as the live ones are."""
        private: dict[str, FD] = {}
        maps = self._stack.enter_context(KernelMaps(pins.maps, private))
        with KernelMaps(pins.maps) as live:
            for name in PRIVATE:
                spec, source = MAP_SPECS[name], live.fd(name)
                copied = spec.version in versions and spec.type in (MapType.CACHE, MapType.LRU_HASH)
                entries = bpf.map_info(source).max_entries if copied or not spec.version else 1
                private[name] = target = self._stack.enter_context(create_map(spec, entries))
                if copied and spec.type is MapType.CACHE:
                    cache.clone(source, target, spec)
                elif copied:
                    batch.update_all(target, *read_rows(source, spec))
        return maps

    def _load(self, directory: Path, hooks: list[str], versions: set[int]) -> Mapping[str, FD]:
        """Load the programs of the hooks, their twins, and the steps that they may go on in.

        A hook runs the IPv4 program, whatever the packet; the steps are those of the packet's own IP version.
        The steps of direct return are pinned only where it is on.
        """
        sources = {PROGRAMS[name].source for name in hooks}
        steps = len(layouts.HOOKS)
        wanted = {
            name: program
            for name, program in PROGRAMS.items()
            if program.source in sources
            and (name in hooks or (program.number >= steps and (directory / name).exists()))
        }
        pinned = {
            (name, version): _info(directory / loader.pin_name(name, version))
            for name in wanted
            for version in ({4} | versions if name in hooks else versions)
        }
        self._check_maps(directory, {loader.program_array(one) for one in sources}, pinned.values())
        code = build.instructions(layouts.BPF_DIR, sources)
        functions = self._stack.enter_context(features.kernel_functions())
        arrays = {
            source: self._stack.enter_context(
                bpf.map_create(MapType.PROG_ARRAY, 4, 4, 2 * layouts.PROGRAMS_PER_FAMILY, name="lb_shadow")
            )
            for source in sources
        }
        handover = self._stack.enter_context(bpf.map_create(MapType.PROG_ARRAY, 4, 4, 1, name="lb_shadow"))
        entries: dict[str, FD] = {}
        fds = {version: self._fds(version) for _, version in pinned}

        def load(name: str, version: int, functions: features.KernelFunctions) -> FD:
            program = wanted[name]
            array = arrays[program.source].fileno()
            named = fds[version] | {build.PROGRAM_ARRAY: array, build.HANDOVER: handover.fileno()}
            made = build.relocate(code[version][name], named, features.optional(functions), functions)
            return loader.load_program(program, name, made, 0, functions.fds)

        # Where netfilter is a module the agent may have had no right to its functions.
        for allowed in (functions, functions.without_module()) if functions.module else (functions,):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                loads = {key: pool.submit(load, *key, allowed) for key in pinned}
            loaded = {key: self._stack.enter_context(each.result()) for key, each in loads.items()}
            others = [key for key, fd in loaded.items() if bpf.prog_info(fd).tag != pinned[key].tag]
            if not others:
                break
        if others:
            raise DatapathError(
                f"{directory / loader.pin_name(*others[0])}: the program that runs is not that of this"
                " lbctl: trace with the version that the agent has, or restart the agent with this one"
            )
        for (name, version), fd in loaded.items():
            program = wanted[name]
            place = np.array([program.place(version)], "u4")
            bpf.map_update(arrays[program.source], place, np.array([fd.fileno()], "u4"))
            if version == 4 and name in hooks:
                entries[name] = fd
        return entries

    def _fds(self, version: int) -> dict[str, int]:
        """Return the maps of a program by their names in C."""
        return {c_name: self.maps.fd(name).fileno() for c_name, name in named_in_c(version).items()}

    def _check_maps(self, directory: Path, arrays: set[str], programs: Iterable[bpf.ProgInfo]) -> None:
        """Refuse a build that works on other maps than the pinned ones: an older one, before its end."""
        known = set()
        for spec in MAPS:
            with bpf.obj_get(self.maps.pin_dir / spec.name) as fd:
                known.add(bpf.map_info(fd).id)
        for path in (directory.parent / build.HANDOVER, *(directory / name for name in arrays)):
            with bpf.obj_get(path) as fd:
                known.add(bpf.map_info(fd).id)
        for info in programs:
            if not known.issuperset(info.map_ids):
                raise DatapathError(
                    f"{directory}: {info.name} works on maps that are no longer pinned: an upgrade is under"
                    " way; try again when the agent has synced"
                )

    def run(self, program: str, frame: bytes, *, ifindex: int, came_in: int = 0) -> Outcome:
        """Run the program of a hook on a frame, in the network namespace of the caller.

        frame: from the Ethernet header on. ifindex: the interface of the hook. came_in: at a tc egress hook,
        the ifindex that the packet came in by; 0: a process of this host has sent it.

        Raises BpfError: the kernel refused; DatapathError: it cannot be told the interface.
        """
        kind = PROGRAMS[program].type
        if kind is ProgType.XDP:  # struct xdp_md: data, data_end, data_meta, ingress_ifindex, …
            ctx = struct.pack("=IIIIII", 0, len(frame), 0, ifindex, 0, 0)
        else:  # struct __sk_buff: ingress_ifindex and ifindex are the 10th and 11th words
            ctx = struct.pack("=36xII", came_in, ifindex)
        before = self._counted()
        try:
            run = bpf.prog_test_run(self._programs[program], frame, ctx, room=len(frame) + 256)
        except BpfError as error:
            if error.errno == errno.EINVAL and len(frame) >= _SHORTEST:
                raise DatapathError(
                    f"{program}: this kernel cannot try a packet at interface {ifindex}: its"
                    " BPF_PROG_TEST_RUN takes no context that names it (see docs/kernels.md)"
                ) from error
            raise
        (index,) = np.flatnonzero(self._counted() != before)
        hook, reason = divmod(int(index), layouts.REASONS_PER_HOOK)
        verdicts = _XDP_VERDICTS if kind is ProgType.XDP else _TC_VERDICTS
        return Outcome(
            program, layouts.HOOKS[hook][0], *layouts.REASONS[reason], verdicts[run.retval], run.data
        )

    def _counted(self) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        packets: np.ndarray[tuple[int], np.dtype[np.uint64]] = self.maps.read("reasons")[1]["packets"].sum(
            axis=1
        )
        return packets


def _info(path: Path) -> bpf.ProgInfo:
    with bpf.obj_get(path) as fd:
        return bpf.prog_info(fd)
