# SPDX-License-Identifier: Apache-2.0
"""The lab's router, between the client and the nodes: BIRD or FRR, and what tells it which nodes to send to.

The router is what stands on top of a rack: it has a session with each node, over IPv4 (in a lab of IPv6 over
that), takes both families from it, watches it by BFD, and puts all equal ways into the kernel, which spreads
connections over them. It takes nothing but addresses of Services, and routes of several, and sends nothing.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import yaml

from lb.errors import LabError
from lb.lab import cgroups, namespaces, servers
from lb.lab.addressing import BALANCED, UPLINK, LabSpec, RouterKind, node_address, router
from lb.lab.processes import environment, spawn, wait_for
from lb.lab.store import Store
from lb.model import IPNetwork
from lb.rundir import RunDir
from lb.served.servable import spoken

ROUTER_ASN, NODES_ASN = 64500, 64512
"""Of those for private use (RFC 6996) and for documentation (RFC 5398)."""
EXTERNAL: dict[int, IPNetwork] = {4: IPv4Network("198.51.100.0/24"), 6: IPv6Network("2001:db8:198::/112")}
"""The examples' externalIPs are of these networks."""
COMMUNITY = f"{NODES_ASN}:100"
BFD_MS, BFD_MULTIPLIER = 300, 3
HOLD_SECONDS = 9
PACKAGES = {RouterKind.BIRD: ("bird", "bird2"), RouterKind.FRR: ("/usr/lib/frr/bgpd", "frr")}
_PATHS = "/usr/sbin:/usr/bin:/sbin:/bin"
_MOST_WAYS = 64
_INSIDE = "/var/frr"  # where FRR sees its folder


def speaker_name(node: str) -> str:
    """Return what the process that tells the router about a node is noted as."""
    return f"bgp-{node}"


def process_names(spec: LabSpec) -> tuple[str, ...]:
    """Return what the router's processes are noted as."""
    return ("bird",) if spec.router is RouterKind.BIRD else ("zebra", "bfdd", "bgpd")


def check(spec: LabSpec) -> None:
    """Refuse what this machine cannot run.

    Raises LabError: a program is missing; names its package.
    """
    for kind in dict.fromkeys((RouterKind.BIRD, spec.router)):  # the nodes' own engine is BIRD
        name, package = PACKAGES[kind]
        if shutil.which(name, path=_PATHS) is None:
            raise LabError(f"{name} is missing: install the Debian package {package}")


def folder(store: Store) -> Path:
    """Return the folder of the router's files."""
    return store.base / "router"


def peers_file(store: Store) -> Path:
    """Return the file of peers that all nodes have."""
    return store.base / "peers.yaml"


def start_router(store: Store, spec: LabSpec) -> None:
    """Start the router's processes; its interfaces are there.

    Raises LabError: one ended at once.
    """
    where = folder(store)
    where.mkdir()
    if spec.router is RouterKind.BIRD:
        (where / "bird.conf").write_text(bird_conf(spec))
        argv = ["bird", "-f", "-c", str(where / "bird.conf"), "-s", str(where / "bird.ctl")]
        _spawn(store, spec, "bird", argv)
        return
    (where / "frr.conf").write_text(frr_conf(spec))
    # FRR's user may not pass through the lab's folder, and the machine's own FRR is to be left alone.
    shutil.chown(where, "frr", "frr")
    common = ["-f", f"{_INSIDE}/frr.conf", "-z", f"{_INSIDE}/zserv.api", "--vty_socket", _INSIDE]
    extra = {"bfdd": ["--bfdctl", f"{_INSIDE}/bfdd.sock"]}
    for name in process_names(spec):
        argv = [f"/usr/lib/frr/{name}", *common, "-i", f"{_INSIDE}/{name}.pid", *extra.get(name, [])]
        _spawn(store, spec, name, servers.container("router", [f"{where}:{_INSIDE}"], argv))
        wait_for(name, (where / f"{name}.vty").exists, store.process(name), store.log(name))


def _spawn(store: Store, spec: LabSpec, name: str, argv: list[str]) -> None:
    inside = namespaces.command(spec.router_namespace, argv)
    store.write_process(name, spawn(inside, store.log(name), environment(), name))


def start_speaker(store: Store, spec: LabSpec, node: str) -> None:
    """Start what tells the router about a node.

    Raises LabError: it runs already, or ended at once.
    """
    name = speaker_name(node)
    if running := store.running(name):
        raise LabError(f"{name} runs already, process {running.pid}")
    if not peers_file(store).exists():
        peers_file(store).write_text(yaml.safe_dump(peers(spec), sort_keys=False))
    argv = [sys.executable, "-m", "lb", "announce", "bgp", f"--peers={peers_file(store)}"]
    argv += [f"--instance={spec.instance(node)}"]
    inside = cgroups.command(cgroups.of_node(spec.id, node), namespaces.command(spec.namespace(node), argv))
    store.write_process(name, spawn(inside, store.log(name), environment(), name))


def wait(store: Store, spec: LabSpec) -> None:
    """Wait until every node has told the router what it serves.

    Raises LabError: a process ended, or it takes too long.
    """
    for node in spec.node_names:
        name = speaker_name(node)
        done = functools.partial(_told, spec, node)
        wait_for(f"{node}'s session with the router", done, store.process(name), store.log(name))


def _told(spec: LabSpec, node: str) -> bool:
    found = spoken(RunDir(spec.instance(node)))
    if not found or not found["peers"]:
        return False
    return all(each["up"] and sum(each["told"].values()) >= len(each["addresses"]) for each in found["peers"])


