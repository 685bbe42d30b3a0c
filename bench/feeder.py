# SPDX-License-Identifier: Apache-2.0
"""The data plane's programs, fed by BPF_PROG_TEST_RUN through the bench-only programs of cost.h."""

from __future__ import annotations

import contextlib
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from lb.config import Limits
from lb.datapath.kernel import bpf
from lb.datapath.kernel.bpf import ProgType
from lb.datapath.maps import layouts
from lb.datapath.maps.map_table import BPF_F_MMAPABLE, MapType
from lb.datapath.programs import features
from lb.datapath.programs.build import PROGRAM_ARRAY, instructions, relocate
from lb.datapath.programs.loader import PROGRAMS, Program, load
from lb.plan.types import ServicePlan
from tests import packets as p
from tests.packet.harness import HOOK_OF, TC_POD_IN, TC_POD_OUT, TC_UPLINK_OUT, XDP, Datapath

_KINDS = {"xdp": ProgType.XDP, "tc": ProgType.SCHED_CLS}
_FEED = np.dtype(
    [("state", "u4"), ("mask", "u4"), ("vary_src", "u4"), ("vary_dst", "u4"), ("head", "u1", (80,))]
)
_HEAD = {4: 56, 6: 80}  # bytes of a frame that are restored, as in cost.h
_ALL_BITS = 0xFFFF_FFFF
_FIRST = np.zeros(1, "u4")
_IDLE_PORT = 4
_IDLE_NET = 0x0A68_0000  # 10.104.0.0: among the clusterIPs, and nobody's in tests/packets.py


@dataclass(frozen=True, slots=True)
class Traffic:
    """Packets that differ in their client alone: the source, or the destination where they are replies.

    clients is a power of two; what numbers them is set in no bit of the frame's client address.
    """

    program: str
    frame: bytes
    clients: int = 1
    to_clients: bool = False
    version: int = 4

    @property
    def kind(self) -> str:
        """Return "xdp" or "tc"."""
        return "xdp" if self.program == XDP else "tc"

    @property
    def alone(self) -> Traffic:
        """Return the same of one client."""
        return replace(self, clients=1)


