# SPDX-License-Identifier: Apache-2.0
"""The programs by each compiler that distributions bring: compiled, with stack to spare, and loaded."""

from __future__ import annotations

import functools
import re
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lb.datapath.kernel import bpf
from lb.datapath.kernel.pins import Pins, unload
from lb.datapath.maps import layouts
from lb.datapath.programs import build, loader
from lb.datapath.programs.loops import close_by_jumps
from tests.compilers import clang
from tests.packet.harness import LIMITS

MOST_STACK = 448
"""Bytes: of the 512 that the kernel gives a program, 64 stay free for what the next compiler spills."""

MOST_WORK = 750_000
"""Instructions: the verifier gives up after a million, and kernels differ in what they follow twice."""

Built = Mapping[tuple[str, int], Mapping[str, bytes]]
"""By file and IP version: the instructions of each function."""


@functools.cache
def built(command: str) -> Built | str:
    """Return what a compiler makes of all files, or one line for each program that it refuses."""
    parts = [
        (file, version) for file in sorted(loader.sources(loader.PROGRAMS)) for version in layouts.FAMILIES
    ]

    def one(part: tuple[str, int]) -> Mapping[str, bytes] | str:
        with tempfile.TemporaryDirectory(prefix="lbctl-clang-") as directory:
            try:
                return clang.compile_file(command, *part, Path(directory))
            except clang.RefusedError as error:
                return "\n".join(f"IPv{part[1]}, {command}, {part[0]}: {line}" for line in error.args)

    with ThreadPoolExecutor(2) as pool:
        made = dict(zip(parts, pool.map(one, parts), strict=True))
    refused = [why for why in made.values() if isinstance(why, str)]
    if refused:
        return "\n".join(refused)
    return {part: code for part, code in made.items() if not isinstance(code, str)}


@pytest.fixture(params=clang.available(), ids=str)
def compiler(request: pytest.FixtureRequest) -> str:
    """Each clang of this machine."""
    command: str = request.param
    return command


@pytest.fixture
def code(compiler: str) -> Built:
    """Everything, by that compiler."""
    found = built(compiler)
    assert not isinstance(found, str), f"\n{found}"
    return found


def test_there_are_compilers() -> None:
    """Without one, what follows would pass with nothing tried: scripts/setup dev installs them."""
    assert clang.available()


def test_every_program_leaves_room_on_its_stack(compiler: str, code: Built) -> None:
    uses = {
        f"{function} of IPv{version}": clang.stack_use(instructions)
        for (_, version), functions in code.items()
        for function, instructions in functions.items()
        if function in loader.PROGRAMS
    }
    assert len(uses) == len(layouts.FAMILIES) * len(loader.PROGRAMS)
    over = [
        f"{name}: {use} bytes of stack by {compiler}, at most {MOST_STACK}"
        for name, use in uses.items()
        if use > MOST_STACK
    ]
    assert not over, "\n" + "\n".join(over)


@pytest.fixture
def pins() -> Iterator[Pins]:
    """An instance of its own."""
    made = Pins(f"clang{uuid.uuid4().hex[:8]}")
    yield made
    unload(made)


def test_this_kernel_takes_every_program(
    compiler: str, code: Built, pins: Pins, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_family = {
        version: {
            function: close_by_jumps(instructions)
            for (_, of), functions in code.items()
            if of == version
            for function, instructions in functions.items()
        }
        for version in layouts.FAMILIES
    }
    monkeypatch.setattr(build, "obtain", lambda *_, **__: (by_family, False))
    loaded = loader.load(pins, LIMITS)
    assert loaded.compiled
    assert not loaded.refused
    work = {path.name: verifier_work(path) for path, _ in loader.pinned_programs(pins)}
    assert set(work) >= set(loader.PROGRAMS)
    over = [
        f"{name} by {compiler}: the verifier followed {steps:,} instructions, of 1,000,000 that it may"
        for name, steps in work.items()
        if steps > MOST_WORK
    ]
    assert not over, "\n" + "\n".join(over)


def verifier_work(path: Path) -> int:
    """Return how many instructions the verifier has followed in a pinned program; 0 where it does not say."""
    with bpf.obj_get(path) as program:
        told = Path(f"/proc/self/fdinfo/{program.fileno()}").read_text()
    found = re.search(r"verified_insns:\s*(\d+)", told)
    return int(found[1]) if found else 0


def test_stack_use_by_offset_and_by_copy() -> None:
    """*(u64 *)(r10 - 16) = r1; r2 = r10; r2 += -40; r3 = 5; r3 += -80; exit."""
    code = (
        "7b1af0ff00000000 bfa2000000000000 07020000d8ffffffb703000005000000 07030000b0ffffff 9500000000000000"
    )
    assert clang.stack_use(bytes.fromhex(code)) == 40
