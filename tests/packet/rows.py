# SPDX-License-Identifier: Apache-2.0
"""A row: a description, Services, and steps; each step is one packet and all that must become of it."""

from __future__ import annotations

from dataclasses import dataclass

from lb.config import SnatPorts
from lb.plan.types import ServicePlan
from tests.packet.harness import (
    DROP,
    HOOK_OF,
    PASS,
    SEND,
    TC_POD_IN,
    TC_POD_OUT,
    TC_UPLINK_OUT,
    XDP,
    Datapath,
)
from tests.packets import NODE1, difference, icmp_error_for

UPLINK_IN = "uplink in"
"""Stands for the XDP program or the tc program at the uplink: a row with it runs with either."""
UPLINK_OUT = TC_UPLINK_OUT
POD_IN = TC_POD_IN
POD_OUT = TC_POD_OUT

SNAT_PORT = 61_000
ONE_SNAT_PORT = SnatPorts(SNAT_PORT, SNAT_PORT)
"""With a range of one port, a row can say which port a translation gets."""


@dataclass(frozen=True, slots=True)
class Step:
    """One packet: where it comes in, what must become of it, and the counter that must move."""

    at: str
    frame: bytes
    verdict: str
    out: bytes
    reason: str


def passed(at: str, frame: bytes, out: bytes, reason: str) -> Step:
    """The packet goes on to the stack, as out."""
    return Step(at, frame, PASS, out, reason)


def sent(at: str, frame: bytes, out: bytes, reason: str) -> Step:
    """The packet leaves by an interface at once, as out."""
    return Step(at, frame, SEND, out, reason)


def untouched(at: str, frame: bytes, reason: str) -> Step:
    """The packet goes on as it came."""
    return Step(at, frame, PASS, frame, reason)


def dropped(at: str, frame: bytes, reason: str) -> Step:
    """The packet ends here."""
    return Step(at, frame, DROP, b"", reason)


def too_big(frame: bytes, mtu: int, uplink_program: str) -> Step:
    """The packet is too big for the way on: tc tells its sender; XDP, which sees no segments, leaves it."""
    if uplink_program == XDP:
        return untouched(UPLINK_IN, frame, "TO_TC")
    return sent(UPLINK_IN, frame, icmp_error_for(frame, NODE1, "too big", mtu), "TOO_BIG")


@dataclass(frozen=True, slots=True)
class Row:
    """What a test of its name plays."""

    description: str
    services: tuple[ServicePlan, ...]
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return self.description


def play(datapath: Datapath, row: Row, uplink_program: str, *, redirect: bool = False) -> None:
    """Run the row's steps in order and compare everything."""
    __tracebackhide__ = True
    datapath.set_up_node(snat_ports=ONE_SNAT_PORT, redirect=redirect)
    datapath.apply(*row.services)
    for number, step in enumerate(row.steps, 1):
        check(datapath, step, uplink_program, f"{row.description}, step {number}")


def check(datapath: Datapath, step: Step, uplink_program: str, where: str) -> None:
    """Run one step."""
    __tracebackhide__ = True
    program = uplink_program if step.at == UPLINK_IN else step.at
    result = datapath.run(program, step.frame)
    assert (result.verdict, dict(result.reasons)) == (
        step.verdict,
        {(HOOK_OF[program], step.reason): 1},
    ), where
    if step.verdict != DROP:
        text = difference(result.packet, step.out)
        assert not text, f"{where}: {program}\n{text}"
