# SPDX-License-Identifier: Apache-2.0
"""The compile child: ``python -m lb.datapath.programs.compile`` turns bpf/ into instructions, and exits.

The only module that imports bcc. clang inside bcc takes over 100 MB, which the agent must not keep, so
:mod:`lb.datapath.programs.build` starts this module, writes one JSON request to its standard input and reads
one JSON answer from its standard output; what clang says goes to standard error.

Request: ``{"bpf_dir", "files": [file, …], "flags", "assertions"}``: clang's options, and text to go
behind each file. Answer: ``{"code": {file: {function: base64 of struct bpf_insn[]}}}`` or ``{"error": why}``.
Nothing but bcc is imported: all that is known of maps and layouts is in the request.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO


def build(request: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Compile everything in the request; return by file each function's instructions in base64.

    Raises Exception: bcc's own, when clang refuses (it has no narrower type).
    """
    bpf_dir, flags, assertions = Path(request["bpf_dir"]), request["flags"], request["assertions"]
    # bcc changes into the kernel tree and back; it reads the variable when it compiles.
    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_dir)
    from bcc import BPF, lib  # noqa: PLC0415  (the caller gets to know in words when it is not there)

    code: dict[str, dict[str, str]] = {}
    for file in request["files"]:
        print(f"\0{file}", file=sys.stderr, flush=True)  # whose words follow
        module = BPF(text=f"{(bpf_dir / file).read_text()}\n{assertions}", cflags=flags)
        names = [lib.bpf_function_name(module.module, n) for n in range(lib.bpf_num_functions(module.module))]
        code[file] = {name.decode(): base64.b64encode(module.dump_func(name)).decode() for name in names}
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
