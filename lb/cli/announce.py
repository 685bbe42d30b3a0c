# SPDX-License-Identifier: Apache-2.0
"""``lbctl announce``: telling routers which addresses this node serves, and what they were told."""

from __future__ import annotations

import argparse
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from lb.cli import instances, output, settings
from lb.cli.logs import logged
from lb.cli.tables import table
from lb.cli.width import terminal_width
from lb.config import Config
from lb.errors import LbError
from lb.rundir import RunDir
from lb.served.servable import spoken
from lb.words import several


def run_bgp(args: argparse.Namespace, _out: TextIO, err: TextIO) -> int:
    """Do ``lbctl announce bgp``."""
    from lb.bgp import process  # noqa: PLC0415  (a status does without most of it)

    options = process.Options(
        instance=args.instance or of_agent(args.config) or socket.gethostname().lower(),
        peers=args.peers,
        router_id=args.router_id or "",
        metrics_address=args.metrics_address,
    )
    return logged(args, err, lambda: process.run(options))


def of_agent(path: Path | None) -> str:
    """Return the instance that an agent with this file of settings has; ``""``: they do not say.

    Raises ConfigError: the file cannot be read, or says something wrong.
    """
    config = settings.build(settings.from_file(path)) if path else Config()
    return config.instance or config.node_name


def run_status(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl announce status``."""
    name = instances.choose(args)
    found = spoken(RunDir(name))
    if found is None:
        raise LbError(
            f"instance {name}: nothing tells routers about it, or it does not answer;"
            f" lbctl announce bgp --instance {name} --peers FILE does"
        )
    output.write(args, out, found, lambda: render(found, time.time(), terminal_width(out)))
    return 1 if found["problems"] else 0


def render(found: Mapping[str, Any], now: float, width: int | None = None) -> str:
    """Return the text form; now: seconds since the epoch. width: the terminal's."""
    engine = found["engine"]
    text = f"node {found['node'] or 'unknown yet'}, router id {found['router_id'] or 'unknown yet'}, BIRD "
    text += "runs" if engine["running"] else "does not run"
    text += f", started again {several(engine['restarts'], 'time')}\n" if engine["restarts"] else "\n"
    text += "".join(f"problem: {one}\n" for one in found["problems"])
    rows = [
        [
            one["name"],
            one["address"],
            one["asn"],
            "up" if one["up"] else one["state"] or "down",
            f"{max(0.0, now - one['since']):.0f} s" if one["since"] else "-",
            one["losses"],
            *(str(one["told"].get(family, "-")) for family in ("ipv4", "ipv6")),
        ]
        for one in found["peers"]
    ]
    columns = ("peer", "address", "asn", "session", "since", "losses", "ipv4", "ipv6")
    text += "\n" + table(columns, rows, width=width)
    rows = [
        [
            one["address"],
            one["standing"],
            ",".join(one["peers"]) or "-",
            ",".join(one["services"]),
            one["why"],
        ]
        for one in found["addresses"]
    ]
    return text + "\n" + table(("address", "here", "told_to", "services", "why"), rows, width=width)