def status(store: Store, spec: LabSpec) -> dict[str, Any]:
    """Return what of the router and of the speakers runs, and how each session is."""
    processes = {}
    for name in process_names(spec):
        process = store.running(name)
        processes[name] = {"pid": process.pid if process else None, "log": str(store.log(name))}
    sessions = {}
    for node in spec.node_names:
        found = spoken(RunDir(spec.instance(node)))
        peers_of = found["peers"] if found else []
        sessions[node] = {
            "running": found is not None,
            "up": bool(peers_of) and all(each["up"] for each in peers_of),
            "addresses": sum(len(each["addresses"]) for each in peers_of),
            "problems": found["problems"] if found else [],
            "log": str(store.log(speaker_name(node))),
        }
    return {
        "announce": str(spec.announce),
        "router": str(spec.router),
        "namespace": spec.router_namespace,
        "addresses": [
            str(router(version, outer=outer)) for outer in (False, True) for version in spec.versions
        ],
        "processes": processes,
        "sessions": sessions,
    }


def errors(found: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with what a status says."""
    for name, process in found["processes"].items():
        if process["pid"] is None:
            yield f"router: {name} does not run, see {process['log']}"
    for node, session in found["sessions"].items():
        if not session["running"]:
            yield f"{node}: nothing tells the router about it, see {session['log']}"
        yield from (f"{node}: {problem}" for problem in session["problems"])


# --- configurations -----------------------------------------------------------------------------------


def peers(spec: LabSpec) -> dict[str, Any]:
    """Return the file of peers of the lab's nodes."""
    version = spec.versions[0]
    return {
        "asn": NODES_ASN,
        "peers": [
            {
                "name": "router",
                "address": str(router(version)),
                "asn": ROUTER_ASN,
                "hold_seconds": HOLD_SECONDS,
                "bfd": True,
                "bfd_interval_ms": BFD_MS,
                "bfd_multiplier": BFD_MULTIPLIER,
                "families": [f"ipv{each}" for each in spec.versions],
            }
        ],
        "advertise": [
            {"addresses": [str(BALANCED[each]) for each in spec.versions], "communities": [COMMUNITY]},
            {"addresses": [str(EXTERNAL[each]) for each in spec.versions], "external_ips": True},
        ],
    }


def _networks(version: int) -> list[IPNetwork]:
    return [BALANCED[version], EXTERNAL[version]]


def bird_conf(spec: LabSpec) -> str:
    """Return the configuration of a router that runs BIRD."""
    blocks = [
        "log stderr all;",
        f"router id {router()};",
        "protocol device { scan time 1; }",
        f'protocol bfd {{ interface "{UPLINK}" {{ interval {BFD_MS} ms; multiplier {BFD_MULTIPLIER}; }}; }}',
    ]
    channels = ""
    for version in spec.versions:
        wanted = ", ".join(f"{each}+" for each in _networks(version))
        blocks.append(
            f"protocol kernel {{ merge paths on limit {_MOST_WAYS};"
            f" ipv{version} {{ import none; export where source = RTS_BGP; }}; }}"
        )
        blocks.append(
            f"filter services{version} {{\n"
            f"  if net !~ [ {wanted} ] then reject;\n"
            "  if (65535, 0) ~ bgp_community then bgp_local_pref = 0;\n"
            "  accept;\n}"
        )
        channels += f" ipv{version} {{ import filter services{version}; export none; }};"
    blocks += [
        f"protocol bgp {node} {{ local as {ROUTER_ASN};"
        f" neighbor {node_address(node, spec.versions[0])} as {NODES_ASN};"
        f" hold time {HOLD_SECONDS}; connect retry time 1; connect delay time 1; error wait time 1, 2;"
        f" bfd on;{channels} }}"
        for node in spec.node_names
    ]
    return "\n".join(blocks) + "\n"


def frr_conf(spec: LabSpec) -> str:
    """Return the configuration of a router that runs FRR; GRACEFUL_SHUTDOWN it heeds of its own accord."""
    lines = [f"hostname {spec.id}", "log stdout informational"]
    for version in spec.versions:
        family, most = ("ip", 32) if version == 4 else ("ipv6", 128)
        lines += [
            f"{family} prefix-list services{version} permit {each} le {most}" for each in _networks(version)
        ]
    lines += [
        f"router bgp {ROUTER_ASN}",
        f" bgp router-id {router()}",
        " no bgp ebgp-requires-policy",
        " no bgp default ipv4-unicast",
        " bgp graceful-restart",
        " neighbor nodes peer-group",
        f" neighbor nodes remote-as {NODES_ASN}",
        f" neighbor nodes timers {HOLD_SECONDS // 3} {HOLD_SECONDS}",
        " neighbor nodes timers connect 1",
        " neighbor nodes advertisement-interval 0",
        f" neighbor nodes bfd {BFD_MULTIPLIER} {BFD_MS} {BFD_MS}",
    ]
    lines += [
        f" neighbor {node_address(node, spec.versions[0])} peer-group nodes" for node in spec.node_names
    ]
    for version in spec.versions:
        lines += [
            f" address-family ipv{version} unicast",
            f"  maximum-paths {_MOST_WAYS}",
            "  neighbor nodes activate",
            f"  neighbor nodes prefix-list services{version} in",
            " exit-address-family",
        ]
    return "\n".join([*lines, ""])


def ask(store: Store, spec: LabSpec, question: str) -> str:
    """Return what the router's own command line answers: of birdc, or of vtysh.

    Raises LabError: it answers with an error.
    """
    where = folder(store)
    if spec.router is RouterKind.BIRD:
        argv = ["birdc", "-r", "-s", str(where / "bird.ctl"), *question.split()]
    else:
        argv = ["vtysh", "--vty_socket", str(where), "-c", question]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise LabError(f"{argv[0]}: {done.stderr or done.stdout}")
    return done.stdout
