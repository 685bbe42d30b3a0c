/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* IPv4 and ICMP on the wire. Same names as ip6.h. */
#pragma once
#include "packet.h"

#define IP_ETHERTYPE  ETH_P_IP
#define IP_AF	      2 /* AF_INET */
#define ICMP_PROTOCOL IPPROTO_ICMP
#define ECHO_REQUEST  ICMP_ECHO

#define IP_RESERVED 0x8000
#define IP_DF	    0x4000
#define IP_MF	    0x2000
#define IP_OFFSET   0x1fff

typedef struct iphdr ip_header_t;

/* The ICMP errors that we send: type and code, and where the rest of the header holds the MTU. */
enum error {
	ERROR_PORT_UNREACHABLE = ICMP_DEST_UNREACH << 8 | ICMP_PORT_UNREACH,
	ERROR_HOST_UNREACHABLE = ICMP_DEST_UNREACH << 8 | ICMP_HOST_UNREACH,
	ERROR_TOO_BIG = ICMP_DEST_UNREACH << 8 | ICMP_FRAG_NEEDED, /* RFC 1191: the MTU is in the low half */
	ERROR_TTL_EXPIRED = ICMP_TIME_EXCEEDED << 8 | ICMP_EXC_TTL,
};

static __always_inline u8 echo_reply_type(void)
{
	return ICMP_ECHOREPLY;
}

/* RFC 1122, section 3.2.2: errors quote the packet that they are about. Redirects are no error. */
static __always_inline bool is_icmp_error(u8 type)
{
	return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB;
}

/* RFC 1122, section 3.2.1.3: "this" network, loopback, multicast and broadcast are no host's addresses. The
 * stack drops what comes from them, and nothing must be sent there. 240.0.0.0/4 is in use: Linux takes it. */
static __always_inline bool is_martian(const struct addr *source)
{
	u8 first = bpf_ntohl(source->word[0]) >> 24;

	return first == 0 || first == 127 || (first & 0xf0) == 224 || source->word[0] == 0xffffffff;
}

/* Bytes of the header with its options. */
static __always_inline u32 ip_header_len(const struct iphdr *ip)
{
	return ip->ihl * 4;
}

/* IPv4 has options inside its header, and no headers behind it. */
static __always_inline bool is_extension(u8 next)
{
	return false;
}

/* Fill in what the IP header says; returns PARSED, or why the packet is not for us. */
static __always_inline u32 parse_ip(ctx_t *ctx, struct packet *pkt)
{
	struct iphdr *ip;
	u32 header;

	ip = ctx_at(ctx, pkt->l3, sizeof(*ip));
	if (!ip)
		return REASON_MALFORMED;
	header = ip_header_len(ip);
	pkt->ip_len = ctx_told_len(ctx, pkt->l3, bpf_ntohs(ip->tot_len));
	if (ip->version != 4 || header < sizeof(*ip) || header > pkt->ip_len ||
	    pkt->l3 + pkt->ip_len > ctx_len(ctx))
		return REASON_MALFORMED;
	pkt->l4 = pkt->l3 + header;
	pkt->l4_len = pkt->ip_len - header;
	pkt->may_cut = !(ip->frag_off & bpf_htons(IP_DF));
	if (unlikely(ip->frag_off & bpf_htons(IP_MF | IP_OFFSET))) {
		pkt->piece = ip->frag_off & bpf_htons(IP_OFFSET) ? PIECE_LATER : PIECE_FIRST;
		pkt->fragment_id = ip->id;
		pkt->piece_at = (bpf_ntohs(ip->frag_off) & IP_OFFSET) * 8;
		pkt->piece_len = pkt->l4_len;
		pkt->piece_next = ip->protocol;
		pkt->last = !(ip->frag_off & bpf_htons(IP_MF));
	}
	pkt->tuple.src.word[0] = ip->saddr;
	pkt->tuple.dst.word[0] = ip->daddr;
	pkt->tuple.protocol = ip->protocol;
	pkt->ttl = ip->ttl;
	pkt->tos = ip->tos;
	pkt->ip_check = ip->check;
	return PARSED;
}

/* RFC 791, section 3.1. */
enum ip_option {
	IP_OPTION_END = 0,
	IP_OPTION_NONE = 1, /* END and NONE are one byte long; the others have their length in the second */
	IP_OPTION_COPIED = 128, /* a flag: the option is in every piece of a packet */
	IP_OPTION_LOOSE_SOURCE_ROUTE = 131,
	IP_OPTION_STRICT_SOURCE_ROUTE = 137,
};

