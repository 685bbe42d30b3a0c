# SPDX-License-Identifier: Apache-2.0
"""A server is brought into step by differences, whatever it held before; the server is BIND itself."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import dns.exception
import pytest

from lb.names import named
from lb.names.feed import Feed, FeedError, changes
from lb.names.records import Records

ZONE, REVERSE = "cluster.local", "66.10.in-addr.arpa"
SECRET = "c2VjcmV0IG9mIGEgdGVzdCwgMzIgYnl0ZXMgbG9uZy4u"
LAST = f"dns-version.{ZONE}."


def records(**owners: str) -> Records:
    """Return A records by the first label of their owners."""
    return {(f"{name}.{ZONE}.", "A"): frozenset(data.split()) for name, data in owners.items()}


def applied(held: Records, wanted: Records) -> Records:
    """Return what becomes of records by the changes."""
    found = dict(held)
    for part in changes(held, wanted, LAST):
        for change in part:
            for kind, data in change.sets:
                found.pop((change.owner, kind), None)
                if data:
                    found[change.owner, kind] = data
    return found


def test_only_differences_are_changes() -> None:
    held = records(same="10.0.0.1", other="10.0.0.2", gone="10.0.0.3")
    [part] = changes(held, records(same="10.0.0.1", other="10.0.0.4", new="10.0.0.5"))
    assert [(each.owner.partition(".")[0], each.sets) for each in part] == [
        ("gone", (("A", frozenset()),)),
        ("new", (("A", frozenset({"10.0.0.5"})),)),
        ("other", (("A", frozenset({"10.0.0.4"})),)),
    ]
    assert not list(changes(held, held))


def test_an_alias_goes_before_an_address_comes() -> None:
    owner = f"a.{ZONE}."
    alias: Records = {(owner, "CNAME"): frozenset({"x."})}
    [[change]] = changes(alias, records(a="10.0.0.1"))
    assert [kind for kind, _ in change.sets] == ["CNAME", "A"]
    [[back]] = changes(records(a="10.0.0.1"), alias)
    assert [kind for kind, _ in back.sets] == ["A", "CNAME"]


def test_many_changes_are_several_messages_and_the_last_owner_is_in_the_last() -> None:
    wanted = {
        **records(**{f"n{number}": "10.0.0.1" for number in range(3000)}),
        (LAST, "TXT"): frozenset("x"),
    }
    parts = list(changes({}, wanted, LAST))
    assert len(parts) > 1
    assert parts[-1][-1].owner == LAST
    assert applied({}, wanted) == wanted


class Server:
    """BIND on a port of the loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def start(self) -> None:
        """Start it with empty zones, and wait until it answers."""
        settings = named.Settings([ip_address("127.0.0.1")], [ZONE, REVERSE], secret=SECRET)
        text = named.named_conf(settings).replace(named.WORK, str(self.folder))
        text = text.replace("listen-on {", f"listen-on port {self.port} {{")
        for file in self.folder.iterdir():
            file.unlink()
        (self.folder / "named.conf").write_text(text)
        for zone in settings.zones:
            (self.folder / named.zone_file(zone)).write_text(named.empty_zone(zone, "localhost"))
        self.process = subprocess.Popen(
            ["/usr/sbin/named", "-g", "-n", "1", "-c", str(self.folder / "named.conf")],
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline
            with contextlib.suppress(OSError, dns.exception.DNSException, FeedError):
                self.feed()._serial(ZONE)
                return
            time.sleep(0.05)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def feed(self, secret: str = SECRET) -> Feed:
        return Feed("127.0.0.1", self.port, name=named.KEY, secret=secret, last=LAST, ttl=named.TTL)

    def held(self, zone: str = ZONE) -> Records:
        return self.feed()._transfer(zone)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(tmp_path)
    found.start()
    try:
        yield found
    finally:
        found.stop()


def test_a_server_holds_what_is_wanted_whatever_it_held(server: Server) -> None:
    draw = random.Random(17)
    feed = server.feed()
    for _ in range(12):
        wanted: Records = {
            (f"{name}.{ZONE}.", kind): frozenset(draw.sample(data, draw.randint(1, len(data))))
            for name in draw.sample(["a", "b", "a.b", "_http._tcp.a"], 3)
            for kind, data in [draw.choice(list(POOL.items()))]
        }
        found = {f"a.{ZONE}."} if draw.random() < 0.5 else ()
        reverse: Records = {(f"1.1.{REVERSE}.", "PTR"): frozenset(found)} if found else {}
        feed.want({ZONE: wanted, REVERSE: reverse})
        feed.turn()
        assert (server.held(), server.held(REVERSE)) == (wanted, reverse)


POOL = {
    "A": ["10.0.0.1", "10.0.0.2"],
    "AAAA": ["fd00::1", "fd00:66::a"],
    "SRV": [f"0 100 80 a.{ZONE}.", f"0 100 81 b.{ZONE}."],
    "TXT": ['"1.1.0"', '"no endpoint is ready"'],
    "CNAME": ["www.example.org."],
}


def test_a_server_that_was_changed_or_started_anew_is_brought_into_step(server: Server) -> None:
    feed, other = server.feed(), server.feed()
    wanted = records(a="10.0.0.1 10.0.0.2")
    feed.want({ZONE: wanted})
    feed.turn()
    other.want({ZONE: records(b="10.0.0.3")})
    other.turn()
    feed.turn()
    assert server.held() == wanted
    server.stop()
    with pytest.raises((OSError, dns.exception.DNSException)):
        feed.turn()
    server.start()
    feed.turn()
    assert server.held() == wanted


def test_what_cannot_be_told_costs_nothing_else(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    bad: Records = {
        (f"alias.{ZONE}.", "CNAME"): frozenset({"a..b."}),
        ("elsewhere.org.", "A"): frozenset({"10.0.0.9"}),
    }
    good = records(a="10.0.0.1", z="10.0.0.2")
    feed = server.feed()
    feed.want({ZONE: {**bad, **good}})
    feed.turn()
    assert server.held() == good
    assert [f"{owner} is left out" in caplog.text for owner, _ in bad] == [True, True]
    feed.want({ZONE: {**bad, **records(a="10.0.0.3")}})
    feed.turn()
    assert server.held() == records(a="10.0.0.3")


def test_who_lacks_the_secret_changes_nothing(server: Server) -> None:
    before = server.held()
    stranger = server.feed("c29tZSBvdGhlciBzZWNyZXQsIDMyIGJ5dGVzIGxvbmc=")
    stranger.want({ZONE: records(a="10.0.0.1")})
    with pytest.raises((dns.exception.DNSException, FeedError)):
        stranger.turn()
    assert server.held() == before


def test_a_thread_keeps_a_server_in_step(server: Server) -> None:
    feed = server.feed()
    feed.start()
    for address in ("10.0.0.1", "10.0.0.2"):
        feed.want({ZONE: records(a=address)})
        deadline = time.monotonic() + 30
        while server.held() != records(a=address):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    feed.stop()
    feed._thread.join(30)
    assert not feed._thread.is_alive()
