# SPDX-License-Identifier: Apache-2.0
"""Socket programs at real control groups, which each test makes and removes. Needs root and cgroup v2."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lb.config import SocketMode
from lb.datapath.attach import sockets
from lb.datapath.attach.sockets import SocketHooks, attached, cgroup_root, detach
from lb.datapath.kernel.bpf import ProgType
from lb.datapath.kernel.pins import Pins, unload
from lb.datapath.programs import loader
from lb.datapath.programs.loader import Loaded, Program
from tests.unit.pins_bench import LIMITS, own_pins

CONNECT4, CONNECT6 = 10, 11
PROGRAMS = {
    "lb_sock_tiny": Program("sock_tiny.c", ProgType.CGROUP_SOCK_ADDR, 0, {4: CONNECT4, 6: CONNECT6}),
    "lb_sock_tiny_mapped": Program("sock_tiny.c", ProgType.CGROUP_SOCK_ADDR, 0, {4: CONNECT6}),
}
SOURCE = """#include "maps.h"

int lb_sock_tiny(struct bpf_sock_addr *ctx)
{
	return RESULT;
}

int lb_sock_tiny_mapped(struct bpf_sock_addr *ctx)
{
	return RESULT;
}
"""
REFUSE, ALLOW = "0", "1"
EVERY = {("connect4", "lb_sock_tiny"), ("connect6", "lb_sock_tiny_6"), ("connect6", "lb_sock_tiny_mapped")}

# Joins the group and connects for as long as stdin is open; then says how often that succeeded and failed.
PROBE = """\
import os, select, socket, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as group:
    group.write("0")
print("here", flush=True)
done = {True: 0, False: 0}
while not select.select([sys.stdin], [], [], 0)[0]:
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        try:
            datagrams.connect(("127.0.0.1", 9))
            done[True] += 1
        except PermissionError:
            done[False] += 1
