# SPDX-License-Identifier: Apache-2.0
"""Entries into the tables that the programs write, by two programs that no hook runs: ``bpf/adopt.c``.

Python cannot write into a bucket that a program may write into at the same time; a program can, with the
bucket's lock.
"""

from __future__ import annotations

import contextlib
import socket
from enum import IntEnum

import numpy as np

from lb.cutover import moves
from lb.cutover.moves import Move, flow_rows
from lb.datapath.kernel import bpf
from lb.datapath.kernel.bpf import FD, ProgType
from lb.datapath.kernel.closing import Closing
from lb.datapath.maps import layouts
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.layouts import ADDRESS, FAMILIES, pack_address
from lb.datapath.maps.map_pins import create_map
from lb.datapath.maps.map_table import MAP_SPECS, MapType, named_in_c
from lb.datapath.programs import build, features, loader
from lb.datapath.programs.build import HANDOVER, PROGRAM_ARRAY
from lb.datapath.programs.loader import Program
from lb.model import IPAddress

FILE = "adopt.c"
_FLOW, _AFFINITY = "lb_adopt_flow", "lb_adopt_affinity"
_LINK_HEADER = bytes(12) + b"\x88\xb5"  # a local experimental Ethertype (IEEE 802)


class Adopted(IntEnum):
    """enum adopted of bpf/adopt.c."""

    YES = 1
    BAD = 2
    KNOWN = 3
    TAKEN = 4


class Adopter(Closing):
    """The programs, for each family, loaded on an instance's maps; close it.

    Raises CompileError: clang or the kernel refused one. BpfError: the kernel refused a map.
    """

    def __init__(self, maps: KernelMaps) -> None:
        self._maps = maps
        self._stack = contextlib.ExitStack()
        try:
            self._programs = self._load(maps)
        except BaseException:
            self._stack.close()
            raise

    def close(self) -> None:
        """Let the programs go."""
        self._stack.close()

    def _load(self, maps: KernelMaps) -> dict[tuple[str, int], FD]:
        code = build.instructions(layouts.BPF_DIR, {FILE})
        # The programs at the hooks may interrupt these, and work in `scratch` themselves.
        room = self._stack.enter_context(create_map(MAP_SPECS["scratch"], 1))
        nothing = self._stack.enter_context(bpf.map_create(MapType.PROG_ARRAY, 4, 4, 1, name="lb_adopt"))
        program = Program(FILE, ProgType.SCHED_CLS, 0)
        loaded: dict[tuple[str, int], FD] = {}
        for version in FAMILIES:
            fds = {
                c_name: room.fileno() if name == "scratch" else maps.fd(name).fileno()
                for c_name, name in named_in_c(version).items()
            }
            fds |= {PROGRAM_ARRAY: nothing.fileno(), HANDOVER: nothing.fileno()}
            for name in (_FLOW, _AFFINITY):
                made = build.relocate(code[version][name], fds, features.optional(features.NO_FUNCTIONS))
                fd = loader.load_program(program, name, made, 0, ())
                loaded[name, version] = self._stack.enter_context(fd)
        return loaded

    def flow(self, move: Move) -> Adopted:
        """Make a connection a flow, both halves of it.

        Raises BpfError: the kernel refused.
        """
        version = move.client.version
        key, value = flow_rows(move)
        entry = key.tobytes() + bytes(-len(key.tobytes()) % 8) + value.tobytes()
        if all(move.tags):
            tags = np.array([*map(socket.htonl, move.tags)], layouts.ID)
            self._maps.update(f"tags{version}", moves.tag_keys(move), tags)
        return self._run(_FLOW, version, entry)

    def affinity(
        self, client: IPAddress, service: tuple[int, int], last_used: int, slot: tuple[int, int]
    ) -> None:
        """Let a client keep its backend, unless it has been given another one meanwhile.

        service: id of the Service port, and its affinity in seconds. last_used: CLOCK_MONOTONIC in ns. slot:
        the backend's id and generation.

        Raises BpfError: the kernel refused.
        """
        ident, seconds = service
        value = np.array([(last_used, *slot)], layouts.AFFINITY)
        key = np.zeros(1, layouts.AFFINITY_KEY[client.version])
        key["client"] = np.array([pack_address(client)], ADDRESS[client.version])
        key["service"] = ident
        entry = value.tobytes() + key.tobytes() + np.array([seconds], "u4").tobytes()
        self._run(_AFFINITY, client.version, entry + bytes(-len(entry) % 8))

    def _run(self, name: str, version: int, entry: bytes) -> Adopted:
        return Adopted(bpf.prog_test_run(self._programs[name, version], _LINK_HEADER + entry).retval)
