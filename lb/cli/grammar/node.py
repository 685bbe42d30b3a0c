# SPDX-License-Identifier: Apache-2.0
"""``lbctl node`` and its commands."""

from __future__ import annotations

from lb.cli.grammar import parts
from lb.cli.grammar.parts import Commands, command, verbs


def node(commands: Commands) -> None:
    """Add ``lbctl node``."""
    parser = command(
        commands,
        "node",
        about="Take this node out of service for whoever sends it traffic, and put it back.\n",
        examples="lbctl node drain --wait --timeout 300\nlbctl node drain --undo",
    )
    drain = command(
        verbs(parser),
        "drain",
        "let new connections come in elsewhere; open ones go on",
        about="""\
Let new connections from outside come in on other nodes. Routers and the segment are told so: first as the
last choice, then not at all; /healthz and health-check ports say 503. Nothing else changes: what still comes
is served, and the node's own pods and processes reach every Service. Where the address moves on the segment
(ARP), open TCP and SCTP connections go on; those that a router (BGP) moves to another node are lost, unless
they use direct return. The mark outlives the agent, and ends with --undo or a reboot.
""",
        notes="""\
Counted are live connections through node ports, load-balancer and external addresses, but for those of the
node's own processes. --wait ends when for three seconds there was none, and no address was told to the
network.
""",
        examples="lbctl node drain --wait --timeout 300\n"
        "lbctl node drain --node node1 -o json\n"
        "lbctl node drain --undo",
        codes="0 done, with --wait: nothing comes in here any more; 1 --timeout is over before, or it could"
        " not be done, stderr says why; 2 wrong usage",
        handler="node.run_drain",
    )
    drain.add_argument("--undo", action="store_true", help="put it back: everything is as before")
    drain.add_argument("--wait", action="store_true", help="until the last connection from outside is over")
    drain.add_argument(
        "--timeout", type=parts.seconds, metavar="SECONDS", help="of --wait: then give up (default: never)"
    )
    parts.instance(drain)
    parts.output(drain, "text")