#define IP_OPTIONS_MAX 40 /* bytes */

/* Look through the options of a packet that parse_ip() has taken; returns PARSED, or why it is not for us.
 * The destination of a packet with a source route is not where it goes in the end. */
static __always_inline u32 parse_options(ctx_t *ctx, const struct packet *pkt)
{
	u32 at = pkt->l3 + sizeof(struct iphdr);
	u8 option[2]; /* type and length: behind an option of one byte at least the L4 header follows */
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i < IP_OPTIONS_MAX && at < pkt->l4; i++) {
		if (!ctx_load(ctx, at, option, sizeof(option)))
			return REASON_MALFORMED;
		if (option[0] == IP_OPTION_LOOSE_SOURCE_ROUTE || option[0] == IP_OPTION_STRICT_SOURCE_ROUTE)
			return REASON_IP_OPTIONS;
		if (option[0] == IP_OPTION_END)
			return PARSED;
		if (option[0] == IP_OPTION_NONE)
			option[1] = 1;
		else if (option[1] < sizeof(option))
			return REASON_MALFORMED;
		at += option[1];
		if (at > pkt->l4)
			return REASON_MALFORMED;
		/* It changes nothing, but any two offsets then are alike to the verifier. */
		asm volatile("%0 &= 255" : "+r"(at));
	}
	return PARSED;
}

/* Of a header without options, of a whole packet: fill in addresses and protocol, and return the bytes behind
 * it. 0: it is none. room: bytes from the header on. */
static __always_inline u32 common_ip(const void *header, u32 room, struct tuple *t)
{
	const struct iphdr *ip = header;
	u32 len = bpf_ntohs(ip->tot_len);

	t->src.word[0] = ip->saddr;
	t->dst.word[0] = ip->daddr;
	t->protocol = ip->protocol;
	if (*(u8 *)ip != 0x45 || ip->frag_off & bpf_htons(IP_MF | IP_OFFSET) || len < sizeof(*ip) ||
	    len > room)
		return 0;
	return len - sizeof(*ip);
}

/* Fill in where a packet goes and by which protocol: from any header, also a bad one. */
static __always_inline void ip_target(const struct iphdr *ip, struct tuple *t)
{
	t->dst.word[0] = ip->daddr;
	t->protocol = ip->protocol;
}

/* What else there is in such a header. */
static __always_inline void common_ip_rest(const void *header, struct packet *pkt)
{
	const struct iphdr *ip = header;

	pkt->ip_len = bpf_ntohs(ip->tot_len);
	pkt->ttl = ip->ttl;
	pkt->tos = ip->tos;
}

/* Store other addresses in such a header, and take hops off its TTL. */
static __always_inline void store_common_ip(void *header, u64 addresses_delta, const struct tuple *to,
					    u8 hops)
{
	struct iphdr *ip = header;

	if (hops) {
		addresses_delta =
		    delta16(addresses_delta, bpf_htons(ip->ttl << 8), bpf_htons((ip->ttl - hops) << 8));
		ip->ttl -= hops;
	}

	ip->check = csum_update(ip->check, addresses_delta);
	ip->saddr = to->src.word[0];
	ip->daddr = to->dst.word[0];
}

/* The IP header of the packet that an ICMP error quotes, and behind how many bytes that packet's L4 header
 * begins. */
struct quoted {
	struct iphdr ip;
	u8 l4;
};

/* Read the quoted IP header; *answer becomes the tuple of a packet that would answer the quoted one, whose
 * source is the quoted packet's destination; without ports. */
static __always_inline u32 parse_quoted_ip(ctx_t *ctx, const struct packet *pkt, struct quoted *quoted,
					   struct tuple *answer)
{
	if (pkt->l4_len < sizeof(struct icmphdr) + sizeof(quoted->ip) ||
	    !ctx_load(ctx, pkt->l4 + sizeof(struct icmphdr), &quoted->ip, sizeof(quoted->ip)))
		return REASON_MALFORMED;
	quoted->l4 = ip_header_len(&quoted->ip);
	if (quoted->ip.version != 4 || quoted->l4 < sizeof(quoted->ip))
		return REASON_MALFORMED;
	if (quoted->ip.frag_off & bpf_htons(IP_OFFSET))
		return REASON_OTHER_PROTOCOL;
	answer->src.word[0] = quoted->ip.daddr;
	answer->dst.word[0] = quoted->ip.saddr;
	answer->protocol = quoted->ip.protocol;
	return PARSED;
}