print(done[True], done[False])
"""


@pytest.fixture
def group() -> Iterator[Path]:
    yield from _group("a")


@pytest.fixture
def another_group() -> Iterator[Path]:
    yield from _group("b")


def _group(name: str) -> Iterator[Path]:
    root = cgroup_root(sockets.MOUNTS.read_text())
    assert root is not None
    path = root / f"lbctl-test-{os.getpid()}-{name}"
    path.mkdir()
    yield path
    if path.is_dir():
        path.rmdir()


def built(pins: Pins, tree: Path, result: str) -> Loaded:
    (tree / "sock_tiny.c").write_text(SOURCE.replace("RESULT", result))
    return loader.load(pins, LIMITS, bpf_dir=tree, programs=PROGRAMS)


def hooks(pins: Pins, loaded: Loaded, group: Path | str, mode: SocketMode = SocketMode.HOST) -> SocketHooks:
    return SocketHooks(pins, loaded.sockets, loaded.refused, str(group), mode)


def shape(pins: Pins) -> set[tuple[str, str]]:
    return {(one.hook, one.program) for one in attached(pins)}


class Probe:
    """A process in a group that tries to connect all the time."""

    def __init__(self, group: Path) -> None:
        argv = [sys.executable, "-I", "-S", "-c", PROBE, str(group)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "here\n"

    def end(self) -> tuple[int, int]:
        """Return how many connects succeeded and how many failed."""
        succeeded, failed = self._process.communicate()[0].split()
        return int(succeeded), int(failed)


def test_attached_where_asked_and_detached_again(pins: Pins, tree: Path, group: Path) -> None:
    loaded = built(pins, tree, ALLOW)
    own = hooks(pins, loaded, group)
    report = own.sync()
    assert sorted(report.attached) == [f"{group} connect4", f"{group} connect6", f"{group} connect6"]
    assert (report.detached, report.errors) == ([], [])
    assert shape(pins) == EVERY
    assert {one.cgroup for one in attached(pins)} == {group}
    again = own.sync()
    assert (again.attached, again.detached, again.errors) == ([], [], [])
    off = hooks(pins, loaded, group, SocketMode.OFF).sync()
    assert sorted(off.detached) == sorted(report.attached)
    assert attached(pins) == []
    assert detach(pins) == []


def test_only_processes_of_the_group_meet_the_programs(
    pins: Pins, tree: Path, group: Path, another_group: Path
) -> None:
    hooks(pins, built(pins, tree, REFUSE), group).sync()
    inside, outside = Probe(group), Probe(another_group)
    (succeeded, failed), (succeeded_outside, failed_outside) = inside.end(), outside.end()
    assert succeeded == failed_outside == 0
    assert failed
    assert succeeded_outside


def test_an_upgrade_leaves_no_moment_without_a_program(pins: Pins, tree: Path, group: Path) -> None:
    """Both builds refuse every connect, so one that succeeds met neither."""
    builds = [built(pins, tree, REFUSE), built(pins, tree, "ctx->user_port > 65535")]
    hooks(pins, builds[0], group).sync()
    probe = Probe(group)
    for number in range(100):
        loaded = builds[(number + 1) % 2]
        report = hooks(pins, loaded, group).sync()
        assert (len(report.attached), report.errors) == (3, [])
        programs = {path.name for path, _ in loaded.sockets.values()}
        assert {one.program for one in attached(pins)} == programs
    succeeded, failed = probe.end()
    assert succeeded == 0
    assert failed


def test_another_group(pins: Pins, tree: Path, group: Path, another_group: Path) -> None:
    loaded = built(pins, tree, REFUSE)
    hooks(pins, loaded, group).sync()
    assert len(hooks(pins, loaded, another_group).sync().attached) == 3
    assert {one.cgroup for one in attached(pins)} == {another_group}
    probe = Probe(group)
    assert probe.end()[1] == 0


def test_a_group_that_is_removed_and_made_again(pins: Pins, tree: Path, group: Path) -> None:
    own = hooks(pins, built(pins, tree, ALLOW), group)
    own.sync()
    group.rmdir()
    assert {one.cgroup for one in attached(pins)} == {None}
    assert len(own.lost()) == 3
    error = own.sync().errors[0]
    assert f"No such file or directory: '{group}'" in str(error)
    assert own.lost() == [], "one failure is one problem, not one for each program"
    group.mkdir()
    assert len(own.sync().attached) == 3
    assert {one.cgroup for one in attached(pins)} == {group}


def test_instances_do_not_disturb_each_other(pins: Pins, tree: Path, group: Path) -> None:
    hooks(pins, built(pins, tree, ALLOW), group).sync()
    with own_pins() as other:
        hooks(other, built(other, tree, ALLOW), group).sync()
        assert shape(other) == EVERY
    assert shape(pins) == EVERY


def test_unloading_detaches(pins: Pins, tree: Path, group: Path) -> None:
    hooks(pins, built(pins, tree, REFUSE), group).sync()
    unload(pins)
    assert attached(pins) == []
    assert Probe(group).end()[1] == 0


def test_programs_of_an_earlier_version_go(pins: Pins, tree: Path, group: Path) -> None:
    loaded = built(pins, tree, ALLOW)
    hooks(pins, loaded, group).sync()
    fewer = {name: one for name, one in loaded.sockets.items() if not name.endswith("_mapped")}
    hooks(pins, replace(loaded, sockets=fewer), group).sync()
    assert {program for _, program in shape(pins)} == set(fewer)


@pytest.mark.parametrize("what", ["kernel", "no mount", "no cookie", "no group"])
def test_a_machine_without_what_it_takes_is_told_once_and_clearly(
    pins: Pins, tree: Path, group: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = built(pins, tree, "2" if what == "kernel" else ALLOW)  # a verdict that the verifier refuses
    place: Path | str = group
    if what == "no mount":
        place = ""
        monkeypatch.setattr(sockets, "MOUNTS", tmp_path / "mounts")
        sockets.MOUNTS.write_text("proc /proc proc rw 0 0\n")
    elif what == "no cookie":
        monkeypatch.setattr(sockets, "netns_cookie", lambda: 0)
    elif what == "no group":
        place = group / "missing"
    says = {
        "kernel": "the kernel refused the program lb_sock_tiny: Invalid argument",
        "no mount": "cgroup v2 is not mounted",
        "no cookie": "older than 5.14",
        "no group": "No such file or directory",
    }
    report = hooks(pins, loaded, place).sync()
    assert len(report.errors) == 1
    assert says[what] in str(report.errors[0])
    assert "tc serves the node's processes" in str(report.errors[0])
    assert report.attached == []
    monkeypatch.setattr(sockets, "MOUNTS", Path("/proc/self/mounts"))
    assert attached(pins) == []


@pytest.mark.parametrize(
    ("mounts", "found"),
    [
        ("proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", Path("/sys/fs/cgroup")),
        ("cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\nnone /a\\040b cgroup2 rw 0 0\n", Path("/a b")),
        ("proc /proc proc rw 0 0\n", None),
    ],
)
def test_where_cgroups_are_mounted(mounts: str, found: Path | None) -> None:
    assert cgroup_root(mounts) == found


def test_the_network_namespaces_cookie_is_its_own() -> None:
    code = "from lb.datapath.attach.sockets import netns_cookie; print(netns_cookie())"
    argv = ["unshare", "--net", sys.executable, "-c", code]
    other = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert int(other) > 0
    assert sockets.netns_cookie() not in (0, int(other))
