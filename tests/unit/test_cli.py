# SPDX-License-Identifier: Apache-2.0
"""The command line: parsing, exit codes, choosing an instance, printing."""

from __future__ import annotations

import argparse
import datetime
import importlib
import io
import json
import logging
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lb
from lb.cli import colours, command, instances, main
from lb.cli.command import COMMANDS
from lb.cli.grammar import lab as grammar_lab
from lb.cli.manual import manual
from lb.cli.status import render as status_text
from lb.cli.tables import table
from lb.config import Config, SnatPorts, Timeouts
from lb.datapath.attach.hooks import HookReport
from lb.datapath.attach.netlink import Interface
from lb.datapath.attach.roles import node_port_addresses, written_roles
from lb.datapath.attach.settings import write_settings
from lb.datapath.maps import layouts, map_table
from lb.datapath.maps.fill import map_fill
from lb.datapath.maps.layouts import BackendStateCode, IfaceFlag
from lb.errors import ConfigError, LbError
from lb.inbox import Failed, Inbox, Reread, Stop, StopNow, stop_signals, threads
from lb.lab import addressing
from lb.lab.addressing import Announce, Family, Overlay, RouterKind
from lb.lab.apiserver import VARIABLE
from lb.lab.kube_proxy import Mode
from lb.model import Protocol
from lb.rundir import RunDir
from lb.serve import complete
from lb.served.history import IN_ALL, OF_ONE
from tests.fake_maps import FakeMaps


