# SPDX-License-Identifier: Apache-2.0
"""Keeps the zones of a DNS server as they should be: dynamic updates (RFC 2136), signed (TSIG, RFC 8945).

What a server holds is asked once (AXFR, RFC 5936) and remembered; from then on only differences are sent. A
server that was started anew, or that somebody else has changed, is noticed by the serial of its first zone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import dns.exception
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.tsig
import dns.tsigkeyring
import dns.update
import dns.xfr
import dns.zone

from lb.names.records import Records

CHECK_SECONDS = 1.0
"""How often a server is asked for its serial."""

_TIMEOUT_SECONDS = 2.0
_RETRY_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0)
"""How long to wait after the first failure, the second, …: a server takes a fraction of a second to start."""

_MESSAGE_BYTES = 32_000
"""About how much a message may hold; DNS allows 65,535 bytes."""

_UNTELLABLE = (dns.exception.SyntaxError, dns.exception.FormError, dns.exception.TooBig, ValueError)
"""What dnspython raises at names and data that DNS has no way to write."""

_log = logging.getLogger(__name__)


class FeedError(Exception):
    """A server did not do what it was asked for."""


@dataclass(frozen=True, slots=True)
class Change:
    """An owner name and what becomes of its records of some types: their new data, empty for none."""

    owner: str
    sets: tuple[tuple[str, frozenset[str]], ...]

    def size(self) -> int:
        """Return about how many bytes it takes in a message."""
        return sum(len(self.owner) + 12 + sum(len(each) + 12 for each in data) for _, data in self.sets)


def changes(held: Records, wanted: Records, last: str = "") -> Iterator[list[Change]]:
    """Yield what makes the one of the other, in as many parts as it takes messages.

    All types of an owner are in one part, those that go first, since an alias bears no other type beside it.
    The owner called last comes last of all.
    """
    differing = {key for key in held.keys() | wanted.keys() if held.get(key) != wanted.get(key)}
    owners: dict[str, list[str]] = {}
    for owner, kind in sorted(differing, key=lambda key: (key[0] == last, key)):
        owners.setdefault(owner, []).append(kind)
    part: list[Change] = []
    size = 0
    for owner, kinds in owners.items():
        sets = sorted(
            ((kind, wanted.get((owner, kind), frozenset())) for kind in kinds), key=lambda each: bool(each[1])
        )
        change = Change(owner, tuple(sets))
        if part and size + change.size() > _MESSAGE_BYTES:
            yield part
            part, size = [], 0
        part.append(change)
        size += change.size()
    if part:
        yield part


@dataclass(slots=True)
class _Held:
    """What a server is known to hold, by zone, and the serial of its first zone then."""

    serial: int
    zones: dict[str, Records] = field(default_factory=dict)


class Feed:
    """Keeps one server in step, in a thread of its own from :meth:`start` to :meth:`stop`.

    address and port: the server's. name and secret: of the TSIG key, in base64; HMAC-SHA256. last: the owner
    that is written last, so that who finds it knows that all else is there. ttl: of every record, in seconds.
    """

    def __init__(self, address: str, port: int, *, name: str, secret: str, last: str, ttl: int) -> None:
        self._where, self._port, self._last, self._ttl = address, port, last, ttl
        self._keyring = dns.tsigkeyring.from_text({f"{name}.": (dns.tsig.HMAC_SHA256, secret)})
        self._wanted: Mapping[str, Records] = {}
        self._held: _Held | None = None
        self._wake = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=f"DNS {address}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, soon."""
        self._stopped = True
        self._wake.set()

    def want(self, zones: Mapping[str, Records]) -> None:
        """Say what the server should hold, by zone; the mapping is not changed any more."""
        self._wanted = zones
        self._wake.set()

    def _run(self) -> None:
        failures, complaint = 0, ""
        while not self._stopped:
            self._wake.clear()
            wait = CHECK_SECONDS
            try:
                self.turn()
                failures, complaint = 0, ""
            except (dns.exception.DNSException, OSError, FeedError) as error:
                self._held = None
                wait = _RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)]
                failures += 1
                if failures > len(_RETRY_SECONDS) and str(error) != complaint:
                    complaint = str(error)
                    _log.warning("DNS server %s: %s", self._where, complaint or type(error).__name__)
            self._wake.wait(wait)

    def turn(self) -> None:
        """Bring the server into step once.

        Raises dns.exception.DNSException, OSError, FeedError: it cannot be done.
        """
        wanted = self._wanted
        if not wanted:
            return
        first = next(iter(wanted))
        if self._held is None or self._held.serial != self._serial(first):
            self._held = _Held(0, {zone: self._transfer(zone) for zone in wanted})
        held = self._held
        # The first zone comes last: it has what says that all is there.
        for zone in reversed(list(wanted)):
            for part in changes(held.zones[zone], wanted[zone], self._last):
                self._update(zone, part)
            held.zones[zone] = wanted[zone]
        held.serial = self._serial(first)

    def _serial(self, zone: str) -> int:
        query = dns.message.make_query(zone, "SOA")
        answer = dns.query.tcp(query, self._where, _TIMEOUT_SECONDS, self._port)  # fails at once
        for rrset in answer.answer:
            if rrset.rdtype == dns.rdatatype.SOA:
                return int(rrset[0].serial)
        raise FeedError(f"it does not serve the zone {zone}: {dns.rcode.to_text(answer.rcode())}")

    def _transfer(self, name: str) -> Records:
        """Return what the server holds of a zone, but for SOA and NS, which are not ours."""
        zone: dns.zone.Zone = dns.zone.Zone(dns.name.from_text(name), relativize=False)
        query, _ = dns.xfr.make_query(zone, keyring=self._keyring)
        dns.query.inbound_xfr(
            self._where, zone, query, port=self._port, timeout=_TIMEOUT_SECONDS, lifetime=30
        )
        return {
            (owner.to_text(), dns.rdatatype.to_text(rdataset.rdtype)): frozenset(
                rdata.to_text() for rdata in rdataset
            )
            for owner, rdataset in zone.iterate_rdatasets()
            if rdataset.rdtype not in (dns.rdatatype.SOA, dns.rdatatype.NS)
        }

    def _update(self, zone: str, part: Sequence[Change]) -> None:
        """Send changes; those that cannot be told or are refused are left out, and said once."""
        try:
            message = self._message(zone, part)
            answer = dns.query.tcp(message, self._where, _TIMEOUT_SECONDS, self._port)
            why = "" if answer.rcode() == dns.rcode.NOERROR else dns.rcode.to_text(answer.rcode())
        except _UNTELLABLE as error:
            why = str(error) or type(error).__name__
        if not why:
            return
        if len(part) == 1:
            _log.error("DNS server %s: %s is left out: %s", self._where, part[0].owner, why)
        for change in part if len(part) > 1 else ():
            self._update(zone, [change])

    def _message(self, zone: str, part: Sequence[Change]) -> dns.update.UpdateMessage:
        message = dns.update.UpdateMessage(zone, keyring=self._keyring)
        for change in part:
            for kind, data in change.sets:
                if data:
                    message.replace(change.owner, self._ttl, kind, *sorted(data))
                else:
                    message.delete(change.owner, kind)
        return message
