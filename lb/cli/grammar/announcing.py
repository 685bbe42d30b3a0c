# SPDX-License-Identifier: Apache-2.0
"""``lbctl announce`` and its commands."""

from __future__ import annotations

from pathlib import Path

from lb.cli.grammar import parts
from lb.cli.grammar.parts import Commands, command, formed, process, verbs
from lb.setting_forms import INSTANCE, LISTEN_ADDRESS


def announce(commands: Commands) -> None:
    """Add ``lbctl announce``."""
    parser = command(
        commands,
        "announce",
        about="Tell routers which addresses of Services this node serves, and see what they were told.\n",
        examples="lbctl announce bgp --peers /etc/lbctl/peers.yaml\nlbctl announce status",
    )
    actions = verbs(parser)
    running = command(
        actions,
        "bgp",
        "tell routers, over BGP",
        about="""\
Ask the agent of this node which load-balancer addresses it can serve now, and tell routers so over BGP,
one route of full length for each. BIRD 2 (Debian: bird2) holds the sessions; it is started, configured and
watched. While the agent is away, nothing changes. A route is withdrawn when the node cannot serve its address
any more; for a node that is drained or deleted, routers are first told to prefer others (RFC 8326).
""",
        notes="""\
the file of peers, read again when it changes:
  asn: 64512
  peers:
    - name: tor-a
      address: 192.168.77.1
      asn: 64500
      password_file: tor-a.key   # MD5 (RFC 2385), beside this file; default: none
      bfd: true                  # default: false
  advertise:                     # what fits no entry is told to nobody
    - addresses: [203.0.113.0/24, 2001:db8:203::/112]
      communities: ["64512:100"]
docs/announce.md has all that it may say.
""",
        examples="lbctl announce bgp --peers /etc/lbctl/peers.yaml --instance node1",
        codes="0 ended by SIGTERM or SIGINT; 1 it could not start, stderr says why; 2 wrong usage",
        handler="announce.run_bgp",
    )
    running.add_argument("--peers", type=Path, metavar="FILE", required=True, help="the file of peers")
    running.add_argument(
        "--instance",
        type=formed(INSTANCE),
        metavar="NAME",
        help="the agent's setting of that name; default: as --config says, else the host name",
    )
    running.add_argument(
        "--config", type=Path, metavar="FILE", help="the agent's settings: its instance, or node_name"
    )
    running.add_argument(
        "--router-id",
        metavar="A.B.C.D",
        help="default: the node's first IPv4 InternalIP; without one, a number that follows from its name",
    )
    process(running, LISTEN_ADDRESS, "127.0.0.1:10252")
    status = command(
        actions,
        "status",
        "peers, what they were told, and why an address is not told to them",
        about="Peers, what they were told, and why an address is not told to them.\n",
        examples="lbctl announce status\nlbctl announce status --node node1 -o json",
        codes="0 nothing is wrong; 1 something is, or it could not be told; 2 wrong usage",
        handler="announce.run_status",
    )
    parts.instance(status)
    parts.output(status, "text")
