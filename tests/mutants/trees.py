# SPDX-License-Identifier: Apache-2.0
"""Mutants of what agents and commands of a lab run: tests by a copy of the tree, in which the change is.

The copy has a cache of compiled programs of its own, in which those that the change is not in are there
already.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lb.datapath.maps import layouts
from lb.datapath.programs import build
from lb.errors import CompileError
from tests.mutants.making import Mutant

ROOT = Path(__file__).resolve().parents[2]
_PARTS = ("lb", "bpf", "tests", "examples")
_FILES = ("tc_lb.c", "xdp_lb.c", "sock_lb.c", "shadow_lb.c", "shadow_sock.c", "adopt.c")
_CACHE_LINE = f'CACHE = Path("{build.CACHE}")'


def fate(mutant: Mutant, tests: Sequence[str], patience: float) -> tuple[str, str]:
    """Return what became of a mutant, one of FATES of __main__, and what pytest said."""
    with tempfile.TemporaryDirectory(prefix="lbctl-mutant-") as folder:
        tree = Path(folder)
        for part in _PARTS:
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        python = mutant.file.endswith(".py")
        path = tree / mutant.file if python else tree / "bpf" / mutant.file
        path.write_text(mutant.of(path.read_text()))
        refused = _fill(tree, None if python else compiled(mutant.file))
        if refused is not None:
            return refused, ""
        with tempfile.TemporaryFile("w+") as said:
            code = _run(tree, tests, said.fileno(), patience)
            said.seek(0)
            words = said.read()
    if code is None:
        return "unknown", words
    if code not in (0, 1):
        raise RuntimeError(f"pytest ended with {code}\n{words}")
    return ("noticed" if code else "survived"), words


def compiled(file: str) -> str:
    """Return the C file that a mutant's file is compiled in; most headers here are those of the sockets."""
    return file if file.endswith(".c") else {"shadow.h": "shadow_lb.c"}.get(file, "sock_lb.c")


def _fill(tree: Path, changed_file: str | None) -> str | None:
    """Give the tree a cache with all that is compiled; return "same" or "refused" where no test is needed.

    changed_file: the one that has the mutant; None: it is in Python.
    """
    module = tree / "lb/datapath/programs/build.py"
    text = module.read_text()
    assert _CACHE_LINE in text
    cache = tree / "cache"
    cache.mkdir(0o700)
    module.write_text(text.replace(_CACHE_LINE, f'CACHE = Path("{cache}")'))
    clean, changed = build.fingerprint(layouts.BPF_DIR), build.fingerprint(tree / "bpf")
    build.instructions(layouts.BPF_DIR, _FILES)
    same = changed_file is not None
    for version in layouts.FAMILIES:
        for file in _FILES:
            if file != changed_file:
                rest = f"{Path(file).stem}-{version}.json"
                shutil.copy(build.CACHE / f"{clean}-{rest}", cache / f"{changed}-{rest}")
        if changed_file is None:
            continue
        try:
            made = build._compile_family(tree / "bpf", version, [changed_file], build._Children())
        except CompileError:
            return "refused"
        same = same and made[changed_file] == build._read(clean, version, changed_file)
    return "same" if same else None


def _run(tree: Path, tests: Sequence[str], output: int, patience: float) -> int | None:
    """Run tests in the tree until one fails; return pytest's exit code, or None when they took too long."""
    options = ("-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist")
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=tree,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tree)},
        stdout=output,
        stderr=output,
    ) as child:
        try:
            return child.wait(patience)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)  # fixtures take down what they have made
            child.wait()
            return None
