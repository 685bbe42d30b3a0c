# SPDX-License-Identifier: Apache-2.0
"""``lbctl shadow``: where we would have done otherwise than netfilter did."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from lb.cli import instances, output
from lb.cli.status import span
from lb.cli.tables import table
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.errors import LbError
from lb.rundir import RunDir
from lb.served import takeover
from lb.served.api import SHADOW
from lb.served.ask import ask
from lb.shadow.tally import NOT_COMPARED
from lb.words import several


def run(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl shadow``."""
    name = instances.choose(args)
    with KernelMaps(Pins(name).maps) as maps:
        if not takeover.is_shadow(maps):
            raise LbError(f"instance {name} is not in shadow mode: its agent was started without --shadow")
    found = ask(RunDir(name), SHADOW)
    output.write(args, out, {"instance": name, **found}, lambda: render(found))
    return 1 if found["different"] else 0


def render(found: Mapping[str, Any]) -> str:
    """Return the form for people: the sums, Services, then each difference with its example."""
    different, meant = sum(found["different"].values()), sum(found["meant"].values())
    every = found["agreed"] + meant + different
    share = f", {100 * found['agreed'] / every:.1f} %" if every else ""
    lines = [
        f"{several(every, 'connection')} compared in {span(found['seconds'])}",
        f"{found['agreed']:8}  alike{share}",
        f"{meant:8}  different as meant (docs/differences.md)",
        f"{different:8}  different",
    ]
    lines += [f"{count:8}  not compared: {NOT_COMPARED[why]}" for why, count in _some(found["not_compared"])]
    rows = [
        (
            one["service"],
            one["agreed"],
            sum(one["meant"].values()),
            sum(one["different"].values()),
            ", ".join([*one["different"], *one["meant"]]) or "-",
        )
        for one in found["services"]
    ]
    blocks = ["\n".join(lines) + "\n"]
    if rows:
        columns = ("service", "alike", "as meant", "different", "kinds")
        blocks.append(table(columns, rows, right=columns[1:4]))
    for title, key in (("different", "different"), ("different as meant", "meant")):
        told = [*_examples(found, key)]
        if told:
            blocks.append(f"{title}:\n" + "\n".join(told) + "\n")
    return "\n".join(blocks)


def _some(counts: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    yield from ((why, count) for why, count in counts.items() if count)


def _examples(found: Mapping[str, Any], key: str) -> Iterator[str]:
    """Yield two lines for each kind of difference of each Service: what it is, and the last example."""
    for one in found["services"]:
        for example in one["examples"]:
            count = one[key].get(example["of"])
            if not count:
                continue
            meaning = found["meanings"].get(example["kind"], "")
            yield f"{count:8}  {example['of']}, {one['service']}{f': {meaning}' if meaning else ''}"
            yield f"          {example_text(example)}"


def example_text(example: Mapping[str, Any]) -> str:
    """Return one connection: its ends, what would have been done here, and what netfilter did."""
    here, there = example.get("here"), example["there"]
    ends = f"{example['protocol']} {example['client']} > {example['vip']}"
    ours = f"; here {here['outcome']} {here['backend']}".rstrip() if here else ""
    if here:
        ours += f" ({here['reason']})"
    theirs = f"; there {there['outcome']} {there['backend']}".rstrip()
    more = [there["service"]] if there.get("service") else []
    more += ["masqueraded"] if there.get("masqueraded") else []
    return f"{ends}{ours}{theirs}{f' ({chr(44).join(more)})' if more else ''}"
