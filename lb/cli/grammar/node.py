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
Make new connections from outside come in on other nodes. To routers and on the segment this node announces
its addresses as a last choice first, then not at all; /healthz and health-check ports say 503. Nothing else
changes: what still arrives is served, and the node's own pods and processes reach every Service. Where the
address moves on the segment (ARP), open TCP and SCTP connections go on; those that a router (BGP) moves to
another node are lost, unless they use direct return. The mark outlives the agent, and ends with --undo or a
reboot.
""",
        notes="""\
It counts live connections through node ports, load-balancer and external addresses, except those of the
node's own processes. --wait ends when there has been none for three seconds, and the node announces no
address any more.
""",
        examples="lbctl node drain --wait --timeout 300\n"
        "lbctl node drain --node node1 -o json\n"
        "lbctl node drain --undo",
        codes="0 done, with --wait: no connection comes in any more; 1 --timeout is over before, or it could"
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
