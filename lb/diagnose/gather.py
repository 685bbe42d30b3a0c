# SPDX-License-Identifier: Apache-2.0
"""Find out what is to be known of a Service that does not answer: from source, kernel, and by trying."""

from __future__ import annotations

import difflib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, TypeVar

from lb.config import Config, SocketMode
from lb.datapath.attach import netns
from lb.datapath.attach.hooks import Role, primary_address
from lb.datapath.attach.roles import interfaces_and_roles
from lb.datapath.maps.fill import evictions
from lb.datapath.maps.interface import Maps
from lb.datapath.maps.layouts import FAMILIES
from lb.diagnose import attachment, probe
from lb.diagnose.audit import Comparison
from lb.diagnose.facts import Facts, causes
from lb.diagnose.names import Naming, look, resolves
from lb.diagnose.probe import Target
from lb.diagnose.snapshot import Snapshot, SourceReader
from lb.errors import LbError
from lb.model import EndpointSlice, IPAddress, ObjectKey
from lb.names import DNS
from lb.plan import health_port_taken, plan_service
from lb.plan.types import ServicePlan, Topology

MOST_ENDPOINTS = 50
"""How many endpoints of a port are tried, unless all are to be."""
AGAIN_SECONDS = 1.0
"""After which a name that is not as it should be is asked for again: it may have changed just now."""
MOST_NODES = 20
"""How many nodes are looked up."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Vantage:
    """Where we look from, and with what.

    maps: None where there is no instance. agent: it runs. notes: what it left.
    """

    config: Config
    maps: Maps | None
    notes: Mapping[str, Any]
    agent: bool
    source: SourceReader


def gather(
    node: Vantage,
    key: ObjectKey,
    snapshot: Snapshot,
    topology: Topology,
    compared: Comparison | None,
    *,
    client: IPAddress | None = None,
    probing: bool = True,
    every: bool = False,
) -> Facts:
    """Return what is to be known; from within the node's network namespace.

    compared: source and kernel, None without maps. client: whose way is asked about; default: this node's.
    probing: try real connections; every: with all endpoints.

    Raises LbError: the source or the kernel cannot be read.
    """
    service = node.source.service(key)
    name = str(key)
    errors = [str(one) for one in snapshot.errors if one.object == f"Service {key}"]
    facts = Facts(key, service, errors=errors, topology=topology, kernel=node.maps is not None)
    if service is None:
        facts.near = _near(key, [str(one) for one in snapshot.state.service_keys()])
        return facts
    try:
        facts.pods = node.source.pods(key.namespace)
    except LbError as error:
        facts.pods, facts.pods_error = None, str(error)
    facts.slices = snapshot.state.slices(key)
    if service.headless and not facts.slices:
        facts.slices = node.source.headless_slices(key)
    snapshot.state.settle()
    whole = plan_service(service, facts.slices, topology, snapshot.state.overlaps(key))
    facts.plan = (compared.plans.get(key) if compared else None) or whole
    facts.clients = {client.version: client} if client else _own_addresses(node.config, topology)
    if compared is not None:
        facts.failed = compared.failed.get(key, "")
        facts.conflicts = [one for one in compared.conflicts if one.loser == key]
        facts.differences = [one for one in compared.differences if one.service == name]
        facts.agent = node.agent
        facts.hooks = attachment.missing(node.config, node.notes)
    if node.maps is not None:
        facts.evicted = {name: count for name, count in evictions(node.maps).items() if count}
    facts.health_port = health_port_taken(snapshot.state.services()).get(key, "")
    names = sorted({one.node for one in facts.endpoints() if one.node})
    facts.missing_nodes = node.source.missing_nodes(names[:MOST_NODES])
    if probing:
        _probe(node, facts, whole, every)
        if node.maps is not None:
            facts.naming = _naming(node, facts)
    return facts


def _naming(node: Vantage, facts: Facts) -> Naming | None:
    """Ask for the name through the data plane, again after a moment where it is not what it should be."""
    assert facts.service is not None

    def ask(questions: Sequence[tuple[str, str, str]]) -> list[tuple[str, Sequence[str]]]:
        from lb.names.ask import Question, ask_all  # noqa: PLC0415 - dnspython

        group = node.config.cgroup if node.config.socket_lb is not SocketMode.OFF else ""
        return [(one.status, one.data) for one in ask_all([Question(*each) for each in questions], group)]

    found = None
    for pause in (0.0, AGAIN_SECONDS):
        time.sleep(pause)
        found = look(facts.service, facts.slices, node.source.service(DNS), ask)
        if not causes(resolves(found)):
            break
    return found


def _near(key: ObjectKey, names: Sequence[str]) -> list[str]:
    """Return Services of the same name elsewhere, then those of a similar one."""
    same = sorted(name for name in names if name.rpartition("/")[2] == key.name)
    return same or difflib.get_close_matches(str(key), names, n=3)


def _own_addresses(config: Config, topology: Topology) -> dict[int, IPAddress]:
    """Return the node's own address of each family towards clients: where its own connections come from."""
    interfaces, roles = interfaces_and_roles(config)
    uplinks = [one for one in interfaces if roles.get(one.index) is Role.UPLINK]
    found = {version: primary_address(version, uplinks, topology.internal_addresses) for version in FAMILIES}
    return {version: address for version, address in found.items() if address}


def spread(every: Sequence[_T], most: int) -> list[_T]:
    """Return so many of a sequence, from all over it."""
    if len(every) <= most:
        return list(every)
    return [every[at * len(every) // most] for at in range(most)]


def targets(plan: ServicePlan, most: int = MOST_ENDPOINTS) -> tuple[list[Target], list[Target]]:
    """Return endpoints that take new connections, each once and so many of a port, and the VIPs."""
    straight: dict[Target, None] = {}
    vips: dict[Target, None] = {}
    for port in plan.ports:
        for one in spread(port.cluster, most):
            straight[probe.target("endpoint", one.address, one.port, port.protocol, port.port_name)] = None
        for vip in port.vips:
            if vip.key.port and port.cluster:
                place = (vip.key.address, vip.key.port, port.protocol, port.port_name)
                vips[probe.target(vip.kind, *place)] = None
    return list(straight), list(vips)


def _in_slices(slices: Sequence[EndpointSlice]) -> list[Target]:
    """Return the ready endpoints as DNS gives them."""
    return [
        probe.target("endpoint", one.address, port.port, port.protocol, port.name)
        for piece in slices
        for port in piece.ports
        for one in piece.endpoints
        if one.ready
    ]


def _probe(node: Vantage, facts: Facts, whole: ServicePlan, every: bool) -> None:
    """Try the endpoints, then the VIPs; refused by one of this node, look who listens there."""
    plan = facts.plan or whole
    there, through = targets(plan, sys.maxsize)
    straight = there if every else targets(plan)[0]
    if facts.service and facts.service.headless:
        there = _in_slices(facts.slices)
        straight = there if every else spread(there, MOST_ENDPOINTS)
    facts.not_tried = len(there) - len(straight)
    group = node.config.cgroup if node.config.socket_lb is not SocketMode.OFF else ""
    facts.outcomes = probe.probe_all([*straight, *(through if node.maps else ())], group)
    here = facts.topology.node_name if facts.topology else ""
    local = {str(one.address) for one in facts.endpoints() if one.node == here}
    refused = {
        one.target.address
        for one in facts.outcomes
        if one.target.kind == "endpoint" and one.result == "refused"
    }
    facts.listeners = {address: netns.listeners(ip_address(address)) for address in refused & local}
