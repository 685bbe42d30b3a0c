# SPDX-License-Identifier: Apache-2.0
"""``lbctl lab``: a cluster of network namespaces to try things in."""

from __future__ import annotations

import argparse
import io
import shlex
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from lb.cli import output
from lb.cli.grammar.lab import EXAMPLES, EXAMPLES_IN_IPV6
from lb.cli.tables import table
from lb.cli.width import terminal_width, wrapped
from lb.errors import LabError
from lb.lab import dns, kube_proxy, servers
from lb.lab.addressing import DEFAULT_ID, Announce, Family, LabSpec, Overlay, RouterKind, check_id
from lb.lab.apiserver import find, kubectl
from lb.lab.demo import rows, show
from lb.lab.lab import Lab
from lb.lab.removal import down
from lb.lab.store import Store, labs
from lb.words import several

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


def _manifests(args: argparse.Namespace) -> Path:
    """Return the folder that was named, or the examples: fixed addresses are of one family."""
    if args.manifests:
        return Path(args.manifests)
    return EXAMPLES_IN_IPV6 if args.family == Family.IPV6 else EXAMPLES


def _spec(args: argparse.Namespace) -> LabSpec:
    return LabSpec(
        id=args.id,
        manifests=str(_manifests(args).resolve()),
        nodes=args.nodes,
        replicas=args.replicas,
        overlay=Overlay(args.overlay),
        family=Family(args.family),
        zones=args.zones,
        uplink_mode=args.uplink_mode,
        redirect=args.redirect,
        forward=args.forward,
        agents=args.agents,
        pools=args.pools,
        kubernetes=str(find()) if args.kubernetes else "",
        dns=not servers.missing(dns.IMAGE) if args.dns is None else args.dns,
        announce=Announce(args.announce),
        router=RouterKind(args.router),
    )


def _flag(lab: str) -> str:
    return "" if lab == DEFAULT_ID else f" --id {lab}"


def run_up(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl lab up``."""
    if args.dns is None and (why := servers.missing(dns.IMAGE)):
        print(f"no DNS: {why}", file=out)
    lab = Lab.up(_spec(args), lambda line: print(line, file=out, flush=True))
    print("\n" + _next(lab), file=out, end="")
    return 0


def _next(lab: Lab) -> str:
    """Return what to do with a lab that is up."""
    pods, spec, flag = lab.pods(), lab.spec, _flag(lab.spec.id)
    requests = "".join(
        f"  lbctl lab exec{flag} {place} -- curl -s {shlex.quote(url)}\n"
        for place, url in lab.requests()
        if spec.agents
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


def run_status(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl lab status``."""
    status = Lab.open(args.id).status()
    output.write(args, out, status, lambda: _status_text(status, terminal_width(out)) + "\n")
    return 1 if [each for each in status["errors"] if not each.startswith("warning: ")] else 0


def _status_text(status: dict[str, Any], width: int | None = None) -> str:
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
        *([_dns_text(status["dns"], running)] if "dns" in status else []),
        "",
    ]
    if "addresses" in status:
        lines[-1:] = [f"addresses  {running(status['addresses'])}", ""]
    if "routing" in status:
        lines[-1:] = [*_routing_text(status["routing"]), ""]
    if "kubernetes" in status:
        lines[-1:] = [*_kubernetes_text(status["kubernetes"], running), ""]
    if width:
        lines = [part for line in lines for part in wrapped(line, width, below=" " * 11) or [""]]
    nodes = [
        [
            node["name"],
            " ".join(node["addresses"]),
            node["zone"],
            running(node["agent"]),
            _sync(node["agent"]),
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
    lines.append(table(("node", "addresses", "zone", "agent", "sync"), nodes, width=width))
    lines.append(table(("pod", "node", "addresses", "ready", "restarts", "message"), pods, width=width))
    lines += [each if each.startswith("warning: ") else f"error: {each}" for each in status["errors"]]
    return "\n".join(lines).rstrip()


def _dns_text(dns: dict[str, Any], running: Callable[[dict[str, Any]], str]) -> str:
    lines = [
        f"DNS        records of Services: {running(dns['records'])}",
        f"           outside, at {' and '.join(dns['outside_servers'])}: {running(dns['outside'])}",
    ]
    lines += (
        [f"           relay to the machine's resolver: {running(dns['relay'])}"] if "relay" in dns else []
    )
    return "\n".join(lines)


def _routing_text(routing: Mapping[str, Any]) -> list[str]:
    ended = [name for name, process in routing["processes"].items() if process["pid"] is None]
    runs = f"{', '.join(ended)} does not run" if ended else "runs"
    sessions = (
        f"{node} {'up' if one['up'] else 'down'}, {several(one['addresses'], 'address', 'addresses')}"
        for node, one in routing["sessions"].items()
    )
    return [
        f"router     {routing['namespace']}, {routing['addresses'][0]}, {routing['router']}: {runs}",
        f"BGP        {'; '.join(sessions)}",
    ]


def _sync(agent: Mapping[str, Any]) -> str:
    """Return whether the node's maps are in step with the lab."""
    if not agent["running"]:
        return "stands still"
    return "synced" if agent["ready"] else "not synced"


def _kubernetes_text(kubernetes: dict[str, Any], running: Callable[[dict[str, Any]], str]) -> list[str]:
    return [
        f"API server {'ready' if kubernetes['ready'] else 'not ready'}, {kubernetes['url']} in the lab",
        f"kubeconfig {kubernetes['kubeconfig']}",
        *(f"           {name} {running(each)}" for name, each in kubernetes["processes"].items()),
        f"           EndpointSlices and the pods of ReplicaSets are made by {kubernetes['controllers']}",
    ]


def run_exec(args: argparse.Namespace, out: TextIO, err: TextIO) -> int:
    """Do ``lbctl lab exec``."""
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


def run_pod(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl lab pod``."""
    answer = Lab.open(args.id).ask_kubelet(args.action, pod=args.name)
    if args.action == "kill":
        successors = ", ".join(answer["replaced_by"]) or "nothing"
        print(f"pod {args.name} killed; {successors} takes its place", file=out)
    else:
        print(f"pod {args.name} is {'ready' if args.action == 'ready' else 'not ready'}", file=out)
    return 0


def run_agent(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl lab agent``."""
    lab = Lab.open(args.id)
    if args.action == "start":
        lab.start_agent(args.node, shadow=args.shadow)
        lab.wait_agent(args.node)
        print(f"the agent of {args.node} runs and has synced", file=out)
    else:
        lab.stop_agent(args.node, signal.SIGTERM if args.action == "stop" else signal.SIGKILL)
        print(f"the agent of {args.node} has ended", file=out)
    return 0


def run_kube_proxy(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl lab kube-proxy``."""
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


def run_api(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl lab api``."""
    host = Lab.open(args.id).api_host()
    if args.action == "start":
        host.start()
        print("the API server is ready", file=out)
    else:
        host.stop(signal.SIGTERM if args.action == "stop" else signal.SIGKILL)
        print("the API server has ended", file=out)
    return 0


def run_demo(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl lab demo``."""

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


def run_down(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl lab down``."""
    ids = labs() if args.all else [args.id]
    for lab in ids:
        check_id(lab)
        down(lab, lambda line: print(line, file=out, flush=True))
        print(f"lab {lab} is gone", file=out)
    if not ids:
        print("there is no lab", file=out)
    return 0
