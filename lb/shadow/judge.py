# SPDX-License-Identifier: Apache-2.0
"""What we would have done with a connection, and what netfilter did: the same? Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from lb.datapath.maps.layouts import Side, VipKindCode
from lb.model import IPAddress, Protocol

Place = tuple[IPAddress, int]
"""An address and a port."""


class Outcome(StrEnum):
    """What became of the first packet of a connection. UNTOUCHED: it went on as it came."""

    SERVED = "served"
    REFUSED = "refused"
    DROPPED = "dropped"
    UNTOUCHED = "untouched"


@dataclass(frozen=True, slots=True)
class Ours:
    """What the programs decided. reason: enum reason of bpf/reasons.h, without its prefix."""

    outcome: Outcome
    reason: str
    side: Side


@dataclass(frozen=True, slots=True)
class Theirs:
    """What netfilter did. backend, masqueraded: of SERVED."""

    outcome: Outcome
    backend: Place | None = None
    masqueraded: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """What the maps hold of the VIP and its Service port.

    offered: the backends that a client on this side may get, each with whether it is on this node. known: all
    backends of the Service port. others: of which Service port the backend that netfilter took is, ``""`` if
    of none.
    """

    kind: VipKindCode
    offered: Mapping[Place, bool]
    known: frozenset[Place] = frozenset()
    others: str = ""


OTHER_SERVICE = "other-service"
OTHER_BACKEND = "other-backend"
MASQUERADED = "masqueraded-there"
KEPT = "kept-there"
NO_SERVICE = "no-service-here"

MEANINGS: Mapping[str, str] = {
    OTHER_SERVICE: "netfilter leads to a backend of another Service",
    OTHER_BACKEND: "netfilter leads to a backend that the Service does not offer here",
    MASQUERADED: "netfilter puts the node's address for the client's; the client would keep its own here",
    KEPT: "netfilter leaves the client its address; here the node's would be put in its place",
    NO_SERVICE: "netfilter translates it; no Service here has the address and port",
    **{
        f"{ours}-here-{theirs}-there": f"here it would be {ours}; netfilter has {words}"
        for ours in Outcome
        for theirs, words in (
            (Outcome.SERVED, "served it"),
            (Outcome.REFUSED, "had it refused"),
            (Outcome.DROPPED, "dropped it"),
            (Outcome.UNTOUCHED, "let it pass untranslated"),
        )
        if ours is not theirs
    },
}
"""What each kind of difference means."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """kind: of MEANINGS, ``""``: they agree. row: of docs/differences.md, ``""`` where it is not meant."""

    kind: str = ""
    row: str = ""


AGREED = Verdict()


def judge(ours: Ours, theirs: Theirs, offer: Offer, client: IPAddress, protocol: Protocol) -> Verdict:
    """Compare; client: whom the connection is from."""
    if ours.outcome is not theirs.outcome:
        kind = f"{ours.outcome}-here-{theirs.outcome}-there"
        if ours.outcome is Outcome.DROPPED and ours.side is Side.HOST and theirs.outcome is Outcome.REFUSED:
            return Verdict(kind, "dropped-in-silence")
        return Verdict(kind, _meant(ours, theirs, protocol))
    if ours.outcome is not Outcome.SERVED or theirs.backend is None:
        return AGREED
    if theirs.backend not in offer.offered:
        same = theirs.backend in offer.known or not offer.others
        return Verdict(OTHER_BACKEND if same else OTHER_SERVICE)
    if ours.side is Side.HOST:
        return AGREED  # the source is the node's in either case
    return _source(ours.side, theirs, offer, client)


def _meant(ours: Ours, theirs: Theirs, protocol: Protocol) -> str:
    """Return the row of docs/differences.md that names the difference, ``""`` without one."""
    if ours.outcome is not Outcome.REFUSED:
        return ""
    if ours.reason == "REJECT_UNKNOWN_PORT" and theirs.outcome is not Outcome.SERVED:
        return "unused-cluster-ip-refused"
    if ours.reason == "REJECT_NO_ENDPOINT" and theirs.outcome is Outcome.SERVED and protocol is Protocol.UDP:
        return "udp-without-endpoints-refused"
    return ""


def _source(side: Side, theirs: Theirs, offer: Offer, client: IPAddress) -> Verdict:
    """Compare what the backend sees as the client, for the backend that netfilter took."""
    assert theirs.backend is not None
    local = offer.offered[theirs.backend]
    masked = not local if side is Side.OUTSIDE else theirs.backend[0] == client
    if masked == theirs.masqueraded:
        return AGREED
    if masked:
        return Verdict(KEPT)
    meant = side is Side.OUTSIDE or offer.kind is not VipKindCode.CLUSTER_IP
    return Verdict(MASQUERADED, "source-address-kept" if meant else "")
