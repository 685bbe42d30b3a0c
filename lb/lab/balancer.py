# SPDX-License-Identifier: Apache-2.0
"""The process of a lab that gives its Services of type LoadBalancer their addresses."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import yaml

from lb.lab import namespaces
from lb.lab.addressing import BALANCED, LabSpec
from lb.lab.processes import environment, spawn
from lb.lab.store import Store
from lb.model import Service, ServiceType

NAME = "addresses"


def pools(spec: LabSpec) -> str:
    """Return the lab's file of pools: one, of the networks that its client reaches by way of node1."""
    addresses = [str(BALANCED[version]) for version in spec.versions]
    pool = {"name": "lab", "addresses": addresses, "avoid": ["first", "last"]}
    return yaml.safe_dump({"pools": [pool]}, sort_keys=False)


def wanted(spec: LabSpec, services: Iterable[Service]) -> bool:
    """Tell whether the process has something to do in a lab of manifests."""
    return spec.balanced and any(each.type is ServiceType.LOAD_BALANCER for each in services)


def ensure(store: Store, spec: LabSpec) -> None:
    """Start the process unless it runs; it ends with the lab."""
    if store.running(NAME):
        return
    store.pools.write_text(pools(spec))
    argv = [sys.executable, "-m", "lb", "addresses", "run", f"--pools={store.pools}", "--metrics-address=off"]
    if spec.kubernetes:
        argv += ["--source=kubernetes", f"--kubeconfig={store.addresses_kubeconfig}"]
        argv = namespaces.command(spec.api, argv)
    else:
        argv += [f"--source=manifests:{spec.manifests}", f"--state={store.addresses}"]
        argv += [f"--service-cidr={spec.service_cidr}"]
    store.write_process(NAME, spawn(argv, store.log(NAME), environment()))