class Feeder:
    """The loaded programs, and those of cost_xdp.c and cost_tc.c around them.

    Raises
    ------
    CompileError, BpfError: clang or the kernel refused something.
    """

    def __init__(self, limits: Limits, programs: Mapping[str, Program] = PROGRAMS) -> None:
        with contextlib.ExitStack() as stack:
            self.datapath = Datapath(limits, programs)
            stack.callback(self.datapath.close)
            loaded = load(self.datapath.pins, limits, programs=programs)
            self._programs = {
                name: stack.enter_context(bpf.obj_get(path)) for name, path in loaded.programs.items()
            }
            self._arrays: dict[tuple[str, int], bpf.FD] = {}
            self._feeds: dict[tuple[str, int], bpf.FD] = {}
            self._load(stack)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _load(self, stack: contextlib.ExitStack) -> None:
        with _sources() as directory:
            code = instructions(directory, [f"cost_{kind}.c" for kind in _KINDS])
        has = features.optional()
        for version in layouts.FAMILIES:
            vips = stack.enter_context(bpf.obj_get(self.datapath.pins.maps / f"vips{version}"))
            for kind, of in _KINDS.items():
                array = stack.enter_context(bpf.map_create(MapType.PROG_ARRAY, 4, 4, 1, name="under_test"))
                feed = stack.enter_context(
                    bpf.map_create(MapType.ARRAY, 4, _FEED.itemsize, 1, flags=BPF_F_MMAPABLE, name="feed")
                )
                fds = {PROGRAM_ARRAY: array.fileno(), "scratch": feed.fileno(), "vips": vips.fileno()}
                for name in (f"{kind}_{part}" for part in ("feed", "empty", "floor")):
                    loadable = relocate(code[version][name], fds, has)
                    fd, log, _ = bpf.prog_load(of, loadable, name, log_size=1 << 20)
                    if fd is None:
                        raise RuntimeError(f"the kernel refused {name}: {log}")
                    self._programs[f"{name}{version}"] = stack.enter_context(fd)
                self._arrays[kind, version], self._feeds[kind, version] = array, feed

    def set_up(self, plans: Sequence[ServicePlan], cluster_nets: Mapping[int, tuple[Any, Any]]) -> None:
        """Let there be these Services and no flow; cluster_nets: network and mask as maps hold them."""
        for version, (network, mask) in cluster_nets.items():
            with p.family(version):
                self.datapath.reset()
                row = self.datapath.array("settings")[0:1]
                row["cluster_net"], row["cluster_mask"] = network, mask
        self.datapath.apply(*plans)

    def add_idle_services(self, count: int) -> None:
        """Let there be so many VIPs more that nobody talks to, each of a TCP port in IPv4."""
        keys, values = self.datapath.maps.read("vips4")
        rows = np.zeros(count, layouts.VIP_KEY[4])
        rows["address"] = _IDLE_NET + np.arange(count)
        rows["port"], rows["protocol"] = _IDLE_PORT, 6
        like = values[keys["port"] != _IDLE_PORT][:1]
        self.datapath.maps.update("vips4", rows, np.repeat(like, count))

    def remove_idle_services(self) -> None:
        """Undo :meth:`add_idle_services`."""
        keys, _ = self.datapath.maps.read("vips4")
        self.datapath.maps.delete("vips4", keys[keys["port"] == _IDLE_PORT])

    def forget(self, network: int, prefix: int) -> None:
        """Delete the IPv4 flows and the affinity of the clients in a network."""
        maps, shift = self.datapath.maps, 32 - prefix
        keys, _ = maps.read("flows4")
        of = (keys["src"] >> shift == network >> shift) | (keys["dst"] >> shift == network >> shift)
        maps.delete("flows4", keys[of])
        keys, _ = maps.read("affinity4")
        maps.delete("affinity4", keys[keys["client"] >> shift == network >> shift])

    def run(self, traffic: Traffic, repeat: int, *, instead: str = "", go_on: bool = False) -> float:
        """Feed traffic to its program, or to one of the bench's instead ; return ns of CPU time for each run.

        The feeder's time is in it. The bench's own programs are "empty" and "floor".

        go_on: with the clients who are next; else from the first one on.
        """
        where = traffic.kind, traffic.version
        row = np.zeros(1, _FEED)
        if go_on:
            bpf.map_lookup(self._feeds[where], _FIRST, row)
        row["mask"] = traffic.clients - 1
        row["vary_src"], row["vary_dst"] = (0, _ALL_BITS) if traffic.to_clients else (_ALL_BITS, 0)
        head = np.frombuffer(traffic.frame[: _HEAD[traffic.version]], "u1")
        row["head"][0, : len(head)] = head
        bpf.map_update(self._feeds[where], _FIRST, row)
        name = f"{traffic.kind}_{instead}{traffic.version}" if instead else traffic.program
        bpf.map_update(self._arrays[where], _FIRST, np.array([self._programs[name].fileno()], "u4"))
        return self._timed(f"{traffic.kind}_feed{traffic.version}", traffic, repeat)

    def run_alone(self, name: str, traffic: Traffic, repeat: int) -> float:
        """Run one of the bench's programs that leave the packet as it is: "empty", "floor"; return as run."""
        return self._timed(f"{traffic.kind}_{name}{traffic.version}", traffic, repeat)

    def _timed(self, program: str, traffic: Traffic, repeat: int) -> float:
        path = self.datapath
        own = path.pod if traffic.program in (TC_POD_IN, TC_POD_OUT) else path.uplink
        if traffic.kind == "xdp":
            ctx = struct.pack("=IIIIII", 0, len(traffic.frame), 0, own, 0, 0)
        else:
            came_in = path.pod if traffic.program == TC_UPLINK_OUT else path.uplink
            ctx = struct.pack("=36xII148x", came_in, own)
        with path.namespace.entered():
            before = time.thread_time_ns()
            bpf.prog_test_run(self._programs[program], traffic.frame, ctx, repeat=repeat)
            return (time.thread_time_ns() - before) / repeat

    def proved(
        self, traffic: Traffic, reason: str, repeat: int, *, strays: int = 0, go_on: bool = False
    ) -> float:
        """Run as :meth:`run` does.

        strays: how many packets may take another way. Of very many flows a few share a bucket with more than
        it holds, and take turns there.

        Raises
        ------
        RuntimeError: not exactly so many packets were counted, or more than strays not for this reason.
        """
        before = self.datapath.counters()
        cost = self.run(traffic, repeat, go_on=go_on)
        after = self.datapath.counters()
        moved = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
        hit = moved.get((HOOK_OF[traffic.program], reason), 0)
        if sum(moved.values()) != repeat or hit < repeat - strays:
            raise RuntimeError(f"{repeat} packets were to be counted as {reason}, but there were {moved}")
        return cost


@contextlib.contextmanager
def _sources() -> Iterator[Path]:
    """Yield a directory with bpf/ and the bench's own programs in it."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for path in (*layouts.BPF_DIR.iterdir(), *Path(__file__).parent.glob("cost*.[ch]")):
            (directory / path.name).symlink_to(path)
        yield directory
