# SPDX-License-Identifier: Apache-2.0
"""Loops as the verifiers of older kernels take them.

The verifiers of Linux 5.10 and 6.1 let a loop be closed by a jump only. Where clang has laid one out so that
its last instruction falls through into its first, they say "back-edge from insn 7 to 8" and refuse the
program. A jump by nothing in between mends that; the kernel takes it out again once it has verified the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

INSN = np.dtype([("opcode", "u1"), ("registers", "u1"), ("offset", "i2"), ("imm", "i4")])
"""struct bpf_insn."""

_LD_IMM64 = 0x18  # of two slots
_GOTO, _CALL, _EXIT = 0x00, 0x80, 0x90
_JUMP_CLASSES = (5, 6)
_WAITING, _OPEN, _DONE = range(3)


def close_by_jumps(code: bytes) -> bytes:
    """Return the program with a jump wherever a loop would be closed by falling through."""
    rows = np.frombuffer(code, INSN)
    heads = sorted(set(fallen_into(rows)))
    if not heads:
        return code
    at = np.arange(len(rows))
    moved = at + np.searchsorted(heads, at, side="right")
    jumps = _is_jump(rows["opcode"])
    rows = rows.copy()
    rows["offset"][jumps] = (moved[(at + 1 + rows["offset"])[jumps]] - moved[jumps] - 1).astype("i2")
    return np.insert(rows, heads, np.array((0x05, 0, 0, 0), INSN)).tobytes()


def _is_jump(opcodes: NDArray[Any]) -> NDArray[np.bool_]:
    kind = opcodes & 0xF0
    found: NDArray[np.bool_] = np.isin(opcodes & 7, _JUMP_CLASSES) & (kind != _CALL) & (kind != _EXIT)
    return found


def _ways(at: int, opcode: int, offset: int) -> Iterator[tuple[int, bool]]:
    """Yield where an instruction leads, and whether it falls there: by no jump, be it one not taken."""
    kind = opcode & 0xF0
    if opcode & 7 not in _JUMP_CLASSES or kind == _CALL:
        yield at + (2 if opcode == _LD_IMM64 else 1), True
    elif kind != _EXIT:
        if kind != _GOTO:
            yield at + 1, False
        yield at + 1 + offset, False


def fallen_into(rows: NDArray[Any]) -> Iterator[int]:
    """Yield each instruction that one of its own loop falls through into, by the verifier's own walk."""
    opcodes, offsets = rows["opcode"].tolist(), rows["offset"].tolist()
    state = [_WAITING] * len(opcodes)
    state[0] = _OPEN
    stack = [(0, _ways(0, opcodes[0], offsets[0]))]
    while stack:
        at, ways = stack[-1]
        for to, falls in ways:
            if state[to] == _WAITING:
                state[to] = _OPEN
                stack.append((to, _ways(to, opcodes[to], offsets[to])))
                break
            if state[to] == _OPEN and falls:
                yield to
        else:
            state[at] = _DONE
            stack.pop()