def run(*argv: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    return main(argv, out=out, err=err), out.getvalue(), err.getvalue()


def test_version() -> None:
    assert run("version") == (0, f"lbctl {lb.__version__}\n", "")


USAGE = [
    [],
    ["nonsense"],
    ["maps"],
    ["service"],
    ["service", "list", "-o", "ipvsadm"],
    ["run", "--nonsense"],
    ["status", "-o", "xml"],
    ["lab", "up", "--nodes", "0"],
    ["lab", "up", "--nodes", "many"],
]


@pytest.mark.parametrize("argv", USAGE)
def test_wrong_usage_is_exit_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: lbctl")


def test_an_error_is_exit_code_1_and_one_line() -> None:
    code, out, err = run("run", "--source", "nowhere")
    assert (code, out) == (1, "")
    assert err == "lbctl: flag --source: setting sources: 'nowhere' is not manifests:DIR or kubernetes\n"


ALONE = {"status", "flows", "monitor", "top", "audit", "cutover", "unload"}
"""Commands that need no word but the instance."""
EXIT_CODES: list[tuple[list[str], int]] = [
    (["version"], 0),
    (["maps", "list"], 0),
    (["completion", "bash"], 0),
    (["run"], 1),
    (["run", "--node-name", "n1", "--source", "manifests:/nowhere"], 1),
    (["addresses", "run", "--source", "kubernetes", "--pools", "/nowhere"], 1),
    (["announce", "bgp", "--peers", "/nowhere"], 1),
    *(
        ([*words, "--instance", "nobody.here"], 1)
        for words in (
            *([name] for name in COMMANDS if name in ALONE),
            ["service", "list"], ["service", "show", "web"], ["maps", "dump"], ["history", "web"],
            ["explain", "web"], ["announce", "status"],
            ["plan", "-f", "/dev/null"], ["trace", "192.0.2.7", "192.0.2.8:80"],
        )
    ),
    (["lab", "status", "--id", "nobody"], 1),
    *(
        (words, 2)
        for words in (
            ["service", "show", "a/b/c"], ["maps", "dump", "nonsense"], ["flows", "--service", "/web"],
            ["history", "/web"], ["explain", "/web"], ["explain", "web", "--from", "me"],
            ["trace", "192.0.2.7"], ["trace", "192.0.2.7", "fd00::1:80"],
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "code"), EXIT_CODES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_exit_codes_are_those_of_the_table(
    argv: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lb.datapath.kernel.pins.instances", lambda: ["some.node"])
    got, out, err = run(*argv)
    assert got == code
    if code:
        assert (out, err.startswith("lbctl: "), err.count("\n")) == ("", True, 1)
    else:
        assert (bool(out), err) == (True, "")


def test_every_command_has_an_exit_code_tried() -> None:
    tried = {argv[0] for argv, _ in EXIT_CODES}
    assert tried >= {*COMMANDS} - {"doctor"}, "doctor has tests of its own"


@pytest.mark.parametrize(
    ("terminal", "environment", "expected"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colours_are_for_terminals_that_want_them(
    terminal: bool, environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(os, "environ", {"TERM": "xterm", **environment})
    assert colours.wanted(out) is expected
    assert not colours.wanted(io.StringIO())


def test_run_without_a_source_says_what_is_missing() -> None:
    assert run("run", "--node-name", "n1")[2] == (
        "lbctl: setting sources: none given; say where Services come from:"
        " --source manifests:DIR or --source kubernetes\n"
    )


def logged(monkeypatch: pytest.MonkeyPatch, *flags: str) -> tuple[int, list[str]]:
    """Return the exit code and the log of an agent that warns, meets a bug, and fails."""

    def serve(_config: Config) -> None:
        log = logging.getLogger("lb.serve")
        log.warning("first\nand second")
        try:
            raise ValueError("a bug")
        except ValueError:
            log.exception("told")
        raise LbError("no room")

    monkeypatch.setattr("lb.cli.run.serve", serve)
    code, out, err = run("run", "--source", "kubernetes", *flags)
    assert out == ""
    return code, err.splitlines()


def test_a_log_has_date_time_and_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    code, lines = logged(monkeypatch)
    assert (code, lines[-1]) == (1, "lbctl: no room")
    when, words = lines[0].split(" ", 1)
    assert words == "WARNING first\\nand second"
    assert abs(time.time() - datetime.datetime.fromisoformat(when).timestamp()) < 60
    assert datetime.datetime.fromisoformat(when).tzinfo is not None


def test_a_log_is_json_on_request_to_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LBCTL_LOGLEVEL", "debug")
    code, lines = logged(monkeypatch, "--log-format", "json")
    of_settings, *found = [json.loads(line) for line in lines]
    assert code == 1
    assert "did you mean LBCTL_LOG_LEVEL?" in of_settings["message"]
    assert [(one["level"], one["logger"], one["message"]) for one in found] == [
        ("warning", "lb.serve", "first\nand second"),
        ("error", "lb.serve", "told"),
        ("error", "lb", "no room"),
    ]
    assert found[1]["error"].endswith("ValueError: a bug")
    assert datetime.datetime.fromisoformat(found[0]["time"]).tzinfo is not None


def test_run_refuses_a_directory_that_is_not_there(tmp_path: Path) -> None:
    code, _, err = run("run", "--node-name", "n1", "--source", f"manifests:{tmp_path}/none")
    assert (code, err) == (1, f"lbctl: setting sources: manifests:{tmp_path}/none: no such directory\n")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--source", "kubernetes", "--source", "manifests:/"), "it must be the only one"),
        (("--source", "manifests:/", "--kubeconfig", "/k"), "they need --source kubernetes"),
        (
            ("--source", "kubernetes", "--kubeconfig", "/nowhere/k"),
            "kubeconfig /nowhere/k: there is no such file",
        ),
        (("--source", "kubernetes"), "access as a pod of the cluster"),
    ],
)
def test_run_refuses_sources_that_cannot_be(
    flags: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    code, _, err = run("run", "--node-name", "n1", *flags)
    assert (code, err.count("\n")) == (1, 1)
    assert words in err


def test_without_root_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> list[str]:
        raise PermissionError(13, "Permission denied", "/sys/fs/bpf/lbctl")

    monkeypatch.setattr("lb.datapath.kernel.pins.instances", refuse)
    said = "lbctl: /sys/fs/bpf/lbctl: Permission denied; lbctl needs root\n"
    assert run("status") == run("maps", "dump") == run("unload") == (1, "", said)


def test_unload_of_a_mistyped_instance_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def detach() -> None:
        raise AssertionError("the programs of lab.node1 were about to go")

    monkeypatch.setattr("lb.datapath.kernel.pins.instances", lambda: ["lab.node1"])
    monkeypatch.setattr("lb.datapath.attach.hooks.detach_all", detach)
    said = "lbctl: --instance nope: no such instance; there are: lab.node1\n"
    assert run("unload", "--instance", "nope") == (1, "", said)
    assert run("unload", "--instance", "nope", "--force") == (1, "", said)


def test_unload_where_nothing_is_pinned_still_looks_for_programs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lb.datapath.kernel.pins.instances", list)
    monkeypatch.setattr("lb.datapath.attach.hooks.detach_all", lambda: HookReport(detached=["eth0 tc"]))
    assert run("unload") == (0, "detached: eth0 tc\nunloaded: nothing was pinned\n", "")


INTERRUPTED = """\
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "lb.cli.command":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Finder())
from lb.cli import entry
sys.exit(entry())
"""


def test_ctrl_c_during_the_imports_ends_quietly() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_the_version_is_a_flag_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == run("version")[1]


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parsers of all commands, and of the commands of commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield each
                yield from parsers(each)


def test_every_help_has_examples_and_exit_codes_and_every_command_is_done_by_a_function() -> None:
    found = list(parsers(command.parser()))
    assert {"lbctl run", "lbctl maps dump", "lbctl lab exec", "lbctl version"} <= {
        each.prog for each in found
    }
    for each in found:
        examples = each.format_help().partition("\nexamples:\n")[2].splitlines()
        assert examples, each.prog
        assert examples[0].startswith(f"  {each.prog}"), each.prog
        assert re.search(r"^exit codes: .*\b2 wrong usage$", each.format_help(), re.MULTILINE | re.DOTALL), (
            each.prog
        )
        handler = each.get_default("handler")
        nested = any(isinstance(action, argparse._SubParsersAction) for action in each._actions)
        assert bool(handler) is not nested
        if handler:
            module, _, function = handler.partition(".")
            assert callable(getattr(importlib.import_module(f"lb.cli.{module}"), function))


def test_examples_are_ways_to_call_it() -> None:
    """Each is parsed, up to what a shell would take for itself."""
    for each in parsers(command.parser()):
        examples = each.format_help().partition("\nexamples:\n")[2].splitlines()
        for line in (one for one in examples if one.startswith("  lbctl ")):
            words = shlex.split(re.split(r" [|>] ", line)[0])[1:]
            command.parser(words[0]).parse_args(words)


def test_the_manual_has_every_command_flag_and_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    text = manual()
    words = text.replace("\\-", "-")
    assert str(Path(__file__).parents[2]) not in words, "it is made on one machine and read on others"
    for each in parsers(command.parser()):
        assert f"\n.SS {each.prog}" in words
        for flag in (one for action in each._actions for one in action.option_strings if one != "-h"):
            assert flag == "--help" or f"\\fB{flag}\\fR" in words, (each.prog, flag)
    requests = {line.split()[0] for line in text.splitlines() if line.startswith((".", "'"))}
    assert requests == {".TH", ".SH", ".SS", ".PP", ".TP", ".nf", ".fi", ".B", ".BR"}
    documented = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    told = " ".join(command.parser().format_help().split())
    for code, meaning in command.EXIT_CODES:
        assert f"\\fB{code}\\fR\n{meaning}\n" in words
        assert f"| {code} | {meaning} |\n" in documented
        assert f"{code} {meaning}" in told


def test_words_of_help_that_stand_for_what_is_elsewhere() -> None:
    """The grammar imports nothing of it."""
    assert set(grammar_lab.OVERLAYS) == set(Overlay)
    assert set(grammar_lab.FAMILIES) == set(Family)
    assert set(grammar_lab.ANNOUNCE) == set(Announce)
    assert set(grammar_lab.ROUTERS) == set(RouterKind)
    assert set(grammar_lab.KUBE_PROXY) == set(Mode)
    assert (grammar_lab.ZONES, grammar_lab.MAX_NODES) == (addressing.ZONES, addressing.MAX_NODES)
    assert grammar_lab.DEFAULT_ID == addressing.DEFAULT_ID
    texts = {each.prog: each.format_help() for each in parsers(command.parser())}
    assert f"the last {OF_ONE} changes of a Service, the last\n{IN_ALL} of all" in texts["lbctl history"]
    assert VARIABLE in texts["lbctl lab up"]
    assert "{tcp,udp,sctp,icmp}" in texts["lbctl trace"]
    assert [each.name.lower() for each in Protocol] == ["tcp", "udp", "sctp"]


def test_maps_list_has_every_map() -> None:
    code, out, _ = run("maps", "list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == [spec.name for spec in map_table.MAPS]


def test_a_reader_that_goes_away_leaves_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "lb", "maps", "list"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


# Instances -----------------------------------------------------------------------------------------------

LAB = ["demo.node1", "demo.node2", "plain"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["maps", "dump", "flow"],
            "maps dump: no section flow; there are: vips, addresses, backends, flows, affinity, counters",
        ),
        (["maps", "dump", "flows", "-o", "ipvsadm"], "no section flows with -o ipvsadm; there are: vips"),
        (
            ["maps", "dump", "--service", "/web"],
            "'/web' is no Service: say NAMESPACE/NAME, or NAME in the namespace default",
        ),
    ],
)
def test_a_dump_that_cannot_be_asked_for(argv: list[str], words: str) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert words in err


@pytest.mark.parametrize(
    ("flags", "existing", "chosen"),
    [
        ({"instance": "plain"}, LAB, "plain"),
        ({"node": "plain"}, LAB, "plain"),
        ({"node": "node1"}, LAB, "demo.node1"),
        ({"node": "a.b"}, ["a.b", "lab.a.b"], "a.b"),
        ({}, ["only"], "only"),
    ],
)
def test_choosing_an_instance(flags: dict[str, str], existing: list[str], chosen: str) -> None:
    args = argparse.Namespace(**({"instance": None, "node": None} | flags))
    assert instances.choose(args, existing) == chosen


@pytest.mark.parametrize(
    ("flags", "existing", "words"),
    [
        ({}, LAB, "more than one instance fits.*there are: demo.node1, demo.node2, plain"),
        ({}, [], "no such instance; nothing of lbctl is pinned"),
        ({"node": "node1"}, ["a.node1", "b.node1"], "--node node1: more than one"),
        ({"node": "ode1"}, LAB, "--node ode1: no such instance; there are: demo.node1"),
        ({"instance": "node1"}, LAB, "--instance node1: no such instance"),
    ],
)
def test_an_instance_that_cannot_be_chosen(flags: dict[str, str], existing: list[str], words: str) -> None:
    args = argparse.Namespace(**({"instance": None, "node": None} | flags))
    with pytest.raises(ConfigError, match=words):
        instances.choose(args, existing)


# Run files -----------------------------------------------------------------------------------------------


def test_an_instance_is_locked_by_one_process_and_free_when_it_ends(tmp_path: Path) -> None:
    run_dir = RunDir("n1", tmp_path)
    assert run_dir.holder() is None
    with run_dir.lock():
        assert run_dir.holder() == os.getpid()
        with (
            pytest.raises(LbError, match=f"instance n1: in use by process {os.getpid()}"),
            RunDir("n1", tmp_path).lock(),
        ):
            pass
        with RunDir("n2", tmp_path).lock():
            pass
    assert run_dir.holder() is None
    with run_dir.lock():
        assert run_dir.holder() == os.getpid()


def test_a_lock_is_free_after_its_process_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from lb.rundir import RunDir\n"
        "with RunDir('n1', pathlib.Path(sys.argv[1])).lock():\n"
        "    print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"locked\n"
        assert RunDir("n1", tmp_path).holder() == child.pid
        child.kill()
        child.wait()
    assert RunDir("n1", tmp_path).holder() is None
    with RunDir("n1", tmp_path).lock():
        pass


def test_removing_run_files_while_locked_does_not_let_two_in(tmp_path: Path) -> None:
    run_dir = RunDir("n1", tmp_path)
    with run_dir.lock():
        run_dir.remove()
        assert list(tmp_path.parent.glob("n1*")) == []
    with run_dir.lock():
        assert run_dir.holder() == os.getpid()


def test_notes_are_replaced_as_a_whole(tmp_path: Path) -> None:
    run_dir = RunDir("n1", tmp_path)
    assert run_dir.notes() == {}
    run_dir.write_notes({"a": 1})
    run_dir.write_notes({"b": 2})
    assert run_dir.notes() == {"b": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["n1.json"]


def test_notes_tell_when_the_interfaces_are_elsewhere(tmp_path: Path) -> None:
    run_dir = RunDir("n1", tmp_path)
    assert run_dir.elsewhere() == ""
    run_dir.write_notes({"network_namespace": 1, "pid": 77})
    assert run_dir.elsewhere() == "nsenter --net=/proc/77/ns/net lbctl … --instance n1"


# Status --------------------------------------------------------------------------------------------------


def test_map_fill_counts_what_is_used() -> None:
    maps = FakeMaps()
    maps.array("backends4")["state"][[1, 2, 9]] = BackendStateCode.ACTIVE
    keys = np.zeros(3, layouts.VIP_KEY[4])
    keys["address"] = [1, 2, 3]
    vips = np.zeros(3, layouts.VIP)
    vips["inside"]["offset"] = vips["outside"]["offset"] = [0, 0, 251]
    vips["inside"]["size"] = vips["outside"]["size"] = [251, 251, 1009]
    maps.update("vips4", keys, vips)
    maps.array("backends6")["state"][7] = BackendStateCode.TERMINATING
    vips["inside"] = (1260, 509)
    vips["outside"] = (0, 0)
    maps.update("vips6", np.zeros(1, layouts.VIP_KEY[6]), vips[:1])
    fill = {row.name: (row.entries, row.capacity) for row in map_fill(maps)}
    used = {"vips4": 3, "backends4": 3, "vips6": 1, "backends6": 1}
    assert fill == {
        name: (used.get(name, 0), capacity)
        for version in layouts.FAMILIES
        for name, capacity in (
            (f"ifaces{version}", 4096),
            (f"announced{version}", 4096),
            (f"rivals{version}", 256),
            (f"vips{version}", 65536),
            (f"source_ranges{version}", 65536),
            (f"backends{version}", 131072),
            (f"flows{version}", 524293),
            (f"fragments{version}", 8192),
            (f"pieces{version}", 512),
            (f"affinity{version}", 131075),
            (f"sockets{version}", 65536),
        )
    } | {
        "tables": (40 + 16, 262144),
        "services": (0, 65536),
        "nodes": (0, 16384),
    }


def test_roles_are_those_that_the_programs_see() -> None:
    maps = FakeMaps()
    rows = np.zeros(3, layouts.IFACE[4])
    rows["flags"] = [0, IfaceFlag.UPLINK, IfaceFlag.TUNNEL]
    maps.update("ifaces4", np.array([0, 2, 5], layouts.ID), rows)
    six = np.zeros(2, layouts.IFACE[6])
    six["flags"] = [IfaceFlag.UPLINK, IfaceFlag.TUNNEL]
    maps.update("ifaces6", np.array([3, 5], layouts.ID), six)
    assert written_roles(maps) == {2: "uplink", 3: "uplink", 5: "tunnel"}


def a_status() -> dict[str, Any]:
    """Return a status with something of everything."""
    hook = {
        "interface": "eth0",
        "role": "uplink",
        "hook": "tc ingress",
        "program": "lb_tc_uplink_in",
        "program_id": 7,
    }
    return {
        "instance": "n1",
        "node": "node1",
        "problems": [
            {"text": "no agent runs", "next": "start it", "since": None},
            {
                "text": "service default/web: no room",
                "next": "raise the limit that it names, and no other: " + "so this is a long line " * 3,
                "since": "2020-01-01T00:00:00+00:00",
            },
        ],
        "problems_left_out": 3,
        "agent": {
            "running": False,
            "silent_seconds": None,
            "pid": None,
            "last_sync": "2020-01-01T00:00:00+00:00",
            "services": 2,
            "repairs": {
                "count": 2,
                "last": "2020-01-01T00:00:00+00:00",
                "what": "uplink eth0, tc ingress",
            },
        },
        "healthz": "0.0.0.0:10256",
        "health_check_node_ports": [
            {
                "service": "default/web",
                "port": 30500,
                "local_endpoints": 2,
                "addresses": ["192.0.2.11:30500", "[2001:db8::11]:30500"],
            },
            {"service": "default/dns", "port": 30501, "local_endpoints": 0, "addresses": []},
        ],
        "source": [
            {
                "resource": "services",
                "objects": 12,
                "unusable": 1,
                "contact": "2020-01-01T00:00:00+00:00",
                "failures": 3,
                "error": "GET /api/v1/services: 500 oops",
            },
            {
                "resource": "nodes",
                "objects": 0,
                "unusable": 0,
                "contact": None,
                "failures": 0,
                "error": "",
            },
        ],
        "hooks_elsewhere": None,
        "snat": {"first": 1024, "last": 29999, "ports": 28976, "elsewhere": 2, "exhausted": 7},
        "hooks": [
            {**hook, "why": "veth: XDP would turn off offload"},
            {**hook, "hook": "tc egress", "why": ""},
            *({**hook, "interface": f"veth{at}", "role": "pod", "why": ""} for at in range(3)),
            {**hook, "interface": "/sys/fs/cgroup", "role": "sockets", "hook": "connect4", "why": ""},
        ],
        "programs": [],
        "maps": [
            {"name": "vips4", "entries": 3, "capacity": 64, "when_full": "refused"},
            {"name": "vips6", "entries": 0, "capacity": 64, "when_full": "refused"},
            {"name": "flows4", "entries": 0, "capacity": 64, "when_full": "one goes", "evicted": 456},
        ],
    }


def plain(text: str) -> str:
    """Return a text without how long ago things were."""
    return re.sub(r"[0-9]+ d ago", "N d ago", text)


def test_status_as_text() -> None:
    text = plain(status_text(a_status()))
    assert text == (Path(__file__).parent / "texts" / "status.txt").read_text()


def test_status_with_programs_shows_every_hook_and_map() -> None:
    text = plain(status_text(a_status(), programs=True))
    assert text.endswith(
        "INTERFACE       ROLE     HOOK        PROGRAM          PROGRAM ID  WHY\n"
        "eth0            uplink   tc ingress  lb_tc_uplink_in           7  veth: XDP would turn off offload\n"
        "eth0            uplink   tc egress   lb_tc_uplink_in           7\n"
        "veth0           pod      tc ingress  lb_tc_uplink_in           7\n"
        "veth1           pod      tc ingress  lb_tc_uplink_in           7\n"
        "veth2           pod      tc ingress  lb_tc_uplink_in           7\n"
        "/sys/fs/cgroup  sockets  connect4    lb_tc_uplink_in           7\n"
        "\n"
        "NAME  ID  TAG  LOADED  BUILD\n"
        "\n"
        "NAME    ENTRIES  CAPACITY  WHEN FULL\n"
        "vips4         3        64  refused\n"
        "vips6         0        64  refused\n"
        "flows4        0        64  one goes\n"
    )


@pytest.mark.parametrize("width", [60, 80])
def test_status_fits_a_narrow_terminal(width: int) -> None:
    assert max(map(len, status_text(a_status(), width=width).splitlines())) <= width


def test_the_first_line_of_a_status_decides() -> None:
    well = {**a_status(), "problems": [], "problems_left_out": 0}
    assert status_text(well).startswith("ok: node1 (instance n1)\n\n")
    one = {**well, "problems": a_status()["problems"][:1]}
    assert status_text(one).startswith("1 problem: node1 (instance n1)\n- no agent runs\n  → start it\n\n")


def test_status_from_another_network_namespace_says_where_the_hooks_are() -> None:
    agent: dict[str, Any] = {"running": True, "silent_seconds": None, "pid": 77, "last_sync": None}
    parts: dict[str, Any] = {"hooks": [], "programs": [], "maps": []}
    parts |= {"healthz": None, "health_check_node_ports": []}
    parts["snat"] = {"first": 1, "last": 2, "ports": 2, "elsewhere": 0, "exhausted": 0}
    parts |= {"node": None, "problems": [], "problems_left_out": 0, "source": [], "agent": agent}
    text = status_text({"instance": "n1", "hooks_elsewhere": "nsenter …", **parts})
    assert text.startswith(
        "ok: n1\n\n"
        "agent      runs, process 77\n"
        "SNAT       ports 1-2, 2 for each remote backend; never exhausted\n"
        "hooks      in another network namespace: nsenter …\n\n"
    )


def test_a_table_sets_numbers_flush_right() -> None:
    assert table(("a", "b"), [("x", 1), ("long", 100)]) == "A       B\nx       1\nlong  100\n"


# Start ---------------------------------------------------------------------------------------------------


def test_settings_reach_the_kernel_in_its_units() -> None:
    maps = FakeMaps()
    write_settings(maps, Config(timeouts=Timeouts(udp=0.5), snat_ports=SnatPorts(60000, 60001)))
    row = maps.read("settings4")[1]
    assert int(row["tcp_established_ns"][0]) == 86_400_000_000_000
    assert int(row["udp_ns"][0]) == 500_000_000
    assert row["snat_port_min"].tobytes() + row["snat_port_max"].tobytes() == bytes.fromhex("ea60 ea61")


def test_node_name_and_instance_default_to_the_host_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Worker-7")
    config = complete(Config(sources=("manifests:/m",)))
    assert (config.node_name, config.instance) == ("worker-7", "worker-7")
    config = complete(Config(sources=("manifests:/m",), node_name="n1"))
    assert (config.node_name, config.instance) == ("n1", "n1")
    monkeypatch.setattr("socket.gethostname", lambda: "my_host")
    with pytest.raises(ConfigError, match="host name 'my_host' is not a node name"):
        complete(Config(sources=("manifests:/m",)))


def interface(index: int, name: str, *addresses: str) -> Interface:
    return Interface(index, name, "physical", addresses=tuple(ip_interface(text) for text in addresses))


LO = interface(1, "lo", "127.0.0.1/8", "::1/128")
ETH0 = interface(2, "eth0", "169.254.9.9/16", "192.0.2.1/24", "192.0.2.7/24", "fe80::1/64", "2001:db8::1/64")
ETH1 = interface(3, "eth1", "198.51.100.1/24")


def test_signals_become_stop_and_handlers_come_back() -> None:
    inbox: Inbox = queue.SimpleQueue()
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_signals(inbox) as runs:
        runs()
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
    assert [inbox.get(timeout=5), inbox.get(timeout=5)] == [Reread(), Stop()]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_nobody_would_read_ends_what_is_being_done(number: signal.Signals) -> None:
    """While the agent starts, and when the loop did not take notice of the first one."""
    inbox: Inbox = queue.SimpleQueue()
    with stop_signals(inbox) as runs:
        signal.raise_signal(signal.SIGHUP)
        with pytest.raises(StopNow):
            signal.raise_signal(number)
        runs()
        signal.raise_signal(number)
        with pytest.raises(StopNow):
            signal.raise_signal(number)
    assert [inbox.get(timeout=5), inbox.get(timeout=5)] == [Reread(), Stop()]


def test_a_thread_that_fails_tells_the_agent_and_the_others_end_with_the_context() -> None:
    inbox: Inbox = queue.SimpleQueue()
    ended = threading.Event()

    def fails(_stop: threading.Event) -> None:
        raise OSError("the disk is gone")

    def waits(stop: threading.Event) -> None:
        stop.wait()
        ended.set()

    with threads(inbox, {"source x": fails, "watcher": waits}):
        message = inbox.get(timeout=5)
        assert isinstance(message, Failed)
        assert (message.what, str(message.error)) == ("source x", "the disk is gone")
        assert not ended.is_set()
    assert ended.is_set()


def test_node_port_networks_without_effect_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """kube-proxy in mode iptables answers on 127.0.0.1, so its configurations may name that network."""
    wanted = ("127.0.0.0/8", "192.0.2.0/24", "primary", "fe80::/64", "0.0.0.0/0", "::1/128")
    complete(Config(sources=("manifests:/m",), node_name="n1", node_port_addresses=wanted))
    said = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert [text.split()[2] for text in said] == ["127.0.0.0/8", "fe80::/64", "::1/128"]
    assert all(text.startswith("setting node_port_addresses: ") for text in said)


LOOPBACK_ROUTED = interface(1, "lo", "127.0.0.1/8", "::1/128", "203.0.113.1/32", "2001:db8:9::1/128")


@pytest.mark.parametrize(
    ("own", "wanted", "expected"),
    [
        (["192.0.2.7", "2001:db8::1"], [], ["192.0.2.7", "2001:db8::1"]),
        (["192.0.2.7"], ["primary"], ["192.0.2.7", "2001:db8::1"]),
        (["192.0.2.7", "192.0.2.1"], [], ["192.0.2.7", "2001:db8::1"]),
        (["198.51.100.1"], [], ["198.51.100.1", "2001:db8::1"]),
        (["203.0.113.1", "2001:db8:9::1"], [], ["203.0.113.1", "2001:db8:9::1"]),
        (["10.9.9.9", "192.0.2.7"], [], ["192.0.2.7", "2001:db8::1"]),
        (["10.9.9.9"], [], ["192.0.2.1", "2001:db8::1"]),
        (["127.0.0.1", "169.254.9.9"], [], ["192.0.2.1", "2001:db8::1"]),
        (["192.0.2.7"], ["192.0.2.1/32"], ["192.0.2.1"]),
        (["192.0.2.7"], ["primary", "192.0.2.1/32"], ["192.0.2.1", "192.0.2.7", "2001:db8::1"]),
    ],
)
def test_node_ports_answer_on_the_addresses_of_the_node_object(
    own: list[str], wanted: list[str], expected: list[str]
) -> None:
    """eth0 is the uplink; 10.9.9.9 is on no interface, as behind a NAT."""
    addresses = [ip_address(text) for text in own]
    found = node_port_addresses([LOOPBACK_ROUTED, ETH0, ETH1], [ETH0], wanted, addresses)
    assert [str(ip) for ip in found] == expected


@pytest.mark.parametrize(
    ("uplinks", "wanted", "expected"),
    [
        (["eth0"], [], ["192.0.2.1", "2001:db8::1"]),
        (["eth0"], ["primary"], ["192.0.2.1", "2001:db8::1"]),
        (["eth0", "eth1"], [], ["192.0.2.1", "2001:db8::1"]),
        (["eth1"], [], ["198.51.100.1"]),
        ([], [], []),
        (["eth0"], ["198.51.100.0/24"], ["198.51.100.1"]),
        (["eth0"], ["0.0.0.0/0"], ["192.0.2.1", "192.0.2.7", "198.51.100.1"]),
        (["eth0"], ["primary", "192.0.2.4/30"], ["192.0.2.1", "192.0.2.7", "2001:db8::1"]),
        (["eth0"], ["::/0"], ["2001:db8::1"]),
        (["eth0"], ["203.0.113.0/24"], []),
    ],
)
def test_addresses_on_which_node_ports_answer(
    uplinks: list[str], wanted: list[str], expected: list[str]
) -> None:
    interfaces = [LO, ETH0, ETH1]
    chosen = [one for one in interfaces if one.name in uplinks]
    assert [str(ip) for ip in node_port_addresses(interfaces, chosen, wanted)] == expected
