# SPDX-License-Identifier: Apache-2.0
"""Other compilers than the one inside the bcc of this machine, run as bcc runs its own.

bcc compiles in two passes: clang optimises for the machine that it runs on (``-O2``), then LLVM makes BPF
of the result (``-O3``). A clang of the distribution can do both. Its programs differ from those of bcc 0.26
(clang 14) and bcc 0.31 (clang 19) in few instructions of thousands, so they show what another distribution's
bcc would make, without that distribution.

The helpers' declarations come from this machine's libbcc, which carries them as text.
"""

from __future__ import annotations

import platform
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lb.datapath.maps import layouts
from lb.datapath.programs import build
from lb.datapath.programs.loops import INSN

VERSIONS = (14, 18, 19)
"""Those inside the bcc of Debian 12 (14), Ubuntu 24.04 (18) and Debian 13 (19)."""

BCCS_OWN_WARNINGS = (
    "-Wno-address-of-packed-member",
    "-Wno-gnu-variable-sized-type-not-at-end",
    "-Wno-pragma-once-outside-header",
)
"""What bcc switches off; all else is an error, as it is there."""
_DATA_LAYOUT = "e-m:e-p:64:64-i64:64-i128:128-n32:64-S128"
_SYMBOL_TABLE, _RELOCATIONS, _FUNCTION = 2, (4, 9), 2  # SHT_SYMTAB; SHT_RELA, SHT_REL; STT_FUNC
_FRAME_POINTER = 10


class RefusedError(Exception):
    """clang refused: each argument is a line that names the function, or what clang said first."""


def available() -> list[str]:
    """Return the commands of this machine's compilers, of VERSIONS."""
    return [name for name in (f"clang-{version}" for version in VERSIONS) if shutil.which(name)]


def headers(directory: Path) -> list[str]:
    """Put bcc's declarations into a directory; return clang's options that have them included."""
    library = Path(_libbcc()).read_bytes()
    (directory / "bcc").mkdir()
    (directory / "bcc" / "bpf.h").write_bytes(
        _carried(library, b"enum bpf_func_id {", b"/* SPDX-License-Identifier")
    )
    (directory / "helpers.h").write_bytes(_carried(library, b'asm("llvm.bpf.pseudo")', b"\0\n"))
    tree = layouts.BPF_DIR / "include"
    return [f"-isystem{directory}", f"-isystem{tree}", "-include", "linux/kconfig.h", "-include", "helpers.h"]


def _carried(library: bytes, mark: bytes, begin: bytes) -> bytes:
    """Return the text around a mark, from the last `begin` before it to the NUL behind it."""
    at = library.index(mark)
    return library[library.rindex(begin, 0, at) : library.index(b"\0", at)].lstrip(b"\0")


def _libbcc() -> str:
    """Return the path of the library that bcc's Python loads."""
    for directory in (f"/usr/lib/{platform.machine()}-linux-gnu", "/usr/lib64", "/usr/lib"):
        path = Path(directory) / "libbcc.so.0"
        if path.exists():
            return str(path)
    raise FileNotFoundError("libbcc.so.0: install python3-bpfcc")


def compile_file(clang: str, file: str, version: int, directory: Path) -> dict[str, bytes]:
    """Return the instructions of each function of a file in bpf/ for one IP version.

    directory: empty, for what lies between the passes.

    Raises
    ------
    RefusedError: clang found an error, or a function needs more stack than there is.
    """
    source = directory / file
    source.write_text(f"{(layouts.BPF_DIR / file).read_text()}\n{layouts.static_assertions(version)}")
    machine_code, generic = directory / "o.ll", directory / "generic.ll"
    flags = build.c_flags(layouts.BPF_DIR, platform.machine(), version)
    plain = ["-fno-jump-tables", "-fno-asynchronous-unwind-tables", *BCCS_OWN_WARNINGS]
    front = [clang, "-O2", "-S", "-emit-llvm", "-D__KERNEL__", *headers(directory), *flags, *plain]
    _run([*front, "-x", "c", str(source), "-o", str(machine_code)])
    generic.write_text(_for_bpf(machine_code.read_text()))
    out = directory / "o.o"
    back = [clang, "-target", "bpf", "-O3", "-mcpu=v1", "-Wno-override-module", "-x", "ir", str(generic)]
    _run([*back, "-c", "-o", str(out)])
    return dict(_functions(out.read_bytes()))


