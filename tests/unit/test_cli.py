# SPDX-License-Identifier: Apache-2.0
"""The command line: parsing, exit codes, choosing an instance, printing."""

from __future__ import annotations

import datetime
import io
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lb
from lb.cli import colours, main
from lb.cli.command import COMMANDS
from lb.config import Config
from lb.datapath.attach.hooks import HookReport
from lb.datapath.maps import map_table
from lb.errors import LbError


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
    ["node", "drain", "--wait", "--timeout", "0"],
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


ALONE = {"status", "flows", "monitor", "top", "audit", "shadow", "upgrade", "cutover", "unload"}
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
            ["explain", "web"], ["announce", "status"], ["node", "drain"], ["node", "drain", "--undo"],
            ["plan", "-f", "/dev/null"], ["trace", "192.0.2.7", "192.0.2.8:80"],
        )
    ),
    (["lab", "status", "--id", "nobody"], 1),
    *(
        (words, 2)
        for words in (
            ["service", "show", "a/b/c"], ["maps", "dump", "nonsense"], ["flows", "--service", "/web"],
            ["upgrade", "--to", "0.0"],
            ["history", "/web"], ["explain", "/web"], ["explain", "web", "--from", "me"],
            ["trace", "192.0.2.7"], ["trace", "192.0.2.7", "fd00::1:80"],
            ["node", "drain", "--undo", "--wait"], ["node", "drain", "--timeout", "5"],
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
    assert (code, err) == (1, f"lbctl: source manifests:{tmp_path}/none: there is no such directory\n")


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
