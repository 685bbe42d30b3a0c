# SPDX-License-Identifier: Apache-2.0
"""Commands that show what is in the kernel: status, service, maps, flows, top, monitor, history."""

from __future__ import annotations

import math
from pathlib import Path

from lb.cli.grammar import parts
from lb.cli.grammar.parts import Commands, command, number, verbs

_INTERVAL = number(float, lambda found: 0.1 <= found <= 3600, "a number of seconds from 0.1 to 3600")
_POSITIVE = number(int, lambda found: 0 < found < 1 << 32, "a whole number from 1 on")

_SECTIONS = """\
sections:
  vips      Service addresses and ports, and the backends behind them
  addresses Service addresses as a whole: who answers a ping there
  backends  every slot in use: one for each Service port and endpoint
  flows     translated connections
  affinity  clients that keep their backend (sessionAffinity: ClientIP)
  counters  packets and bytes by hook and by the reason they left with
  announced addresses that this node answers for: ARP, and neighbour discovery in IPv6
"""


def status(commands: Commands) -> None:
    """Add ``lbctl status``."""
    parser = command(
        commands,
        "status",
        about="""\
Say in the first line whether all is well, then name each problem with its time and what to do about it;
below, what is in the kernel: hooks, how full the maps are, how many entries had to make room before their
time (EVICTED). The problems, the times and the health-check ports are the agent's own notes, at most five
seconds old; an agent that does not run or hangs is a problem, and then the hooks themselves are looked at.
""",
        examples="lbctl status\nlbctl status --programs\nlbctl status --node node1 -o json",
        codes="0 all is well; 1 there are problems, or it could not be told (stderr says why); 2 wrong usage",
        handler="status.run",
    )
    parts.instance(parser)
    parser.add_argument(
        "--programs", action="store_true", help="show each hook with its program, the programs, and every map"
    )
    parts.output(parser, "table", "wide", told="; wide is --programs")


def service(commands: Commands) -> None:
    """Add ``lbctl service list`` and ``show``."""
    parser = command(
        commands,
        "service",
        about="Show Services as the kernel's maps have them: all of them, or one in detail.\n",
        examples="lbctl service list\nlbctl service show default/web",
    )
    each = verbs(parser)
    listing = command(
        each,
        "list",
        "list Service ports, their VIPs and backends, and conflicts",
        about="""\
List the Service ports in the kernel's maps, one row for each port and IP family: its backends, how many of
them are local (on this node), and its VIPs. Below, who has a VIP that several Services claim, and which
addresses a Service may not have: those are the agent's own notes, at most five seconds old; and, if it runs,
which Services have no VIP: headless ones, ExternalName, those of another proxy; and of which pools
load-balancer addresses are, or why a Service has none.
""",
        examples="lbctl service list -n shop -o wide\nlbctl service list -o json | jq '.services[].service'",
        handler="service.run_list",
    )
    parts.services(listing, one=False)
    parts.instance(listing)
    parts.output(listing, "table", "wide", told="; wide has backends on their way out as well")
    showing = command(
        each,
        "show",
        "show one Service: VIPs, policies, backends, connections",
        about="""\
Show one Service as the kernel's maps have it: each port and IP family with its VIPs, who may use
them, and its backends with their pods; how many connections are live, how many clients have
affinity. 'lbctl explain' says why it does not answer.
""",
        examples="lbctl service show default/web\nlbctl service show svc/web -n shop -o yaml",
        handler="service.run_show",
    )
    parts.service(showing)
    parts.instance(showing)
    parts.output(showing, "text")


def maps(commands: Commands) -> None:
    """Add ``lbctl maps dump`` and ``list``."""
    parser = command(
        commands,
        "maps",
        about="Show the kernel's maps: what they hold, or what each of them is for.\n",
        examples="lbctl maps dump vips\nlbctl maps list",
    )
    each = verbs(parser)
    dumping = command(
        each,
        "dump",
        "print what the maps hold",
        about=f"""\
Print what the kernel's maps hold. It is read from the kernel: this is what the programs use, whether or not
the agent runs.

{_SECTIONS}""",
        examples="""\
lbctl maps dump vips --service default/web
lbctl maps dump -o json | jq '.flows[] | select(.state == "established")'
lbctl maps dump -o ipvsadm | grep 10.96.0.10
""",
        handler="maps.run_dump",
    )
    # No choices: argparse before Python 3.12 checks the empty list against them.
    dumping.add_argument("sections", nargs="*", metavar="SECTION", help="default: all of them")
    parts.output(
        dumping, "table", "ipvsadm", told="; ipvsadm is what 'ipvsadm -Sn' would print, and has vips only"
    )
    parts.services(dumping)
    parts.instance(dumping)
    command(
        each,
        "list",
        "explain every map: key, value, writer, size, what happens when full",
        about="Explain every map: key, value, who writes it, size, what happens when it is full.\n",
        examples="lbctl maps list",
        handler="maps.run_list",
    )


