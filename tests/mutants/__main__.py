# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.mutants [SECONDS [SEED [FILE…]]]``: a sample of mutants, for so long.

Of the C: headers of ``bpf/``, and ``adopt.c``. Of the Python: modules of the folders in OF_PYTHON. Each
mutant is given to the tests that should see it, likely ones first, until one fails. The next is always of a
file of which fewest were tried. The score by file in docs/mutants.md grows by each mutant; mutants
that nobody noticed are printed, and end it with 1 unless they are in EQUIVALENT.
"""

from __future__ import annotations

import random
import re
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from lb.datapath.maps import layouts
from tests.mutants import programs, python, trees
from tests.mutants.making import Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "mutants.md"
KILLERS: dict[str, tuple[str, ...]] = {
    "account.h": ("accounts",),
    "affinity.h": ("affinity", "connections"),
    "announced.h": ("neighbours",),
    "answer.h": ("reject", "ping", "answer_rate", "path_mtu", "fragments"),
    "arp.h": ("neighbours",),
    "backend.h": ("selection", "slot_reuse", "connections"),
    "cache.h": ("eviction", "tables", "connections"),
    "config.h": ("snat_ports", "connection_life", "fragments_any_order", "same_port"),
    "connect.h": ("snat_ports", "paths", "hairpin", "same_port", "redirect", "affinity"),
    "count.h": ("untouched",),
    "csum.h": ("paths",),
    "ctx_tc.h": ("paths", "overlay", "path_mtu", "reject", "untouched"),
    "ctx_xdp.h": ("paths", "untouched", "reject"),
    "cut.h": ("fragmented",),
    "direct.h": ("direct_return", "second_chance"),
    "event.h": ("monitor",),
    "fast.h": ("paths", "connection_life", "untouched", "redirect"),
    "flow_state.h": ("connection_life", "connections", "handshake", "stale_udp", "accounts"),
    "flow_table.h": ("eviction", "connections", "snat_ports", "same_port"),
    "forward.h": ("paths", "reject", "fragments", "fragments_any_order", "accounts"),
    "fragment.h": ("fragments", "fragments_any_order", "options"),
    "former.h": ("second_chance",),
    "gue.h": ("direct_return", "second_chance"),
    "icmp_error.h": ("icmp_errors", "options"),
    "ip4.h": ("untouched", "options", "paths", "icmp_errors", "fragments"),
    "ip6.h": ("untouched", "options", "paths", "icmp_errors", "fragments"),
    "lb.h": ("paths", "monitor", "ping", "unknown_port", "redirect", "options", "fragments", "loopback"),
    "nat.h": ("paths", "sctp"),
    "ndp.h": ("neighbours",),
    "neighbour.h": ("neighbours",),
    "owner.h": ("own_connections", "node_port", "loopback"),
    "parse.h": ("untouched", "options", "sctp", "handshake", "fragments"),
    "pieces.h": ("fragments_any_order", "options"),
    "report.h": ("monitor",),
    "route.h": ("path_mtu", "reject", "redirect", "hairpin"),
    "sctp.h": ("sctp",),
    "service.h": ("paths", "unknown_port", "source_ranges", "snat_ports", "policies"),
    "snat.h": ("snat_ports", "own_connections"),
    "socket.h": ("own_connections", "node_port", "loopback"),
    "step.h": ("paths", "fail_open"),
    "stranded.h": ("fail_open", "options"),
    "watch.h": ("monitor",),
}
"""By header the packet tests that are about it."""
OF_IPV6 = ("fragment.h", "ip6.h", "ndp.h")
"""Headers whose mutants are tried in IPv6, for which they have code of its own; the others' are in IPv4."""
_OF_SOCKETS = ("netns/test_host_processes", "netns/test_service_metrics")
_OF_CUTOVER = ("unit/test_cutover", "packet/test_cutover", "netns/test_cutover")
IN_A_TREE: dict[str, tuple[str, ...]] = {
    "adopt.c": ("packet/test_cutover", "netns/test_cutover"),
    "ctx_sock.h": _OF_SOCKETS,
    "peer.h": _OF_SOCKETS,
    "shadow.h": ("packet/test_shadow", "netns/test_shadow"),
    "sock.h": _OF_SOCKETS,
    **{
        f"lb/cutover/{name}.py": _OF_CUTOVER
        for name in ("affinity", "conntrack", "give_back", "netfilter", "take_over")
    },
}
"""Files of which agents or commands of a lab have to have the change, and the tests that see it, likely ones
first: a tree of its own holds the change (:mod:`tests.mutants.trees`)."""
LEFT_OUT = ("ip.h", "maps.h", "packet.h", "reasons.h", "records.h", "solicitation.h", "tuple.h", "types.h")
"""Headers without a row: they declare."""
GENERAL = ("paths", "property", "connections", "node_port", "policies")
"""What is tried on those that these leave."""
SLOW = ("untouched", "property", "fail_open", "eviction", "affinity", "icmp_errors", "source_address")
"""Those of them that take longest: they come last."""
OF_PYTHON: dict[str, tuple[str, ...]] = {
    "lb/addresses": (
        *("unit/test_address_allocation", "unit/test_address_pools", "unit/test_address_folder"),
        *("unit/test_addresses_process", "unit/test_address_property"),
    ),
    "lb/cutover": ("unit/test_cutover", "packet/test_cutover"),
    "lb/plan": (
        *(
            "unit/test_plan_services",
            "unit/test_plan_policies",
            "unit/test_plan_vips",
            "unit/test_plan_endpoint_choice",
        ),
        *("unit/test_plan_claims", "unit/test_plan_rights", "unit/test_maglev", "unit/test_rendezvous"),
        *("unit/test_slow_start", "unit/test_health", "golden", "unit/test_reconcile"),
        *("unit/test_reconcile_failures", "unit/test_conformance"),
    ),
    "lb/datapath/sync": (
        *("unit/test_reconcile", "unit/test_reconcile_failures", "unit/test_reconcile_restart"),
        *("unit/test_pools", "unit/test_gone_vips", "unit/test_direct_return"),
        *("unit/test_audit", "golden", "unit/test_reconcile_kernel", "unit/test_service_metrics"),
        *("unit/test_metrics", "unit/test_top", "unit/test_dump", "packet/test_slot_reuse"),
        *("packet/test_first_endpoint", "packet/test_service_gone", "packet/test_accounts"),
    ),
}
"""By folder the tests of its modules."""
NAMED = (
    (
        "cache.h",
        "\tseat->displaces = !!tag_in(head, gone) && stands & ALIVE &&",
        "\tseat->displaces = !!tag_in(head, gone) &&",
    ),
)
"""Mutants that survived once: they are always tried."""
EQUIVALENT: dict[str, str] = {
    "snat.h: __builtin_memset(&d->flow, 0, sizeof(d->flow));  ->  (left out)": (
        "the packet passes as it came and is told to nobody, so nobody reads the flow"
    ),
    "account.h: t = &found->cells[at % TRAFFIC_LINE];  ->  (left out)": (
        "what a variable that is not set holds is up to the compiler, and clang takes what it holds otherwise"
    ),
    "peer.h: key->pad = 0;  ->  key->pad = 1;": (
        "keys are written and looked up by this function alone, and nobody reads their padding"
    ),
    "service.h: return port >= bpf_ntohs(first) && port <= bpf_ntohs(last);  ->  "
    "return port >= bpf_ntohs(first) || port <= bpf_ntohs(last);": (
        "more packets are looked up among the replies, and none of these is found: no flow has another port"
    ),
}
"""By mutant, as printed without its line number: why no packet can tell it from the original."""
PATIENCE = 900
"""Seconds for one mutant; of one that takes longer nothing is known, but that the machine is busy."""
TOGETHER = 12
"""Mutants of the C that are compiled at once; more take more stack than programs have."""
FATES = ("same", "refused", "noticed", "survived", "unknown")
"""Same: there is no code that depends on it. Refused: by compiler or verifier. Noticed: a test failed.
Unknown: the tests took too long."""


