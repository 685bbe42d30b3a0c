# SPDX-License-Identifier: Apache-2.0
"""Commands that work on this node, and those of the command line: run, unload, completion, version."""

from __future__ import annotations

import argparse
from typing import Any, get_type_hints

from lb.cli.grammar import parts
from lb.cli.grammar.parts import Commands, command
from lb.config import Config, Setting, settings

CONFIG_VARIABLE = "LBCTL_CONFIG"


def run(commands: Commands) -> None:
    """Add ``lbctl run``."""
    parser = command(
        commands,
        "run",
        about="""\
Run the agent of this node: watch Services, keep the kernel's maps in step, attach programs to interfaces.
It runs in the foreground, logs to stderr, and stops on SIGTERM or SIGINT. The data plane goes on without it;
'lbctl unload' removes the data plane.

A setting may stand in a YAML file (--config), in the environment, or be a flag; the later of these wins.
""",
        examples="""\
lbctl run --source kubernetes --node-name node1 --uplink eth0
lbctl run --source manifests:/etc/lbctl/manifests --node-name node1 --uplink eth0

the latter as a file, for lbctl run --config FILE; nested settings are indented, lists may be lists:
  sources: [manifests:/etc/lbctl/manifests]
  node_name: node1
  uplinks: [eth0]
  limits:
    flows: 1000000
  timeouts:
    udp: 60
""",
        codes="0 ended by SIGTERM or SIGINT; 1 it could not start or go on, stderr says why; 2 wrong usage",
        handler="run.run",
    )
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting, and ``--config``."""
    parser.add_argument(
        "--config", metavar="FILE", help=f"YAML file with any of these settings [env {CONFIG_VARIABLE}]"
    )
    titles = {"": "settings"}
    groups: dict[str, Any] = {}
    for item in settings():
        section = ".".join(item.path[:-1])
        if section not in groups:
            groups[section] = parser.add_argument_group(titles.get(section, section), _section_help(section))
        groups[section].add_argument(
            item.flag,
            action="append" if item.many else "store",
            dest=item.name,
            metavar=item.kind.metavar,
            help=_help(item),
        )


def _section_help(section: str) -> str | None:
    if not section:
        return None
    doc = get_type_hints(Config)[section].__doc__
    return (doc or "").replace("%", "%%")


def _help(item: Setting) -> str:
    notes = []
    if item.default not in ("", ()):
        notes.append(f"default {item.default}")
    if item.many:
        notes.append("may be repeated")
    notes.append(f"env {item.variable}{', comma-separated' if item.many else ''}")
    return f"{item.help} [{'; '.join(notes)}]".replace("%", "%%")


def unload(commands: Commands) -> None:
    """Add ``lbctl unload``."""
    parser = command(
        commands,
        "unload",
        about="""\
Remove the programs from all interfaces of this network namespace, those of the instance from its control
group, its pinned maps and programs, and the agent's files. Connections through Services break. Done already
is no error.
""",
        examples="lbctl unload\nlbctl unload --instance node1 --force",
        handler="unload.run",
    )
    parts.instance(parser)
    parser.add_argument(
        "--force", action="store_true", help="also while the agent runs, which is not stopped"
    )


def completion(commands: Commands) -> None:
    """Add ``lbctl completion``."""
    parser = command(
        commands,
        "completion",
        about="""\
Print what makes a shell complete the words of lbctl when Tab is pressed: commands, flags, and, as
root, instances and Services.
""",
        examples="""\
lbctl completion bash > /etc/bash_completion.d/lbctl
lbctl completion zsh > "${fpath[1]}/_lbctl"
lbctl completion fish > ~/.config/fish/completions/lbctl.fish
""",
        handler="completion.run",
    )
    parser.add_argument("shell", metavar="SHELL", choices=["bash", "zsh", "fish"], help="bash, zsh or fish")


def version(commands: Commands) -> None:
    """Add ``lbctl version``."""
    command(
        commands,
        "version",
        about="Print the version of lbctl.\n",
        examples="lbctl version",
        handler="command.version",
    )
