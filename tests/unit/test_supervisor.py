# SPDX-License-Identifier: Apache-2.0
"""What a service manager is told: a datagram socket stands for systemd's."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lb.lab.processes import environment
from lb.served.problems import Problem
from lb.served.supervisor import Supervisor


@dataclass
class Agent:
    """What is told of an agent."""

    wrong: list[str] = field(default_factory=list)

    def problems(self) -> list[Problem]:
        return [Problem(text) for text in self.wrong]

    def service_count(self) -> int:
        return 12


def report() -> Any:
    """Return an agent, as far as a supervisor asks it."""
    return Agent()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """Give the value of NOTIFY_SOCKET, and the socket there."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@lbctl-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
        there.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        there.settimeout(5)
        yield name, there


def test_a_life_as_it_is_told(manager: tuple[str, socket.socket]) -> None:
    name, there = manager
    supervisor, agent = Supervisor({"NOTIFY_SOCKET": name}), report()

    def heard() -> list[str]:
        return there.recv(4096).decode().split("\n")

    supervisor.starting()
    assert heard() == ["STATUS=loading programs and maps"]
    supervisor.beat(agent)
    assert heard() == [
        "WATCHDOG=1", "STATUS=waiting for the source's first list; connections are served as before",
    ]  # fmt: skip
    supervisor.synced(agent)
    assert heard() == ["READY=1", "STATUS=in step: 12 Services"]
    supervisor.synced(agent)
    agent.wrong = ["service default/web: no\nroom", "hook eth0: refused"]
    supervisor.beat(agent)
    assert heard() == [
        "WATCHDOG=1", "STATUS=12 Services; problem: service default/web: no room and 1 more",
    ]  # fmt: skip
    supervisor.stopping()
    assert heard() == ["STOPPING=1", "STATUS=stopping; the data plane stays as it is"]


def test_without_a_service_manager_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", None)  # to be called, if at all
    Supervisor({}).beat(report())


@pytest.mark.parametrize("there", ["gone", "full"])
def test_a_service_manager_that_does_not_listen_holds_nobody_up(
    there: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(path))
        if there == "gone":
            path.unlink()
        supervisor = Supervisor({"NOTIFY_SOCKET": str(path)})
        for _ in range(1000):
            supervisor.beat(report())
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert str(path) in caplog.records[0].getMessage()


def test_the_agents_of_a_lab_do_not_speak_for_whoever_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "LBCTL_NODE_NAME", "http_proxy", "KEPT"):
        monkeypatch.setenv(name, "x")
    assert set(environment()) & {"NOTIFY_SOCKET", "LBCTL_NODE_NAME", "http_proxy", "KEPT"} == {"KEPT"}
