# SPDX-License-Identifier: Apache-2.0
"""DNS in the lab.

::

    pod ──▶ Service kube-dns ──▶ pods kube-dns: named ──▶ outside: named ──▶ relay ──▶ the machine's resolver
                                     ▲                    names of example.org           where it has one
                                     └── lb.names: the records of Services

The pods are made by objects of the lab's own, in a folder beside the manifests; a Service kube-dns of the
namespace kube-system in the manifests takes the place of the lab's.
"""

from __future__ import annotations

import base64
import secrets
import sys
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from lb.lab import namespaces, servers
from lb.lab.addressing import LabSpec, dns_service, outside_server
from lb.lab.objects import to_yaml
from lb.lab.processes import environment, spawn
from lb.lab.store import PodRecord, Store
from lb.model import ObjectKey, Service
from lb.names import DNS, ZONE, named, server

OUTSIDE_ZONE = "example.org"
"""A domain for documentation (RFC 2606); in the lab all of its names are the outside server's."""

Object = dict[str, Any]
IMAGE = "lab/named"
RECORDS, OUTSIDE, RELAY = "names", "outside-dns", "relay"
"""What the processes are noted as."""

_RESOLV_CONF = Path("/etc/resolv.conf")
_LOOPBACK = "127.0.0.1"
_LABELS = {"k8s-app": "kube-dns"}


def prepare(store: Store, spec: LabSpec, record: PodRecord, folder: Path) -> None:
    """Write what a pod's named starts with; see :class:`lb.lab.servers.Prepare`."""
    addresses = [ip_address(each) for each in record.addresses]
    reverse = named.reverse_zones([*spec.service_cidr.split(","), *map(str, spec.pod_networks)])
    secret = _secret(store).read_text() if spec.dns else ""  # else it is a pod of somebody's own
    settings = named.Settings(addresses, [ZONE, *reverse], node_resolvers(spec), secret)
    server.prepare(settings, folder / "etc" / "named.conf", folder / "work", named.SERVER, addresses)


def cluster_resolvers(spec: LabSpec, services: Iterable[Service]) -> tuple[str, ...]:
    """Return what pods ask: the addresses of the Service kube-dns; none when there is no DNS."""
    for service in services:
        if service.key == DNS and service.cluster_ips:
            return tuple(map(str, service.cluster_ips))
    return tuple(str(dns_service(version)) for version in spec.versions) if spec.dns else ()


def node_resolvers(spec: LabSpec) -> tuple[str, ...]:
    """Return what nodes ask: the server outside; none when the lab has no DNS."""
    return tuple(str(outside_server(version)) for version in spec.versions) if spec.dns else ()


# --- bringing it up -----------------------------------------------------------------------------------


def bring_up(store: Store, spec: LabSpec) -> None:
    """Start everything but the pods, and write the objects that make these.

    Raises LabError: named is missing, or something ended at once.
    """
    from lb.lab.apply import read  # noqa: PLC0415 - large, and the kubelet does without

    servers.check(IMAGE)
    _secret(store).touch(mode=0o600)
    _secret(store).write_text(base64.b64encode(secrets.token_bytes(32)).decode())
    own, _ = read(Path(spec.manifests))
    taken = any(_is_dns(item) for _, item in own)
    store.addons.mkdir()
    for item in objects(spec, with_service=not taken):
        (store.addons / f"kube-dns.{item['kind'].lower()}.yaml").write_text(to_yaml(item))
    _write_outside(store, spec)
    _start_relay(store, spec)
    _start_outside(store, spec)


def start_feeding(store: Store, spec: LabSpec) -> None:
    """Start what keeps the servers in step with the Services.

    Raises LabError: it ended at once.
    """
    if spec.kubernetes:
        sources = ["--source=kubernetes", f"--kubeconfig={store.agent_kubeconfig}"]
    else:
        folders = (spec.manifests, store.cluster, store.addons)
        sources = [f"--source=manifests:{folder}" for folder in folders]
    flags = [
        f"--service-cidr={spec.service_cidr}",
        f"--pod-cidr={','.join(map(str, spec.pod_networks))}",
        f"--secret-file={_secret(store)}",
    ]
    argv = [sys.executable, "-m", "lb.names", *sources, *flags]
    inside = namespaces.command(spec.namespace(spec.node_names[0]), argv)
    store.write_process(RECORDS, spawn(inside, store.log(RECORDS), environment(), "lb.names"))


