# SPDX-License-Identifier: Apache-2.0
"""Whether a Service's name resolves, and to what it should.

The domain is taken to be cluster.local; of a cluster with another one nothing is concluded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lb.diagnose.facts import Finding, Result
from lb.model import EndpointSlice, Service
from lb.names import DNS, SILENT, ZONE
from lb.names.records import service_records
from lb.words import some


@dataclass(frozen=True, slots=True)
class Naming:
    """What is known of a Service's name.

    server: the address that was asked, ``""`` when there is no Service kube-dns.
    owner: the name, absolute.
    zone: the status of the question for the zone's SOA, with how many records came.
    wanted: data that there should be by type; None where it cannot be told what there should be.
    found: status and data by type.
    """

    server: str
    owner: str = ""
    zone: tuple[str, int] = ("", 0)
    wanted: Mapping[str, frozenset[str]] | None = None
    found: Mapping[str, tuple[str, frozenset[str]]] | None = None


Ask = Callable[[Sequence[tuple[str, str, str]]], Sequence[tuple[str, Sequence[str]]]]
"""Takes server, owner and type of each question; returns status and data of each answer."""


def look(service: Service, slices: Sequence[EndpointSlice], dns: Service | None, ask: Ask) -> Naming:
    """Ask for a Service's name; the endpoints of a headless one are told by slices, none if unknown."""
    if dns is None or not dns.cluster_ips:
        return Naming("")
    server = str(dns.cluster_ips[0])
    owner = f"{service.key.name}.{service.key.namespace}.svc.{ZONE}."
    records = service_records(service, slices, ZONE)
    kinds = ("CNAME",) if service.external_name else ("A", "AAAA")
    zone, *answers = ask([(server, f"{ZONE}.", "SOA"), *((server, owner, kind) for kind in kinds)])
    wanted = {kind: records.get((owner, kind), frozenset()) for kind in kinds}
    return Naming(
        server,
        owner,
        (zone[0], len(zone[1])),
        None if service.headless and not slices else wanted,
        {kind: (status, frozenset(data)) for kind, (status, data) in zip(kinds, answers, strict=True)},
    )


def resolves(naming: Naming | None) -> Iterator[Finding]:
    """See whether the name resolves."""
    step = "name"
    if naming is None:
        return
    if not naming.server:
        found = f"there is no Service {DNS}: nobody answers for names in this cluster"
        yield Finding(step, Result.NOTE, found, "no-dns", "clients use addresses, or variables in pods")
        return
    status, count = naming.zone
    if status == SILENT:
        then = f"lbctl explain {DNS}: the name servers are the pods of that Service"
        yield Finding(step, Result.CAUSE, f"DNS at {naming.server} does not answer", "dns-silent", then)
        return
    if not count:
        found = f"DNS at {naming.server} has no zone {ZONE} ({status}): of another domain nothing is known"
        yield Finding(step, Result.NOTE, found, "other-domain")
        return
    assert naming.found is not None
    name = naming.owner.rstrip(".")
    present = sorted({item for _, data in naming.found.values() for item in data})
    wrong = [kind for kind, data in (naming.wanted or {}).items() if naming.found[kind][1] != data]
    if not wrong:
        yield Finding(step, Result.OK, f"{name} is {some(present) or 'there, without an address'}")
        return
    should = sorted({item for data in (naming.wanted or {}).values() for item in data})
    missing = [status for status, _ in naming.found.values() if status != "NOERROR"]
    told = missing[0] if missing else some(present) or "without an address"
    found = f"{name} is {told} by DNS at {naming.server}; it should be {some(should) or 'without an address'}"
    then = "look at the log of what feeds DNS (CoreDNS: kubectl -n kube-system logs -l k8s-app=kube-dns)"
    yield Finding(step, Result.CAUSE, found, "name-missing" if missing else "name-differs", then)
