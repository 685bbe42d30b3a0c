"""The compile child: ``python -m lb.datapath.compile`` compiles, loads and pins, and exits.

The only module that imports bcc. clang inside bcc takes over 100 MB, which the agent must not keep, so the
agent starts this module, writes one JSON request to its standard input and reads one JSON answer from its
standard output; what clang and the verifier say goes to standard error.

Request: ``{"bpf_dir", "maps": {name: fd}, "pin_dir", "sources": [{"file", "array", "programs": {name: [type,
number]}, "twins": {name: pin name}}]}``; the descriptors are inherited, the type is a number of enum
bpf_prog_type. Each file is compiled for IPv4 and for IPv6, see :class:`lb.datapath.loader.Program`; array is
the pin name of the array of its programs. Answer: ``{"programs": {name: id}}`` of the IPv4 programs, or
``{"error": what failed}``.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from lb.datapath import bpf, layouts
from lb.datapath.layouts import MapType
from lb.errors import BpfError


def c_flags(bpf_dir: Path, maps: Mapping[str, int], machine: str, version: int) -> list[str]:
    """Return clang's options for one IP version: our headers first, the distribution's last.

    A map of the other version alone has no name in C.
    """
    fds = {spec.c_name: maps[spec.name] for spec in layouts.MAPS if spec.version in (0, version)}
    return [
        f"-I{bpf_dir}",
        "-Wno-macro-redefined",
        "-Werror",
        "-idirafter/usr/include",
        f"-idirafter/usr/include/{machine}-linux-gnu",
        f"-DFAMILY={version}",
        *(f"-DFD_{name}={fd}" for name, fd in fds.items()),
    ]


def build(request: dict[str, Any]) -> dict[str, int]:
    """Compile, load and pin everything in the request; return the program ids by name.

    Raises
    ------
    Exception: bcc's own, when clang or the verifier refuses (it has no narrower type).
    BpfError: a program could not be pinned.
    """
    # bcc changes into the kernel tree and back; it reads the variable when it compiles.
    os.environ["BCC_KERNEL_SOURCE"] = request["bpf_dir"]
    ids: dict[str, int] = {}
    for source in request["sources"]:
        ids |= _build_source(source, Path(request["bpf_dir"]), Path(request["pin_dir"]), request["maps"])
    return ids


def _build_source(
    source: dict[str, Any], bpf_dir: Path, pin_dir: Path, maps: Mapping[str, int]
) -> dict[str, int]:
    """Build one file for each IP version, and the array from which its programs go on in each other.

    Returns the ids of the IPv4 programs.
    """
    from bcc import BPF  # noqa: PLC0415  (only here: importing this module must stay cheap)

    text = (bpf_dir / source["file"]).read_text()
    ids: dict[str, int] = {}
    room = 2 * layouts.PROGRAMS_PER_FAMILY
    with bpf.map_create(MapType.PROG_ARRAY, 4, 4, room, name=source["array"]) as array:
        bpf.obj_pin(array, pin_dir / source["array"])
        for version in layouts.FAMILIES:
            flags = c_flags(bpf_dir, maps, platform.machine(), version)
            flags.append(f"-DFD_programs={array.fileno()}")
            print(f"\0{source['file']}", file=sys.stderr, flush=True)  # whose words follow
            module = BPF(text=f"{text}\n{layouts.static_assertions(version)}", cflags=flags)
            for name, (kind, number) in source["programs"].items():
                function = module.load_func(name, kind)
                with bpf.FD(os.dup(function.fd), f"program {name}") as fd:
                    bpf.obj_pin(fd, pin_dir / (name if version == 4 else source["twins"][name]))
                    slot = number if version == 4 else layouts.PROGRAMS_PER_FAMILY + number
                    bpf.map_update(array, np.array([slot], "u4"), np.array([fd.fileno()], "u4"))
                    if version == 4:
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
