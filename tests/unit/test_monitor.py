# SPDX-License-Identifier: Apache-2.0
"""``lbctl monitor`` without a kernel: its words, its loop, and what it asks for."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lb.cli import command, main
from lb.cli.monitor import _line, wanted
from lb.datapath.maps.layouts import EVENT, HOOKS, REASONS, Direction, WatchFlag
from lb.errors import ConfigError, LbError
from lb.live.events import PacketEvent, describe
from lb.live.monitor import RENEW_SECONDS, Monitor
from lb.rundir import RunDir

TEXTS = Path(__file__).parent / "texts"
HOOK_NUMBERS = {name: number for number, (name, _) in enumerate(HOOKS)}
REASON_NUMBERS = {name: number for number, (name, _) in enumerate(REASONS)}
TC_PASS, TC_DROP, TC_SEND, XDP_DROP = -1, 2, 7, 1


class Names:
    """Names without maps."""

    def __init__(self) -> None:
        self.forgotten = 0
        self.pods: dict[str, str] = {}

    def pod_at(self, place: str) -> str:
        return self.pods.get(place, "")

    def forget(self) -> None:
        self.forgotten += 1

    def service(self, ident: int) -> str:
        return {0: "", 1: "default/web:http", 2: "kube-system/dns:dns-udp"}[ident]

    def interface(self, index: int) -> str:
        return {0: "", 2: "eth0", 3: "veth1"}[index]


def packed(text: str) -> bytes:
    return ip_address(text).packed.ljust(16, b"\0")


def record(
    way: Sequence[tuple[str, int]],
    *,
    reason: str,
    hook: str = "TC_UPLINK_IN",
    verdict: int = TC_PASS,
    protocol: int = 6,
    flags: int = 0,
    reply: bool = False,
    closes: bool = False,
    service: int = 1,
) -> Any:
    """Return what the kernel tells; way: source, destination, and both as they became."""
    row = np.zeros(1, EVENT)[0]
    row["time_ns"] = 123_456_789
    row["hook"], row["reason"], row["verdict"] = HOOK_NUMBERS[hook], REASON_NUMBERS[reason], verdict
    row["ifindex"] = 3 if "POD" in hook else 2
    row["service"], row["len"], row["protocol"], row["tcp_flags"] = service, 74, protocol, flags
    row["direction"], row["closes"] = Direction.REPLY if reply else Direction.FORWARD, closes
    row["family"] = ip_address(way[0][0]).version
    names = (("src", "sport"), ("dst", "dport"), ("to_src", "to_sport"), ("to_dst", "to_dport"))
    for (address, port), (there, number) in zip(names, way, strict=False):
        row[address], row[port] = np.void(packed(there)), number
    return row


def call(
    ends: tuple[str, str], *, reason: str, hook: str = "SOCK_CONNECT", verdict: int = 1, protocol: int = 6
) -> Any:
    """Return what the kernel tells of a process's call; ends: its address and the backend's, if known."""
    there = ((ends[0], 0), VIP, ("0.0.0.0", 0), (ends[1], BACKEND[1]) if ends[1] else ("0.0.0.0", 0))
    row = record(there, reason=reason, hook=hook, verdict=verdict, protocol=protocol)
    row["ifindex"] = row["len"] = 0
    return row


CLIENT, VIP, BACKEND = ("192.0.2.50", 40000), ("10.96.0.10", 80), ("10.244.1.2", 8080)
NODE, REMOTE = ("192.0.2.1", 61000), ("10.244.2.3", 8080)
CLIENT_6, VIP_6, BACKEND_6 = ("2001:db8::50", 40000), ("fd00:96::10", 53), ("fd00:244::2", 5353)
SYN, FIN_ACK = 0x02, 0x11

RECORDS = [
    record((CLIENT, VIP, CLIENT, BACKEND), reason="NEW_LOCAL", flags=SYN),
    record((CLIENT, VIP, NODE, REMOTE), reason="NEW_REMOTE", hook="XDP_UPLINK", verdict=3, flags=SYN),
    record((REMOTE, NODE, VIP, CLIENT), reason="REPLY", verdict=TC_SEND, reply=True, flags=0x12),
    record(
        (BACKEND, CLIENT, VIP, CLIENT),
        reason="REPLY",
        hook="TC_UPLINK_OUT",
        reply=True,
        closes=True,
        flags=FIN_ACK,
    ),
    record((CLIENT, VIP), reason="SOURCE_NOT_ALLOWED", hook="XDP_UPLINK", verdict=XDP_DROP, flags=SYN),
    record((CLIENT, VIP), reason="REJECT_NO_ENDPOINT", hook="TC_POD_IN", verdict=TC_SEND, flags=SYN),
    record((CLIENT, VIP), reason="STRAY_FRAGMENT", verdict=TC_DROP, service=0),
    record(
        (CLIENT_6, VIP_6, CLIENT_6, BACKEND_6), reason="NEW_LOCAL", hook="TC_POD_IN", protocol=17, service=2
    ),
    record(((CLIENT[0], 0), (VIP[0], 0)), reason="PING", protocol=1, verdict=TC_SEND),
    record(
        (("198.51.100.1", 0), (NODE[0], 0), ("198.51.100.1", 0), (CLIENT[0], 0)),
        reason="ICMP_ERROR",
        protocol=1,
    ),
    call((NODE[0], BACKEND[0]), reason="NEW_LOCAL"),
    call(("0.0.0.0", REMOTE[0]), reason="NEW_REMOTE", hook="SOCK_SENDMSG", protocol=17),
    call((NODE[0], ""), reason="REJECT_NO_ENDPOINT", verdict=0),
    call((NODE[0], BACKEND[0]), reason="FLOWS_FULL", verdict=0),
]


def told(rows: Sequence[Any] = RECORDS) -> list[PacketEvent]:
    return [describe(row, Names(), 0) for row in rows]  # type: ignore[arg-type]


def test_the_text_is_as_in_the_golden_file(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"{each.line()[len('00:00:00.000000') :]}\n" for each in told())
    assert text == (TEXTS / "monitor.txt").read_text()


def test_the_time_is_that_of_the_day_here() -> None:
    (one,) = told(RECORDS[:1])
    at = replace(one, time_ns=1_700_000_000_123_456_789)
    assert at.line()[5:15] == ":20.123456"
    assert at.as_dict()["time"][:5] + at.as_dict()["time"][16:26] == "2023-:20.123456"


def test_only_the_word_is_coloured() -> None:
    (one,) = told(RECORDS[:1])
    assert _line(one, "32") == f"{one.line()[:17]}\033[32mnew\033[0m{one.line()[20:]}"
    assert _line(one, "") == one.line()


def test_json_leaves_out_what_is_not_known() -> None:
    found = [each.as_dict() for each in told()]
    assert json.loads(json.dumps(found[1])) == found[1]
    assert found[1] == {
        "time": found[1]["time"],
        "what": "new",
        "hook": "XDP_UPLINK",
        "interface": "eth0",
        "reason": "NEW_REMOTE",
        "meaning": "first packet of a flow, backend elsewhere: translated",
        "service": "default/web:http",
        "protocol": "TCP",
        "reply": False,
        "source": "192.0.2.50:40000",
        "destination": "10.96.0.10:80",
        "sent_source": "192.0.2.1:61000",
        "sent_destination": "10.244.2.3:8080",
        "client": "192.0.2.50:40000",
        "vip": "10.96.0.10:80",
        "backend": "10.244.2.3:8080",
        "snat": "192.0.2.1:61000",
        "flags": "S",
        "length": 74,
    }
    assert "backend" not in found[4]
    assert "service" not in found[6]
    assert "client" not in found[8]


class Watched:
    """A data plane that tells of what a test gives it, one list for each time that it is waited for."""

    def __init__(self, *batches: list[Any]) -> None:
        self.batches = list(batches)
        self.now = 100.0
        self.lost = 0
        self.renewed: list[float] = []
        self.chosen: list[list[int]] = []
        self.waits: list[float] = []

    def choose(self, services: Sequence[int]) -> None:
        self.chosen.append(list(services))

    def renew(self) -> None:
        self.renewed.append(self.now)

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        if not self.batches:
            self.now += seconds

    def events(self) -> Iterator[Any]:
        yield from self.batches.pop(0) if self.batches else []


class Telling:
    """A loop over :class:`Watched`, and what it said."""

    def __init__(self, watched: Watched, services: Any = None) -> None:
        self.names, self.events, self.said, self.flushed = Names(), list[PacketEvent](), list[str](), 0
        self.watched = watched
        self.loop = Monitor(
            watched,  # type: ignore[arg-type]
            self.names,  # type: ignore[arg-type]
            services=services,
            tell=[lambda _, event: self.events.append(event)],
            told=self.flush,
            complain=self.said.append,
            clock=lambda: watched.now,
        )

    def flush(self) -> None:
        self.flushed += 1


def test_the_loop_ends_after_so_many_events() -> None:
    telling = Telling(Watched(RECORDS[:2], RECORDS[2:]))
    telling.loop.run(count=3)
    assert [one.reason for one in telling.events] == ["NEW_LOCAL", "NEW_REMOTE", "REPLY"]
    assert (telling.loop.count, telling.flushed) == (3, 2)


def test_the_loop_ends_after_so_long_and_renews_meanwhile() -> None:
    telling = Telling(Watched())
    telling.loop.run(seconds=2.5)
    assert telling.watched.renewed == [100.0, 100.0 + RENEW_SECONDS, 100.0 + 2 * RENEW_SECONDS]
    assert telling.watched.waits == [RENEW_SECONDS, RENEW_SECONDS, 0.5]
    assert (telling.names.forgotten, telling.events, telling.said) == (3, [], [])


def test_the_loop_ends_between_two_events_or_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a signal ends it."""

    def end(_: Any) -> str:
        telling.loop.end()
        return "eth0"

    telling = Telling(Watched(RECORDS[:3]))
    monkeypatch.setattr(telling.names, "interface", end)
    telling.loop.run()
    assert (telling.loop.count, telling.flushed) == (1, 1)
    watched = Watched()
    telling = Telling(watched)
    monkeypatch.setattr(watched, "wait", end)
    telling.loop.run()
    assert (telling.loop.count, telling.flushed) == (0, 0)