def named() -> Iterator[Mutant]:
    """Yield the mutants that are always tried."""
    for file, old, new in NAMED:
        lines = (layouts.BPF_DIR / file).read_text().splitlines()
        yield Mutant(file, lines.index(old) + 1, old, new)


def every(files: Sequence[str]) -> dict[str, list[Mutant]]:
    """Return all mutants by file; no files: of all."""
    modules = python.sources()
    found = {file: list(python.mutants(file, text)) for file, text in modules.items()}
    of_c = (*KILLERS, *(file for file in IN_A_TREE if not file.endswith(".py")))
    found |= {file: list(mutants(file, (layouts.BPF_DIR / file).read_text())) for file in of_c}
    return {file: found[file] for file in files or found}


def sample(
    chance: random.Random, files: Sequence[str], tried: Mapping[str, int] = MappingProxyType({})
) -> Iterator[Mutant]:
    """Yield mutants by chance, each of a file of which fewest were tried; first those of NAMED."""
    waiting, count = every(files), Counter(tried)
    yield from (each for each in named() if each.file in waiting)
    for each in waiting.values():
        chance.shuffle(each)
    while left := [file for file in waiting if waiting[file]]:
        file = min(left, key=lambda each: (count[each], chance.random()))
        count[file] += 1
        yield waiting[file].pop()