def _is_dns(item: Object) -> bool:
    metadata = item["metadata"]
    return item["kind"] == "Service" and ObjectKey(metadata.get("namespace", ""), metadata["name"]) == DNS


def _secret(store: Store) -> Path:
    return store.base / "names.secret"


def resolver(path: Path) -> str:
    """Return the first address that the machine's resolv.conf names, ``""`` for none."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    words = (line.split() for line in lines)
    return next((each[1] for each in words if len(each) > 1 and each[0] == "nameserver"), "")


def _write_outside(store: Store, spec: LabSpec) -> None:
    """Write what the server outside of the cluster starts with."""
    addresses = [outside_server(version) for version in spec.versions]
    resolvers = [_LOOPBACK] if resolver(_RESOLV_CONF) else []
    settings = named.Settings(addresses, zones=[OUTSIDE_ZONE], resolvers=resolvers)
    folder = store.base / "outside"
    work = folder / "work"
    work.mkdir(parents=True)
    server.prepare(settings, folder / "named.conf", work, f"ns.{OUTSIDE_ZONE}", addresses)
    with (work / named.zone_file(OUTSIDE_ZONE)).open("a") as zone:
        for name in (f"{OUTSIDE_ZONE}.", f"*.{OUTSIDE_ZONE}."):
            zone.writelines(f"{name} {'A' if each.version == 4 else 'AAAA'} {each}\n" for each in addresses)


def _start_outside(store: Store, spec: LabSpec) -> None:
    folder = store.base / "outside"
    mounts = [f"{folder}:/etc/bind", f"{folder / 'work'}:{named.WORK}"]
    argv = servers.container("outside", mounts, servers.SERVERS[IMAGE].argv)
    store.write_process(OUTSIDE, spawn(namespaces.command(spec.client, argv), store.log(OUTSIDE)))


def _start_relay(store: Store, spec: LabSpec) -> None:
    """Start the way to the machine's resolver, if it has one."""
    if upstream := resolver(_RESOLV_CONF):
        argv = [sys.executable, "-m", "lb.lab.relay", spec.id, upstream]
        store.write_process(RELAY, spawn(argv, store.log(RELAY), environment()))


_PARTS = {RELAY: _start_relay, OUTSIDE: _start_outside, RECORDS: start_feeding}


def mend(store: Store, spec: LabSpec) -> list[str]:
    """Start anew what has ended of all that was started once; return the names of it."""
    ended = [name for name in _PARTS if store.process(name) is not None and not store.running(name)]
    for name in ended:
        _PARTS[name](store, spec)
    return ended


# --- the objects --------------------------------------------------------------------------------------


def objects(spec: LabSpec, *, with_service: bool) -> list[Object]:
    """Return the Service kube-dns, if it is wanted, and the ReplicaSet of its pods: one on each of two nodes.

    A pod is ready once records have come: the journal of its zone is there then.
    """
    addresses = [str(dns_service(version)) for version in spec.versions]
    ports = [
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
    ]
    service: Object = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": DNS.name, "namespace": DNS.namespace, "labels": _LABELS},
        "spec": {
            "clusterIP": addresses[0],
            "clusterIPs": addresses,
            "ipFamilies": [f"IPv{version}" for version in spec.versions],
            "ipFamilyPolicy": "RequireDualStack" if len(addresses) > 1 else "SingleStack",
            "selector": _LABELS,
            "ports": ports,
        },
    }
    fed = f"{named.WORK}/{named.zone_file(ZONE)}.jnl"
    container = {
        "name": "named",
        "image": IMAGE,
        "ports": [
            {"name": each["name"], "containerPort": each["port"], "protocol": each["protocol"]}
            for each in ports
        ],
        "readinessProbe": {"exec": {"command": ["test", "-e", fed]}, "periodSeconds": 1},
    }
    pods = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"name": DNS.name, "namespace": DNS.namespace, "labels": _LABELS},
        "spec": {
            "replicas": min(2, spec.nodes),
            "selector": {"matchLabels": _LABELS},
            "template": {
                "metadata": {"labels": _LABELS},
                "spec": {"dnsPolicy": "Default", "containers": [container]},
            },
        },
    }
    return [*([service] if with_service else []), pods]
