/* The translation itself: addresses, ports, checksums, and the TTL where we forward. */
#pragma once
#include "conntrack.h"
#include "csum.h"

/* The IPv4 header from the TTL on: everything that NAT changes, in one store. */
struct ip4_tail {
	u8 ttl;
	u8 protocol;
	__sum16 check;
	__be32 src;
	__be32 dst;
};

#define IP4_TAIL_OFFSET (L3_OFFSET + (int)__builtin_offsetof(struct iphdr, ttl))
#define TCP_CSUM_OFFSET (L4_OFFSET + (int)__builtin_offsetof(struct tcphdr, check))
#define UDP_CSUM_OFFSET (L4_OFFSET + (int)__builtin_offsetof(struct udphdr, check))

/* Rewrite the packet to what `to` says. False: the kernel refused, and the packet must be dropped. */
static __always_inline bool translate(ctx_t *ctx, const struct packet *pkt, const struct tuple *to,
				      bool decrement_ttl)
{
	u32 l4_csum = pkt->tuple.protocol == IPPROTO_TCP ? TCP_CSUM_OFFSET : UDP_CSUM_OFFSET;
	struct ip4_tail tail = {
	    .ttl = pkt->ttl - decrement_ttl,
	    .protocol = pkt->tuple.protocol,
	    .src = to->src.word[0],
	    .dst = to->dst.word[0],
	};
	__be16 port_pair[2] = {to->sport, to->dport};
	u64 addresses, ports;

	addresses = delta32(0, pkt->tuple.src.word[0], to->src.word[0]);
	addresses = delta32(addresses, pkt->tuple.dst.word[0], to->dst.word[0]);
	ports = delta16(0, pkt->tuple.sport, to->sport);
	ports = delta16(ports, pkt->tuple.dport, to->dport);
	tail.check = csum_update(pkt->ip_check,
				 delta16(addresses, bpf_htons(pkt->ttl << 8), bpf_htons(tail.ttl << 8)));

	return ctx_update_l4_csum(ctx, l4_csum, pkt->tuple.protocol == IPPROTO_UDP, addresses, ports) &&
	       ctx_store(ctx, L4_OFFSET, port_pair, sizeof(port_pair)) &&
	       ctx_store(ctx, IP4_TAIL_OFFSET, &tail, sizeof(tail));
}
