# SPDX-License-Identifier: Apache-2.0
"""The loop between agent and BIRD: the test plays both, and moves the clock by hand."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lb.announce.report import Report
from lb.announce.servable import Standing, Verdict
from lb.bgp import metrics
from lb.bgp.bird import NO_SESSION, Bird, SessionState
from lb.bgp.config import protocol_name
from lb.bgp.peers import PeersFile
from lb.bgp.speaker import Memory, Speaker
from lb.bgp.status import SpeakerStatus, signature_failures
from lb.cli.announce import of_agent, render
from lb.errors import LbError
from lb.model import ObjectKey
from lb.served.http import Request

PEERS = """\
asn: 64512
peers:
  - {name: tor-a, address: 192.168.77.1, asn: 64500}
  - {name: tor-b, address: 192.168.77.2, asn: 64500, bfd: true}
advertise:
  - addresses: [203.0.113.0/24]
"""
VIP = ip_address("203.0.113.5")
SERVES = Verdict(VIP, Standing.SERVES, services=(ObjectKey("shop", "web"),))
REPORT = Report("1", True, "node1", (ip_address("192.168.77.11"),), {"rack": "a"}, {VIP: SERVES})
NETSTAT = "TcpExt: SyncookiesSent TCPMD5NotFound TCPMD5Unexpected TCPMD5Failure\nTcpExt: 7 1 0 {}\n"
UP = SessionState(up=True, state="Established", exported=((4, 1),))


class FakeBird(Bird):
    """An engine: what it was told in order, and what it says."""

    def __init__(self) -> None:
        super().__init__(Path("/nowhere"))
        self.running = False
        self.text = ""
        self.calls: list[str] = []
        self.refuses = ""
        self.states: dict[str, SessionState] = {}

    def alive(self) -> bool:
        return self.running

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.refuses:
            raise LbError(self.refuses)

    def write(self, text: str) -> None:
        self._call("write")
        self.text = text

    def start(self) -> None:
        self._call("start")
        self.running = True

    def configure(self) -> None:
        self._call("configure")

    def sessions(self) -> dict[str, SessionState]:
        return {protocol_name(name): state for name, state in self.states.items()}

    def disable(self, protocol: str) -> None:
        self._call(f"disable {protocol}")

    def pause(self) -> None:
        self._call("pause")
        self.running = False

    def end(self) -> None:
        self._call("end")
        self.running = False

    def ended(self, seconds: float = 0.0) -> bool:
        return not self.running


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 1000.0
        self.report: Report | None = REPORT
        self.unloaded = False
        self.bird = FakeBird()
        self.file = folder / "peers.yaml"
        self.file.write_text(PEERS)
        self.netstat = folder / "netstat"
        self.netstat.write_text(NETSTAT.format(0))
        self.begin()

    def begin(self) -> None:
        """Let a new process speak, after whatever was before."""
        self.status = SpeakerStatus()
        self.speaker = Speaker(
            PeersFile(self.file),
            self.bird,
            self.ask,
            Memory(self.folder / "told.json"),
            self.status,
            unloaded=lambda: self.unloaded,
            clock=lambda: self.now,
            wall=lambda: self.now,
            netstat=self.netstat,
        )

    def ask(self) -> Report:
        if self.report is None:
            raise LbError("no agent runs")
        return self.report

    def run(self, seconds: float) -> list[str]:
        """Let time pass; return what BIRD was told meanwhile."""
        self.bird.calls.clear()
        until = self.now + seconds
        while self.now < until:
            self.speaker.step()
            self.now += 0.5
        return list(self.bird.calls)

    def say(self, *verdicts: Verdict) -> None:
        self.report = replace(REPORT, verdicts={one.address: one for one in verdicts})

    def told(self) -> bool:
        return f"route {VIP}/32" in self.bird.text


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_bird_is_started_once_and_told_what_changes(bench: Bench) -> None:
    assert bench.run(10) == ["write", "start"]
    assert "router id 192.168.77.11;" in bench.bird.text
    assert bench.bird.text.count(f"route {VIP}/32") == 2  # a table for each peer
    bench.say()
    assert bench.run(0.5) == []
    assert bench.run(10) == ["write", "configure"]
    assert not bench.told()


def test_nothing_is_told_before_anything_is_known(bench: Bench) -> None:
    bench.report = None
    assert bench.run(10) == []
    bench.report = replace(REPORT, ready=False, verdicts={})
    assert bench.run(10) == []
    bench.report = REPORT
    assert bench.run(1) == ["write", "start"]


def test_a_silent_agent_changes_nothing_and_a_new_process_goes_on(bench: Bench) -> None:
    bench.run(5)
    bench.report = None
    assert bench.run(30) == []
    assert any("the agent has not answered for" in each for each in bench.status.problems())
    bench.begin()
    assert bench.run(30) == ["write", "configure"]  # BIRD has lived on, and has it all
    assert bench.told()
    assert "bgp_community.add((65535,0))" not in bench.bird.text
    bench.run(60)
    assert "bgp_community.add((65535,0))" in bench.bird.text


def test_a_bird_that_is_gone_with_the_process_starts_with_what_was_told(bench: Bench) -> None:
    bench.run(5)
    bench.report, bench.bird = None, FakeBird()
    bench.begin()
    assert bench.run(1) == ["write", "start"]
    assert bench.told()


def test_without_a_data_plane_nothing_is_told(bench: Bench) -> None:
    bench.run(5)
    bench.report, bench.unloaded = None, True
    bench.run(1)
    assert not bench.told()
    assert "the data plane is not on this node" in str(bench.status.as_dict()["addresses"])


def test_a_bird_that_ends_is_started_again(bench: Bench) -> None:
    bench.run(5)
    bench.bird.states = {"tor-a": UP}
    bench.run(5)
    bench.bird.running = False
    assert bench.run(1) == ["start"]
    assert bench.status.restarts == 1
    assert [each["losses"] for each in bench.status.as_dict()["peers"]] == [1, 0]
    bench.bird.states = {}
    bench.bird.running, bench.bird.refuses = False, "bird ended at once"
    assert bench.run(15).count("start") == 4  # after 0, 2, 6 and 14 seconds
    assert bench.status.problems() == ["bird ended at once", *peers_down()]
    bench.bird.refuses = ""
    bench.run(60)
    assert bench.status.problem == ""


def peers_down() -> list[str]:
    return [
        f"peer {name} (192.168.77.{number}) is not up: not started"
        for number, name in ((1, "tor-a"), (2, "tor-b"))
    ]


def test_a_configuration_that_is_refused_leaves_the_one_before(bench: Bench) -> None:
    bench.run(5)
    before = bench.bird.text
    bench.bird.refuses = "bird refuses its configuration"
    bench.say()
    bench.run(10)
    assert bench.bird.text == before
    assert "bird refuses its configuration" in bench.status.problems()


def test_sessions_are_followed(bench: Bench) -> None:
    bench.run(5)
    bench.bird.states = {"tor-a": UP, "tor-b": replace(NO_SESSION, state="Connect")}
    bench.run(5)
    first, second = bench.status.as_dict()["peers"]
    assert (first["up"], first["told"], first["losses"]) == (True, {"ipv4": 1, "ipv6": 0}, 0)
    assert "is 192.168.77.2 a router that knows this node" in second["why"]
    bench.bird.states = {"tor-a": replace(NO_SESSION, state="Idle", error="Received: Cease")}
    bench.run(5)
    first, _ = bench.status.as_dict()["peers"]
    assert (first["up"], first["losses"], first["why"]) == (False, 1, "Idle: Received: Cease")
    told = bench.status.as_dict()
    assert "tor-a" in render(told, bench.now)
    assert told["problems"][0] in render(told, bench.now)


def test_a_wrong_signature_is_named(bench: Bench) -> None:
    bench.run(5)
    bench.netstat.write_text(NETSTAT.format(3))
    bench.run(5)
    assert "the router wants a password" in bench.status.problems()[0]
    (bench.folder / "key").write_text("secret")
    bench.file.write_text(PEERS.replace("asn: 64500}", "asn: 64500, password_file: key}", 1))
    bench.run(5)
    assert "does password_file hold the router's password?" in bench.status.problems()[0]
    bench.run(120)
    assert "MD5" not in str(bench.status.problems())
    assert 'password "secret";' in bench.bird.text


def test_what_the_kernel_counts_of_signatures() -> None:
    assert signature_failures(NETSTAT.format(5)) == 6
    assert signature_failures("Other: A\nOther: 1\n") == 0
    assert signature_failures("") == 0


def test_at_the_end_those_who_would_forget_are_told_first(bench: Bench) -> None:
    bench.run(5)
    waited: list[tuple[float, str]] = []
    bench.bird.calls.clear()
    bench.speaker.leave(lambda seconds: waited.append((seconds, bench.bird.text)))
    [(seconds, text)] = waited
    assert seconds == 10
    of_a, of_b = (text.split(f"static routes_peer_tor_{name}_4")[1].split("}\n")[0] for name in "ab")
    assert "65535,0" not in of_a
    assert "65535,0" in of_b
    assert bench.bird.calls == ["write", "configure", "disable peer_tor_b", "pause"]


def test_at_the_end_of_a_node_that_is_cordoned_all_are_told_to_forget(bench: Bench) -> None:
    bench.say(replace(SERVES, standing=Standing.LAST, why="cordoned"))
    bench.run(5)
    bench.bird.calls.clear()
    bench.speaker.leave(lambda _seconds: None)
    assert bench.bird.calls == ["end"]


def test_at_the_end_without_graceful_restart_all_are_told(bench: Bench) -> None:
    bench.file.write_text(
        PEERS.replace("bfd: true", "graceful_restart_seconds: 0").replace("500}", "500, bfd: true}")
    )
    bench.run(5)
    waited: list[float] = []
    bench.bird.calls.clear()
    bench.speaker.leave(waited.append)
    assert waited == [10]
    assert bench.bird.calls == ["write", "configure", "end"]


def test_metrics(bench: Bench) -> None:
    bench.run(5)
    bench.bird.states = {"tor-a": UP}
    bench.run(5)
    text = metrics.answers(bench.status)["/metrics"](Request("GET", "/metrics", "", {})).body.decode()
    found = {
        (one.name, *one.labels.values()): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }
    assert found["lbctl_bgp_session_up", "192.168.77.1", "tor-a"] == 1
    assert found["lbctl_bgp_session_up", "192.168.77.2", "tor-b"] == 0
    assert found["lbctl_bgp_advertised_routes", "192.168.77.1", "IPv4", "tor-a"] == 1
    assert found["lbctl_bgp_addresses", "serves"] == 1
    assert found["lbctl_bgp_problems",] == 1


@pytest.mark.parametrize(
    ("text", "instance"),
    [("node_name: node1", "node1"), ("{node_name: node1, instance: blue}", "blue"), ("announce: arp", "")],
)
def test_the_agent_is_found_by_its_settings(tmp_path: Path, text: str, instance: str) -> None:
    path = tmp_path / "lbctl.yaml"
    path.write_text(text)
    assert of_agent(path) == instance
