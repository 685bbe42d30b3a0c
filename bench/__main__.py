# SPDX-License-Identifier: Apache-2.0
"""Measure, side by side in one run: ``python -m bench [--quick] [section…]``.

Prints each figure beside its target, and leaves bench/results/latest.json and plots.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from bench import plots, results
from bench.results import Result

SECTIONS = {
    "packet": "bench.packet_cost",
    "growth": "bench.growth",
    "traffic": "bench.lab_traffic",
    "control": "bench.control_plane",
}
"""Each section's module: it has a function ``measure(quick)``, and is imported only when it is asked for."""


class Section(Protocol):
    """A module of a section."""

    def measure(self, quick: bool) -> list[Result]:
        """Return the section's figures; quick: in a minute."""
        ...


def main(arguments: Sequence[str]) -> int:
    """Measure, print and write; return 0 whether or not targets were met."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: under three minutes")
    parser.add_argument("--output", type=Path, default=results.DIRECTORY, metavar="DIR", help="of the files")
    parser.add_argument(
        "sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}; default: all"
    )
    args = parser.parse_args(arguments)
    unknown = set(args.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}: there are {', '.join(SECTIONS)}")
    found: list[Result] = []
    for name in args.sections or SECTIONS:
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        section: Section = importlib.import_module(SECTIONS[name])
        found += section.measure(args.quick)
    results.write_table(found, sys.stdout)
    results.write_json(found, args.output / "latest.json")
    files = plots.plot(found, args.output)
    print(f"\nwritten: {args.output / 'latest.json'} and {len(files)} plots beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
