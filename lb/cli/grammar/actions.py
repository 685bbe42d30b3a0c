# SPDX-License-Identifier: Apache-2.0
"""Commands that do something (run, addresses, upgrade, cutover, …), and those of the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_type_hints

from lb.cli.grammar import parts
from lb.cli.grammar.parts import Commands, command, formed, process, verbs
from lb.config import SWITCH, Config, Setting, Switch, settings
from lb.setting_forms import LISTEN_ADDRESS, NETWORKS

CONFIG_VARIABLE = "LBCTL_CONFIG"


def run(commands: Commands) -> None:
    """Add ``lbctl run``."""
    parser = command(
        commands,
        "run",
        about="""\
Run the agent of this node: watch Services, keep the kernel's maps in step, attach programs to interfaces.
It runs in the foreground, logs to stderr, and stops on SIGTERM or SIGINT. The data plane goes on without it;
'lbctl unload' removes the data plane.

A setting may stand in a YAML file (--config), in the environment, or be a flag; the later of these wins.
""",
        examples="""\
lbctl run --source kubernetes --node-name node1 --uplink eth0
lbctl run --source manifests:/etc/lbctl/manifests --node-name node1 --uplink eth0
lbctl run --source kubernetes --shadow

the second as a file, for lbctl run --config FILE; nested settings are indented, lists may be lists:
  sources: [manifests:/etc/lbctl/manifests]
  node_name: node1
  uplinks: [eth0]
  limits:
    flows: 1000000
  timeouts:
    udp: 60
""",
        codes="0 ended by SIGTERM or SIGINT; 1 it could not start or go on, stderr says why; 2 wrong usage",
        handler="run.run",
    )
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting, and ``--config``."""
    parser.add_argument(
        "--config", metavar="FILE", help=f"YAML file with any of these settings [env {CONFIG_VARIABLE}]"
    )
    titles = {"": "settings"}
    groups: dict[str, Any] = {}
    for item in settings():
        section = ".".join(item.path[:-1])
        if section not in groups:
            groups[section] = parser.add_argument_group(titles.get(section, section), _section_help(section))
        switch = {"nargs": "?", "const": Switch.ON.value} if item.kind is SWITCH else {}
        groups[section].add_argument(
            item.flag,
            action="append" if item.many else "store",
            **switch,
            dest=item.name,
            metavar=item.kind.metavar,
            help=_help(item),
        )


def _section_help(section: str) -> str | None:
    if not section:
        return None
    doc = get_type_hints(Config)[section].__doc__
    return (doc or "").replace("%", "%%")


def _help(item: Setting) -> str:
    notes = []
    if item.default not in ("", ()):
        notes.append(f"default {item.default}")
    if item.many:
        notes.append("may be repeated")
    notes.append(f"env {item.variable}{', comma-separated' if item.many else ''}")
    return f"{item.help} [{'; '.join(notes)}]".replace("%", "%%")


def addresses(commands: Commands) -> None:
    """Add ``lbctl addresses run``."""
    parser = command(
        commands,
        "addresses",
        about="Give Services of type LoadBalancer addresses out of pools.\n",
        examples="lbctl addresses run --source kubernetes --pools /etc/lbctl/pools.yaml",
    )
    running = command(
        verbs(parser),
        "run",
        "follow Services and give them addresses",
        about="""\
Follow Services, and give those of type LoadBalancer that have no address one out of the pools of a
file, which is read again when it changes. An address stays where it is: what stands in a status is the
truth, whoever wrote it. In a cluster any number of these processes may run; the one that holds the
Lease lbctl-addresses writes the statuses. With manifests, which are not rewritten, what was given
stands in a file (--state); an agent reads it if its folder is one of the agent's sources.
""",
        notes="""\
the file of pools; all but name and addresses may be left out:
  pools:
    - name: edge
      addresses: [203.0.113.0/24, 198.51.100.10-198.51.100.20, 2001:db8:203::/112]
      avoid: [first, last]     # of each entry; or addresses, networks, ranges
      automatic: true          # false: only for Services that ask for the pool or the address
      namespaces: [shop]       # of which Services; default: all
      labels: {exposed: "yes"} # that a Service must have
  load_balancer_class: lbctl   # Services with another loadBalancerClass are not ours
  without_class: true          # those without one are
  rest_seconds: 600            # before an address that is free again goes to another Service

what a Service may ask for, in annotations (those of MetalLB and Cilium are understood as well):
  lbctl/addresses: 203.0.113.5,2001:db8:203::5   # or spec.loadBalancerIP
  lbctl/pools: edge
  lbctl/sharing-key: web       # Services with the same key, and no port in common, share an address
  lbctl/sharing-namespaces: "*" # with those of other namespaces, too
""",
        examples="""\
lbctl addresses run --source kubernetes --pools /etc/lbctl/pools.yaml
lbctl addresses run --source manifests:/srv/services --pools pools.yaml --state /srv/given/addresses.yaml
""",
        codes="0 ended by SIGTERM or SIGINT; 1 it could not start or go on, stderr says why; 2 wrong usage",
        handler="addresses.run",
    )
    running.add_argument(
        "--source",
        action="append",
        metavar="SOURCE",
        required=True,
        help="manifests:DIR, may be repeated, or kubernetes",
    )
    running.add_argument("--pools", type=Path, metavar="FILE", required=True, help="the file of pools")
    running.add_argument(
        "--state", type=Path, metavar="FILE", help="with manifests: where it stands who has which address"
    )
    running.add_argument(
        "--kubeconfig", metavar="FILE", help="how to reach the API; default: the pod's service account"
    )
    running.add_argument("--context", metavar="NAME", help="context in the kubeconfig")
    running.add_argument(
        "--lease-namespace", metavar="NAME", help="where the Lease is; default: the pod's, else kube-system"
    )
    running.add_argument(
        "--service-cidr",
        type=formed(NETWORKS),
        default=Config().service_cidr,
        metavar=NETWORKS.metavar,
        help="with manifests: the agents' setting of that name, for the families of Services",
    )
    process(running, LISTEN_ADDRESS, "127.0.0.1:10251")


