# SPDX-License-Identifier: Apache-2.0
"""Ask a DNS server; ``python -m lb.names.ask [CGROUP]`` asks what its stdin says.

See :mod:`lb.cgroup_query` for why that is a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype

from lb import cgroup_query
from lb.names import SILENT

TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask whom; owner is absolute, kind ``A``, ``AAAA``, ``CNAME`` or ``SOA``."""

    server: str
    owner: str
    kind: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The status as DNS names it, ``NXDOMAIN``, or :data:`lb.names.SILENT`; data of the owner's records."""

    status: str
    data: tuple[str, ...] = ()


def ask(question: Question, timeout: float = TIMEOUT_SECONDS) -> Answer:
    """Ask by UDP, by TCP where the answer is too long for that; timeout in seconds."""
    query = dns.message.make_query(question.owner, question.kind)
    try:
        answer, _ = dns.query.udp_with_fallback(query, question.server, timeout)
    except (dns.exception.DNSException, OSError):
        return Answer(SILENT)
    data = (
        item.to_text()
        for rrset in answer.answer
        if rrset.name == query.question[0].name and dns.rdatatype.to_text(rrset.rdtype) == question.kind
        for item in rrset
    )
    return Answer(dns.rcode.to_text(answer.rcode()), tuple(sorted(data)))


def ask_all(questions: Sequence[Question], cgroup: str = "") -> list[Answer]:
    """Ask all from this network namespace, as a process of this control group; "" for the present one.

    Raises LbError: the process that does it failed.
    """
    answers = cgroup_query.ask("lb.names.ask", questions, cgroup, "asking DNS")
    return [Answer(each["status"], tuple(each["data"])) for each in answers]


def main(argv: Sequence[str]) -> None:
    """Join the control group, ask what stdin says, write what came of it."""
    cgroup_query.answer([ask(Question(**each)) for each in cgroup_query.asked(argv)])


if __name__ == "__main__":
    main(sys.argv[1:])
