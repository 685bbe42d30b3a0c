/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The translation itself: addresses, ports, checksums, and the TTL where we forward. */
#pragma once
#include "parse.h"
#include "sctp.h"

#define TCP_CSUM (__builtin_offsetof(struct tcphdr, check))
#define UDP_CSUM (__builtin_offsetof(struct udphdr, check))

static __always_inline u64 ports_delta(const struct tuple *old, const struct tuple *new)
{
	return delta16(delta16(0, old->sport, new->sport), old->dport, new->dport);
}

static __always_inline u64 addresses_delta(const struct tuple *old, const struct tuple *new)
{
	return delta_addr(delta_addr(0, &old->src, &new->src), &old->dst, &new->dst);
}

static __always_inline bool store_ports(ctx_t *ctx, u32 at, __be16 sport, __be16 dport)
{
	__be16 pair[2] = {sport, dport};

	return ctx_store(ctx, at, pair, sizeof(pair));
}

/* Write the ports of an SCTP packet, and update its checksum. That covers no addresses: where the ports stay
 * as they are, so does the checksum. False: the kernel refused. */
static __always_inline bool update_sctp(ctx_t *ctx, const struct packet *pkt, const struct tuple *to)
{
	u32 offset = pkt->l4 + __builtin_offsetof(struct sctp_head, checksum);
	u32 old = pkt->tuple.sport | (u32)pkt->tuple.dport << 16;
	u32 new = to->sport | (u32)to->dport << 16;
	__le32 checksum;

	if (old == new)
		return true;
	if (!ctx_load(ctx, offset, &checksum, sizeof(checksum)) ||
	    !crc32c_update(&checksum, old, new, pkt->sum_len))
		return false;
	return ctx_store(ctx, offset, &checksum, sizeof(checksum)) &&
	       store_ports(ctx, pkt->l4, to->sport, to->dport);
}

/* Write the ports, and update the checksum that covers them. A later piece has neither. */
static __always_inline bool translate_l4(ctx_t *ctx, const struct packet *pkt, const struct tuple *to,
					 u64 addresses)
{
	bool udp = pkt->tuple.protocol == IPPROTO_UDP;

	if (unlikely(pkt->piece == PIECE_LATER))
		return true;
	if (unlikely(pkt->tuple.protocol == IPPROTO_SCTP))
		return update_sctp(ctx, pkt, to);
	return ctx_update_l4_csum(ctx, pkt->l4 + (udp ? UDP_CSUM : TCP_CSUM), udp, addresses,
				  ports_delta(&pkt->tuple, to)) &&
	       store_ports(ctx, pkt->l4, to->sport, to->dport);
}

/* Rewrite the packet. False: the kernel refused, and the packet must be dropped. */
static __always_inline bool translate(ctx_t *ctx, const struct packet *pkt, const struct tuple *to, u8 ttl)
{
	u64 addresses = addresses_delta(&pkt->tuple, to);

	return translate_l4(ctx, pkt, to, addresses) &&
	       store_ip(ctx, pkt, pkt->tuple.protocol, ttl, addresses, &to->src, &to->dst);
}
