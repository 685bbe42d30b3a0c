# SPDX-License-Identifier: Apache-2.0
"""Loading, reusing and replacing programs. Needs root; compiles small programs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from lb.datapath.kernel import bpf
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps import layouts, map_table
from lb.datapath.maps.map_table import MAP_SPECS
from lb.datapath.programs import build, loader
from lb.datapath.programs.build import useful_lines
from lb.datapath.programs.loader import Loaded, fingerprint
from lb.errors import CompileError
from tests.unit.pins_bench import (
    LIMITS,
    ROOT,
    TINY,
    XDP_SOURCE,
    load,
    map_ids,
    set_udp_ns,
    verdict,
)


def test_programs_run_on_the_pinned_maps(pins: Pins, tree: Path) -> None:
    loaded = load(pins, tree)
    assert (loaded.compiled, loaded.fresh) == (True, frozenset(MAP_SPECS))
    assert set(map_ids(pins)) == set(MAP_SPECS)
    for name, path in loaded.programs.items():
        with bpf.obj_get(path) as fd:
            info = bpf.prog_info(fd)
        assert (info.name, info.id, info.type) == (name, loaded.ids[name], TINY[name].type)
        assert len(info.tag) == 16
        assert info.load_time > 0
        assert set(info.map_ids) <= set(map_ids(pins).values())
    assert verdict(loaded) == 2
    set_udp_ns(pins, 7)
    assert verdict(loaded) == 1


def test_a_restart_compiles_nothing(pins: Pins, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(pins, tree)
    before = map_ids(pins)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a child was started"))
    again = load(pins, tree)
    assert again == replace(first, compiled=False, fresh=frozenset())
    assert map_ids(pins) == before


def test_loading_does_not_import_bcc(pins: Pins, tree: Path) -> None:
    """The agent must not carry clang: checked in a process of its own."""
    code = (
        "import sys; from pathlib import Path;"
        "from lb.datapath.programs import loader; from lb.datapath.kernel.pins import Pins;"
        "from tests.unit.pins_bench import LIMITS, TINY;"
        f"loaded = loader.load(Pins({pins.instance!r}), LIMITS, bpf_dir=Path({str(tree)!r}), programs=TINY);"
        "assert loaded.compiled; assert not [name for name in sys.modules if name.startswith('bcc')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_kernel_headers_are_needed(pins: Pins, tree: Path) -> None:
    """In a mount namespace where the usual places of kernel headers are empty."""
    code = (
        "from pathlib import Path; from lb.datapath.programs import loader;"
        "from lb.datapath.kernel.pins import Pins; from tests.unit.pins_bench import LIMITS, TINY; import os;"
        "assert not Path('/lib/modules', os.uname().release, 'build').exists();"
        "assert not any(Path('/usr/src').iterdir());"
        f"loader.load(Pins({pins.instance!r}), LIMITS, bpf_dir=Path({str(tree)!r}), programs=TINY)"
    )
    hide = (
        "for place in /lib/modules /usr/src; do if [ -d $place ]; then mount -t tmpfs none $place; fi; done"
    )
    environment = {name: text for name, text in os.environ.items() if name != "BCC_KERNEL_SOURCE"}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", f'{hide}; exec "$@"', "sh", sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "kernel headers" not in done.stdout + done.stderr


def test_changed_source(pins: Pins, tree: Path) -> None:
    first = load(pins, tree)
    before = map_ids(pins)
    (tree / "xdp_tiny.c").write_text(XDP_SOURCE.replace("== 7", "== 8"))
    second = load(pins, tree)
    assert second.compiled
    assert second.fresh == frozenset()
    assert second.fingerprint != first.fingerprint
    assert set(second.ids.values()).isdisjoint(first.ids.values())
    assert map_ids(pins) == before
    assert [path.name for path in pins.builds()] == sorted(
        f"progs-{one.fingerprint}" for one in (first, second)
    )
    loader.prune(pins, second)
    assert [path.name for path in pins.builds()] == [f"progs-{second.fingerprint}"]
    assert verdict(second) == 2


def test_the_way_back_needs_no_compile_before_pruning(pins: Pins, tree: Path) -> None:
    first = load(pins, tree)
    (tree / "xdp_tiny.c").write_text(XDP_SOURCE.replace("== 7", "== 8"))
    load(pins, tree)
    (tree / "xdp_tiny.c").write_text(XDP_SOURCE)
    again = load(pins, tree)
    assert (again.compiled, again.ids) == (False, first.ids)


def test_incomplete_build_is_made_again(pins: Pins, tree: Path) -> None:
    first = load(pins, tree)
    first.programs["lb_tc_tiny"].unlink()
    pins.staging("0" * 16).mkdir()  # as a crash half-way would leave it
    again = load(pins, tree)
    assert again.compiled
    assert all(path.exists() for path in again.programs.values())
    loader.prune(pins, again)
    assert pins.builds() == [pins.programs(again.fingerprint)]


def test_clang_refuses(pins: Pins, tree: Path) -> None:
    good = load(pins, tree)
    before = map_ids(pins)
    (tree / "tc_tiny.c").write_text(
        '#include "maps.h"\nint lb_tc_tiny(void *ctx)\n{\n\treturn nonsense;\n}\n'
    )
    with pytest.raises(CompileError) as caught:
        load(pins, tree, replace(LIMITS, flows=512))
    assert "tc_tiny.c:4:9: error: use of undeclared identifier 'nonsense'" in str(caught.value)
    assert "return nonsense;" in str(caught.value)
    assert map_ids(pins) == before
    assert pins.builds() == [pins.programs(good.fingerprint)]


def test_the_verifier_refuses(pins: Pins, tree: Path) -> None:
    body = "struct vip_key key = {}; struct vip *vip = bpf_map_lookup_elem(vips, &key); return vip->service;"
    (tree / "xdp_tiny.c").write_text(
        f'#include "maps.h"\nint lb_xdp_tiny(struct xdp_md *ctx)\n{{\n\t{body}\n}}\n'
    )
    with pytest.raises(CompileError) as caught:
        load(pins, tree)
    assert "the kernel refused the program lb_xdp_tiny: Permission denied" in str(caught.value)
    assert "invalid mem access 'map_value_or_null'" in str(caught.value)
    assert pins.builds() == []


def test_structs_that_differ_from_python(pins: Pins, tree: Path) -> None:
    types = tree / "types.h"
    text = types.read_text()
    types.write_text(
        text.replace("struct affinity_key {\n\tstruct addr client;", "struct affinity_key {\n\tu64 client;")
    )
    assert types.read_text() != text
    with pytest.raises(CompileError, match=r"affinity_key"):
        load(pins, tree)


def test_missing_program(pins: Pins, tree: Path) -> None:
    (tree / "tc_tiny.c").write_text(
        '#include "maps.h"\nint another(struct __sk_buff *ctx)\n{\n\treturn 0;\n}\n'
    )
    with pytest.raises(CompileError, match=r"tc_tiny\.c: there is no function lb_tc_tiny"):
        load(pins, tree)


def test_child_that_dies(pins: Pins, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(CompileError, match="ended with code 1"):
        load(pins, tree)
    assert pins.builds() == []


def test_two_at_once(pins: Pins, tree: Path) -> None:
    loaded: list[Loaded] = []
    threads = [threading.Thread(target=lambda: loaded.append(load(pins, tree))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.compiled for one in loaded) == [False, True]
    assert loaded[0].ids == loaded[1].ids


@pytest.mark.parametrize("change", ["source", "header", "limits", "counters", "bcc", "kernel", "layouts"])
def test_fingerprint(tree: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(map_table.sizes(LIMITS), tree)
    assert before == fingerprint(map_table.sizes(LIMITS), tree)
    limits, counters = LIMITS, True
    if change == "source":
        (tree / "tc_tiny.c").write_text("")
    elif change == "header":
        (tree / "include" / "linux" / "log2.h").write_text("")
    elif change == "limits":
        limits = replace(LIMITS, vips=65)
    elif change == "counters":
        counters = False
    elif change == "bcc":
        monkeypatch.setattr(build, "bcc_version", lambda: "another")
    elif change == "kernel":
        monkeypatch.setattr("platform.release", lambda: "0.0.1")
    else:
        monkeypatch.setattr(layouts, "static_assertions", lambda version: f"another {version}")
    assert fingerprint(map_table.sizes(limits, traffic_counters=counters), tree) != before


def test_useful_lines() -> None:
    noise = "".join(f"{number}: (b7) r0 = 0\n" for number in range(100))
    verifier = useful_lines(f"\0a.c\n\0b.c\nbpf: Failed to load program: Permission denied\n{noise}")
    assert verifier.splitlines()[-1] == "99: (b7) r0 = 0"
    assert len(verifier.splitlines()) == 40
    clang = useful_lines(
        "\0a.c\n/virtual/main.c:3:1: warning: w\n  old\n  ^\n"
        "/virtual/main.c:9:2: error: e\n  new\n  ^\n1 error generated.\n"
    )
    assert clang.splitlines() == ["a.c:9:2: error: e", "  new", "  ^"]
