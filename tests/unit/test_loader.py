# SPDX-License-Identifier: Apache-2.0
"""Loading, reusing, replacing and removing maps and programs. Needs root; compiles small programs."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lb.config import Limits
from lb.datapath.kernel import bpf
from lb.datapath.kernel.pins import BPFFS, Pins, instances, is_bpffs, unload
from lb.datapath.maps import cache, layouts, map_table
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.layouts import FAMILIES, FLOW, FLOW_KEY, VIP, VIP_KEY
from lb.datapath.maps.map_table import MAP_SPECS
from lb.datapath.programs import build, loader
from lb.datapath.programs.build import useful_lines
from lb.datapath.programs.loader import Loaded, fingerprint
from lb.datapath.sync.tables import table_rows
from lb.errors import CompileError, ConfigError
from tests.unit.pins_bench import LIMITS, TINY, XDP_SOURCE, own_pins, pin_empty_maps, tiny_tree

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def pins() -> Iterator[Pins]:
    with own_pins() as own:
        yield own


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(build, "CACHE", tmp_path / "cache")
    return tiny_tree(tmp_path)


def load(pins: Pins, tree: Path, limits: Limits = LIMITS) -> Loaded:
    return loader.load(pins, limits, bpf_dir=tree, programs=TINY)


def map_ids(pins: Pins) -> dict[str, int]:
    found = {}
    for path in pins.maps.iterdir():
        with bpf.obj_get(path) as fd:
            found[path.name] = bpf.map_info(fd).id
    return found


def verdict(loaded: Loaded) -> int:
    with bpf.obj_get(loaded.programs["lb_xdp_tiny"]) as fd:
        return bpf.prog_test_run(fd, bytes(64)).retval


def set_udp_ns(pins: Pins, value: int) -> None:
    maps = KernelMaps(pins.maps)
    maps.array("settings4")["udp_ns"] = value
    maps.close()


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


def fill(pins: Pins, flows: int, vips: int) -> None:
    maps = KernelMaps(pins.maps)
    keys, values = np.zeros(vips, VIP_KEY[4]), np.zeros(vips, VIP)
    keys["address"] = np.arange(vips) + 1
    maps.update("vips4", keys, values)
    keys, values = np.zeros(flows, FLOW_KEY[4]), np.zeros(flows, FLOW[4])
    keys["src"] = np.arange(flows) + 1
    values["backend"] = np.arange(flows)
    maps.update("flows4", keys, values)
    table_rows(maps)[:320:32] = np.arange(10)
    maps.array("backends4")["generation"][:5] = 9
    maps.close()


def count(pins: Pins, name: str) -> int:
    maps = KernelMaps(pins.maps)
    try:
        return len(maps.read(name)[0])
    finally:
        maps.close()


def test_larger_maps_keep_their_entries(pins: Pins) -> None:
    pin_empty_maps(pins)
    fill(pins, flows=20, vips=10)
    before = map_ids(pins)
    larger = replace(LIMITS, flows=1024, vips=128, table_rows=4096, backends=128)
    assert pin_empty_maps(pins, larger) == frozenset()
    after = map_ids(pins)
    changed = {name for name, ident in before.items() if after[name] != ident}
    of_backends = ("backends", "traffic", "connections")
    by_family = {f"{name}{ip}" for name in ("flows", "hashing", "vips", *of_backends) for ip in FAMILIES}
    assert changed == {"tables"} | by_family
    assert (count(pins, "flows4"), count(pins, "vips4")) == (20, 10)
    maps = KernelMaps(pins.maps)
    assert table_rows(maps)[:352:32].tolist() == [*range(10), 0]
    assert maps.array("backends4")["generation"][:6].tolist() == [9] * 5 + [0]
    assert maps.capacity("tables") == 4096 // 32
    maps.close()


def test_traffic_counters_are_switched_off_and_on(pins: Pins, tree: Path) -> None:
    """The maps alone change, and what they had counted goes; connections are counted anyhow."""
    rooms = []
    for on in (True, False, True):
        loaded = loader.load(pins, LIMITS, traffic_counters=on, bpf_dir=tree, programs=TINY)
        assert loaded.fresh in (frozenset(), {spec.name for spec in map_table.MAPS})
        maps = KernelMaps(pins.maps)
        rooms.append((maps.capacity("traffic4"), maps.capacity("connections4")))
        maps.array("connections4")["opened"][1] += 1
        opened = int(maps.array("connections4")["opened"][1])
        maps.close()
    assert rooms == [(5, 64), (1, 64), (5, 64)]
    assert opened == 3


def test_smaller_maps_keep_entries_that_fit(pins: Pins) -> None:
    pin_empty_maps(pins)
    fill(pins, flows=20, vips=10)
    assert pin_empty_maps(pins, replace(LIMITS, vips=10, table_rows=320, backends=5)) == frozenset()
    assert (count(pins, "flows4"), count(pins, "vips4")) == (20, 10)


@pytest.mark.parametrize(
    "limits",
    [replace(LIMITS, vips=9), replace(LIMITS, table_rows=9 * 32), replace(LIMITS, backends=4)],
    ids=["vips", "tables", "backends"],
)
def test_entries_that_do_not_fit(pins: Pins, limits: Limits, caplog: pytest.LogCaptureFixture) -> None:
    """What names things by id starts empty together: an old id must not meet a new owner."""
    pin_empty_maps(pins)
    fill(pins, flows=20, vips=10)
    with caplog.at_level(logging.WARNING):
        fresh = pin_empty_maps(pins, limits)
    of_families = (
        "backends", "source_ranges", "vips", "flows", "affinity", "sockets", "traffic", "connections",
    )  # fmt: skip
    by_id = {f"{name}{version}" for name in of_families for version in FAMILIES}
    assert fresh == {"nodes", "services", "tables", "service_counters", "ended"} | by_id
    assert (count(pins, "flows4"), count(pins, "vips4")) == (0, 0)
    assert {record.args for record in caplog.records} == {(name,) for name in fresh}
    assert "its old contents are lost" in caplog.text


def test_flows_of_another_layout(pins: Pins, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes are the same, a field has moved: only the layout's marker tells."""
    pin_empty_maps(pins)
    fill(pins, flows=20, vips=10)
    spec = MAP_SPECS["flows4"]
    moved = np.dtype([("all", f"V{spec.kernel_value.itemsize}")])
    other = tuple(replace(one, bucket=moved) if one.name == "flows4" else one for one in map_table.MAPS)
    monkeypatch.setattr(map_table, "MAPS", other)
    assert pin_empty_maps(pins) == {"flows4"}
    assert count(pins, "vips4") == 10
    assert pin_empty_maps(pins) == frozenset()


