# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.mutants.one BPF_DIR FAMILY TEST…``: packet tests of one IP version, with that folder's C.

Exit codes are pytest's: 0, the tests have noticed nothing; 1, one failed. What the compiler or the verifier
refuses is an error of the first test.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

from lb.datapath.maps import layouts
from lb.datapath.programs import build, loader
from tests.packet import harness


def main(bpf_dir: str, family: str, *tests: str) -> int:
    """Run the tests until one fails. The other family's programs are those of the tree."""
    changed = Path(bpf_dir)
    clean, read = build.fingerprint(layouts.BPF_DIR), build._read

    def found(fingerprint: str, version: int, file: str) -> object:
        return read(fingerprint if version == int(family) else clean, version, file)

    build._read = found  # type: ignore[assignment]
    build._keep = lambda *_: None
    programs = {name: each for name, each in loader.PROGRAMS.items() if not each.at_sockets}
    loader.load = partial(loader.load, bpf_dir=changed, programs=programs)
    harness.load = loader.load  # type: ignore[attr-defined]
    options = ("-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider", "-k", f"ipv{family}")
    return int(pytest.main([*options, *tests]))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
