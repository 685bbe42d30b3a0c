# SPDX-License-Identifier: Apache-2.0
"""What is compiled is kept for every instance, and only what can be trusted is taken."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lb.datapath.kernel.pins import Pins
from lb.datapath.programs import build, loader
from lb.errors import CompileError
from tests.unit.pins_bench import (
    LIMITS,
    ROOT,
    load,
    own_pins,
    set_udp_ns,
    verdict,
)


def test_instructions_are_kept_for_every_instance(
    pins: Pins, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(pins, tree)
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("compiled again"))
    with own_pins() as other:
        assert load(other, tree).compiled
        set_udp_ns(other, 7)
        assert verdict(load(other, tree)) == 1  # on its own maps
        assert verdict(load(pins, tree)) == 2


def test_what_is_compiled_ahead_is_not_compiled_by_the_first_start(
    pins: Pins, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader.compile_ahead()
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("compiled again"))
    assert loader.load(pins, LIMITS).compiled


def test_without_a_cache_the_compiler_runs(pins: Pins, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CACHE", Path("/proc/no/such/place"))
    assert verdict(load(pins, tree)) == 2


def _huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def _anothers(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    os.chown(path, 65534, 65534)


def _open_to_all(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o666)


def _one_bit_less(path: Path, data: bytes) -> None:
    at = len(data) // 2
    path.write_bytes(data[:at] + bytes(byte ^ 1 for byte in data[at : at + 1]) + data[at + 1 :])


INSTEAD: dict[str, Callable[[Path, bytes], object]] = {
    "empty": lambda path, _data: path.touch(),
    "something else": lambda path, _data: path.write_text("{"),
    "truncated": lambda path, data: path.write_bytes(data[:-20]),
    "one bit": _one_bit_less,
    "valid without hash": lambda path, data: path.write_bytes(data.partition(b"\n")[2]),
    "huge": lambda path, _data: _huge(path),
    "FIFO": lambda path, _data: os.mkfifo(path),
    "folder": lambda path, _data: path.mkdir(),
    "link to nowhere": lambda path, _data: path.symlink_to("nowhere"),
    "link to a device": lambda path, _data: path.symlink_to("/dev/zero"),
    "another's": _anothers,
    "writable by others": _open_to_all,
}
"""What may lie in the place of every file of the cache, the lock as well."""


@pytest.mark.parametrize("instead", INSTEAD)
@pytest.mark.usefixtures("tree")
def test_a_cache_that_cannot_be_trusted_counts_as_none(instead: str) -> None:
    code = {"lb_xdp_tiny": "AAAA"}
    with build._compiling():
        build._keep("1234", 4, "tc_tiny.c", code)
    assert build._read("1234", 4, "tc_tiny.c") == code
    for path in list(build.CACHE.iterdir()):
        data = path.read_bytes()
        path.unlink()
        INSTEAD[instead](path, data)
    assert build._read("1234", 4, "tc_tiny.c") is None
    with build._compiling():  # nor is anything waited for
        build._keep("1234", 4, "tc_tiny.c", code)
    assert build._read("1234", 4, "tc_tiny.c") == (None if instead == "folder" else code)


def test_a_damaged_cache_is_made_anew(pins: Pins, tree: Path) -> None:
    load(pins, tree)
    for path in list(build.CACHE.iterdir()):
        path.unlink()
        os.mkfifo(path)
    with own_pins() as other:
        assert verdict(load(other, tree)) == 2


def test_another_users_cache_is_neither_read_nor_followed(
    pins: Pins, tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is in it goes into the kernel, so a folder that another may write to is as good as none."""
    load(pins, tree)
    os.chown(build.CACHE, 65534, 65534)
    caplog.set_level(logging.INFO)
    with own_pins() as other:
        assert verdict(load(other, tree)) == 2
    assert "compiling the programs" in caplog.text
    assert "is not used, since it need not be root's" in caplog.text


