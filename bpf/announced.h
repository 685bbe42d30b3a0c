/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Addresses that this node owns on a segment, or has owned: see neighbour.h. */
#pragma once
#include "forward.h"

static __always_inline bool same_mac(const u8 *a, const u8 *b)
{
	u8 differs = 0;

#pragma unroll
	for (int i = 0; i < ETH_ALEN; i++)
		differs |= a[i] ^ b[i];
	return !differs;
}

/* The entry of an address at the interface that the frame is at; NULL: it is not this node's business. */
static __always_inline const struct announced *lookup_announced(ctx_t *ctx, const struct addr *address)
{
	struct announced_key key = {.address = *address, .ifindex = ctx_ifindex(ctx)};

	return bpf_map_lookup_elem(announced_map, &key);
}

/* Is a packet, of a connection that is unknown here and does not begin with it, to be sent on to the former
 * owner of the address? It is if the address has come from another node a moment ago: that node has the
 * connection, and the backend knows it under that node's address. A packet that comes from the former owner
 * is not sent back, since it is unknown there, too. False: this node serves the packet. *eth: the link header
 * that it came with. */
static __always_inline bool is_former_owner_s(ctx_t *ctx, const struct packet *pkt, struct ethhdr *eth)
{
	const struct announced *here;

	if (opens(pkt) || pkt->piece || !pkt->l3 || pkt->ttl <= 1)
		return false;
	here = lookup_announced(ctx, &pkt->tuple.dst);
	if (likely(!here) || bpf_ktime_get_ns() >= here->former_ns || !ctx_load(ctx, 0, eth, sizeof(*eth)) ||
	    same_mac(eth->h_source, here->former))
		return false;
	__builtin_memcpy(eth->h_dest, here->former, ETH_ALEN);
	__builtin_memcpy(eth->h_source, here->mac, ETH_ALEN);
	return true;
}

static __always_inline struct outcome send_to_former_owner(ctx_t *ctx, const struct packet *pkt,
							   const struct ethhdr *eth)
{
	if (!store_ip(ctx, pkt, pkt->tuple.protocol, pkt->ttl - 1, 0, &pkt->tuple.src, &pkt->tuple.dst) ||
	    !store_link(ctx, pkt, eth))
		return drop(REASON_REWRITE_FAILED);
	return outcome(ctx_send_back(ctx, false), REASON_TO_FORMER_OWNER);
}
