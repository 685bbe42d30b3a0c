# SPDX-License-Identifier: Apache-2.0
"""What becomes of each connection when Services change hands."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import pytest

from lb.cutover import affinity, beginning, first_start, moves, netfilter
from lb.cutover.conntrack import Entry, SctpState, Status, TcpState, Tuple
from lb.cutover.moves import Known, Move
from lb.datapath.maps.layouts import FLOW, FLOW_KEY, Cutover, Direction, FlowPath, FlowSign, FlowState
from lb.datapath.programs import features
from lb.datapath.programs.features import NO_FUNCTIONS, KernelFunctions
from lb.diagnose import kube_proxy
from lb.diagnose.kube_proxy import Trace
from lb.model import Protocol
from lb.stop_event import StopEvent
from tests.fake_maps import FakeMaps

CLIENT, NODE, POD, BACKEND = map(ip_address, ("192.0.2.7", "192.0.2.1", "10.244.1.2", "10.244.2.9"))
VIP = ip_address("10.96.0.1")
KNOWN = Known(
    {(VIP, 80, 6): 5, (VIP, 80, 17): 6, (VIP, 80, 132): 7, (NODE, 30080, 6): 5},
    {(5, BACKEND, 8080): (3, 2), (5, POD, 8080): (4, 1), (6, BACKEND, 8080): (8, 1)},
)
NATED = Status.CONFIRMED | Status.SEEN_REPLY | Status.ASSURED | Status.DST_NAT


def entry(
    client: tuple[object, int] = (CLIENT, 40000),
    vip: tuple[object, int] = (VIP, 80),
    backend: tuple[object, int] = (BACKEND, 8080),
    seen_as: tuple[object, int] | None = None,
    *,
    protocol: Protocol = Protocol.TCP,
    status: Status = NATED,
    state: TcpState = TcpState.ESTABLISHED,
    closed_first: str = "",
    sctp: SctpState = SctpState.NONE,
) -> Entry:
    original = Tuple(*client, *vip, protocol)  # type: ignore[arg-type]
    reply = Tuple(*backend, *(seen_as or client), protocol)  # type: ignore[arg-type]
    return Entry(original, reply, status, state, 100, closed_first, 0, sctp, (7, 9))


def moved(one: Entry) -> Move:
    plan = moves.plan([one], KNOWN, frozenset({NODE}))
    [(found, move)] = plan.moves
    assert found is one
    return move


@pytest.mark.parametrize(
    ("one", "path"),
    [
        (entry(), FlowPath.STACK),
        (entry(seen_as=(NODE, 5000)), FlowPath.FORWARD),
        (entry((POD, 40000), backend=(POD, 8080), seen_as=(NODE, 5000)), FlowPath.HAIRPIN),
        (entry((NODE, 40000), seen_as=(NODE, 5000)), FlowPath.HOST),
        (entry((NODE, 40000), (NODE, 30080), seen_as=(NODE, 5000)), FlowPath.LOOPBACK),
    ],
)
def test_way(one: Entry, path: FlowPath) -> None:
    move = moved(one)
    assert move.path is path
    assert (move.client, move.backend) == (one.original, one.reply.reverse)
    assert move.service == 5
    assert move.passing == {
        FlowPath.STACK: one.reply.reverse,
        FlowPath.HOST: one.original,
        FlowPath.LOOPBACK: one.original,
    }.get(path)


@pytest.mark.parametrize(
    ("state", "first", "flow"),
    [
        (TcpState.SYN_RECV, "", (FlowState.NEW, FlowSign.HALF_OPEN | FlowSign.MET_LATE)),
        (TcpState.ESTABLISHED, "", (FlowState.ESTABLISHED, FlowSign(0))),
        (TcpState.CLOSE_WAIT, "client", (FlowState.CLOSING, FlowSign.FIN_CLIENT)),
        (TcpState.FIN_WAIT, "server", (FlowState.CLOSING, FlowSign.FIN_BACKEND)),
        (TcpState.LAST_ACK, "client", (FlowState.CLOSED, FlowSign.FIN_CLIENT | FlowSign.FIN_BACKEND)),
    ],
)
def test_how_far_a_tcp_connection_is(state: TcpState, first: str, flow: tuple[FlowState, FlowSign]) -> None:
    move = moved(entry(state=state, closed_first=first))
    assert (move.state, move.signs) == flow


def test_how_far_udp_is() -> None:
    answered = Status.CONFIRMED | Status.DST_NAT | Status.SEEN_REPLY
    assert moved(entry(protocol=Protocol.UDP)).state is FlowState.ESTABLISHED
    move = moved(entry(protocol=Protocol.UDP, status=answered))
    assert (move.state, move.signs) == (FlowState.NEW, FlowSign.HALF_OPEN | FlowSign.ANSWERED)


@pytest.mark.parametrize(
    ("sctp", "state"),
    [
        (SctpState.COOKIE_ECHOED, FlowState.NEW),
        (SctpState.ESTABLISHED, FlowState.ESTABLISHED),
        (SctpState.SHUTDOWN_SENT, FlowState.ESTABLISHED),
    ],
)
def test_how_far_an_association_of_sctp_is(sctp: SctpState, state: FlowState) -> None:
    move = moved(entry(protocol=Protocol.SCTP, sctp=sctp))
    assert (move.state, move.tags) == (state, (7, 9))


def test_what_stays_and_what_is_over() -> None:
    plan = moves.plan(
        [
            entry(vip=(VIP, 443)),
            entry(protocol=Protocol.SCTP, sctp=SctpState.CLOSED),
            entry(protocol=Protocol.UDP, backend=(POD, 8080)),
            entry(status=Status.CONFIRMED),
            entry(state=TcpState.TIME_WAIT),
        ],
        KNOWN,
        frozenset({NODE}),
    )
    assert plan.moves == []
    assert dict(plan.left) == {moves.NO_SERVICE: 1, moves.BACKEND_GONE: 1}
    assert [one.original.protocol for one in plan.dead] == [Protocol.SCTP, Protocol.TCP]


def test_a_backend_that_is_gone_keeps_its_connections() -> None:
    move = moved(entry(backend=(CLIENT, 8080)))
    assert move.slot not in KNOWN.slots.values()


@pytest.mark.parametrize("version", [4, 6])
def test_a_flow_is_the_connection_again(version: int) -> None:
    client, vip, backend = (ip_address({4: f"192.0.2.{n}", 6: f"2001:db8::{n}"}[version]) for n in (1, 2, 3))
    move = Move(
        Tuple(client, 40000, vip, 80, Protocol.TCP),
        Tuple(client, 1234, backend, 8080, Protocol.TCP),
        FlowPath.STACK,
        7,
        (3, 2),
        FlowState.CLOSING,
        FlowSign.FIN_BACKEND,
    )
    key, value = moves.flow_rows(move)
    assert (key.dtype, value.dtype) == (FLOW_KEY[version], FLOW[version])
    assert list(moves.moves_back(key, value)) == [move]
    key["direction"] = Direction.REPLY
    assert list(moves.moves_back(key, value)) == []
    key["direction"], value["state"] = Direction.FORWARD, FlowState.CLOSED
    assert list(moves.moves_back(np.array(key), value)) == []


def test_rules_of_kube_proxy_are_removed_and_no_others() -> None:
    called: list[tuple[str, str]] = []

    def run(argv: Sequence[str], text: str) -> str:
        called.append((argv[0], text))
        return "*nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n-A POSTROUTING -j CNI\nCOMMIT\n"

    netfilter.remove_kube_proxy(run)
    assert ("iptables-restore", "*nat\n-A POSTROUTING -j CNI\nCOMMIT\n") in called
    assert any(program == "nft" and "delete table ip6 kube-proxy" in text for program, text in called)


def test_what_kube_proxy_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "_RECENT", tmp_path)
    (tmp_path / "KUBE-SEP-ABC").write_text("src=192.0.2.7 ttl: 64 last_seen: 9 oldest_pkt: 1 9\n")
    name = "affinity-AB2C-default/web/tcp/http__10.244.2.9/8080"
    elements = [{"elem": {"val": "192.0.2.8", "expires": 10_000}}]
    sets = {"ip": [{"metainfo": {}}, {"set": _set("kube-proxy", name, elements)}]}
    sets["ip6"] = [
        {"set": _set("other", name, elements)},
        {"set": _set("kube-proxy", "cluster-ips", ["fd00::1"])},
        {"set": _set("kube-proxy", "affinity-AB-default/web/tcp/__fd00..9/80", [])},
    ]
    rules = """*nat
