# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.mutants [SECONDS [SEED [FILE…]]]``: a sample of mutants of ``bpf/*.h``, for so long.

Each is compiled and given to the packet tests that should see it, likely ones first, until one fails. The
sample goes round the headers, so that each gets the same number. The score by file is written into
docs/mutants.md; mutants that nobody noticed are printed, and end it with 1 unless they are in EQUIVALENT.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from lb.datapath.maps import layouts
from tests.mutants.making import Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "mutants.md"
KILLERS: dict[str, tuple[str, ...]] = {
    "account.h": ("accounts",),
    "affinity.h": ("affinity", "connections"),
    "answer.h": ("reject", "ping", "answer_rate", "path_mtu", "fragments"),
    "backend.h": ("selection", "slot_reuse", "connections"),
    "cache.h": ("eviction", "tables", "connections"),
    "config.h": ("snat_ports", "connection_life", "fragments_any_order", "same_port"),
    "connect.h": ("snat_ports", "paths", "hairpin", "same_port", "redirect", "affinity"),
    "count.h": ("untouched",),
    "csum.h": ("paths",),
    "ctx_tc.h": ("paths", "overlay", "path_mtu", "reject", "untouched"),
    "ctx_xdp.h": ("paths", "untouched", "reject"),
    "cut.h": ("fragmented",),
    "event.h": ("monitor",),
    "fast.h": ("paths", "connection_life", "untouched", "redirect"),
    "flow_state.h": ("connection_life", "connections", "handshake", "stale_udp", "accounts"),
    "flow_table.h": ("eviction", "connections", "snat_ports", "same_port"),
    "forward.h": ("paths", "reject", "fragments", "fragments_any_order", "accounts"),
    "fragment.h": ("fragments", "fragments_any_order", "options"),
    "icmp_error.h": ("icmp_errors", "options"),
    "ip4.h": ("untouched", "options", "paths", "icmp_errors", "fragments"),
    "ip6.h": ("untouched", "options", "paths", "icmp_errors", "fragments"),
    "lb.h": ("paths", "ping", "unknown_port", "redirect", "options", "fragments", "loopback"),
    "nat.h": ("paths", "sctp"),
    "owner.h": ("own_connections", "node_port", "loopback"),
    "parse.h": ("untouched", "options", "sctp", "handshake", "fragments"),
    "pieces.h": ("fragments_any_order", "options"),
    "report.h": ("monitor",),
    "route.h": ("path_mtu", "reject", "redirect", "hairpin"),
    "sctp.h": ("sctp",),
    "service.h": ("paths", "unknown_port", "source_ranges", "snat_ports", "policies"),
    "snat.h": ("snat_ports", "own_connections"),
    "step.h": ("paths", "fail_open"),
    "stranded.h": ("fail_open", "options"),
    "watch.h": ("monitor",),
}
"""By header the packet tests that are about it."""
OF_IPV6 = ("fragment.h", "ip6.h")
"""Headers whose mutants are tried in IPv6, for which they have code of its own; the others' are in IPv4."""
LEFT_OUT = ("ctx_sock.h", "ip.h", "maps.h", "packet.h", "peer.h", "reasons.h", "sock.h", "tuple.h", "types.h")
"""Headers without a row: they declare, or they are about sockets, which tests in namespaces alone see."""
GENERAL = ("paths", "property", "connections", "node_port", "policies")
"""What is tried on those that these leave."""
NAMED = (
    (
        "cache.h",
        "\tseat->displaces = !!tag_in(head, gone) && stands & ALIVE &&",
        "\tseat->displaces = !!tag_in(head, gone) &&",
    ),
)
"""Mutants that survived once: they are always tried."""
EQUIVALENT: dict[str, str] = {}
"""By mutant, as printed without its line number: why no packet can tell it from the original."""
PATIENCE = 600
"""Seconds for one mutant; of one that takes longer nothing is known, but that the machine is busy."""
FATES = ("refused", "noticed", "survived", "unknown")
"""Refused: by compiler or verifier. Noticed: a test failed. Unknown: the tests took too long."""


def named() -> Iterator[Mutant]:
    """Yield the mutants that are always tried."""
    for file, old, new in NAMED:
        lines = (layouts.BPF_DIR / file).read_text().splitlines()
        yield Mutant(file, lines.index(old) + 1, old, new)


def sample(chance: random.Random, files: Sequence[str]) -> Iterator[Mutant]:
    """Yield mutants by chance, one of each header in turn; first those that are always tried."""
    yield from (each for each in named() if each.file in files)
    waiting = {file: list(mutants(file, (layouts.BPF_DIR / file).read_text())) for file in files}
    for each in waiting.values():
        chance.shuffle(each)
    while any(waiting.values()):
        for file in chance.sample(list(waiting), len(waiting)):
            if waiting[file]:
                yield waiting[file].pop()


def fate(mutant: Mutant, family: int) -> str:
    """Return what became of a mutant, one of FATES."""
    names = dict.fromkeys((*KILLERS[mutant.file], *GENERAL))
    tests = [f"tests/packet/test_{name}.py" for name in names]
    with tempfile.TemporaryDirectory(prefix="lbctl-mutant-") as folder:
        bpf_dir = Path(folder) / "bpf"
        shutil.copytree(layouts.BPF_DIR, bpf_dir)
        path = bpf_dir / mutant.file
        path.write_text(mutant.of(path.read_text()))
        try:
            done = subprocess.run(
                [sys.executable, "-m", "tests.mutants.one", str(bpf_dir), str(family), *tests],
                cwd=ROOT,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "unknown"
    if done.returncode == 0:
        return "survived"
    if done.returncode != 1:
        raise RuntimeError(f"pytest ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return "refused" if "CompileError" in done.stdout else "noticed"


def score(found: Counter[tuple[str, str]]) -> str:
    """Return the score by file, as a table."""
    head = ("header", "tried", *FATES)
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for file in sorted({file for file, _ in found}):
        of = [found[file, what] for what in FATES]
        lines.append(f"| `{file}` | {sum(of)} | " + " | ".join(map(str, of)) + " |")
    of = [sum(count for (_, became), count in found.items() if became == what) for what in FATES]
    lines.append(f"| all | {sum(of)} | " + " | ".join(map(str, of)) + " |")
    return "\n".join(lines)


def main(seconds: float = 600.0, seed: int = 1, *files: str) -> int:
    """Try mutants for so long; return the exit code."""
    began, found, left = time.monotonic(), Counter[tuple[str, str]](), list[Mutant]()
    for mutant in sample(random.Random(seed), files or tuple(KILLERS)):
        if time.monotonic() - began > seconds:
            break
        became = fate(mutant, 6 if mutant.file in OF_IPV6 else 4)
        found[mutant.file, became] += 1
        if became == "survived" and re.sub(r":\d+:", ":", str(mutant), count=1) not in EQUIVALENT:
            left.append(mutant)
        print(f"{time.monotonic() - began:6.0f} s  {became:8}  {mutant}", flush=True)
    table = score(found)
    page = PAGE.read_text()
    head, _, rest = page.partition("<!-- score -->\n")
    _, _, tail = rest.partition("<!-- end -->")
    words = f"Seed {seed}, {sum(found.values())} mutants in {time.monotonic() - began:.0f} s:"
    PAGE.write_text(f"{head}<!-- score -->\n{words}\n\n{table}\n<!-- end -->{tail}")
    print(table)
    return bool(left)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(
        main(
            float(arguments[0]) if arguments else 600.0,
            int(arguments[1]) if arguments[1:] else 1,
            *arguments[2:],
        )
    )
