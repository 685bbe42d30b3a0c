"""The compile child: ``python -m lb.datapath.compile`` compiles, loads and pins, and exits.

The only module that imports bcc. clang inside bcc takes over 100 MB, which the agent must not keep, so the
agent starts this module, writes one JSON request to its standard input and reads one JSON answer from its
standard output; what clang and the verifier say goes to standard error.

Request: ``{"bpf_dir", "maps": {name: fd}, "assertions", "pin_dir", "sources": {file: {program: type}}}``; the
descriptors are inherited, the type is a number of enum bpf_prog_type. Answer: ``{"programs": {name: id}}`` or
``{"error": what failed}``.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any, TextIO

from lb.datapath import bpf
from lb.errors import BpfError


def c_flags(bpf_dir: Path, maps: dict[str, int], machine: str) -> list[str]:
    """Return clang's options: our headers first, the distribution's user-space headers last."""
    return [
        f"-I{bpf_dir}",
        "-Wno-macro-redefined",
        "-Werror",
        "-idirafter/usr/include",
        f"-idirafter/usr/include/{machine}-linux-gnu",
        *(f"-DFD_{name}={fd}" for name, fd in maps.items()),
    ]


def build(request: dict[str, Any]) -> dict[str, int]:
    """Compile, load and pin everything in the request; return the program ids by name.

    Raises
    ------
    Exception: bcc's own, when clang or the verifier refuses (it has no narrower type).
    BpfError: a program could not be pinned.
    """
    bpf_dir = Path(request["bpf_dir"])
    # bcc changes into the kernel tree and back; it reads the variable when it compiles.
    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_dir)
    from bcc import BPF  # noqa: PLC0415  (only here: importing this module must stay cheap)

    flags = c_flags(bpf_dir, request["maps"], platform.machine())
    pin_dir = Path(request["pin_dir"])
    ids: dict[str, int] = {}
    for source, programs in request["sources"].items():
        text = f"{(bpf_dir / source).read_text()}\n{request['assertions']}"
        print(f"\0{source}", file=sys.stderr, flush=True)  # whose words follow
        module = BPF(text=text, cflags=flags)
        for name, kind in programs.items():
            function = module.load_func(name, kind)
            with bpf.FD(os.dup(function.fd), f"program {name}") as fd:
                bpf.obj_pin(fd, pin_dir / name)
                ids[name] = bpf.prog_info(fd).id
    return ids


def main(stdin: TextIO, stdout: TextIO) -> int:
    """Serve one request; return the exit code."""
    request = json.load(stdin)
    try:
        answer: dict[str, Any] = {"programs": build(request)}
    except ImportError as error:
        answer = {"error": f"{error}: install python3-bpfcc, and run with a Python that sees it"}
    except BpfError as error:
        answer = {"error": str(error)}
    except Exception as error:  # bcc raises bare Exception
        answer = {"error": str(error)}
    json.dump(answer, stdout)
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main(sys.stdin, sys.stdout))
