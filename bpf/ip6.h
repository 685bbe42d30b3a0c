/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* IPv6 and ICMPv6 on the wire. Same names as ip4.h. */
#pragma once
#include "packet.h"

#define IP_ETHERTYPE  ETH_P_IPV6
#define IP_AF	      10 /* AF_INET6 */
#define ICMP_PROTOCOL IPPROTO_ICMPV6
#define ECHO_REQUEST  ICMPV6_ECHO_REQUEST

typedef struct ipv6hdr ip_header_t;

enum error {
	ERROR_PORT_UNREACHABLE = ICMPV6_DEST_UNREACH << 8 | ICMPV6_PORT_UNREACH,
	ERROR_HOST_UNREACHABLE = ICMPV6_DEST_UNREACH << 8 | ICMPV6_ADDR_UNREACH,
	ERROR_TOO_BIG = ICMPV6_PKT_TOOBIG << 8, /* RFC 4443, section 3.2: the MTU has all 32 bits */
	ERROR_TTL_EXPIRED = ICMPV6_TIME_EXCEED << 8 | ICMPV6_EXC_HOPLIMIT,
};

static __always_inline u8 echo_reply_type(void)
{
	return ICMPV6_ECHO_REPLY;
}

/* RFC 4443, section 2.1: the errors are the types below 128. */
static __always_inline bool is_icmp_error(u8 type)
{
	return type && type < 128;
}

/* RFC 4291, sections 2.5 to 2.7: unspecified, loopback, IPv4-mapped and multicast addresses are no sender's,
 * and link-local ones must not be forwarded. */
static __always_inline bool is_martian(const struct addr *source)
{
	u32 first = bpf_ntohl(source->word[0]);

	if (!first && !source->word[1])
		return (!source->word[2] && bpf_ntohl(source->word[3]) <= 1) ||
		       source->word[2] == bpf_htonl(0xffff);
	return (first >> 24) == 0xff || (first & 0xffc00000) == 0xfe800000;
}

/* RFC 8200, section 4.5. */
struct fragment_header {
	u8 next;
	u8 reserved;
	__be16 offset; /* the upper 13 bits: in 8 bytes; the lowest: more fragments */
	__be32 id;
};

static __always_inline bool is_extension(u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS ||
	       next == IPPROTO_AH || next == IPPROTO_FRAGMENT;
}

static __always_inline struct addr addr_from6(const struct in6_addr *in)
{
	struct addr out;

	__builtin_memcpy(&out, in, sizeof(out));
	return out;
}

/* Fill in what the IP header says; returns PARSED, or why the packet is not for us. */
static __always_inline u32 parse_ip(ctx_t *ctx, struct packet *pkt)
{
	struct fragment_header *fragment;
	struct ipv6hdr *ip;

	ip = ctx_at(ctx, pkt->l3, sizeof(*ip));
	if (!ip)
		return REASON_MALFORMED;
	/* No payload length, no packet: a jumbogram (RFC 2675) has another header in between as well. */
	if (ip->version != 6 || !ip->payload_len ||
	    pkt->l3 + sizeof(*ip) + bpf_ntohs(ip->payload_len) > ctx_len(ctx) ||
	    bpf_ntohs(ip->payload_len) > 0xffff - sizeof(*ip))
		return REASON_MALFORMED;
	pkt->l4 = pkt->l3 + sizeof(*ip);
	pkt->l4_len = bpf_ntohs(ip->payload_len);
	pkt->ip_len = sizeof(*ip) + pkt->l4_len;
	pkt->tuple.src = addr_from6(&ip->saddr);
	pkt->tuple.dst = addr_from6(&ip->daddr);
	pkt->tuple.protocol = ip->nexthdr;
	pkt->ttl = ip->hop_limit;
	if (likely(!is_extension(ip->nexthdr)))
		return PARSED;
	if (ip->nexthdr != IPPROTO_FRAGMENT)
		return REASON_IP_OPTIONS;

	fragment = ctx_at(ctx, pkt->l4, sizeof(*fragment));
	if (!fragment || pkt->l4_len < sizeof(*fragment))
		return REASON_MALFORMED;
	if (is_extension(fragment->next))
		return REASON_IP_OPTIONS;
	if (fragment->offset & bpf_htons(0xfff8))
		pkt->piece = PIECE_LATER;
	else if (fragment->offset & bpf_htons(1))
		pkt->piece = PIECE_FIRST;
	pkt->fragment_id = fragment->id;
	pkt->piece_at = bpf_ntohs(fragment->offset) & 0xfff8;
	pkt->last = !(fragment->offset & bpf_htons(1));
	pkt->tuple.protocol = fragment->next;
	pkt->l4 += sizeof(*fragment);
	pkt->l4_len -= sizeof(*fragment);
	return PARSED;
}

/* Of a header of a whole packet: fill in addresses and what comes next, and return the bytes behind it. 0: it
 * is none. room: bytes from the header on. */
static __always_inline u32 common_ip(const void *header, u32 room, struct tuple *t)
{
	const struct ipv6hdr *ip = header;
	u32 len = bpf_ntohs(ip->payload_len);

	t->src = addr_from6(&ip->saddr);
	t->dst = addr_from6(&ip->daddr);
	t->protocol = ip->nexthdr;
	return ip->version == 6 && sizeof(*ip) + len <= room ? len : 0;
}

/* Fill in where a packet goes and what comes next: from any header, also a bad one. */
static __always_inline void ip_target(const struct ipv6hdr *ip, struct tuple *t)
{
	t->dst = addr_from6(&ip->daddr);
	t->protocol = ip->nexthdr;
}

