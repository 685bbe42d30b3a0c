# SPDX-License-Identifier: Apache-2.0
"""Settings of the host that another tool changes while the agent runs."""

from __future__ import annotations

import logging

import pytest

from lb.config import Config
from lb.diagnose import host
from lb.host_watch import LOOK_SECONDS, HostWatch


class Bench:
    """A node with an uplink and a pod, its settings, and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.settings = {
            **{f"ipv{v}/conf/{name}/forwarding": "1" for v in (4, 6) for name in ("all", "eth0", "pod1")},
            "ipv4/ip_local_port_range": "32768 60999",
        }
        self.watch = HostWatch(
            lambda: host.settings(["eth0", "pod1"], [4], Config().snat_ports, self.settings.get),
            lambda: self.now,
        )

    def look(self, **changes: str) -> list[str]:
        self.settings |= {name.replace("__", "/"): value for name, value in changes.items()}
        self.watch.look()
        self.now += LOOK_SECONDS
        return [one.text for one in self.watch.problems()]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_forwarding_that_is_switched_off_is_told_until_it_is_back(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert bench.look() == []
    off = "packets for backends are dropped by the host's stack"
    assert bench.look(ipv4__conf__all__forwarding="0") == [
        f"forwarding: net.ipv4.conf.all.forwarding off: {off}"
    ]
    assert "sysctl -w net.ipv4.conf.all.forwarding=1" in bench.watch.problems()[0].next
    assert bench.look(ipv4__conf__all__forwarding="1", ipv4__conf__pod1__forwarding="0") == [
        f"forwarding: net.ipv4.conf.*.forwarding on pod1 off: {off}"
    ]
    assert bench.look(ipv4__conf__pod1__forwarding="1") == []
    levels = [record.levelname for record in caplog.records]
    assert levels == ["ERROR", "ERROR", "INFO", "INFO"]


def test_forwarding_is_looked_for_where_the_node_has_addresses(bench: Bench) -> None:
    assert bench.look(ipv6__conf__all__forwarding="0") == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ipv4__conf__all__rp_filter", "1", "rp_filter: strict (1) on eth0, pod1"),
        ("ipv4__ip_local_port_range", "1024 60999", "SNAT ports: 28976 of 1024 to 29999"),
    ],
)
def test_what_was_so_at_the_start_is_the_operator_s_choice(name: str, value: str, words: str) -> None:
    chosen, changed = Bench(), Bench()
    assert chosen.look(**{name: value}) == []
    changed.look()
    (told,) = changed.look(**{name: value})
    assert told.startswith(words)