def fates(drawn: Iterator[Mutant]) -> Iterator[tuple[Mutant, str, str]]:
    """Yield each mutant with what became of it, and what the tests said."""
    waiting = list[Mutant]()
    for mutant in drawn:
        if mutant.file in KILLERS:
            waiting.append(mutant)
            if len(waiting) == 2 * TOGETHER:
                yield from _of_c(waiting)
                waiting = []
        elif mutant.file in IN_A_TREE:
            tests = [_test(name) for name in IN_A_TREE[mutant.file]]
            yield mutant, *trees.fate(mutant, tests, 2 * PATIENCE)
        else:
            folder = mutant.file.rpartition("/")[0]
            tests = [_test(name) for name in OF_PYTHON[folder]]
            own = Path(mutant.file).stem
            tests.sort(key=lambda test: own not in test)
            yield mutant, *python.fate(mutant, tests, PATIENCE)
    yield from _of_c(waiting)


def _test(name: str) -> str:
    path = f"tests/{name}"
    return path if (ROOT / path).is_dir() else f"{path}.py"


def _of_c(mutants: Sequence[Mutant]) -> Iterator[tuple[Mutant, str, str]]:
    """Try mutants of one family or, where that has no code of it, of the other."""
    left = list[Mutant]()
    for version in (4, 6):
        mine = [each for each in mutants if (version == 6) == (each.file in OF_IPV6)]
        left = yield from _of_version([*mine, *left], version, last=version == 6)


def _of_version(
    mutants: Sequence[Mutant], version: int, *, last: bool
) -> Generator[tuple[Mutant, str, str], None, list[Mutant]]:
    """Try mutants of one family; return those of which it has no code."""
    left = list[Mutant]()
    for batch in programs.batches(mutants, TOGETHER):
        for made in programs.made(batch, version):
            yield from ((each, "refused", "") for each in made.refused)
            for number, mutant in made.held.items():
                if made.alone or made.reached(number):
                    names = dict.fromkeys((*KILLERS[mutant.file], *GENERAL))
                    in_order = sorted(names, key=lambda name: SLOW.index(name) + 1 if name in SLOW else 0)
                    tests = [f"tests/packet/test_{name}.py" for name in in_order]
                    became, said = programs.fate(made, number, tests, PATIENCE)
                    if made.alone and became == "survived" and not last:
                        left.append(mutant)  # a line of IPv6 may change where IPv4's instructions stand
                    else:
                        yield mutant, became, said
                elif last:
                    yield mutant, "same", ""
                else:
                    left.append(mutant)
    return left


BEGIN, END = "<!-- score -->\n", "<!-- end -->"
_ROW = re.compile(r"^\| `(.+)` \| \d+ \| (.+) \|$", re.MULTILINE)


def scored(page: str) -> Counter[tuple[str, str]]:
    """Return the score that a page has, as fates by file."""
    table = page.partition(BEGIN)[2].partition(END)[0]
    return Counter(
        {
            (file, fate): int(count)
            for file, counts in _ROW.findall(table)
            for fate, count in zip(FATES, counts.split(" | "), strict=True)
        }
    )


def with_score(page: str, found: Counter[tuple[str, str]]) -> str:
    """Return the page with this score in place of its own."""
    head, begin, rest = page.partition(BEGIN)
    return f"{head}{begin}{score(found)}\n{END}{rest.partition(END)[2]}"


def score(found: Counter[tuple[str, str]]) -> str:
    """Return the score by file, as a table."""
    head = ("file", "tried", *FATES)
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for file in sorted({file for file, _ in found}):
        of = [found[file, what] for what in FATES]
        lines.append(f"| `{file}` | {sum(of)} | " + " | ".join(map(str, of)) + " |")
    of = [sum(count for (_, became), count in found.items() if became == what) for what in FATES]
    lines.append(f"| all | {sum(of)} | " + " | ".join(map(str, of)) + " |")
    return "\n".join(lines)


def main(seconds: float = 600.0, seed: int = 1, *files: str) -> int:
    """Try mutants for so long; return the exit code."""
    began, left = time.monotonic(), list[Mutant]()
    tried = Counter[str]()
    for (file, _), count in scored(PAGE.read_text()).items():
        tried[file] += count
    for mutant, became, said in fates(sample(random.Random(seed), files, tried)):
        page = PAGE.read_text()
        PAGE.write_text(with_score(page, scored(page) + Counter({(mutant.file, became): 1})))
        if became == "survived" and re.sub(r":\d+:", ":", str(mutant), count=1) not in EQUIVALENT:
            left.append(mutant)
        who = next((line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
        print(f"{time.monotonic() - began:6.0f} s  {became:8}  {mutant}  {who[:120]}", flush=True)
        if time.monotonic() - began > seconds:
            break
    print(*left, sep="\n")
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
