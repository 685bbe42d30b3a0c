# SPDX-License-Identifier: Apache-2.0
"""What a lab consists of, and what of it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lb.datapath.kernel.pins import Pins
from lb.errors import LabError
from lb.lab import cgroups, dns, router, topology
from lb.lab.addressing import DEFAULT_ID, UPLINK, LabSpec, outside_server
from lb.lab.balancer import NAME as BALANCER
from lb.lab.store import Store


def status(
    spec: LabSpec, store: Store, listing: Callable[[], dict[str, Any]], api: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return what the lab consists of and what of it runs.

    listing: returns what the kubelet lists; raises LabError if the kubelet does not answer.
    api: returns what of the API server runs; called for a lab that has one.
    """
    try:
        listed = listing()
    except LabError as error:
        listed = {
            "pods": [{**dataclasses.asdict(each), "address": each.address} for each in store.pods()],
            "errors": [str(error)],
        }
    nodes = [
        {
            "name": node,
            "address": str(spec.node_addresses(node)[0]),
            "addresses": [str(address) for address in spec.node_addresses(node)],
            "zone": spec.zone(node),
            "namespace": spec.namespace(node),
            "cgroup": str(cgroups.of_node(spec.id, node)),
            "agent": _agent_status(store, node),
            "pins": str(Pins(spec.instance(node)).base),
        }
        for node in spec.node_names
    ]
    balancer = _process(store, BALANCER) if store.process(BALANCER) else {}
    routing = {"routing": router.status(store, spec)} if spec.routed else {}
    return {
        "id": spec.id,
        "manifests": spec.manifests,
        "overlay": str(spec.overlay),
        "uplink_mode": str(spec.uplink_mode),
        "state": str(store.base),
        **({"kubernetes": api()} if spec.kubernetes else {}),
        "family": str(spec.family),
        "client": {
            "namespace": spec.client,
            "addresses": [str(address) for version in spec.versions for address in spec.clients(version)],
        },
        "outside_server": str(outside_server(spec.versions[0])),
        "kubelet": _process(store, "kubelet"),
        **({"addresses": balancer} if balancer else {}),
        **({"dns": _dns_status(spec, store)} if spec.dns else {}),
        **routing,
        "nodes": nodes,
        **listed,
        "errors": [
            *listed["errors"],
            *_unprepared(spec),
            *_without_agent(spec, nodes),
            *_ended(balancer),
            *_without_names(spec, store),
            *(router.errors(routing["routing"]) if routing else ()),
        ],
    }


def _ended(balancer: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the process that gives load-balancer addresses."""
    if not balancer or balancer["running"]:
        return []
    return [f"no load-balancer addresses are given: that process ended, see {balancer['log']}"]


def _unprepared(spec: LabSpec) -> list[str]:
    """Return where XDP runs on a wire that was made for another uplink mode."""
    return [
        f"{node}: XDP runs on {UPLINK} ({mode}), but its wire is made for uplink mode {spec.uplink_mode}:"
        " what XDP sends back may be lost, checksums may be missing; bring a lab up with that mode"
        for node in spec.node_names
        if (mode := topology.needs_other_wires(spec, node))
    ]


def _without_agent(spec: LabSpec, nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return on which nodes no agent runs, although the lab has agents, and what to do."""
    flag = "" if spec.id == DEFAULT_ID else f" --id {spec.id}"
    return [
        f"{node['name']}: its agent does not run: connections go on, changes of Services wait;"
        f" lbctl lab agent start{flag} {node['name']}"
        for node in nodes
        if spec.agents and not node["agent"]["running"]
    ]


def _dns_status(spec: LabSpec, store: Store) -> dict[str, Any]:
    """Return what of the lab's DNS runs beside its pods; a relay where the machine has a resolver."""
    return {
        "outside_servers": list(dns.node_resolvers(spec)),
        "outside": _process(store, dns.OUTSIDE),
        "records": _process(store, dns.RECORDS),
        **({"relay": _process(store, dns.RELAY)} if store.process(dns.RELAY) else {}),
    }


def _without_names(spec: LabSpec, store: Store) -> list[str]:
    """Return what of the lab's DNS has ended; its servers carry on with what they hold."""
    return [
        f"{what} does not run: {meaning}; it is started anew; the end of its log: {store.log(what)}"
        for what, meaning in (
            (dns.RECORDS, "names do not follow changes of Services"),
            (dns.OUTSIDE, "names outside of the cluster fail"),
            (dns.RELAY, "names that the machine's resolver knows fail"),
        )
        if spec.dns and not store.running(what) and (what != dns.RELAY or store.process(what))
    ]


def _agent_status(store: Store, node: str) -> dict[str, Any]:
    """Return what is known of a node's agent. One that was killed leaves its ready file behind."""
    process = _process(store, node)
    return {**process, "ready": process["running"] and store.ready_file(node).exists()}


def _process(store: Store, name: str) -> dict[str, Any]:
    process = store.running(name)
    return {
        "pid": process.pid if process else None,
        "running": process is not None,
        "log": str(store.log(name)),
    }
