# SPDX-License-Identifier: Apache-2.0
"""One owner for each address on a segment, who answers for it in ARP and in neighbour discovery (NDP).

Whoever reaches a segment's hosts by ARP reaches them by a broadcast frame. So nodes tell each other what they
can serve and what they own by such frames, a few each second (:mod:`lb.segment.heartbeats`). Each works out
alone who is to own what (:mod:`lb.segment.election`), and hands over what is another's. What a node owns it
writes into the map ``announced``, always for two seconds (:mod:`lb.segment.ownership`), and the programs
answer.

No API server takes part: an address is found for as long as the nodes that serve it are there, and a node is
there for a segment when the segment hears it. A Lease says less: that a node reaches the API server, by
whatever interface. VRRP says who of a fixed list of routers owns one group of addresses; which of them can
serve an address, as traffic policy Local asks, it has no place for.
"""
