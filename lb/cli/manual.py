# SPDX-License-Identifier: Apache-2.0
"""The manual page, made of the same words as ``--help``: ``python -m lb.cli.manual`` writes it, in man(7)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import lb
from lb.cli import command

_ABOUT = """\
lbctl is a load balancer for Kubernetes Services. Small eBPF programs (XDP, tc, socket hooks) translate every
packet in the kernel; 'lbctl run', the agent of a node, keeps their maps in step with Services and endpoints.
All other commands look at what is in the kernel, find out, or work on a lab.
"""
_ENVIRONMENT = (
    ("LBCTL_\N{HORIZONTAL ELLIPSIS}", "Each setting of 'lbctl run' has a variable, which its flag names."),
    ("NO_COLOR", "If it is set, nothing is coloured."),
    ("NOTIFY_SOCKET", "Where 'lbctl run' tells systemd how it is, see sd_notify(3)."),
    ("KUBEBUILDER_ASSETS", "The folder of the programs of an API server, for 'lbctl lab up --kubernetes'."),
)
_FILES = (
    ("/sys/fs/bpf/lbctl", "The pinned maps and programs; they outlive the agent."),
    ("/run/lbctl", "Locks, notes and sockets of agents, and labs."),
    ("/var/cache/lbctl", "Compiled programs."),
)


def manual() -> str:
    """Return the page."""
    top = command.parser()
    return "\n".join(
        [
            f'.TH LBCTL 1 "" "lbctl {lb.__version__}"',
            ".SH NAME",
            r"lbctl \- load balancer for Kubernetes Services",
            ".SH SYNOPSIS",
            r".B lbctl",
            r"\fICOMMAND\fR [\fIFLAG\fR ...]",
            ".SH DESCRIPTION",
            *_prose(_ABOUT),
            ".SH COMMANDS",
            *(line for each in _commands(top) for line in _section(each)),
            ".SH EXIT STATUS",
            *_items(command.EXIT_CODES),
            ".SH ENVIRONMENT",
            *_items(_ENVIRONMENT),
            ".SH FILES",
            *_items(_FILES),
            ".SH SEE ALSO",
            r".BR kubectl (1),",
            r".BR tc (8),",
            r".BR bpf (2)",
            "",
        ]
    )


def _commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parsers of all commands, those of commands after their own."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield each
                yield from _commands(each)


def _section(parser: argparse.ArgumentParser) -> list[str]:
    """Return what is said of one command."""
    words = [_escaped(parser.prog)]
    lines: list[str] = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        name = _name(action)
        words += [] if action.option_strings else [name]
        lines += [".TP", name, *_filled(parser._get_formatter()._expand_help(action))]
    return [f".SS {' '.join(words)}", *_prose(parser.description or ""), *lines, *_prose(parser.epilog or "")]


def _name(action: argparse.Action) -> str:
    """Return a flag with its value, or the name of a word."""
    value = action.metavar or "|".join(map(str, action.choices or ())) or action.dest.upper()
    if not action.option_strings:
        return rf"\fI{_escaped(str(value))}\fR"
    flags = ", ".join(rf"\fB{_escaped(each)}\fR" for each in action.option_strings)
    return flags if action.nargs == 0 else rf"{flags} \fI{_escaped(str(value))}\fR"


def _items(pairs: tuple[tuple[str, str], ...]) -> Iterator[str]:
    for name, text in pairs:
        yield from (".TP", rf"\fB{_escaped(name)}\fR", *_filled(text))


def _prose(text: str) -> Iterator[str]:
    """Yield paragraphs; one with indented lines keeps its lines."""
    for part in text.strip("\n").split("\n\n"):
        lines = part.splitlines()
        if any(line.startswith(" ") for line in lines):
            yield from (".PP", ".nf", *(_line(line) for line in lines), ".fi")
        elif lines:
            yield from (".PP", *_filled(part))


def _filled(text: str) -> Iterator[str]:
    return (_line(line) for line in text.splitlines())


def _line(text: str) -> str:
    """Return a line that is no request, whatever it begins with."""
    return (r"\&" if text.startswith((".", "'")) else "") + _escaped(text)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\e").replace("-", r"\-").replace("\N{HORIZONTAL ELLIPSIS}", "...")


if __name__ == "__main__":
    sys.stdout.write(manual())