def test_losses_are_said_once_each() -> None:
    telling = Telling(Watched())
    for lost in (0, 5, 5, 7):
        telling.watched.lost = lost
        telling.loop.step(math.inf, math.inf)
    assert [line.split(";")[0] for line in telling.said] == ["5 events lost", "2 events lost"]


def test_a_service_that_goes_and_comes_back_under_other_ids() -> None:
    ids: list[list[int]] = [[1], [1], [], [2]]

    def services() -> list[int]:
        found = ids.pop(0)
        if not found:
            raise ConfigError("gone")
        return found

    dns = RECORDS[7]
    watched = Watched()
    telling = Telling(watched, services)
    for _ in range(3):
        watched.batches = [[RECORDS[0], dns]]
        telling.loop.step(math.inf, math.inf)
        watched.now += RENEW_SECONDS
    assert watched.chosen == [[1], [1], [2]]
    assert [one.service for one in telling.events] == [
        "default/web:http",
        "default/web:http",
        "kube-system/dns:dns-udp",
    ]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("", WatchFlag.FLOWS | WatchFlag.DROPS),
        ("--drops", WatchFlag.DROPS),
        ("--packets", WatchFlag.FLOWS | WatchFlag.DROPS | WatchFlag.PACKETS),
        ("--pcap x", WatchFlag.FLOWS | WatchFlag.DROPS | WatchFlag.PACKETS | WatchFlag.BYTES),
        ("--pcap x --drops", WatchFlag.DROPS | WatchFlag.BYTES),
    ],
)
def test_what_is_asked_for(words: str, what: WatchFlag) -> None:
    assert wanted(command.parser("monitor").parse_args(["monitor", *words.split()])) == what


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--sample 0", "argument --sample: '0' is not a whole number from 1 on"),
        ("--count x", "argument --count: 'x' is not a whole number from 1 on"),
        ("--duration -1", "argument --duration: '-1' is not a number of seconds above 0"),
        ("--drops --packets", "argument --packets: not allowed with argument --drops"),
    ],
)
def test_wrong_usage(words: str, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["monitor", *words.split()])
    assert ended.value.code == 2
    assert error in capsys.readouterr().err


