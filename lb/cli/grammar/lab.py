# SPDX-License-Identifier: Apache-2.0
"""``lbctl lab`` and its commands."""

from __future__ import annotations

import argparse
from pathlib import Path

from lb.cli.grammar import parts
from lb.cli.grammar.parts import Commands, verbs
from lb.config import Forward, Switch, UplinkMode
from lb.package_files import shipped

DEFAULT_ID = "lab"
EXAMPLES = shipped("examples")
EXAMPLES_IN_IPV6 = shipped("examples-ipv6")
MAX_NODES = 50
OVERLAYS = ("none", "vxlan", "ipip")
FAMILIES = ("ipv4", "ipv6", "dual")
ANNOUNCE = ("none", "arp", "bgp")
ROUTERS = ("bird", "frr")
ZONES = ("zone-a", "zone-b")
KUBE_PROXY = ("nftables", "iptables")


def lab(commands: Commands) -> None:
    """Add ``lbctl lab``."""
    parser = parts.command(
        commands,
        "lab",
        about="""\
A lab is a small cluster on this machine: an outside client and nodes on one switched segment, pods
behind their nodes, all in network namespaces. Each node runs its own agent; the lab itself plays
kubelet: it starts the pods of the manifests, probes them, and writes their status.

With --kubernetes the lab lives from a real API server: the manifests are applied to it at the start, and from
then on kubectl is how to change things, with the kubeconfig that is printed.

Outside of its namespaces a lab has /run/lbctl/lab/ID, its pins in /sys/fs/bpf/lbctl, and processes; with
--kubernetes also a port on the machine's loopback that leads to its API server.
`lbctl lab down` removes all of it.
""",
        examples="lbctl lab up\nlbctl lab exec client -- curl -s http://192.168.77.11:30123/\nlbctl lab down",
    )
    actions = verbs(parser)
    _spec(
        _command(
            actions,
            "up",
            "bring a lab up",
            "lbctl lab up --nodes 3\nlbctl lab up --id two --manifests /tmp/m",
        )
    )
    status = _command(
        actions,
        "status",
        "what a lab consists of and what of it runs",
        "lbctl lab status\nlbctl lab status -o json",
        codes="0 all of it runs; 1 something does not, or it could not be told; 2 wrong usage",
    )
    parts.output(status, "table")
    execute = _command(
        actions,
        "exec",
        "run a command at the client, on a node or in a pod",
        "lbctl lab exec client -- ping -c 1 10.66.13.240\nlbctl lab exec POD -- env",
        codes="that of the command that was run; 1 it could not be run, stderr says why; 2 wrong usage",
    )
    execute.add_argument(
        "where", metavar="WHERE", help="client, switch, router, api, node1 …, or a pod's name"
    )
    execute.add_argument(
        "command", metavar="-- COMMAND", nargs=argparse.REMAINDER, help="command and arguments"
    )
    pod = _command(
        actions,
        "pod",
        "make a pod ready or not ready, or kill it",
        "lbctl lab pod unready POD\nlbctl lab pod kill POD",
    )
    pod.add_argument(
        "action", choices=("ready", "unready", "kill"), help="returns when the pod's object says so"
    )
    pod.add_argument("name", metavar="NAME", help="the pod, as NAME or NAMESPACE/NAME")
    agent = _command(
        actions,
        "agent",
        "start, stop (SIGTERM) or kill (SIGKILL) the agent of a node",
        "lbctl lab agent kill node1\nlbctl lab agent start node1",
    )
    agent.add_argument(
        "action", choices=("start", "stop", "kill"), help="start returns when the agent has synced"
    )
    agent.add_argument("node", metavar="NODE", help="node1 …")
    agent.add_argument("--shadow", action="store_true", help="with start: in shadow mode, beside kube-proxy")
    api = _command(
        actions,
        "api",
        "start, stop (SIGTERM) or kill (SIGKILL) the API server",
        "lbctl lab api stop\nlbctl lab api start",
    )
    api.add_argument("action", choices=("start", "stop", "kill"), help="start returns when it is ready")
    rules = _command(
        actions,
        "kube-proxy",
        "write the rules that kube-proxy would have on a node, or remove them",
        "lbctl lab kube-proxy nftables node2\nlbctl lab kube-proxy off node2",
        handler="lab.run_kube_proxy",
    )
    rules.add_argument("mode", choices=(*KUBE_PROXY, "off"), help="in which mode kube-proxy runs, or off")
    rules.add_argument("node", metavar="NODE", help="node1 …")
    demo = _command(
        actions,
        "demo",
        "show requests being spread, and the maps that do it",
        "lbctl lab demo\nlbctl lab demo --no-keep",
    )
    _spec(demo)
    demo.add_argument(
        "--keep", action=argparse.BooleanOptionalAction, default=True, help="leave the lab up (default)"
    )
    remove = _command(
        actions,
        "down",
        "remove a lab with all that belongs to it, half-made ones too",
        "lbctl lab down\nlbctl lab down --all",
    )
    remove.add_argument("--all", action="store_true", help="all labs of this machine")


