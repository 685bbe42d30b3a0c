# SPDX-License-Identifier: Apache-2.0
"""Commands that find out: trace, explain, audit, plan, doctor."""

from __future__ import annotations

from pathlib import Path

from lb.cli.grammar import parts
from lb.cli.grammar.parts import Commands, command


def trace(commands: Commands) -> None:
    """Add ``lbctl trace``."""
    parser = command(
        commands,
        "trace",
        about="""\
Run a packet through the programs of this node and show, step by step, what became of it and why: VIP and
Service, flow, source ranges and policy, affinity or hash, backend, NAT, verdict and reason, the packet before
and after. The very programs that are attached run on it, with the live VIPs, backends and
settings. What they write (flows, affinity, counters) goes to copies, so nothing of the node is changed.

The packets of one call come one after the other: in a capture, a SYN makes the flow that the next packet
finds.
""",
        notes="""\
addresses: 192.0.2.7:40000, 192.0.2.7, [2001:db8::7]:40000, 2001:db8::7; a SRC without port has port 50000; a
DST without port is for --proto icmp (a ping)

--in: an interface; outside: the uplink; pod:NAMESPACE/NAME: the interface of that pod, of which the source
tells (see --source); host: a process of the node has sent it. Default: what SRC and the routes say.
""",
        examples="""\
lbctl trace 192.0.2.7 203.0.113.10:80
lbctl trace --in host 192.0.2.1 10.96.0.10:53 --proto udp
lbctl trace 10.244.1.2:40000 10.96.0.10:80 --reply -o json
lbctl trace --in eth0 --read dropped.pcapng
""",
        codes="0 told, whatever became of the packet; 1 could not be tried, stderr says why; 2 wrong usage",
        handler="trace.run",
    )
    parser.add_argument("src", nargs="?", metavar="SRC[:PORT]", help="the client")
    parser.add_argument("dst", nargs="?", metavar="DST[:PORT]", help="the VIP, or any other address")
    parser.add_argument(
        "--in", dest="where", default="", metavar="WHERE", help="where it comes in, see below"
    )
    parser.add_argument("--proto", choices=("tcp", "udp", "sctp", "icmp"), default="tcp", help="default: tcp")
    parser.add_argument("--flags", default="S", metavar="SA", help="TCP's, as F S R P A U; default: S (SYN)")
    parser.add_argument("--reply", action="store_true", help="also trace the backend's answer")
    parser.add_argument(
        "--read", type=Path, metavar="FILE", help="the packets of a pcap or pcapng file instead"
    )
    parser.add_argument(
        "--pcap", type=Path, metavar="OUT", help="write each packet, before and after, to a file"
    )
    parts.output(parser, "text")
    parts.source(parser)


def explain(commands: Commands) -> None:
    """Add ``lbctl explain``."""
    parser = command(
        commands,
        "explain",
        about="""\
Work through the list that finds out why a Service does not answer, in its order: the Service, its
selector, pods and their conditions, target ports, endpoints, traffic policies, source ranges; then
whether this node's maps hold what the source says and its hooks are attached; then real
connections from this node, straight to each endpoint and through each VIP. Nothing is changed.
""",
        examples="""\
lbctl explain default/web
lbctl explain default/web --from 198.51.100.7 --no-probes
lbctl explain svc/web -n shop --source manifests:/etc/lbctl/manifests
""",
        codes="0 no cause was found; 1 a cause was found, or it could not be done; 2 wrong usage",
        handler="explain.run",
    )
    parts.service(parser)
    parts.source(parser)
    parser.add_argument(
        "--from",
        dest="client",
        metavar="ADDRESS",
        help="the client that source ranges are judged for; default: this node",
    )
    parser.add_argument(
        "--all", dest="every", action="store_true", help="try every endpoint, not 50 of each port"
    )
    parser.add_argument("--no-probes", action="store_true", help="make no connections")
    parts.output(parser, "text")


def audit(commands: Commands) -> None:
    """Add ``lbctl audit``."""
    parser = command(
        commands,
        "audit",
        about="""\
Compare what the source says with what the kernel's maps hold: the source is read anew, planned
anew, and each entry that differs is named, and each hook without its program. Interfaces and
settings are compared with the node and with what its agent was told. A sign in front says how an
entry differs: + it is missing, - it should not be there, ~ it has another value. If the agent is
about to write changes, the command waits for that first.

--heal has the differences corrected by the agent, or corrects them itself if no agent runs.
Connections are kept.
""",
        examples="lbctl audit\nlbctl audit --heal\nlbctl audit --node node1 -o json",
        codes="0 no difference, or all healed; 1 differences, or it could not be done; 2 wrong usage",
        handler="audit.run",
    )
    parts.source(parser)
    parser.add_argument("--heal", action="store_true", help="bring the kernel in step with the source")
    parts.output(parser, "table")


def plan(commands: Commands) -> None:
    """Add ``lbctl plan``."""
    parser = command(
        commands,
        "plan",
        about="""\
Show what manifests would change in this node's maps, entry by entry, if they were applied to the
source as it is now: Services, Endpoints, EndpointSlices, Pods, Nodes; an object of the same kind
and name is replaced, and of several in the manifests the last one counts. Then how much room each
map it touches has left, and how many live connections and clients with affinity would lose their
backend. Nothing is applied.
""",
        examples="lbctl plan -f web.yaml -f dns.yaml\nkubectl kustomize new | lbctl plan -f - -o json",
        codes="""\
0 it would work, whether or not anything changes; 1 some of it would not (a full map,
an address that another Service has), or it could not be done; 2 wrong usage""",
        handler="plan.run",
    )
    parser.add_argument(
        "-f",
        "--file",
        action="append",
        required=True,
        metavar="FILE",
        help="manifests in YAML or JSON: a file, a folder with all below it, or - for standard input (may be"
        " repeated)",
    )
    parts.source(parser)
    parts.output(parser, "text")


def doctor(commands: Commands) -> None:
    """Add ``lbctl doctor``."""
    parser = command(
        commands,
        "doctor",
        about="""\
Look at this machine and say what lbctl needs and has, what will not work, and what to do about it. Nothing is
changed: to find out what the kernel can do, small maps and programs are made and removed again.
""",
        examples="lbctl doctor\nlbctl doctor -o json",
        codes="0 nothing fails; 1 something will not work, or it could not be done; 2 wrong usage",
        handler="doctor.run",
    )
    parts.output(parser, "table")
