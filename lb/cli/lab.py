# SPDX-License-Identifier: Apache-2.0
"""``lbctl lab``: a cluster of network namespaces to try things in."""

from __future__ import annotations

import argparse
import io
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from lb.cli.tables import table
from lb.config import Switch, UplinkMode
from lb.errors import LabError
from lb.lab import kube_proxy
from lb.lab.addressing import MAX_NODES, ZONES, Family, LabSpec, Overlay, check_id
from lb.lab.apiserver import VARIABLE, find, kubectl
from lb.lab.demo import rows, show
from lb.lab.lab import Lab
from lb.lab.removal import down
from lb.lab.store import Store, labs
from lb.shipped import shipped

DEFAULT_ID = "lab"
EXAMPLES = shipped("examples")

_DESCRIPTION = """\
A lab is a small cluster on this machine: an outside client and nodes on one switched segment, pods
behind their nodes, all in network namespaces. Each node runs its own agent; the lab itself plays
kubelet: it starts the pods of the manifests, probes them, and writes their status.

With --kubernetes the lab lives from a real API server: the manifests are applied to it at the start, and from
then on kubectl is how to change things, with the kubeconfig that is printed.

Outside of its namespaces a lab has /run/lbctl/lab/ID, its pins in /sys/fs/bpf/lbctl, and processes; with
--kubernetes also a port on the machine's loopback that leads to its API server.
`lbctl lab down` removes all of it.
"""

_NEXT = """\
lab {id} is up: {nodes} nodes, {pods} pods

try:
  lbctl lab status{flag}
{requests}{pods_and_maps}{kubectl}take it down:
  lbctl lab down{flag}
"""

