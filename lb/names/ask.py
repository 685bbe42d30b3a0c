# SPDX-License-Identifier: Apache-2.0
"""Ask a DNS server; ``python -m lb.names.ask [CGROUP]`` asks what its stdin says.

A process of its own, so that it can join the control group whose sockets the data plane serves, as
:mod:`lb.diagnose.probe` does. stdin and stdout carry JSON: a list of questions, a list of answers.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype

from lb.errors import LbError
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

    Raises
    ------
    LbError: the process that does it failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "lb.names.ask", *([cgroup] if cgroup else [])],
        input=json.dumps([asdict(one) for one in questions]),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise LbError(f"asking DNS failed: {last}")
    return [Answer(each["status"], tuple(each["data"])) for each in json.loads(done.stdout)]


def main(argv: Sequence[str]) -> None:
    """Join the control group, ask what stdin says, write what came of it."""
    if argv:
        with contextlib.suppress(OSError):  # without it, tc serves this process
            (Path(argv[0]) / "cgroup.procs").write_text(str(os.getpid()))
    json.dump([asdict(ask(Question(**each))) for each in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