/* What else there is in such a header. */
static __always_inline void common_ip_rest(const void *header, struct packet *pkt)
{
	const struct ipv6hdr *ip = header;

	pkt->ip_len = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	pkt->ttl = ip->hop_limit;
}

/* Store other addresses in such a header, and take hops off its hop limit. */
static __always_inline void store_common_ip(void *header, u64 addresses_delta, const struct tuple *to,
					    u8 hops)
{
	struct ipv6hdr *ip = header;

	ip->hop_limit -= hops;

	__builtin_memcpy(&ip->saddr, &to->src, sizeof(to->src));
	__builtin_memcpy(&ip->daddr, &to->dst, sizeof(to->dst));
}

/* How the packet that an ICMP error quotes begins. */
struct quoted_head {
	struct ipv6hdr ip;
	__be16 ports[2];
	u8 rest[QUOTED_L4 - 4];
};

/* Read the head of the packet that an ICMP error quotes; *answer becomes the tuple of a packet that would
 * answer it, whose source is the quoted packet's destination. */
static __always_inline u32 parse_quoted(ctx_t *ctx, const struct packet *pkt, struct quoted_head *head,
					struct tuple *answer)
{
	if (pkt->l4_len < sizeof(struct icmphdr) + sizeof(*head) ||
	    !ctx_load(ctx, pkt->l4 + sizeof(struct icmphdr), head, sizeof(*head)))
		return REASON_MALFORMED;
	if (head->ip.version != 6)
		return REASON_MALFORMED;
	if (is_extension(head->ip.nexthdr))
		return REASON_IP_OPTIONS;
	if (head->ip.nexthdr != IPPROTO_TCP && head->ip.nexthdr != IPPROTO_UDP &&
	    head->ip.nexthdr != IPPROTO_SCTP)
		return REASON_OTHER_PROTOCOL;
	answer->src = addr_from6(&head->ip.daddr);
	answer->dst = addr_from6(&head->ip.saddr);
	answer->sport = head->ports[1];
	answer->dport = head->ports[0];
	answer->protocol = head->ip.nexthdr;
	return PARSED;
}

/* Checksum delta of an address change. */
static __always_inline u64 delta_addr(u64 delta, const struct addr *old, const struct addr *new)
{
#pragma unroll
	for (int i = 0; i < ADDR_WORDS; i++)
		delta = delta32(delta, old->word[i], new->word[i]);
	asm volatile("" : "+r"(delta)); /* here, or the compiler keeps all the words until it is asked for */
	return delta;
}

static __always_inline u64 sum_pseudo_header(const struct addr *src, const struct addr *dst, u8 protocol,
					     u16 l4_len)
{
	u64 sum = bpf_htons(protocol) + bpf_htons(l4_len);

#pragma unroll
	for (int i = 0; i < ADDR_WORDS; i++)
		sum += (u64)src->word[i] + dst->word[i];
	return sum;
}

/* RFC 4443, section 2.3. */
static __always_inline u64 sum_icmp_pseudo_header(const struct addr *src, const struct addr *dst, u16 len)
{
	return sum_pseudo_header(src, dst, IPPROTO_ICMPV6, len);
}

/* ICMPv6's checksum covers the addresses of the header in front of it. */
static __always_inline u64 icmp_pseudo_delta(u64 addresses_delta)
{
	return addresses_delta;
}

static __always_inline bool store_addresses(ctx_t *ctx, u32 at, const struct addr *src,
					    const struct addr *dst)
{
	return ctx_store(ctx, at + __builtin_offsetof(struct ipv6hdr, saddr), src, sizeof(*src)) &&
	       ctx_store(ctx, at + __builtin_offsetof(struct ipv6hdr, daddr), dst, sizeof(*dst));
}

/* Store other addresses and hop limit in the packet's IP header. */
static __always_inline bool store_ip(ctx_t *ctx, const struct packet *pkt, u8 protocol, u8 ttl,
				     u64 addresses_delta, const struct addr *src, const struct addr *dst)
{
	return (ttl == pkt->ttl ||
		ctx_store(ctx, pkt->l3 + __builtin_offsetof(struct ipv6hdr, hop_limit), &ttl, sizeof(ttl))) &&
	       store_addresses(ctx, pkt->l3, src, dst);
}

/* Store other addresses in the header that an ICMP error quotes. */
static __always_inline bool store_quoted_ip(ctx_t *ctx, u32 at, u64 addresses_delta, const struct addr *src,
					    const struct addr *dst)
{
	return store_addresses(ctx, at, src, dst);
}

/* What the change of a quoted header adds to ICMP's checksum. */
static __always_inline u64 quoted_ip_delta(u64 addresses_delta)
{
	return addresses_delta;
}

/* A header of our own; len counts from the IP header on. */
static __always_inline ip_header_t ip_header(const struct addr *src, const struct addr *dst, u8 protocol,
					     u16 len)
{
	struct ipv6hdr ip = {
	    .version = 6,
	    .payload_len = bpf_htons(len - sizeof(ip)),
	    .nexthdr = protocol,
	    .hop_limit = REPLY_TTL,
	};

	__builtin_memcpy(&ip.saddr, src, sizeof(*src));
	__builtin_memcpy(&ip.daddr, dst, sizeof(*dst));
	return ip;
}

static __always_inline void fib_addresses(struct bpf_fib_lookup *fib, const struct packet *pkt,
					  const struct addr *src, const struct addr *dst)
{
	__builtin_memcpy(fib->ipv6_src, src, sizeof(*src));
	__builtin_memcpy(fib->ipv6_dst, dst, sizeof(*dst));
}