def _command(
    actions: Commands, name: str, text: str, examples: str, *, codes: str = parts.CODES, handler: str = ""
) -> argparse.ArgumentParser:
    about = text[0].upper() + text[1:] + ".\n"
    parser = parts.command(
        actions, name, text, about=about, examples=examples, codes=codes, handler=handler or f"lab.run_{name}"
    )
    parser.add_argument("--id", default=DEFAULT_ID, help=f"the lab's id (default {DEFAULT_ID})")
    return parser


def _spec(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what a lab is to consist of."""
    parser.add_argument("--nodes", type=_nodes, default=2, metavar="N", help="number of nodes (default 2)")
    parser.add_argument(
        "--replicas",
        type=int,
        metavar="N",
        help="pods of every ReplicaSet and Deployment, instead of the manifests'",
    )
    parser.add_argument(
        "--manifests",
        type=Path,
        metavar="DIR",
        help="directory of manifests (default: the examples that lbctl comes with, those of the family)",
    )
    parser.add_argument(
        "--overlay",
        choices=OVERLAYS,
        default="none",
        help="pod network between nodes: routed (none), or through tunnels (ipip needs the kernel's modules)",
    )
    parser.add_argument(
        "--family",
        choices=FAMILIES,
        default="dual",
        help="IP versions of clients, nodes, pods and Services (default dual, IPv4 being the primary one)",
    )
    parser.add_argument(
        "--announce",
        choices=ANNOUNCE,
        default="none",
        help="how the network learns of load-balancer addresses; arp: they are on the segment, where one node"
        " answers for each; bgp: from the nodes, by a router before the client (default none: the client"
        " sends all to node1)",
    )
    parser.add_argument(
        "--router", choices=ROUTERS, default="bird", help="what that router runs (default bird)"
    )
    parser.add_argument(
        "--zones",
        type=lambda text: tuple(text.split(",")),
        default=ZONES,
        metavar="ZONE,…",
        help=f"zones, given to the nodes in turn (default {','.join(ZONES)})",
    )
    for flag, default, text in (
        ("--uplink-mode", UplinkMode.AUTO, "hook of the nodes' uplinks (default auto)"),
        ("--redirect", Switch.OFF, "the agents' setting of that name (default off)"),
        ("--forward", Forward.SNAT, "the agents' setting of that name (default snat)"),
    ):
        kind = type(default)
        parser.add_argument(flag, type=kind, choices=list(kind), default=default, help=text)
    parser.add_argument(
        "--kubernetes",
        action="store_true",
        help="live from an API server; KUBEBUILDER_ASSETS names the folder with etcd and kube-apiserver",
    )
    parser.add_argument(
        "--no-pools",
        dest="pools",
        action="store_false",
        help="give Services of type LoadBalancer no addresses but those in their status",
    )
    parser.add_argument(
        "--dns",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="answer for the names of Services (default: where BIND's named is installed)",
    )
    parser.add_argument("--no-agents", dest="agents", action="store_false", help="pods and network only")


def _nodes(text: str) -> int:
    number = int(text)
    if not 1 <= number <= MAX_NODES:
        raise argparse.ArgumentTypeError(f"{number}: a lab has 1 to {MAX_NODES} nodes")
    return number