def spoil(path: Path) -> None:
    """Put instructions into a file of the cache that no verifier takes: an exit without a value."""
    body = json.dumps(
        dict.fromkeys(json.loads(path.read_bytes().partition(b"\n")[2]), "lQAAAAAAAAA=")
    ).encode()
    path.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def test_what_the_kernel_refuses_is_compiled_anew_once(
    pins: Pins, tree: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hash of what is kept is right, so another compiler made it."""
    load(pins, tree)
    for path in build.CACHE.glob("*.json"):
        spoil(path)
    with own_pins() as other:
        assert verdict(load(other, tree)) == 2
    assert (
        f"what is kept in {build.CACHE} is of no use, compiling the programs anew: the kernel" in caplog.text
    )
    caplog.clear()
    with own_pins() as other:
        assert verdict(load(other, tree)) == 2
    assert not caplog.records

    def useless(*arguments: Any) -> Any:
        compiled.append(0)
        return {
            part: dict.fromkeys(functions, "lQAAAAAAAAA=") for part, functions in really(*arguments).items()
        }

    compiled, really = list[int](), build._compile
    monkeypatch.setattr(build, "_compile", useless)
    for kept in (True, False):
        for path in build.CACHE.glob("*.json"):
            spoil(path) if kept else path.unlink()
        with own_pins() as other, pytest.raises(CompileError, match="the kernel refused the program"):
            load(other, tree)
        assert len(compiled) == 1, "the compiler runs once, whether or not something was kept"
        compiled.clear()


def test_a_full_disk_costs_the_cache_alone(pins: Pins, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("lb.datapath.programs.build.replace_file", full)
    assert verdict(load(pins, tree)) == 2


def test_who_is_told_to_stop_does_not_wait_for_the_compiler(tree: Path) -> None:
    ask = (
        "import signal, sys, threading, time; from pathlib import Path\n"
        "from lb.datapath.programs import build\n"
        "build.CACHE = Path(sys.argv[1])\n"
        "class Stop(BaseException): ...\n"
        "def stop(*_): raise Stop\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "main = threading.main_thread().ident\n"
        "class Slow(build.subprocess.Popen):\n"
        "    def communicate(self, text=None):\n"
        "        signal.pthread_kill(main, signal.SIGTERM)\n"
        "        self.wait()\n"  # for a child that waits for its request
        "        return '', ''\n"
        "build.subprocess.Popen = Slow\n"
        "try:\n"
        "    build.instructions(Path(sys.argv[2]), ['tc_tiny.c'])\n"
        "except Stop:\n"
        "    print('stopped')\n"
    )
    argv = (sys.executable, "-c", ask, str(build.CACHE), str(tree))
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "stopped\n", done.stderr


def test_the_longest_unused_leaves_the_cache_first(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_KEPT", 4)
    source = tree / "tc_tiny.c"
    older, newer = source.read_text(), f"{source.read_text()}/* newer */"

    def compiled(text: str, at: int) -> str:
        source.write_text(text)
        build.instructions(tree, ["tc_tiny.c"])
        of_build = build.fingerprint(tree)
        for path in build.CACHE.glob(f"{of_build}*"):
            os.utime(path, (at, at))
        return of_build

    used, unused = compiled(older, at=1), compiled(newer, at=2)
    compiled(older, at=3)
    compiled(f"{newer}/* newest */", at=4)
    assert len(list(build.CACHE.glob(f"{used}*"))) == 2
    assert not list(build.CACHE.glob(f"{unused}*"))


def test_of_two_processes_one_compiles(tree: Path) -> None:
    ask = "import logging, sys; from pathlib import Path; from lb.datapath.programs import build\n"
    ask += "logging.basicConfig(level=logging.INFO); build.CACHE = Path(sys.argv[1])\n"
    ask += "build.instructions(Path(sys.argv[2]), ['tc_tiny.c'])"
    argv = (sys.executable, "-c", ask, str(build.CACHE), str(tree))
    both = [subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "".join(said).count("compiling the programs") == 1