:KUBE-SEP-ABC - [0:0]
-A KUBE-SVC-X -m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-ABC --rsource -j KUBE-SEP-ABC
-A KUBE-SEP-ABC -p tcp -m comment --comment "a/b:p" -m recent --set --name KUBE-SEP-ABC --rsource -j DNAT \
--to-destination 10.244.1.2:80
-A KUBE-SEP-DEF -p tcp -m comment --comment a/c -m tcp -j DNAT --to-destination 10.244.1.3:80
COMMIT
""".replace("\\\n", "")

    def run(argv: Sequence[str], _text: str) -> str:
        if argv[0] == "nft":
            return json.dumps({"nftables": sets[argv[-1]]})
        return rules if argv[0] == "iptables-save" else ""

    seen = [(one.endpoint, one.family, one.clients) for one in affinity.places(run)]
    assert seen == [
        (("default/web:http", BACKEND, 8080), "ip", ((ip_address("192.0.2.8"), 800.0),)),
        (("default/web:", ip_address("fd00::9"), 80), "ip6", ()),
        (("a/b:p", POD, 80), "", ((CLIENT, 0.0),)),
    ]


def _set(table: str, name: str, elements: Sequence[object]) -> dict[str, object]:
    return {"table": table, "name": name, "timeout": 10_800, "elem": elements}


@pytest.mark.parametrize(
    ("traces", "functions", "told"),
    [
        ([], NO_FUNCTIONS, []),
        (["table ip kube-proxy"], KernelFunctions({"bpf_skb_ct_lookup": 1}), ["INFO"]),
        (["table ip kube-proxy"], NO_FUNCTIONS, ["WARNING"]),
    ],
)
def test_an_agent_beside_kube_proxy_tells_what_becomes_of_open_connections(
    traces: Sequence[str],
    functions: KernelFunctions,
    told: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(kube_proxy, "find", lambda: [Trace("nftables", what) for what in traces])
    monkeypatch.setattr(features, "kernel_functions", lambda: functions)
    maps = FakeMaps()
    beginning.beside_kube_proxy(maps, "n1", new=False)
    assert maps.array("cutover")[0] == Cutover.NONE
    beginning.beside_kube_proxy(maps, "n1", new=True)
    assert maps.array("cutover")[0] == (Cutover.TAKE if traces else Cutover.NONE)
    assert [record.levelname for record in caplog.records] == told


def test_who_listens_at_a_port(tmp_path: Path) -> None:
    line = "0: 0100007F:{port:04X} 00000000:0000 {state} 0:0 00:00000000 00000000 0 0 {inode} 1\n"
    rows = [(10249, "0A", 41), (10256, "0A", 42), (10256, "01", 43)]
    (tmp_path / "tcp").write_text(
        "head\n" + "".join(line.format(port=p, state=s, inode=i) for p, s, i in rows)
    )
    (tmp_path / "tcp6").write_text("head\n" + line.format(port=80, state="0A", inode=44))
    own = tmp_path / "fd"
    own.mkdir()
    (own / "3").symlink_to("socket:[42]")
    (own / "4").symlink_to("/dev/null")
    assert first_start.listeners(tmp_path, own) == {10249, 80}


def test_an_agent_takes_over_once_it_serves_and_kube_proxy_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, waited = FakeMaps(), []
    maps.array("cutover")[0] = Cutover.TAKE
    rounds = iter([(False, set()), (True, {10256}), (True, {80}), (True, set())])
    now: list[tuple[bool, set[int]]] = []

    class Stop(StopEvent):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout)
            now[:] = [next(rounds)]
            return False

    called: list[Sequence[str]] = []

    def done(argv: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
        called.append(argv)
        if len(called) == 2:
            maps.array("cutover")[0] = Cutover.NONE
        return subprocess.CompletedProcess(argv, 2 - len(called), "1 connection moved\n", "")

    monkeypatch.setattr(subprocess, "run", done)

    def opened() -> contextlib.AbstractContextManager[FakeMaps]:
        return contextlib.nullcontext(maps)

    first_start.FirstStart("n1", opened, lambda: now[0][0], ports=lambda: now[0][1]).run(Stop())
    assert [argv[-3:] for argv in called] == [["cutover", "--instance", "n1"]] * 2
    assert waited == [2.0, 2.0, 2.0, 30.0]
    first_start.FirstStart("n1", opened, lambda: True, ports=set).run(Stop())
    assert len(called) == 2