def check(clang: str, text: str, version: int, options: list[str]) -> str:
    """Return what a compiler says against a text for one IP version, which it reads and does not compile.

    options: those of :func:`headers`.
    """
    flags = [*options, *build.c_flags(layouts.BPF_DIR, platform.machine(), version), *BCCS_OWN_WARNINGS]
    argv = [clang, "-fsyntax-only", "-O2", "-D__KERNEL__", *flags, "-x", "c", "-"]
    child = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    return child.stderr or (f"it ended with code {child.returncode}" if child.returncode else "")


def _for_bpf(text: str) -> str:
    """Return a module for BPF instead of this machine, in LLVM's textual form."""
    text = re.sub(r"^target datalayout = .*$", f'target datalayout = "{_DATA_LAYOUT}"', text, flags=re.M)
    text = re.sub(r"^target triple = .*$", 'target triple = "bpf-pc-linux"', text, flags=re.M)
    return re.sub(r'"(?:target-cpu|tune-cpu|target-features)"="[^"]*"', "", text)


def _run(argv: list[str]) -> None:
    child = subprocess.run(argv, capture_output=True, text=True, check=False)
    if child.returncode == 0:
        return
    errors = [line for line in child.stderr.splitlines() if "error:" in line]
    beyond = sorted({_function_of(line) for line in errors if "BPF stack limit" in line})
    lines = [f"{name} needs more than the 512 bytes of stack" for name in beyond]
    raise RefusedError(*(lines or errors[:1] or [child.stderr[-500:]]))


def _function_of(line: str) -> str:
    found = re.search(r"in function (\w+)", line)
    return found[1] if found else "a function"


def _functions(elf: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the functions of a relocatable ELF file of 64 bits, little-endian: name and bytes."""
    start, size, count = *struct.unpack_from("<Q", elf, 0x28), *struct.unpack_from("<HH", elf, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, start + number * size) for number in range(count)]
    for _, kind, _, _, at, length, strings, _, _, _ in sections:
        if kind in _RELOCATIONS and length:
            raise RefusedError("there are relocations, which nothing here resolves")
        if kind != _SYMBOL_TABLE:
            continue
        names = sections[strings][4]
        for symbol in range(at, at + length, 24):
            name, info, _, section, value, extent = struct.unpack_from("<IBBHQQ", elf, symbol)
            if info & 15 == _FUNCTION:
                begin = names + name
                text = elf[begin : elf.index(b"\0", begin)].decode()
                where = sections[section][4] + value
                yield text, elf[where : where + extent]


def stack_use(code: bytes) -> int:
    """Return how many bytes of its stack a program uses, by its instructions.

    These are the offsets of loads and stores that go by the frame pointer, and what is taken off its copies.
    """
    deepest = 0
    copies: set[int] = set()
    for opcode, registers, offset, immediate in np.frombuffer(code, INSN).tolist():
        to, source = registers & 15, registers >> 4
        kind = opcode & 7
        if (kind == 1 and source == _FRAME_POINTER) or (kind in (2, 3) and to == _FRAME_POINTER):
            deepest = min(deepest, offset)
        if opcode == 0xBF:  # a register to another
            copies.discard(to)
            if source == _FRAME_POINTER:
                copies.add(to)
        elif opcode == 0x07 and to in copies:  # plus a number
            deepest = min(deepest, immediate)
            copies.discard(to)
        elif kind in (0, 1, 4, 7):
            copies.discard(to)
    return -deepest
