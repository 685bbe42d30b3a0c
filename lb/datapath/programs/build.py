# SPDX-License-Identifier: Apache-2.0
"""From bpf/ to instructions: compiled once for each state of the sources, whatever instance asks.

Instructions do not depend on an instance's maps: they name a map by a mark, and :func:`relocate` puts the
file descriptor in its place. Nor do they depend on the kernel: what it may lack is asked for by a mark, too.
So they are kept, and the compiler runs again only when the sources, their layouts or bcc have changed.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lb.datapath.maps import layouts, map_table
from lb.datapath.programs import loops
from lb.datapath.programs.features import KERNEL_FUNCTIONS, NO_FUNCTIONS, OPTIONAL, KernelFunctions
from lb.datapath.programs.loops import INSN, close_by_jumps
from lb.errors import CompileError, LbError
from lb.folders import foreign_hand, locked, read_file, replace_file

PROGRAM_ARRAY = "programs"
HANDOVER = "handover"
MAP_NAMES = (
    PROGRAM_ARRAY,
    HANDOVER,
    map_table.OTHER_VIPS,
    *dict.fromkeys(spec.c_name for spec in map_table.MAPS),
)
"""The maps as C names them; the first is the array of the file's own programs."""
MAP_MARK = 0x7FFF_0000
FEATURE_MARK = 0x7FFE_0000
FUNCTION_MARK = 0x7FFD_0000


def c_flags(bpf_dir: Path, machine: str, version: int) -> list[str]:
    """Return clang's options for one IP version: our headers first, the distribution's last."""
    return [
        f"-I{bpf_dir}",
        "-g0",
        "-Wno-macro-redefined",
        # bcc's clang optimises for this machine's CPU before the code becomes BPF's, which has no vectors:
        # taken apart again they cost a quarter more instructions and stack (clang 19).
        "-fno-vectorize",
        "-fno-slp-vectorize",
        "-Werror",
        "-idirafter/usr/include",
        f"-idirafter/usr/include/{machine}-linux-gnu",
        f"-DFAMILY={version}",
        *(f"-DHAS_{name}={FEATURE_MARK + number}" for number, name in enumerate(OPTIONAL)),
        *(f"-DKFUNC_{name}={FUNCTION_MARK + number}" for number, name in enumerate(KERNEL_FUNCTIONS)),
        *(f"-DFD_{name}={MAP_MARK + number}" for number, name in enumerate(MAP_NAMES)),
    ]


_log = logging.getLogger(__name__)

CACHE = Path("/var/cache/lbctl")
"""Where instructions are kept; a host without it, or with it read-only, compiles on every start."""
_KEPT = 96  # six make a build: sixteen checkouts and releases may take turns without compiling anew
_MOST_BYTES = 64 << 20

Code = Mapping[int, Mapping[str, bytes]]
"""By IP version and function: instructions, 8 bytes each (struct bpf_insn)."""
_Functions = dict[str, str]  # by function: base64 of its instructions

_LD_IMM64 = 0x18
_PSEUDO_MAP_FD = 1
_CALL = 0x85
_PSEUDO_KFUNC = 2
_KTIME_GET_NS = 5


