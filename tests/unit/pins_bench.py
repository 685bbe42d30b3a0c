# SPDX-License-Identifier: Apache-2.0
"""Instances of the tests' own in the bpf file system, and a small C tree that compiles quickly."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from lb.config import Limits
from lb.datapath.kernel import bpf
from lb.datapath.kernel.bpf import ProgType
from lb.datapath.kernel.pins import Pins, ensure_bpffs, unload
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.layouts import BPF_DIR
from lb.datapath.maps.map_pins import open_maps, pin_maps
from lb.datapath.maps.map_table import sizes
from lb.datapath.programs import loader
from lb.datapath.programs.loader import Loaded, Program

ROOT = Path(__file__).resolve().parent.parent.parent
LIMITS = Limits(vips=64, backends=64, table_rows=1024, flows=256, affinity=64, services=64)

TINY: Mapping[str, Program] = {
    "lb_xdp_tiny": Program("xdp_tiny.c", ProgType.XDP, 0),
    "lb_tc_tiny": Program("tc_tiny.c", ProgType.SCHED_CLS, 1),
}
XDP_SOURCE = """#include "cache.h"
#include "reasons.h"

int lb_xdp_tiny(struct xdp_md *ctx)
{
	const struct settings *settings = get_settings();

	return settings && settings->udp_ns == 7 ? XDP_DROP : XDP_PASS;
}
"""
TC_SOURCE = """#include "cache.h"
#include "reasons.h"

int lb_tc_tiny(struct __sk_buff *ctx)
{
	return -1;
}
"""


@contextlib.contextmanager
def own_pins() -> Iterator[Pins]:
    """Give an instance that nobody else has, and remove its pins."""
    pins = Pins(f"test.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        yield pins
    finally:
        unload(pins)


def pin_empty_maps(pins: Pins, limits: Limits = LIMITS) -> frozenset[str]:
    """Pin the maps without any program; return the names of the fresh ones."""
    ensure_bpffs()
    with pins.lock(), contextlib.ExitStack() as stack:
        return pin_maps(pins, open_maps(pins, sizes(limits), stack))


def tiny_tree(directory: Path) -> Path:
    """Make a copy of bpf/'s headers with two small programs; return it."""
    tree = directory / "bpf"
    tree.mkdir()
    for header in BPF_DIR.glob("*.h"):
        shutil.copy(header, tree)
    shutil.copytree(BPF_DIR / "include", tree / "include")
    (tree / "xdp_tiny.c").write_text(XDP_SOURCE)
    (tree / "tc_tiny.c").write_text(TC_SOURCE)
    return tree


def load(pins: Pins, tree: Path, limits: Limits = LIMITS) -> Loaded:
    return loader.load(pins, limits, bpf_dir=tree, programs=TINY)


def map_ids(pins: Pins) -> dict[str, int]:
    found = {}
    for path in pins.maps.iterdir():
        with bpf.obj_get(path) as fd:
            found[path.name] = bpf.map_info(fd).id
    return found


def verdict(loaded: Loaded) -> int:
    with bpf.obj_get(loaded.programs["lb_xdp_tiny"]) as fd:
        return bpf.prog_test_run(fd, bytes(64)).retval


def set_udp_ns(pins: Pins, value: int) -> None:
    maps = KernelMaps(pins.maps)
    maps.array("settings4")["udp_ns"] = value
    maps.close()