_KUBECTL = """\
  export KUBECONFIG={kubeconfig}
  {kubectl} get nodes,services,pods
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``lab`` and its commands."""
    lab = commands.add_parser(
        "lab",
        help="a cluster of network namespaces on this machine",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = lab.add_subparsers(title="commands", metavar="COMMAND", required=True)
    up = _command(actions, "up", _up, "bring a lab up")
    _add_spec(up)
    status = _command(actions, "status", _status, "what a lab consists of and what of it runs")
    status.add_argument("--json", action="store_true", help="print JSON")
    execute = _command(actions, "exec", _exec, "run a command at the client, on a node or in a pod")
    execute.add_argument("where", metavar="WHERE", help="client, switch, api, node1 …, or a pod's name")
    execute.add_argument(
        "command", metavar="-- COMMAND", nargs=argparse.REMAINDER, help="command and arguments"
    )
    pod = _command(actions, "pod", _pod, "make a pod ready or not ready, or kill it")
    pod.add_argument(
        "action", choices=("ready", "unready", "kill"), help="returns when the pod's object says so"
    )
    pod.add_argument("name", metavar="NAME", help="the pod, as NAME or NAMESPACE/NAME")
    agent = _command(actions, "agent", _agent, "start, stop (SIGTERM) or kill (SIGKILL) the agent of a node")
    agent.add_argument(
        "action", choices=("start", "stop", "kill"), help="start returns when the agent has synced"
    )
    agent.add_argument("node", metavar="NODE", help="node1 …")
    api = _command(actions, "api", _api, "start, stop (SIGTERM) or kill (SIGKILL) the API server")
    api.add_argument("action", choices=("start", "stop", "kill"), help="start returns when it is ready")
    rules = _command(
        actions,
        "kube-proxy",
        _kube_proxy,
        "write the rules that kube-proxy would have on a node, or remove them",
    )
    rules.add_argument(
        "mode", choices=(*kube_proxy.Mode, "off"), help="in which mode kube-proxy runs, or off"
    )
    rules.add_argument("node", metavar="NODE", help="node1 …")
    demo = _command(actions, "demo", _demo, "show requests being spread, and the maps that do it")
    _add_spec(demo)
    demo.add_argument(
        "--keep", action=argparse.BooleanOptionalAction, default=True, help="leave the lab up (default)"
    )
    remove = _command(actions, "down", _down, "remove a lab with all that belongs to it, half-made ones too")
    remove.add_argument("--all", action="store_true", help="all labs of this machine")


def _command(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, handler: Any, text: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--id", default=DEFAULT_ID, help=f"the lab's id (default {DEFAULT_ID})")
    parser.set_defaults(handler=handler)
    return parser


def _add_spec(parser: argparse.ArgumentParser) -> None:
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
        default=EXAMPLES,
        metavar="DIR",
        help=f"directory of manifests (default {EXAMPLES})",
    )
    parser.add_argument(
        "--overlay",
        type=Overlay,
        choices=list(Overlay),
        default=Overlay.NONE,
        help="pod network between nodes: routed (none), or through tunnels (ipip needs the kernel's modules)",
    )
    parser.add_argument(
        "--family",
        type=Family,
        choices=list(Family),
        default=Family.DUAL,
        help="IP versions of clients, nodes, pods and Services (default dual, IPv4 being the primary one)",
    )
    parser.add_argument(
        "--zones",
        type=lambda text: tuple(text.split(",")),
        default=ZONES,
        metavar="ZONE,…",
        help=f"zones, given to the nodes in turn (default {','.join(ZONES)})",
    )
    parser.add_argument(
        "--uplink-mode",
        type=UplinkMode,
        choices=list(UplinkMode),
        default=UplinkMode.AUTO,
        help="hook of the nodes' uplinks (default auto)",
    )
    parser.add_argument(
        "--redirect",
        type=Switch,
        choices=list(Switch),
        default=Switch.OFF,
        help="the agents' setting of that name (default off)",
    )
    parser.add_argument(
        "--kubernetes",
        action="store_true",
        help=f"live from an API server; {VARIABLE} names the folder with etcd and kube-apiserver",
    )
    parser.add_argument("--no-agents", dest="agents", action="store_false", help="pods and network only")


def _nodes(text: str) -> int:
    number = int(text)
    if not 1 <= number <= MAX_NODES:
        raise argparse.ArgumentTypeError(f"{number}: a lab has 1 to {MAX_NODES} nodes")
    return number


def _spec(args: argparse.Namespace) -> LabSpec:
    return LabSpec(
        id=args.id,
        manifests=str(args.manifests.resolve()),
        nodes=args.nodes,
        replicas=args.replicas,
        overlay=args.overlay,
        family=args.family,
        zones=args.zones,
        uplink_mode=args.uplink_mode,
        redirect=args.redirect,
        agents=args.agents,
        kubernetes=str(find()) if args.kubernetes else "",
    )


def _flag(lab: str) -> str:
    return "" if lab == DEFAULT_ID else f" --id {lab}"


def _up(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    lab = Lab.up(_spec(args), lambda line: print(line, file=out, flush=True))
    print("\n" + _next(lab), file=out, end="")
    return 0


def _next(lab: Lab) -> str:
    """Return what to do with a lab that is up."""
    pods, spec, flag = lab.pods(), lab.spec, _flag(lab.spec.id)
    requests = "".join(
        f"  lbctl lab exec{flag} {place} -- curl -s {url}\n" for place, url in lab.requests() if spec.agents
    )
    more = [f"lab pod{flag} unready {pods[0]['name']}"] if pods else []
    more += [f"lab demo{flag}"] if pods and rows(spec) else []
    more += [f"maps dump --instance {spec.instance('node1')}"] if spec.agents else []
    fields = {"kubeconfig": lab.store.kubeconfig, "kubectl": kubectl(spec.kubernetes)}
    return _NEXT.format(
        id=spec.id,
        nodes=spec.nodes,
        pods=len(pods),
        flag=flag,
        requests=requests,
        pods_and_maps="".join(f"  lbctl {each}\n" for each in more),
        kubectl=_KUBECTL.format(**fields) if spec.kubernetes else "",
    )


def _status(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    status = Lab.open(args.id).status()
    if args.json:
        print(json.dumps(status, indent=2), file=out)
    else:
        print(_status_text(status), file=out)
    return 0


def _status_text(status: dict[str, Any]) -> str:
    def running(process: dict[str, Any]) -> str:
        return f"runs, process {process['pid']}" if process["running"] else "does not run"

    lines = [
        f"lab {status['id']}: {status['family']}, overlay {status['overlay']},"
        f" uplink mode {status['uplink_mode']}",
        f"manifests  {status['manifests']}",
        f"state      {status['state']}",
        f"client     {status['client']['namespace']}, {status['client']['addresses'][0]}",
        f"outside    {status['outside_server']}, HTTP on port 80, UDP echo on port 9000",
        f"kubelet    {running(status['kubelet'])}",
        "",
    ]
    if "kubernetes" in status:
        lines[-1:] = [*_kubernetes_text(status["kubernetes"], running), ""]
    nodes = [
        [
            node["name"],
            " ".join(node["addresses"]),
            node["zone"],
            running(node["agent"]),
            "synced" if node["agent"]["ready"] else "not synced",
        ]
        for node in status["nodes"]
    ]
    pods = [
        [
            f"{pod['namespace']}/{pod['name']}",
            pod["node"],
            " ".join(pod["addresses"]),
            {True: "ready", False: "not ready", None: "unknown"}[pod.get("ready")],
            pod.get("restarts", "-"),
            pod.get("message", ""),
        ]
        for pod in status["pods"]
    ]
    lines.append(table(("node", "addresses", "zone", "agent", "sync"), nodes))
    lines.append(table(("pod", "node", "addresses", "ready", "restarts", "message"), pods))
    lines += [f"error: {error}" for error in status["errors"]]
    return "\n".join(lines).rstrip()


def _kubernetes_text(kubernetes: dict[str, Any], running: Callable[[dict[str, Any]], str]) -> list[str]:
    return [
        f"API server {'ready' if kubernetes['ready'] else 'not ready'}, {kubernetes['url']} in the lab",
        f"kubeconfig {kubernetes['kubeconfig']}",
        *(f"           {name} {running(each)}" for name, each in kubernetes["processes"].items()),
        f"           EndpointSlices and the pods of ReplicaSets are made by {kubernetes['controllers']}",
    ]


def _exec(args: argparse.Namespace, out: TextIO, err: TextIO) -> int:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise LabError("lab exec: give a command after --")
    argv = Lab.open(args.id).command(args.where, command)
    out.flush()
    try:
        streams: dict[str, Any] = {"stdout": out.fileno(), "stderr": err.fileno()}
    except io.UnsupportedOperation:  # the caller collects the output
        streams = {"capture_output": True, "text": True}
    done = subprocess.run(argv, check=False, **streams)
    if "text" in streams:
        out.write(done.stdout)
        err.write(done.stderr)
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def _pod(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    answer = Lab.open(args.id).ask_kubelet(args.action, pod=args.name)
    if args.action == "kill":
        successors = ", ".join(answer["replaced_by"]) or "nothing"
        print(f"pod {args.name} killed; {successors} takes its place", file=out)
    else:
        print(f"pod {args.name} is {'ready' if args.action == 'ready' else 'not ready'}", file=out)
    return 0


def _agent(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    lab = Lab.open(args.id)
    if args.action == "start":
        lab.start_agent(args.node)
        lab.wait_agent(args.node)
        print(f"the agent of {args.node} runs and has synced", file=out)
    else:
        lab.stop_agent(args.node, signal.SIGTERM if args.action == "stop" else signal.SIGKILL)
        print(f"the agent of {args.node} has ended", file=out)
    return 0


def _kube_proxy(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    lab = Lab.open(args.id)
    if args.node not in lab.spec.node_names:
        raise LabError(f"lab {args.id} has no node {args.node}, only {', '.join(lab.spec.node_names)}")
    run = kube_proxy.run_with(lambda argv: lab.command(args.node, argv))
    if args.mode == "off":
        kube_proxy.remove(run)
        print(f"{args.node} has no rules of kube-proxy", file=out)
        return 0
    count = kube_proxy.write_in_lab(kube_proxy.Mode(args.mode), lab, args.node, run)
    print(f"{args.node} has kube-proxy's rules ({args.mode}) for {count} Service ports", file=out)
    return 0


def _api(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    host = Lab.open(args.id).api_host()
    if args.action == "start":
        host.start()
        print("the API server is ready", file=out)
    else:
        host.stop(signal.SIGTERM if args.action == "stop" else signal.SIGKILL)
        print("the API server has ended", file=out)
    return 0


def _demo(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    def report(line: str) -> None:
        print(line, file=out, flush=True)

    lab = Lab.open(args.id) if Store(args.id).exists() else Lab.up(_spec(args), report)
    try:
        show(lab, report)
    finally:
        if not args.keep:
            down(args.id, report)
    if args.keep:
        print("\n" + _next(lab), file=out, end="")
    return 0


def _down(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    ids = labs() if args.all else [args.id]
    for lab in ids:
        check_id(lab)
        down(lab, lambda line: print(line, file=out, flush=True))
        print(f"lab {lab} is gone", file=out)
    if not ids:
        print("there is no lab", file=out)
    return 0
