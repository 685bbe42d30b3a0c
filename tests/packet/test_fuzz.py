# SPDX-License-Identifier: Apache-2.0
"""A short run of the fuzzing campaign (``make soak`` has the long one), and its judge put to the test."""

from __future__ import annotations

import pytest

from tests import options
from tests import packets as p
from tests.packet.harness import DROP, PASS, SEND, TAKEN, Datapath
from tests.soak.fuzz import fuzz
from tests.soak.judge import Judge

ENOUGH = 12_000


@pytest.mark.parametrize("family", [4], ids=["both families in turn"])
def test_no_mutated_frame_meets_what_is_forbidden(loaded_datapath: Datapath) -> None:
    loaded_datapath.reset()
    done = fuzz(loaded_datapath, seed=20_261_129, enough=lambda done: done.frames >= ENOUGH)
    loaded_datapath.apply()
    assert not done.fault, done.fault
    assert done.changed > ENOUGH / 50
    assert {(version, verdict) for version in (4, 6) for verdict in (PASS, DROP, SEND, TAKEN)} == set(
        done.ended
    )


@pytest.mark.parametrize(
    ("destination", "verdict", "change", "words"),
    [
        (p.NOT_A_VIP, PASS, {}, ""),
        (p.NOT_A_VIP, DROP, {}, "no business"),
        (p.NOT_A_VIP, PASS, {"dst": (p.BACKEND_LOCAL, 8080)}, "no business"),
        (p.CLUSTER_VIP, DROP, {}, ""),
        (p.CLUSTER_VIP, PASS, {"dst": (p.BACKEND_LOCAL, 8080)}, ""),
        (p.CLUSTER_VIP, PASS, {"dst": (p.BACKEND_LOCAL, 8080), "payload": b"GET /!"}, "payload"),
        (p.CLUSTER_VIP, PASS, {"dst": (p.BACKEND_LOCAL, 8080), "payload": b"GET / and more"}, "bytes became"),
        (p.CLUSTER_VIP, PASS, {"dst": (p.BACKEND_LOCAL, 8080), "ttl": 62}, "TTL"),
        (p.CLUSTER_VIP, PASS, {"dst": (p.BACKEND_LOCAL, 8080), "chksum": 1}, "checksum"),
        (p.CLUSTER_VIP, SEND, {"src": (p.ROUTER, 80), "dst": (p.CLIENT, 40_000)}, "stranger"),
    ],
)
def test_the_judge_sees(
    destination: str, verdict: str, change: dict[str, object], words: str, family: int
) -> None:
    judge = Judge.of({p.here(role) for role in (p.CLUSTER_VIP, p.BACKEND_LOCAL)})
    sent = {"src": (p.CLIENT, 40_000), "dst": (destination, 80), "payload": b"GET / "}
    before = p.tcp(p.FROM_CLIENT, **sent)  # type: ignore[arg-type]
    after = p.tcp(p.FROM_CLIENT, **{**sent, **change})  # type: ignore[arg-type]
    fault = judge.fault(before, verdict, after)
    assert (words in fault) if words else not fault


@pytest.mark.parametrize("verdict", [PASS, DROP])
def test_the_judge_sees_what_must_be_left_alone(verdict: str, family: int) -> None:
    judge = Judge.of({p.here(role) for role in (p.CLUSTER_VIP, p.BACKEND_LOCAL)})
    before = p.tcp(p.FROM_CLIENT, (p.CLIENT, 40_000), (p.CLUSTER_VIP, 80))
    after = p.rebuilt(before, dst=(p.BACKEND_LOCAL, 8080))
    routed = [name for name in options.LEFT_ALONE[family] if "route" in name and "used up" not in name]
    for name in routed:
        extra = options.LEFT_ALONE[family][name]
        sent, came_out = options.into(before, extra), options.into(after, extra)
        assert "its destination" in judge.fault(sent, verdict, came_out), name
        assert not judge.fault(sent, PASS, sent)
    assert routed