@pytest.mark.parametrize(
    ("service", "error"),
    [("a/b/c", "'a/b/c' is no Service"), ("web:", "--service web:: a port's name or number is missing")],
)
def test_no_service(service: str, error: str) -> None:
    out, err = io.StringIO(), io.StringIO()
    assert main(["monitor", "--service", service], out=out, err=err) == 2
    assert error in err.getvalue()


def test_one_watches_at_a_time(tmp_path: Path) -> None:
    one, other = RunDir("n1", tmp_path), RunDir("n1", tmp_path)
    with one.lock(), one.watching():
        held = r"instance n1: already watched by process \d+, which holds .*n1\.watch"
        with pytest.raises(LbError, match=held), other.watching():
            pass
        with RunDir("n2", tmp_path).watching():
            pass
    with other.watching():
        pass
    one.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["n2.watch"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_events_fit_a_terminal(width: int) -> None:
    for one in told():
        lines = one.line(width).split("\n")
        assert max(map(len, lines)) <= width
        assert sorted(one.line(width).split()) == sorted(one.line().split())


def test_a_backend_is_told_with_its_pod() -> None:
    names = Names()
    names.pods = {"10.244.1.2:8080": "default/web-1"}
    first = describe(RECORDS[0], names, 0)  # type: ignore[arg-type]
    assert "=> 10.244.1.2:8080 (web-1) [S]" in first.line()
    assert first.as_dict()["pod"] == "default/web-1"
