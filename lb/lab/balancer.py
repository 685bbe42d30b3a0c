# SPDX-License-Identifier: Apache-2.0
"""The process of a lab that gives its Services of type LoadBalancer their addresses."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from lb.lab import namespaces
from lb.lab.addressing import ANNOUNCED, BALANCED, Announce, LabSpec
from lb.lab.processes import environment, spawn
from lb.lab.store import Store
from lb.model import IPNetwork, Service, ServiceType

NAME = "addresses"
_STARTING = threading.Lock()
"""A change of manifests and a look whether the process has ended may both start it."""


def pools(spec: LabSpec) -> str:
    """Return the lab's file of pools: of networks that its client finds a way to."""
    found = [_pool("lab", BALANCED, spec, automatic=spec.announce is not Announce.ARP)]
    if spec.announce is Announce.ARP:
        found.append(_pool("segment", ANNOUNCED, spec))
    return yaml.safe_dump({"pools": found}, sort_keys=False)


def _pool(
    name: str, networks: Mapping[int, IPNetwork], spec: LabSpec, *, automatic: bool = True
) -> dict[str, Any]:
    addresses = [str(networks[version]) for version in spec.versions]
    return {"name": name, "addresses": addresses, "avoid": ["first", "last"], "automatic": automatic}


def wanted(spec: LabSpec, services: Iterable[Service]) -> bool:
    """Tell whether the process has something to do in a lab of manifests."""
    return spec.balanced and any(each.type is ServiceType.LOAD_BALANCER for each in services)


def ensure(store: Store, spec: LabSpec) -> None:
    """Start the process unless it runs; it ends with the lab."""
    with _STARTING:
        if not store.running(NAME):
            _start(store, spec)


def _start(store: Store, spec: LabSpec) -> None:
    store.pools.write_text(pools(spec))
    argv = [sys.executable, "-m", "lb", "addresses", "run", f"--pools={store.pools}", "--metrics-address=off"]
    if spec.kubernetes:
        argv += ["--source=kubernetes", f"--kubeconfig={store.addresses_kubeconfig}"]
        argv = namespaces.command(spec.api, argv)
    else:
        argv += [f"--source=manifests:{spec.manifests}", f"--state={store.addresses}"]
        argv += [f"--service-cidr={spec.service_cidr}"]
    store.write_process(NAME, spawn(argv, store.log(NAME), environment()))


def mend(store: Store, spec: LabSpec) -> list[str]:
    """Start the process anew if it was started once and has ended; return its name then."""
    if store.process(NAME) is None or store.running(NAME):
        return []
    ensure(store, spec)
    return [NAME]
