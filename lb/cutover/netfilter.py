# SPDX-License-Identifier: Apache-2.0
"""What of netfilter's rules a cutover needs: those of kube-proxy go, and two sets of our own come meanwhile.

The table ``lbctl-cutover`` is there while connections change hands. Its sets name packets that conntrack is
not to see: with an entry for a connection as the one side has it, a packet as the other side has it would be
taken for another connection, whose addresses clash, and get another port. Its chain of type nat keeps
netfilter translating what is established, and the rule in it keeps conntrack at work: in a network namespace
the one stops with the last such chain, the other with the last rule that needs it, and both may be
kube-proxy's.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from lb.cutover.conntrack import Tuple
from lb.datapath.kernel.grace import wait_for_running_programs
from lb.errors import LbError

Run = Callable[[Sequence[str], str], str]
"""Runs a command in the node's network namespace, with a text as its input; returns its output."""

TABLE = "lbctl-cutover"
_FAMILIES = {4: ("ip", "ipv4_addr"), 6: ("ip6", "ipv6_addr")}
_SETS = ("requests", "answers")
_FRAME = """
table $ip lbctl-cutover {
 set requests { type $addr . inet_service . $addr . inet_service . inet_proto; }
 set answers { type $addr . inet_service . $addr . inet_service . inet_proto; }
 chain untracked {
  meta l4proto { tcp, udp, sctp } $ip saddr . th sport . $ip daddr . th dport . meta l4proto @requests notrack
  meta l4proto { tcp, udp, sctp } $ip saddr . th sport . $ip daddr . th dport . meta l4proto @answers notrack
 }
 chain entering { type filter hook prerouting priority raw; jump untracked; }
 chain sent { type filter hook output priority raw; jump untracked; }
}
"""
_LASTING = """
table $ip lbctl-cutover {
 chain translated { type nat hook prerouting priority dstnat + 50; ct status dnat accept; }
}
"""


def here(argv: Sequence[str], text: str) -> str:
    """Run a command in this network namespace.

    Raises LbError: it is not installed, or failed, with its words.
    """
    if not shutil.which(argv[0]):
        raise LbError(
            f"{argv[0]} is not installed: a cutover takes the Debian packages nftables and iptables"
        )
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LbError(f"{argv[0]}: {done.stderr.strip()}")
    return done.stdout


class Untracked:
    """The two sets of packets that conntrack does not see; use :func:`untracked`.

    lasting: whether netfilter is to go on translating afterwards, if nobody else's rules keep it at work.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.lasting = False

    def add(self, *, requests: Iterable[Tuple] = (), answers: Iterable[Tuple] = ()) -> None:
        """Hide packets from conntrack by their addresses and ports, from when this returns on."""
        self._change("add", requests, answers)

    def drop(self, *, requests: Iterable[Tuple] = (), answers: Iterable[Tuple] = ()) -> None:
        """Let conntrack see these packets again, from when this returns on."""
        self._change("delete", requests, answers)

    def _change(self, verb: str, *sets: Iterable[Tuple]) -> None:
        lines = []
        for name, tuples in zip(_SETS, sets, strict=True):
            for version, mine in _by_version(tuples):
                family, elements = _FAMILIES[version][0], ", ".join(map(_element, mine))
                lines.append(f"{verb} element {family} {TABLE} {name} {{ {elements} }}")
        if lines:
            self._run(["nft", "-f", "-"], "\n".join(lines) + "\n")
            wait_for_running_programs()  # and for the packets that were past the chain by then


def _by_version(tuples: Iterable[Tuple]) -> Iterator[tuple[int, list[Tuple]]]:
    every = list(dict.fromkeys(tuples))
    for version in _FAMILIES:
        if mine := [one for one in every if one.version == version]:
            yield version, mine


def _element(one: Tuple) -> str:
    return f"{one.src} . {one.sport} . {one.dst} . {one.dport} . {int(one.protocol)}"


@contextmanager
def untracked(run: Run = here) -> Iterator[Untracked]:
    """Have the table ``lbctl-cutover`` meanwhile, in place of one that is left over.

    Raises LbError: nft is not there or refused.
    """
    _replace(run, _FRAME + _LASTING)
    sets = Untracked(run)
    try:
        yield sets
    finally:
        _replace(run, _LASTING if sets.lasting else "")


def _replace(run: Run, frame: str) -> None:
    """Have the table so in both families, in one step each: netfilter goes on translating meanwhile."""
    for family, kind in _FAMILIES.values():
        new = frame.replace("$ip", family).replace("$addr", kind)
        run(["nft", "-f", "-"], _gone(family, TABLE) + new)


def _gone(family: str, table: str) -> str:
    # A table that is not there cannot be deleted: so first it is made.
    return f"table {family} {table}\ndelete table {family} {table}\n"


def remove_kube_proxy(run: Run = here) -> None:
    """Remove kube-proxy's rules, of its modes nftables and iptables, as ``kube-proxy --cleanup`` does.

    The kubelet's own chains of iptables go as well; it makes them again.

    Raises LbError: a command is not there or failed.
    """
    for family, _ in _FAMILIES.values():
        run(["nft", "-f", "-"], _gone(family, "kube-proxy"))
    for program in ("iptables", "ip6tables", "iptables-legacy", "ip6tables-legacy"):
        if program.endswith("legacy") and not shutil.which(f"{program}-save"):
            continue
        rules = run([f"{program}-save"], "")
        kept = [line for line in rules.splitlines() if "KUBE-" not in line]
        if len(kept) != len(rules.splitlines()):
            run([f"{program}-restore"], "\n".join(kept) + "\n")