def upgrade(commands: Commands) -> None:
    """Add ``lbctl upgrade``."""
    parser = command(
        commands,
        "upgrade",
        about="""\
Say what this version would do at its start with the maps of the version that runs now: which it would use as
they are, which it would convert since a struct has changed, and which would start empty, and why. Nothing is
changed. Call the lbctl of the new version while the agent of the old one runs. Before going back to a version
that converts nothing, call that of the version that runs, with --to.
""",
        notes="""\
A map is converted by the names of its fields. If flows start empty, a connection goes on if the consistent
hash still names its backend and the backend sees the client's own address (no SNAT).
""",
        examples="lbctl upgrade --check\nlbctl upgrade --check -o json\nlbctl upgrade --check --to 0.1.0",
        codes="0 nothing would be lost; 1 a map would start empty, or it could not be told; 2 wrong usage",
        handler="upgrade.run",
    )
    parts.instance(parser)
    parser.add_argument("--check", action="store_true", help="only say it, which is all that this does")
    parser.add_argument("--to", metavar="VERSION", default="", help="say it of an earlier version: 0.1.0")
    parts.output(parser, "text")


def shadow(commands: Commands) -> None:
    """Add ``lbctl shadow``."""
    parser = command(
        commands,
        "shadow",
        about="""\
Show where this node's programs would have decided otherwise than kube-proxy's rules did. An agent in shadow
mode (lbctl run --shadow) compares, for each connection that begins: is it the same Service, a backend of the
same set, is the client's address kept or not, is it refused or dropped alike? Differences are listed by
Service and kind, with the last example; intended ones apart, by their names in docs/differences.md.
Connections that could not be compared are counted.
""",
        examples="lbctl shadow\nlbctl shadow -o json --node node1",
        codes="0 nothing differs but as meant; 1 something does, or it could not be told; 2 wrong usage",
        handler="shadow.run",
    )
    parts.instance(parser)
    parts.output(parser, "text")


def cutover(commands: Commands) -> None:
    """Add ``lbctl cutover``."""
    parser = command(
        commands,
        "cutover",
        about="""\
Take Services over from kube-proxy on this node, with the connections that are open: each becomes a flow of
ours, and kube-proxy's rules are removed. Before, the agent has to run with its programs attached: they serve
new connections, and leave to netfilter those that it has begun. kube-proxy itself has to be gone, or it would
write its rules again.

With --back the other way round: kube-proxy has to run, and the agent to be stopped. Flows become netfilter's
connections, and the programs are removed, as by 'lbctl unload'.
""",
        notes="""\
Connections that are not moved are named and counted: those to addresses that are no Service here, and those
of UDP to backends that are gone. docs/migration.md has the steps for a cluster.
""",
        examples="lbctl cutover --dry-run\nlbctl cutover\nlbctl cutover --back",
        codes="0 done; 1 it could not be done, or a connection that should have moved was not; 2 wrong usage",
        handler="cutover.run",
    )
    parts.instance(parser)
    parser.add_argument("--back", action="store_true", help="give Services back to kube-proxy")
    parser.add_argument("--dry-run", action="store_true", help="say what would be moved; nothing is changed")
    parts.output(parser, "text")


def unload(commands: Commands) -> None:
    """Add ``lbctl unload``."""
    parser = command(
        commands,
        "unload",
        about="""\
Remove the programs from all interfaces of this network namespace, those of the instance from its control
group, its pinned maps and programs, and the agent's files. Connections through Services break. It is no error
if nothing is there.
""",
        examples="lbctl unload\nlbctl unload --instance node1 --force",
        handler="unload.run",
    )
    parts.instance(parser)
    parser.add_argument(
        "--force", action="store_true", help="also while the agent runs, which is not stopped"
    )


def completion(commands: Commands) -> None:
    """Add ``lbctl completion``."""
    parser = command(
        commands,
        "completion",
        about="""\
Print a script with which a shell completes commands and flags of lbctl when Tab is pressed and, for
root, the names of instances and Services.
""",
        examples="""\
lbctl completion bash > /etc/bash_completion.d/lbctl
lbctl completion zsh > "${fpath[1]}/_lbctl"
lbctl completion fish > ~/.config/fish/completions/lbctl.fish
""",
        handler="completion.run",
    )
    parser.add_argument("shell", metavar="SHELL", choices=["bash", "zsh", "fish"], help="bash, zsh or fish")


def version(commands: Commands) -> None:
    """Add ``lbctl version``."""
    command(
        commands,
        "version",
        about="Print the version of lbctl.\n",
        examples="lbctl version",
        handler="command.version",
    )
