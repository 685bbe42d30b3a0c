"""The compile child: ``python -m lb.datapath.compile`` turns bpf/ into instructions, and exits.

The only module that imports bcc. clang inside bcc takes over 100 MB, which the agent must not keep, so
:mod:`lb.datapath.build` starts this module, writes one JSON request to its standard input and reads one JSON
answer from its standard output; what clang says goes to standard error.

Request: ``{"bpf_dir", "version", "sources": {file: [function, …]}}`` for one IP version. Answer: ``{"code":
{function: base64 of struct bpf_insn[]}}`` or ``{"error": what failed}``. Where the instructions name a map,
they hold not a file descriptor but :data:`MAP_MARK` and the map's place in :data:`MAP_NAMES`.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any, TextIO

from lb.datapath import layouts

PROGRAM_ARRAY = "programs"
MAP_NAMES = (PROGRAM_ARRAY, *dict.fromkeys(spec.c_name for spec in layouts.MAPS))
"""The maps as C names them; the first is the array of the file's own programs."""
MAP_MARK = 0x7FFF_0000


_SET_RETVAL_SINCE = (5, 18)  # the helper with which a cgroup hook chooses the errno


def _kernel(release: str) -> tuple[int, ...]:
    """Return the first two numbers of a kernel's release such as ``6.1.0-18-amd64``."""
    return tuple(int(number) for number in re.findall(r"\d+", release)[:2])


def c_flags(bpf_dir: Path, machine: str, version: int) -> list[str]:
    """Return clang's options for one IP version: our headers first, the distribution's last."""
    return [
        f"-I{bpf_dir}",
        "-g0",
        "-Wno-macro-redefined",
        "-Werror",
        "-idirafter/usr/include",
        f"-idirafter/usr/include/{machine}-linux-gnu",
        f"-DFAMILY={version}",
        f"-DHAVE_SET_RETVAL={int(_kernel(platform.release()) >= _SET_RETVAL_SINCE)}",
        *(f"-DFD_{name}={MAP_MARK + number}" for number, name in enumerate(MAP_NAMES)),
    ]


def build(request: dict[str, Any]) -> dict[str, str]:
    """Compile everything in the request; return each function's instructions in base64.

    Raises
    ------
    Exception: bcc's own, when clang refuses or a function is not there (it has no narrower type).
    """
    bpf_dir, version = Path(request["bpf_dir"]), request["version"]
    # bcc changes into the kernel tree and back; it reads the variable when it compiles.
    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_dir)
    from bcc import BPF  # noqa: PLC0415  (only here: importing this module must stay cheap)

    flags = c_flags(bpf_dir, platform.machine(), version)
    assertions = layouts.static_assertions(version)
    code: dict[str, str] = {}
    for file, functions in request["sources"].items():
        print(f"\0{file}", file=sys.stderr, flush=True)  # whose words follow
        module = BPF(text=f"{(bpf_dir / file).read_text()}\n{assertions}", cflags=flags)
        for function in functions:
            code[function] = base64.b64encode(module.dump_func(function)).decode()
    return code


def main(stdin: TextIO, stdout: TextIO) -> int:
    """Serve one request; return the exit code."""
    request = json.load(stdin)
    try:
        answer: dict[str, Any] = {"code": build(request)}
    except ImportError as error:
        answer = {"error": f"{error}: install python3-bpfcc, and run with a Python that sees it"}
    except Exception as error:  # bcc raises bare Exception
        answer = {"error": str(error)}
    json.dump(answer, stdout)
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main(sys.stdin, sys.stdout))
