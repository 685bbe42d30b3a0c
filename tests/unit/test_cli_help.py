# SPDX-License-Identifier: Apache-2.0
"""Help and manual: every command has examples, exit codes and a function; every flag is in the manual."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.cli import command
from lb.cli.grammar import lab as grammar_lab
from lb.cli.manual import manual
from lb.lab import addressing
from lb.lab.addressing import Announce, Family, Overlay, RouterKind
from lb.lab.apiserver import VARIABLE
from lb.lab.kube_proxy import Mode
from lb.model import Protocol
from lb.served.history import IN_ALL, OF_ONE


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