/* Checksum delta of an address change. */
static __always_inline u64 delta_addr(u64 delta, const struct addr *old, const struct addr *new)
{
	return delta32(delta, old->word[0], new->word[0]);
}

static __always_inline u64 sum_pseudo_header(const struct addr *src, const struct addr *dst, u8 protocol,
					     u16 l4_len)
{
	return (u64)src->word[0] + dst->word[0] + bpf_htons(protocol) + bpf_htons(l4_len);
}

/* ICMP's checksum covers no pseudo header. */
static __always_inline u64 sum_icmp_pseudo_header(const struct addr *src, const struct addr *dst, u16 len)
{
	return 0;
}

static __always_inline u64 icmp_pseudo_delta(u64 addresses_delta)
{
	return 0;
}

/* The IPv4 header from the TTL on: everything that NAT changes, in one store. */
struct ip_tail {
	u8 ttl;
	u8 protocol;
	__sum16 check;
	__be32 src;
	__be32 dst;
};

/* Store other addresses and TTL in the packet's IP header. */
static __always_inline bool store_ip(ctx_t *ctx, const struct packet *pkt, u8 protocol, u8 ttl,
				     u64 addresses_delta, const struct addr *src, const struct addr *dst)
{
	struct ip_tail tail = {
	    .ttl = ttl,
	    .protocol = protocol,
	    .src = src->word[0],
	    .dst = dst->word[0],
	};

	tail.check = csum_update(pkt->ip_check,
				 delta16(addresses_delta, bpf_htons(pkt->ttl << 8), bpf_htons(ttl << 8)));
	return ctx_store(ctx, pkt->l3 + __builtin_offsetof(struct iphdr, ttl), &tail, sizeof(tail));
}

/* Store other addresses in the header that an ICMP error quotes. Its checksum is updated with them, so that
 * the sum over the header, and with it ICMP's checksum, stays. */
static __always_inline bool store_quoted_ip(ctx_t *ctx, u32 at, u64 addresses_delta, const struct addr *src,
					    const struct addr *dst)
{
	struct ip_tail tail;
	u32 offset = at + __builtin_offsetof(struct iphdr, ttl);

	if (!ctx_load(ctx, offset, &tail, sizeof(tail)))
		return false;
	tail.check = csum_update(tail.check, addresses_delta);
	tail.src = src->word[0];
	tail.dst = dst->word[0];
	return ctx_store(ctx, offset, &tail, sizeof(tail));
}

/* What the change of a quoted header adds to ICMP's checksum. */
static __always_inline u64 quoted_ip_delta(u64 addresses_delta)
{
	return 0;
}

/* A header of our own; len counts from the IP header on. */
static __always_inline ip_header_t ip_header(const struct addr *src, const struct addr *dst, u8 protocol,
					     u16 len)
{
	struct iphdr ip = {
	    .version = 4,
	    .ihl = 5,
	    .tot_len = bpf_htons(len),
	    .frag_off = bpf_htons(IP_DF),
	    .ttl = REPLY_TTL,
	    .protocol = protocol,
	    .saddr = src->word[0],
	    .daddr = dst->word[0],
	};

	ip.check = (__sum16)~fold16(sum_bytes(&ip, sizeof(ip)));
	return ip;
}

/* What ip_header() is told where the length does not fit: the header then says 0. */
static __always_inline u16 no_ip_len(void)
{
	return 0;
}

/* Give a header of our own the packet's DSCP. Its congestion bits stay 0, as RFC 6040, section 4.1, has it
 * where the other end does not copy them back. */
static __always_inline bool copy_class(ctx_t *ctx, const struct packet *pkt, struct iphdr *ip)
{
	u8 class = pkt->tos & 0xfc;

	ip->tos = class;
	ip->check = csum_update(ip->check, delta16(0, 0, bpf_htons(class)));
	return true;
}

/* Is it the header of a whole UDP datagram, and without options? */
static __always_inline bool is_whole_udp(const struct iphdr *ip)
{
	return *(u8 *)ip == 0x45 && !(ip->frag_off & bpf_htons(IP_MF | IP_OFFSET)) &&
	       ip->protocol == IPPROTO_UDP;
}

static __always_inline void fib_addresses(struct bpf_fib_lookup *fib, const struct packet *pkt,
					  const struct addr *src, const struct addr *dst)
{
	fib->tos = pkt->tos;
	fib->ipv4_src = src->word[0];
	fib->ipv4_dst = dst->word[0];
}
