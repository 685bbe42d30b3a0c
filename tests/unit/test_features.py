# SPDX-License-Identifier: Apache-2.0
"""What a kernel is asked for, and what it answers."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
import pytest

from lb.datapath.kernel import bpf, btf
from lb.datapath.kernel.bpf import FD, ProgType
from lb.datapath.maps import layouts, map_table
from lb.datapath.programs import build, features, loops
from lb.datapath.programs.loader import PROGRAMS

_CALL = 0x85


def test_this_kernel_has_all_that_is_needed() -> None:
    assert [need for need in (*features.required(), *features.at_sockets()) if not need.met] == []


@pytest.mark.parametrize("kind", [ProgType.XDP, ProgType.SCHED_CLS, ProgType.CGROUP_SOCK_ADDR])
def test_every_helper_that_a_program_calls_is_asked_for(kind: ProgType) -> None:
    sources = {program.source for program in PROGRAMS.values() if program.type is kind}
    called: set[int] = set()
    for programs in build.instructions(layouts.BPF_DIR, sources).values():
        for code in programs.values():
            rows = np.frombuffer(code, loops.INSN)
            called |= set(rows["imm"][(rows["opcode"] == _CALL) & (rows["registers"] >> 4 == 0)].tolist())
    called = {number for number in called if number < build.FUNCTION_MARK}  # no kernel functions
    assert called <= set(features.HELPERS[kind]) | set(features.COMMON_HELPERS)
    assert set(features.HELPERS[kind]) <= called


def test_a_helper_that_no_kernel_has() -> None:
    assert features.has_helper(ProgType.XDP, 100_000) == errno.EINVAL


def test_a_helper_of_another_kind_of_program() -> None:
    assert features.has_helper(ProgType.XDP, 9) == errno.EINVAL


def test_a_map_that_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    made = bpf.map_create

    def create(map_type: int, *shape: int, **more: Any) -> FD:
        return made(1000 if map_type == map_table.MapType.LPM_TRIE else map_type, *shape, **more)

    monkeypatch.setattr(bpf, "map_create", create)
    assert [(need.what, need.error) for need in features.required() if not need.met] == [
        ("lpm trie map", errno.EINVAL)
    ]


def test_conntrack_can_be_asked_where_the_kernel_has_the_functions() -> None:
    """Built in, or in a module that is loaded."""
    files = [path for path in (btf.VMLINUX, btf.FOLDER / "nf_conntrack") if path.exists()]
    there = any(b"bpf_xdp_ct_lookup\0" in path.read_bytes() for path in files)
    assert features.optional()["CONNTRACK"] is there


def test_a_module_that_is_not_there_has_no_type_information() -> None:
    assert bpf.module_btf("lbctl-has-no-module") is None


def test_a_program_may_come_with_descriptors() -> None:
    """The kernel looks at one only where an instruction names its place."""
    code = bytes.fromhex("b7000000000000009500000000000000")
    fd, log, error = bpf.prog_load(ProgType.SCHED_CLS, code, "lb_probe", log_size=4096, fds=(0, -1))
    assert fd is not None, (log, error)
    fd.close()
    call = features.call_kernel(1, 1) + code
    fd, log, error = bpf.prog_load(ProgType.SCHED_CLS, call, "lb_probe", log_size=4096, fds=(0, -1))
    assert (fd, error) == (None, errno.EBADF), log
