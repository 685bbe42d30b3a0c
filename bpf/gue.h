/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How a packet travels from the node where it came in to the node of its backend: as it came, but for its
 * TTL, behind an IP header between the nodes, UDP and GUE (draft-ietf-intarea-gue-09, variant 0), whose
 * private data say which backend was chosen. docs/direct-return.md has the picture, and says why GUE. */
#pragma once
#include "ip.h"

struct gue {
	u8 words;     /* variant 0, no control message, and how many words of 32 bits follow the first */
	u8 protocol;  /* of the packet inside: GUE_INSIDE */
	__be16 flags; /* none */
	u8 kind;      /* GUE_KIND; the rest is private data */
	u8 hops;      /* how many nodes have sent it on before its sender */
	__be16 port;  /* of the backend */
	struct addr backend;
};

#define GUE_KIND 1
/* How many nodes a packet is sent on by that none of them knows, before it goes back. */
#define GUE_MOST_HOPS 7
#define GUE_WORDS     ((sizeof(struct gue) - sizeof(u32)) / sizeof(u32))
#define GUE_INSIDE    (FAMILY == 6 ? IPPROTO_IPV6 : IPPROTO_IPIP)

/* What stands before the packet. */
struct outer {
	ip_header_t ip;
	struct udphdr udp;
	struct gue gue;
};

/* Behind it, where the connection has not begun at the sender, and may be another node's: where the receiver
 * sends the packet on to if it does not know the connection. With no hops that is the choice of a former set;
 * else it is where the packet came for at first, and comes back to when nobody knows it. The words of struct
 * gue count these as well. */
struct gue_chance {
	struct addr node; /* 0: none */
	struct addr backend;
	__be16 port;
	u8 pad[2];
};

#define GUE_CHANCE_WORDS (sizeof(struct gue_chance) / sizeof(u32))

struct outer_with_chance {
	struct outer outer;
	struct gue_chance chance;
};

/* The UDP source port tells connections apart, for whoever spreads packets by it (ECMP, queues of a network
 * card): RFC 7605, section 7.5. It is one of the dynamic ports, 49152 to 65535. */
#define GUE_SOURCE_MIN	0xc000
#define GUE_SOURCE_BITS 14

/* Bytes that a packet becomes longer by. */
#define GUE_OVERHEAD	  sizeof(struct outer)
#define GUE_MOST_OVERHEAD sizeof(struct outer_with_chance)