def flows(commands: Commands) -> None:
    """Add ``lbctl flows``."""
    parser = command(
        commands,
        "flows",
        about="""\
List connections as the kernel has them: the client, the VIP that it uses, the backend that it
was led to, the node's address that stands for the client where there is one (SNAT), the state, how
long ago the last packet was, and the pods at both ends, as far as the agent knows them. The entry of
a closed connection, which both sides have ended, stays for a while, for segments that are sent again.
TCP connections of the node's own processes are led to their backend at the socket and have no flow.
""",
        examples="lbctl flows -n shop\nlbctl flows --service default/web -o json",
        handler="flows.run",
    )
    parts.instance(parser)
    parts.services(parser)
    parts.output(parser, "table")


def top(commands: Commands) -> None:
    """Add ``lbctl top``."""
    parser = command(
        commands,
        "top",
        about="""\
Show what Services carry, as the kernel counts it: connections, packets and bytes per second, how long
handshakes took (SYN to SYN-ACK; median and 99th percentile of the last interval), connections that
backends refused or did not answer (FAIL), packets that went nowhere (DROP). IN is towards backends,
OUT back from them. A wide terminal shows totals as well. Above, how many established connections and
clients with affinity had to make room for new ones (evicted), where any had.

keys: up and down select, enter shows the backends of a Service, escape goes back, < and > change the
column that is sorted by, / takes a text that names must contain, q leaves.
""",
        examples="lbctl top\nlbctl top --filter shop/\nlbctl top --once --interval 10\nlbctl top -o json",
        handler="top.run",
    )
    parts.instance(parser)
    parser.add_argument(
        "--interval", type=_INTERVAL, default=2.0, metavar="SECONDS", help="between two looks; default: 2"
    )
    parser.add_argument(
        "--filter", default="", metavar="TEXT", help="only Services whose NAMESPACE/NAME:PORT contains it"
    )
    parser.add_argument("--once", action="store_true", help="print one table, of one interval, and end")
    parts.services(parser, one=False)
    parts.output(parser, "screen", told="; json and yaml: one interval")


def monitor(commands: Commands) -> None:
    """Add ``lbctl monitor``."""
    parser = command(
        commands,
        "monitor",
        about="""\
Show, live, which connections begin and end, and which packets are dropped or refused and why. The programs
that translate the packets write these events into a ring buffer. While nobody watches, that costs next to
nothing; only with --packets or --pcap is there an event for each packet of a connection.

A line has the time, what it is about, the reason, the Service and its port, the ends, the interface and the
hook: client -> VIP => backend (pod), with "as" the node's address that stands for the client (SNAT); of a
packet to the client, client <- VIP <= backend. On a narrow terminal it goes on in the next line.
""",
        notes="""\
The end of a connection by a timeout is not shown: no packet passes then. Of a connection that is led to its
backend at the socket only the beginning is shown: its packets need no translation. Only one lbctl monitor may
run for an instance.
""",
        examples="""\
lbctl monitor --service default/web
lbctl monitor --drops -o json
lbctl monitor --service default/web:http --packets --count 20
lbctl monitor --pcap nat.pcapng --sample 100 --duration 60
""",
        codes="0 told, until it was enough; 1 could not be told, stderr says why; 2 wrong usage",
        handler="monitor.run",
    )
    parts.instance(parser)
    parts.services(parser, port=True)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--drops", action="store_true", help="only what is dropped or refused")
    which.add_argument("--packets", action="store_true", help="every packet that is translated or answered")
    parser.add_argument(
        "--sample", type=_POSITIVE, default=1, metavar="N", help="only one of N connections, all of it"
    )
    parser.add_argument(
        "--count", type=_POSITIVE, default=math.inf, metavar="N", help="end after so many events"
    )
    parser.add_argument(
        "--duration", type=parts.seconds, default=math.inf, metavar="S", help="end after S seconds"
    )
    parser.add_argument(
        "--pcap",
        type=Path,
        metavar="FILE",
        help="also write the packets, before and after, as pcapng with the reason as a comment (the first 256"
        " bytes of each); of every packet, or with --drops of those",
    )
    parts.output(parser, "text")


def history(commands: Commands) -> None:
    """Add ``lbctl history``."""
    parser = command(
        commands,
        "history",
        about="""\
Show what the agent has lately written to this node's maps for a Service: when it was in the maps,
how long after the event that was the cause, what that was (an object of the source, interfaces, the
agent's start, a heal, another Service's claim), and what became of VIPs, backends, source ranges
and lookup tables. Only the agent's memory has it: the last 40 changes of a Service, the last
2000 of all, since it started.
""",
        examples="lbctl history default/web\nlbctl history web --node node1 -o json",
        handler="history.run",
    )
    parts.service(parser)
    parts.instance(parser)
    parts.output(parser, "text")