def test_a_crash_between_pin_and_marker_counts_as_another_layout(pins: Pins) -> None:
    pin_empty_maps(pins)
    next(pins.shapes.glob("reasons-*")).rmdir()
    assert pin_empty_maps(pins) == {"reasons"}


def test_opening_changes_nothing(pins: Pins, monkeypatch: pytest.MonkeyPatch) -> None:
    pin_empty_maps(pins)
    before = map_ids(pins)
    monkeypatch.setattr(cache, "copy", lambda *_: pytest.fail("copied"))
    with pytest.raises(pytest.fail.Exception):
        pin_empty_maps(pins, replace(LIMITS, flows=512))
    assert map_ids(pins) == before


def test_a_crash_between_the_pins_of_a_table_and_of_its_hashing(pins: Pins) -> None:
    """Only one of them is new: the entries that are there are found all the same."""
    pin_empty_maps(pins)
    fill(pins, flows=20, vips=10)
    old = pins.maps / "hashing4~old"
    with bpf.obj_get(pins.maps / "hashing4") as fd:
        bpf.obj_pin(fd, old)
    assert pin_empty_maps(pins, replace(LIMITS, flows=1024)) == frozenset()
    old.rename(pins.maps / "hashing4")
    assert pin_empty_maps(pins, replace(LIMITS, flows=1024)) == frozenset()
    maps = KernelMaps(pins.maps)
    keys, _ = maps.read("flows4")
    assert len(keys) == 20
    maps.delete("flows4", keys)
    assert len(maps.read("flows4")[0]) == 0
    maps.close()


def test_without_the_hashing_its_tables_start_empty(pins: Pins) -> None:
    pin_empty_maps(pins)
    fill(pins, flows=20, vips=10)
    (pins.maps / "hashing4").unlink()
    assert pin_empty_maps(pins) == {"hashing4", "flows4", "affinity4"}
    assert (count(pins, "flows4"), count(pins, "vips4")) == (0, 10)


def test_unload_removes_this_instance_only(pins: Pins, tree: Path) -> None:
    load(pins, tree)
    with own_pins() as other:
        pin_empty_maps(other)
        assert {pins.instance, other.instance} <= set(instances())
        unload(pins)
        assert not pins.base.exists()
        assert pins.instance not in instances()
        assert set(map_ids(other)) == set(MAP_SPECS)
        unload(pins)  # once more: nothing to do
    assert not other.base.exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", ".x", "-x", "a b", "ü", "x" * 254])
def test_instance_names_that_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="instance"):
        Pins(name)


def test_dots_in_instance_names() -> None:
    assert Pins("lab.node1.example").base.name == "lab~node1~example"


@pytest.mark.parametrize(
    ("mountinfo", "mounted"),
    [
        ("", False),
        ("26 20 0:21 / /sys/fs/bpf rw - bpf bpf rw,mode=700\n", True),
        ("26 20 0:21 / /sys/fs/bpf rw shared:9 - bpf none rw\n", True),
        ("26 20 0:21 / /sys/fs/bpf rw - tmpfs none rw\n", False),
        ("26 20 0:21 / /sys/fs/bpf rw - tmpfs none rw\n27 26 0:22 / /sys/fs/bpf rw - bpf bpf rw\n", True),
        ("26 20 0:21 / /sys/fs/bpf/x rw - bpf bpf rw\n", False),
    ],
)
def test_is_bpffs(mountinfo: str, mounted: bool) -> None:
    assert is_bpffs(BPFFS, mountinfo) is mounted


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
