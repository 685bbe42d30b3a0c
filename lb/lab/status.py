# SPDX-License-Identifier: Apache-2.0
"""What a lab consists of, and what of it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lb.datapath.kernel.pins import Pins
from lb.errors import LabError
from lb.lab import dns, topology
from lb.lab.addressing import DEFAULT_ID, UPLINK, LabSpec, clients, outside_server
from lb.lab.balancer import NAME as BALANCER
from lb.lab.processes import ProcessRef
from lb.lab.store import Store


class Api(Protocol):
    """The host of a lab's API server, as far as a status tells of it."""

    def status(self) -> dict[str, Any]:
        """Return what of the API server runs."""
        ...


class Inspected(Protocol):
    """What a status is told of: :class:`lb.lab.lab.Lab`."""

    spec: LabSpec
    store: Store

    def ask_kubelet(self, what: str, /) -> dict[str, Any]:
        """Return the kubelet's answer; raise LabError where it does not answer."""
        ...

    def cgroup(self, node: str) -> Path:
        """Return a node's control group."""
        ...

    def api_host(self) -> Api:
        """Return the host of the API server."""
        ...


def status(lab: Inspected) -> dict[str, Any]:
    """Return what the lab consists of and what of it runs."""
    spec, store = lab.spec, lab.store
    try:
        listing = lab.ask_kubelet("list")
    except LabError as error:
        listing = {
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
            "cgroup": str(lab.cgroup(node)),
            "agent": _agent_status(store, node),
            "pins": str(Pins(spec.instance(node)).base),
        }
        for node in spec.node_names
    ]
    versions = spec.versions
    return {
        "id": spec.id,
        "manifests": spec.manifests,
        "overlay": str(spec.overlay),
        "uplink_mode": str(spec.uplink_mode),
        "state": str(store.base),
        **({"kubernetes": lab.api_host().status()} if spec.kubernetes else {}),
        "family": str(spec.family),
        "client": {
            "namespace": spec.client,
            "addresses": [str(address) for version in versions for address in clients(version)],
        },
        "outside_server": str(outside_server(versions[0])),
        "kubelet": {**_process_status(store.process("kubelet")), "log": str(store.log("kubelet"))},
        **({"addresses": balancer} if (balancer := _balancer(store)) else {}),
        **({"dns": _dns_status(spec, store)} if spec.dns else {}),
        "nodes": nodes,
        **listing,
        "errors": [
            *listing["errors"],
            *_unprepared(spec),
            *_without_agent(spec, nodes),
            *_ended(balancer),
            *_without_names(spec, store),
        ],
    }


def _balancer(store: Store) -> dict[str, Any]:
    """Return what is known of the process that gives load-balancer addresses; nothing where none is."""
    process = store.process(BALANCER)
    return {**_process_status(process), "log": str(store.log(BALANCER))} if process else {}


def _ended(balancer: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with that process."""
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
    """Return what of the lab's DNS runs beside its pods."""
    return {
        "outside_servers": list(dns.node_resolvers(spec)),
        "outside": {**_process_status(store.process(dns.OUTSIDE)), "log": str(store.log(dns.OUTSIDE))},
        "records": {**_process_status(store.process(dns.RECORDS)), "log": str(store.log(dns.RECORDS))},
    }


def _without_names(spec: LabSpec, store: Store) -> list[str]:
    """Return what of the lab's DNS has ended; its servers carry on with what they hold."""
    return [
        f"{what} does not run: {meaning}; the end of its log: {store.log(what)}"
        for what, meaning in (
            (dns.RECORDS, "names do not follow changes of Services"),
            (dns.OUTSIDE, "names outside of the cluster fail"),
        )
        if spec.dns and not store.running(what)
    ]


def _agent_status(store: Store, node: str) -> dict[str, Any]:
    """Return what is known of a node's agent. One that was killed leaves its ready file behind."""
    process = _process_status(store.process(node))
    ready = process["running"] and store.ready_file(node).exists()
    return {**process, "ready": ready, "log": str(store.log(node))}


def _process_status(process: ProcessRef | None) -> dict[str, Any]:
    running = process is not None and process.alive()
    return {"pid": process.pid if process and running else None, "running": running}
