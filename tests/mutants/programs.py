# SPDX-License-Identifier: Apache-2.0
"""Mutants of the C: compiled many at a time, loaded one at a time, each given to packet tests by a child.

Nothing is written to the cache of compiled programs, and what is loaded is the family's that is tried.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lb.config import Limits
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps import layouts
from lb.datapath.programs import build, loader
from lb.datapath.programs.loops import close_by_jumps
from lb.errors import CompileError
from tests.compilers import clang
from tests.mutants.children import tested
from tests.mutants.making import Mutant
from tests.mutants.switched import MACRO, flip, switches, together
from tests.packet import harness

FILES = ("tc_lb.c", "xdp_lb.c")
REFUSED = "the kernel refused the program"
"""What the loader says where the verifier does not take a program."""
CONTROL = -1
"""The number of no switch: all statements as they are."""
_QUICK = "tests/packet/test_reject.py"
"""What a batch has to pass as it is, or it is halved."""


@dataclass(frozen=True, slots=True)
class Made:
    """What the compiler made of a batch, for one IP version.

    code: by function, with switches. held: the mutants by the number of their switch. alone: there is one,
    which has no switch. refused: those that the compiler did not take.
    """

    version: int
    code: Mapping[str, bytes]
    held: Mapping[int, Mutant]
    refused: Sequence[Mutant] = ()
    alone: bool = False

    def reached(self, number: int) -> bool:
        """Is there code that depends on the switch?"""
        return any(number in switches(each) for each in self.code.values())


def sources() -> dict[str, str]:
    """Return the headers of bpf/ by name."""
    return {path.name: path.read_text() for path in layouts.BPF_DIR.glob("*.h")}


def batches(mutants: Iterable[Mutant], size: int) -> Iterator[list[Mutant]]:
    """Yield mutants that can be compiled together, at most so many; those without a switch one by one."""
    texts, waiting = sources(), list[Mutant]()
    for mutant in mutants:
        if not together([mutant], texts)[1]:
            yield [mutant]
            continue
        if len(together([*waiting, mutant], texts)[1]) > len(waiting):
            waiting.append(mutant)
        if len(waiting) == size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def made(mutants: Sequence[Mutant], version: int, *, switch: bool = True) -> list[Made]:
    """Compile mutants, in as many parts as it takes: switches take some of a program's stack, 512 bytes.

    The last part is one mutant without a switch. switch: False: it is that already.
    """
    held, refused = list(mutants), list[Mutant]()
    with tempfile.TemporaryDirectory(prefix="lbctl-mutants-") as folder:
        bpf_dir = Path(folder) / "bpf"
        shutil.copytree(layouts.BPF_DIR, bpf_dir)
        numbers, alone = _written(bpf_dir, held, switch)
        while wrong := _wrong(bpf_dir, version, numbers):
            refused += wrong
            held = [each for each in held if each not in wrong]
            numbers, alone = _written(bpf_dir, held, switch)
        nothing = Made(version, {}, {}, refused)
        if not held:
            return [nothing]
        try:
            files = build._compile_family(bpf_dir, version, list(FILES), build._Children())
        except CompileError:
            done = None
        else:
            code = {name: b64decode(text) for each in files.values() for name, text in each.items()}
            done = Made(version, code, numbers, refused, alone)
            if not alone and not _loads(done):
                done = None
    if done:
        return [done]
    if len(held) == 1 and alone:
        return [replace(nothing, refused=[*refused, *held])]
    if len(held) == 1:
        return [nothing, *made(held, version, switch=False)]
    middle = len(held) // 2
    return [nothing, *made(held[:middle], version), *made(held[middle:], version)]


def _loads(made: Made) -> bool:
    """Tell whether the kernel takes a batch with no switch set, in which case the tests must pass with it."""
    became, words = fate(made, CONTROL, [_QUICK], 600)
    if became not in ("refused", "survived"):
        raise RuntimeError(f"with all statements as they are:\n{words}")
    return became == "survived"


def _written(bpf_dir: Path, mutants: Sequence[Mutant], switch: bool) -> tuple[dict[int, Mutant], bool]:
    """Write the mutants into a copy of bpf/; return them by their switches, and whether it is one without."""
    texts = sources()
    changed, held = together(mutants if switch else [], texts)
    alone = not held and bool(mutants)
    if alone:
        (mutant,) = mutants
        changed, held = {**texts, mutant.file: mutant.of(texts[mutant.file])}, {0: mutant}
    for file, text in changed.items():
        (bpf_dir / file).write_text(text)
    config = bpf_dir / "config.h"
    config.write_text(config.read_text().replace("#pragma once\n", f"#pragma once\n{MACRO}\n", 1))
    return held, alone


def _wrong(bpf_dir: Path, version: int, held: Mapping[int, Mutant]) -> list[Mutant]:
    """Return the mutants with which the C is none, as far as a compiler's first look can tell."""
    command = clang.available()[0]
    with tempfile.TemporaryDirectory(prefix="lbctl-clang-") as folder:
        flags = [*clang.headers(Path(folder)), *build.c_flags(bpf_dir, os.uname().machine, version)]
        for file in FILES:
            source = Path(folder) / file
            source.write_text(f"{(bpf_dir / file).read_text()}\n{layouts.static_assertions(version)}")
            argv = [command, "-fsyntax-only", "-D__KERNEL__", *flags, *clang.BCCS_OWN_WARNINGS, str(source)]
            said = subprocess.run(argv, capture_output=True, text=True, check=False)
            if not said.returncode:
                continue
            if len(held) == 1:
                return list(held.values())
            places = re.findall(r"(\w+\.h):(\d+):\d+:", said.stderr)
            wrong = [each for each in held.values() if any(_near(each, file, int(at)) for file, at in places)]
            if not wrong:
                raise RuntimeError(said.stderr)
            return wrong
    return []


def _near(mutant: Mutant, file: str, line: int) -> bool:
    return mutant.file == file and abs(mutant.line - line) <= 3  # a statement stands on its first line


def fate(found: Made, number: int, tests: Sequence[str], patience: float) -> tuple[str, str]:
    """Return what became of a mutant, one of FATES of __main__, and what pytest said."""
    became, words = tested(lambda: _load(found, number), ["-k", f"ipv{found.version}", *tests], patience)
    return ("refused" if REFUSED in words else became), words


def _load(found: Made, number: int) -> None:
    """Have packet tests load what was made, with one switch set."""
    chosen = {name: close_by_jumps(flip(each, number)) for name, each in found.code.items()}
    versions = layouts.FAMILIES if found.version == 6 else (4,)
    clean = build.instructions(layouts.BPF_DIR, FILES)
    build.obtain = lambda *_, **__: ({**clean, found.version: chosen}, False)

    def load(pins: Pins, limits: Limits, *, programs: Mapping[str, loader.Program]) -> loader.Loaded:
        mine = {
            name: replace(each, instances=dict.fromkeys(versions, 0))
            for name, each in programs.items()
            if not each.at_sockets
        }
        return loader.load(pins, limits, programs=mine)

    harness.load = load  # type: ignore[assignment, attr-defined]
