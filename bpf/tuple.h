/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Addresses and ports of a connection, and how they are compared. */
#pragma once
#include "types.h"

/* What names a connection, and what NAT changes of it. */
struct tuple {
	struct addr src;
	struct addr dst;
	__be16 sport;
	__be16 dport;
	u8 protocol;
};

/* The bits in which two addresses differ, in whichever word: 0 for the same address. */
static __always_inline u32 addr_difference(const struct addr *a, const struct addr *b)
{
	u32 differs = 0;

#pragma unroll
	for (int i = 0; i < ADDR_WORDS; i++)
		differs |= a->word[i] ^ b->word[i];
	return differs;
}

static __always_inline bool same_addr(const struct addr *a, const struct addr *b)
{
	return !addr_difference(a, b);
}

/* Two tuples, keys or entries of flows: do they have the same addresses and ports? Are those of the one the
 * other's with source and destination exchanged? */
#define SAME_ENDS(a, b)                                                                                      \
	(same_addr(&(a)->src, &(b)->src) && same_addr(&(a)->dst, &(b)->dst) && (a)->sport == (b)->sport &&   \
	 (a)->dport == (b)->dport)
#define MIRRORED(a, b)                                                                                       \
	(same_addr(&(a)->src, &(b)->dst) && same_addr(&(a)->dst, &(b)->src) && (a)->sport == (b)->dport &&   \
	 (a)->dport == (b)->sport)

/* The tuple of the same connection's packets the other way. */
static __always_inline struct tuple reverse(const struct tuple *t)
{
	struct tuple r = {
	    .src = t->dst,
	    .dst = t->src,
	    .sport = t->dport,
	    .dport = t->sport,
	    .protocol = t->protocol,
	};

	return r;
}
