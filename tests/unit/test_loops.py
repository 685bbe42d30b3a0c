# SPDX-License-Identifier: Apache-2.0
"""The loops of older verifiers: no loop is closed by falling through, and nothing else changes."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import pytest

from lb.datapath.kernel import bpf
from lb.datapath.kernel.bpf import ProgType
from lb.datapath.maps import layouts
from lb.datapath.programs import build, features, loops
from lb.datapath.programs.build import FEATURE_MARK, MAP_MARK
from lb.datapath.programs.loader import PROGRAMS, sources

MOVE, ADD, IF_LESS, GOTO, CALL, EXIT, WIDE = 0xB7, 0x07, 0xA5, 0x05, 0x85, 0x95, 0x18
_JIFFIES = 118


def assembled(*rows: tuple[int, int, int, int]) -> bytes:
    """Return instructions of (opcode, registers, offset, value)."""
    return np.array(list(rows), loops.INSN).tobytes()


TURNED = assembled(
    (MOVE, 6, 0, 0),  # r6 = 0
    (GOTO, 0, 2, 0),  # into the middle of the loop
    (CALL, 0, 0, _JIFFIES),  # 2: the loop's end falls into its head
    (ADD, 6, 0, 1),  # 3: the head, r6 += 1; also jumped to
    (IF_LESS, 6, -3, 5),  # 4: if r6 < 5 goto 2
    (MOVE, 0, 0, 7),
    (EXIT, 0, 0, 0),
)
"""Entered at 4."""


def heads(code: bytes) -> list[int]:
    return list(loops.fallen_into(np.frombuffer(code, loops.INSN)))


def verdict(code: bytes) -> int:
    fd, log, _ = bpf.prog_load(ProgType.SCHED_CLS, code, "loop", log_size=1 << 16)
    assert fd is not None, log
    with fd:
        return bpf.prog_test_run(fd, bytes(64)).retval


def test_a_jump_closes_the_loop() -> None:
    assert heads(TURNED) == [4]
    closed = loops.close_by_jumps(TURNED)
    assert heads(closed) == []
    assert len(closed) == len(TURNED) + 8
    assert np.frombuffer(closed, loops.INSN)["opcode"].tolist().count(GOTO) == 2


def test_it_runs_on_every_kernel() -> None:
    assert verdict(loops.close_by_jumps(TURNED)) == 7


def test_what_it_mends_is_refused_by_older_kernels_and_runs_alike_on_newer_ones() -> None:
    fd, log, _ = bpf.prog_load(ProgType.SCHED_CLS, TURNED, "loop", log_size=1 << 16)
    if fd is None:
        assert "back-edge from insn 3 to 4" in log
    else:
        fd.close()
        assert verdict(TURNED) == 7


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([(MOVE, 0, 0, 0), (EXIT, 0, 0, 0)], id="straight"),
        pytest.param(
            [(MOVE, 0, 0, 0), (ADD, 0, 0, 1), (IF_LESS, 0, -2, 5), (EXIT, 0, 0, 0)], id="closed by a jump"
        ),
        pytest.param(
            [(MOVE, 0, 0, 0), (GOTO, 0, 1, 0), (IF_LESS, 0, 2, 1), (ADD, 0, 0, 1), (GOTO, 0, -3, 0), (EXIT, 0, 0, 0)],  # noqa: E501
            id="a branch not taken may fall",
        ),
    ],
)  # fmt: skip
def test_what_is_well_stays_as_it_is(rows: Sequence[tuple[int, int, int, int]]) -> None:
    code = assembled(*rows)
    assert loops.close_by_jumps(code) == code


def test_a_constant_of_two_slots_is_one_instruction() -> None:
    code = assembled((WIDE, 0, 0, 1), (0, 0, 0, 0), (EXIT, 0, 0, 0))
    assert loops.close_by_jumps(code) == code


def test_the_programs_have_no_such_loop() -> None:
    for programs in build.instructions(layouts.BPF_DIR, sources(PROGRAMS)).values():
        assert {name: heads(code) for name, code in programs.items() if heads(code)} == {}


def test_marks_become_descriptors_and_features() -> None:
    code = assembled(
        (WIDE, 1 | 1 << 4, 0, MAP_MARK),
        (0, 0, 0, 0),
        (WIDE, 1, 0, FEATURE_MARK),
        (0, 0, 0, 0),
        (EXIT, 0, 0, 0),
    )
    for has in (False, True):
        rows = np.frombuffer(
            build.relocate(
                code, {"programs": 42}, {"SET_RETVAL": has, "CONNTRACK": has, "IP_SUMMED": 0, "FIB_MTU": 1}
            ),
            loops.INSN,
        )
        assert rows["imm"].tolist() == [42, 0, int(has), 0, 0]


@pytest.mark.parametrize("module", [False, True])
def test_calls_of_the_kernels_functions_name_their_type_information(module: bool) -> None:
    """A module's is named by its place among the descriptors that go with the program."""
    code = assembled((CALL, 0, 0, build.FUNCTION_MARK + 1), (CALL, 0, 0, 5), (EXIT, 0, 0, 0))
    has = {"SET_RETVAL": True, "CONNTRACK": True, "IP_SUMMED": 0, "FIB_MTU": 1}
    with bpf.FD(os.open("/dev/null", os.O_RDONLY), "a module's") as fd:
        functions = features.KernelFunctions({"bpf_xdp_ct_lookup": 4711}, fd if module else None)
        rows = np.frombuffer(build.relocate(code, {}, has, functions), loops.INSN)
        assert functions.fds == ((0, fd.fileno()) if module else ())
    assert rows["imm"].tolist() == [4711, 5, 0]
    assert rows["registers"].tolist() == [2 << 4, 0, 0]
    assert rows["offset"].tolist() == [int(module), 0, 0]
    other = np.frombuffer(build.relocate(code, {}, has), loops.INSN)
    assert (other["registers"].tolist(), other["offset"].tolist()) == ([0, 0, 0], [0, 0, 0])
