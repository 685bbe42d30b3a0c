# SPDX-License-Identifier: Apache-2.0
"""What commands have in common: the form of their help, and flags that mean the same everywhere."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from lb.cli.command import COMMANDS

if TYPE_CHECKING:
    from lb.setting_forms import Form

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

T = TypeVar("T")

CODES = "0 done; 1 it could not be done, stderr says why; 2 wrong usage"


def command(
    commands: Commands,
    name: str,
    summary: str = "",
    *,
    about: str,
    examples: str,
    notes: str = "",
    codes: str = CODES,
    handler: str = "",
) -> argparse.ArgumentParser:
    """Add a command.

    summary: its line in the list of commands; default: that of COMMANDS. about: what it does, in front of the
    flags. examples, notes, codes (its exit codes): behind them; of examples each is a line. handler:
    ``MODULE.FUNCTION`` in lb.cli.
    """
    told = "".join(f"  {line}\n" for line in examples.strip().splitlines())
    parser = commands.add_parser(
        name,
        help=summary or COMMANDS[name][1],
        description=about,
        epilog="\n".join(
            part for part in (notes, f"examples:\n{told}", f"exit codes: {codes}" if codes else "") if part
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if handler:
        parser.set_defaults(handler=handler)
    return parser


def verbs(parser: argparse.ArgumentParser) -> Commands:
    """Return where a command's own commands are added."""
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


def number(read: Callable[[str], T], fits: Callable[[T], bool], what: str) -> Callable[[str], T]:
    """Return what reads a flag's number; what: which numbers it may be, in words."""

    def parse(text: str) -> T:
        with contextlib.suppress(ValueError):
            if fits(found := read(text)):
                return found
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")

    return parse


seconds = number(float, lambda found: found > 0, "a number of seconds above 0")


def instance(parser: argparse.ArgumentParser) -> None:
    """Add ``--instance`` and ``--node``."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--instance", metavar="NAME", help="the instance, as lbctl run named it")
    which.add_argument(
        "--node",
        metavar="NAME",
        help="the instance of this name, or the only one whose name ends in .NAME (as in a lab);"
        " neither is needed when the machine has only one instance",
    )


def source(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which node, and from which source."""
    instance(parser)
    parser.add_argument(
        "--source",
        action="append",
        metavar="SOURCE",
        help="manifests:DIR or kubernetes; default: the agent's own (may be repeated)",
    )
    parser.add_argument(
        "--kubeconfig",
        metavar="FILE",
        help="how to reach the API, from where this command runs; default: the agent's way, from its node",
    )
    parser.add_argument("--context", metavar="NAME", help="context in the kubeconfig")


def service(parser: argparse.ArgumentParser) -> None:
    """Add the Service that a command is about."""
    parser.add_argument("service", metavar="SERVICE", help="NAMESPACE/NAME, NAME, svc/NAME")
    parser.add_argument(
        "-n", "--namespace", metavar="NAMESPACE", help="that of a NAME alone; default: default"
    )


def services(parser: argparse.ArgumentParser, *, port: bool = False, one: bool = True) -> None:
    """Add the flags that choose what to show by Service. port: one of its ports, too; one: a single one."""
    if one:
        form = "NS/NAME[:PORT]" if port else "NS/NAME"
        text = "only this Service, or this port (name or number) of it" if port else "only this Service"
        parser.add_argument("--service", metavar=form, help=f"{text}; NAME and svc/NAME will do, too")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-n", "--namespace", metavar="NAMESPACE", help="only Services of this namespace")
    where.add_argument("-A", "--all-namespaces", action="store_true", help="of all namespaces (default)")


def output(parser: argparse.ArgumentParser, plain: str, *more: str, told: str = "") -> None:
    """Add ``-o``; plain names the form for people, which is the default: ``text`` or ``table``."""
    parser.add_argument(
        "-o",
        "--output",
        choices=[plain, *more, "json", "yaml"],
        default=plain,
        help=f"default: {plain}{told}",
    )


def process(parser: argparse.ArgumentParser, form: Form, metrics: str) -> None:
    """Add what every process beside the agent has: a log, and metrics; form, metrics: of their address."""
    parser.add_argument(
        "--metrics-address",
        type=formed(form),
        default=metrics,
        metavar=form.metavar,
        help=f"where GET /metrics and /livez are answered, or off (default {metrics})",
    )
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info", help="default: info"
    )
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="default: text")


def formed(form: Form) -> Callable[[str], str]:
    """Return what reads an argument as a setting of that form is read."""

    def parse(text: str) -> str:
        try:
            return str(form.parse(text))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {form.right}") from None

    return parse
