# SPDX-License-Identifier: Apache-2.0
"""Words completed by real shells, and lbctl as a plugin of the real kubectl."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import lb
from lb.cli import completion

BIN = Path(sys.executable).parent
LBCTL = BIN / "lbctl"

BASH = """\
source /dev/stdin <<<"$(lbctl completion bash)"
words=($1)
[ "${1% }" = "$1" ] || words+=("")
COMP_WORDS=("${words[@]}") COMP_CWORD=$((${#words[@]} - 1)) COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9
complete -p lbctl >&2
_python_argcomplete lbctl "${words[-1]}" "" >&2
printf '%s\\n' "${COMPREPLY[@]}"
"""


def environment(**more: str) -> Mapping[str, str]:
    return {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **more}


def bash(line: str, **more: str) -> list[str]:
    """Return what bash offers for a line when Tab is pressed at its end."""
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH, "bash", line],
        env=environment(**more), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [word.strip() for word in done.stdout.splitlines() if word.strip()]


def test_bash_completes_commands_flags_and_choices() -> None:
    commands = bash("lbctl ")
    assert {"run", "status", "history", "completion", "lab"} <= set(commands)
    assert bash("lbctl hi") == ["history"]
    assert bash("lbctl maps d") == ["dump"]
    assert "--service" in bash("lbctl flows --s")
    assert set(bash("lbctl status -o ")) == {"table", "wide", "json", "yaml"}
    assert {"bash", "zsh", "fish"} <= set(bash("lbctl completion "))


def test_zsh_takes_the_script() -> None:
    script = subprocess.run([LBCTL, "completion", "zsh"], capture_output=True, text=True, check=True).stdout
    done = subprocess.run(
        ["zsh", "-f", "-c", f"autoload -U compinit; compinit -u -D\n{script}\nprint $_comps[lbctl]"],
        env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("_python_argcomplete\n", "")


def test_fish_completes_commands() -> None:
    script = subprocess.run([LBCTL, "completion", "fish"], capture_output=True, text=True, check=True).stdout
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"{script}\ncomplete -C 'lbctl hi'"],
        env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split()[:1] == ["history"]


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """Make a folder with kubectl-lb in it, as an installation of the package leaves it beside lbctl."""
    text = LBCTL.read_text()
    asked = text.replace("import entry", "import complete_for_kubectl").replace(
        "entry()", "complete_for_kubectl()"
    )
    for name, script in (("kubectl-lb", text), ("kubectl_complete-lb", asked)):
        path = tmp_path / name
        path.write_text(script)
        path.chmod(0o755)
    return tmp_path


def kubectl(plugin: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = environment(PATH=f"{plugin}:{os.environ['PATH']}", KUBECONFIG=os.devnull)
    return subprocess.run([BIN / "kubectl", *words], env=env, capture_output=True, text=True, check=False)


def test_kubectl_runs_lbctl_as_its_plugin(plugin: Path) -> None:
    done = kubectl(plugin, "lb", "version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"lbctl {lb.__version__}\n", "")
    assert str(plugin / "kubectl-lb") in kubectl(plugin, "plugin", "list").stdout


def test_kubectl_passes_flags_and_exit_codes_on(plugin: Path) -> None:
    wrong = kubectl(plugin, "lb", "maps", "dump", "nonsense")
    assert (wrong.returncode, wrong.stderr.startswith("lbctl: maps dump: no section nonsense")) == (2, True)
    usage = kubectl(plugin, "lb", "flows", "--nonsense")
    assert usage.returncode == 2
    assert usage.stderr.startswith("usage: kubectl lb ")


@pytest.mark.parametrize(
    ("words", "offered", "directive"),
    [
        (["hist"], ["history"], ":4"),
        (["maps", ""], ["dump"], ":4"),
        (["status", "-o", ""], ["json", "table"], ":4"),
        (["flows", "--serv"], ["--service"], ":4"),
        (["service", "show", "it's", ""], ["--instance"], ":4"),
        (["zzz"], [], ":0"),
        (["plan", "-f", "/etc/hostnam"], [], ":0"),
    ],
)
def test_kubectl_completes_the_words_of_its_plugin(
    plugin: Path, words: list[str], offered: list[str], directive: str
) -> None:
    said = kubectl(plugin, "__complete", "lb", *words).stdout.splitlines()
    assert said[-1] == directive
    assert set(offered) <= set(said[:-1])
    assert bool(offered) == bool(said[:-1])


def test_values_are_those_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lb.datapath.kernel.pins.instances", lambda: ["lab.node1", "lab.node2"])

    def values(dest: str, prefix: str = "") -> list[str]:
        action = argparse.Action([f"--{dest}"], dest)
        return completion._values(prefix, action, argparse.Namespace(instance=None, node=None))

    assert values("instance") == ["lab.node1", "lab.node2"]
    assert values("node") == ["node1", "node2"]
    assert values("service") == [], "it must say which instance first"
    assert values("limits.flows") == []
    assert values("file", "/etc/host") != []


HEAVY = {"numpy", "msgspec", "yaml", "pyroute2", "kubernetes", "urllib3", "scapy", "lb.model", "lb.serve"}
"""Some of what commands import when they do something, for 0.1 to 0.5 s of CPU. Words alone take 0.03 s."""
THEN_LIST = "import atexit, sys\natexit.register(lambda: print('imported', *sys.modules, file=sys.stderr))\n"


def imported(code: str, **env: str) -> set[str]:
    """Return the modules that are imported when code has run."""
    argv = [sys.executable, "-c", THEN_LIST + code]
    done = subprocess.run(argv, env=environment(**env), capture_output=True, text=True, check=True)
    found = set(done.stderr.partition("imported ")[2].split())
    assert "lb.cli.command" in found
    return found


@pytest.mark.parametrize("words", ["version", "--help", "run --help", "lab up --help", "completion bash"])
def test_a_command_that_says_only_words_imports_no_more(words: str) -> None:
    code = f"import sys\nfrom lb.cli import entry\nsys.argv = {['lbctl', *words.split()]}\nentry()"
    assert not HEAVY & imported(code)


@pytest.mark.parametrize("line", ["", "run --lim", "flows --instance nobody --service ", "lab up --"])
def test_tab_imports_no_more(line: str) -> None:
    code = (
        "import sys\nfrom lb.cli import command, completion\n"
        "completion.complete(command.parser_for, output_stream=sys.stdout, exit_method=lambda _: None)"
    )
    line = f"lbctl {line}"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_SHELL": "bash", "COMP_LINE": line, "COMP_TYPE": "9"}
    assert not HEAVY & imported(code, COMP_POINT=str(len(line)), **asked)