def fingerprint(bpf_dir: Path = layouts.BPF_DIR) -> str:
    """Return 16 hex digits over everything that instructions depend on."""
    digest = hashlib.sha256()
    for path in sorted((*bpf_dir.rglob("*.c"), *bpf_dir.rglob("*.h"))):
        digest.update(f"{path.relative_to(bpf_dir)}\0".encode() + path.read_bytes() + b"\0")
    digest.update(Path(loops.__file__).read_bytes())
    parts = {
        "assertions": [layouts.static_assertions(version) for version in layouts.FAMILIES],
        "flags": [c_flags(Path(), platform.machine(), version) for version in layouts.FAMILIES],
        "bcc": bcc_version(),
    }
    digest.update(json.dumps(parts, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def bcc_version() -> str:
    """Return the text of bcc's version file without importing bcc; empty when bcc is not installed."""
    spec = importlib.util.find_spec("bcc")
    if spec is None or spec.origin is None:
        return ""
    path = Path(spec.origin).with_name("version.py")
    return path.read_text() if path.is_file() else ""


def instructions(bpf_dir: Path, files: Collection[str]) -> Code:
    """Return the instructions of all functions in some files of bpf_dir, from the cache or from the compiler.

    Raises CompileError: clang refused a file; carries its words.
    """
    code, _ = obtain(bpf_dir, files)
    return code


def obtain(bpf_dir: Path, files: Collection[str], *, anew: bool = False) -> tuple[Code, bool]:
    """Return what :func:`instructions` does, and whether any of it is from the cache.

    anew: the compiler makes all of them, and the cache is written again.

    Raises CompileError: clang refused a file; carries its words.
    """
    build = fingerprint(bpf_dir)
    parts = [(version, file) for version in layouts.FAMILIES for file in sorted(files)]
    code = {part: None if anew else _read(build, *part) for part in parts}
    kept = not anew
    if None in code.values():
        with _compiling():  # whoever waited here finds what another process has just compiled
            code = {part: None if anew else _read(build, *part) for part in parts}
            kept = any(code.values())
            missing = {
                version: [file for of, file in parts if of == version and code[of, file] is None]
                for version in layouts.FAMILIES
            }
            if any(missing.values()) and not anew:
                _log.info("compiling the programs: there is nothing of this build in %s", CACHE)
            for (version, file), compiled in _compile(bpf_dir, missing).items():
                closed = {function: _closed(text) for function, text in compiled.items()}
                code[version, file] = closed
                _keep(build, version, file, closed)
    joined = {
        version: {
            function: base64.b64decode(text)
            for (of, _), functions in code.items()
            if of == version
            for function, text in (functions or {}).items()
        }
        for version in layouts.FAMILIES
    }
    return joined, kept


def _closed(text: str) -> str:
    """Return a function, in base64 as it came, with its loops as older kernels take them."""
    return base64.b64encode(close_by_jumps(base64.b64decode(text))).decode()


def _entry(build: str, version: int, file: str) -> Path:
    return CACHE / f"{build}-{Path(file).stem}-{version}.json"


def _read(build: str, version: int, file: str) -> _Functions | None:
    """Return one file of the cache; None when it is not there, damaged, or others could have written it.

    What is in it goes into the kernel. A line with the SHA-256 of the rest comes first.
    """
    path = _entry(build, version, file)
    try:
        if hand := foreign_hand(path):
            _log.warning("%s is not used, since it need not be root's: %s", path, hand)
            return None
        digest, _, body = read_file(path, _MOST_BYTES).partition(b"\n")
        if digest != _digest(body):
            raise ValueError("its hash is another")
        found: _Functions = json.loads(body)
        os.utime(path)  # what is used stays
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("%s is not used: %s", path, error)
        return None
    return found


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def _keep(build: str, version: int, file: str, code: _Functions) -> None:
    """Write one file of the cache, and drop the longest unused; a cache that cannot be written is none."""
    with contextlib.suppress(OSError):
        body = json.dumps(code).encode()
        replace_file(_entry(build, version, file), _digest(body) + b"\n" + body)
        by_use = sorted(CACHE.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for old in by_use[:-_KEPT]:
            old.unlink(missing_ok=True)


@contextlib.contextmanager
def _compiling() -> Iterator[None]:
    """Let one process at a time compile for the cache, so that none does what another has begun."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, LbError):
            fd = locked(CACHE / "lock", CACHE, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
            stack.callback(os.close, fd)
        yield


class _Children:
    """The compilers that were started; once they are stopped, one that is started later ends at once."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []
        self._stopped = False

    def add(self, child: subprocess.Popen[str]) -> None:
        self._started.append(child)
        if self._stopped:
            child.kill()

    def stop(self) -> None:
        self._stopped = True
        for child in self._started:
            child.kill()


def _compile(bpf_dir: Path, missing: Mapping[int, list[str]]) -> dict[tuple[int, str], _Functions]:
    """Run a child for each IP version, side by side; return what each file holds."""
    wanted = {version: files for version, files in missing.items() if files}
    children = _Children()
    with ThreadPoolExecutor(len(layouts.FAMILIES)) as pool:
        try:
            found = pool.map(
                lambda version: _compile_family(bpf_dir, version, wanted[version], children), wanted
            )
            return {
                (version, file): code
                for version, files in zip(wanted, found, strict=True)
                for file, code in files.items()
            }
        except BaseException:  # a signal that ends the agent is not to wait for clang
            children.stop()
            raise


def _compile_family(
    bpf_dir: Path, version: int, files: list[str], children: _Children
) -> dict[str, _Functions]:
    """Compile files of one IP version in a child, which is among children from then on."""
    package_root = Path(__file__).resolve().parents[3]
    path = f"{package_root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    request = {
        "bpf_dir": str(bpf_dir),
        "files": files,
        "flags": c_flags(bpf_dir, platform.machine(), version),
        "assertions": layouts.static_assertions(version),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "lb.datapath.programs.compile"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,  # Ctrl-C at the terminal is for the agent, which ends this
        env={**os.environ, "PYTHONPATH": path},
    ) as child:
        children.add(child)
        stdout, stderr = child.communicate(json.dumps(request))
    try:
        answer = json.loads(stdout)
    except ValueError:
        answer = {"error": f"the compile process ended with code {child.returncode}"}
    if "error" in answer:
        raise CompileError(f"{answer['error']}\n{useful_lines(stderr)}".rstrip())
    code: dict[str, _Functions] = answer["code"]
    return code


def useful_lines(stderr: str, last: int = 40) -> str:
    """Shorten what clang wrote: its errors with their context, else the last lines.

    The child announces each file as a line of NUL and its name; clang calls that file ``/virtual/main.c``.
    """
    file, _, words = stderr.rpartition("\0")[2].partition("\n")
    lines = words.replace("/virtual/main.c", file).splitlines()
    errors = [number for number, line in enumerate(lines) if "error:" in line]
    if errors:
        shown = sorted({at for number in errors[:5] for at in range(number, min(number + 3, len(lines)))})
        return "\n".join(lines[number] for number in shown)
    return "\n".join(lines[-last:])


def relocate(
    code: bytes, fds: Mapping[str, int], has: Mapping[str, int], functions: KernelFunctions = NO_FUNCTIONS
) -> bytes:
    """Return the instructions with a file descriptor in place of each map's mark, and a feature's number.

    fds: by name in C; has: by name, of each of OPTIONAL. functions: the kernel's functions that the code
    calls; where one is missing the call is never reached, and is one of a helper.
    """
    rows = np.frombuffer(code, INSN).copy()
    wide = (rows["opcode"] == _LD_IMM64) & (rows["registers"] >> 4 == 0)
    for number, name in enumerate(OPTIONAL):
        rows["imm"][wide & (rows["imm"] == FEATURE_MARK + number)] = has[name]
    calls = (rows["opcode"] == _CALL) & (rows["registers"] == 0)
    for number, name in enumerate(KERNEL_FUNCTIONS):
        here = calls & (rows["imm"] == FUNCTION_MARK + number)
        known = name in functions.ids
        rows["imm"][here] = functions.ids[name] if known else _KTIME_GET_NS
        rows["registers"][here] = _PSEUDO_KFUNC << 4 if known else 0
        rows["offset"][here] = functions.place(name) if known else 0
    for at in _map_loads(rows):
        rows["imm"][at] = fds[MAP_NAMES[int(rows["imm"][at]) - MAP_MARK]]
    return rows.tobytes()


def _map_loads(rows: np.ndarray[Any, np.dtype[Any]]) -> Iterator[int]:
    """Yield the places of the instructions that load a map."""
    loads = (rows["opcode"] == _LD_IMM64) & (rows["registers"] >> 4 == _PSEUDO_MAP_FD)
    yield from np.flatnonzero(loads & (rows["imm"] >= MAP_MARK)).tolist()
