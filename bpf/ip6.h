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

/* An extension header: RFC 8200, section 4. Each is a multiple of 8 bytes long. */
struct extension {
	u8 next;
	u8 len; /* how many times 8 bytes there are behind the first 8; not of a fragment header */
	union {
		__be16
		    offset; /* fragment header: the upper 13 bits: in 8 bytes; the lowest: more fragments */
		struct {
			u8 type; /* routing header */
			u8 left; /* routing header: where the packet still has to go */
		};
	};
	__be32 id; /* fragment header */
};

/* So many extension headers are walked: each kind once, destination options twice (RFC 8200, section 4.1). */
#define EXTENSIONS 5

/* Where the L4 header may be at most: struct packet and struct quoted have a byte for it. */
#define L4_MAX 255

static __always_inline bool is_extension(u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS ||
	       next == IPPROTO_AH || next == IPPROTO_FRAGMENT;
}

/* How long an extension header is, in bytes; 0: the packet must be left alone. AH signs the addresses. With a
 * routing header that is not used up the destination is not where the packet goes in the end; type 0 is
 * deprecated (RFC 5095). */
static __always_inline u32 extension_len(u8 number, const struct extension *header)
{
	if (number == IPPROTO_FRAGMENT)
		return sizeof(*header);
	if (number == IPPROTO_AH || (number == IPPROTO_ROUTING && (header->left || !header->type)))
		return 0;
	return (header->len + 1) * sizeof(*header);
}

static __always_inline struct addr addr_from6(const struct in6_addr *in)
{
	struct addr out;

	__builtin_memcpy(&out, in, sizeof(out));
	return out;
}

/* Bytes of the header that all packets have. */
static __always_inline u32 ip_header_len(const struct ipv6hdr *ip)
{
	return sizeof(*ip);
}

/* A fragment header, at pkt->l4. What follows it is the datagram's, be it an extension header. False: it is
 * the packet's second. */
static __always_inline bool parse_fragment(const struct extension *header, struct packet *pkt)
{
	if (pkt->piece_len)
		return false;
	if (header->offset & bpf_htons(0xfff8))
		pkt->piece = PIECE_LATER;
	else if (header->offset & bpf_htons(1))
		pkt->piece = PIECE_FIRST;
	pkt->fragment_id = header->id;
	pkt->piece_at = bpf_ntohs(header->offset) & 0xfff8;
	pkt->piece_len = pkt->l4_len - sizeof(*header);
	pkt->piece_next = header->next;
	pkt->last = !(header->offset & bpf_htons(1));
	return true;
}

/* Walk over the extension headers to the L4 header, or in a later piece over those of the piece. */
static __always_inline u32 parse_extensions(ctx_t *ctx, struct packet *pkt)
{
	const struct extension *header;
	u32 len;
	u8 number;
	int i;

	pkt->piece = PIECE_WHOLE; /* a step may parse what the program before has parsed */
	pkt->piece_len = 0;
#pragma clang loop unroll(disable)
	for (i = 0; i < EXTENSIONS && is_extension(pkt->tuple.protocol) && pkt->piece != PIECE_LATER; i++) {
		number = pkt->tuple.protocol;
		header = ctx_at(ctx, pkt->l4, sizeof(*header));
		if (!header || pkt->l4_len < sizeof(*header))
			return REASON_MALFORMED;
		len = extension_len(number, header);
		if (len > pkt->l4_len)
			return REASON_MALFORMED;
		if (!len || pkt->l4 + len > L4_MAX)
			return REASON_IP_OPTIONS;
		if (number == IPPROTO_FRAGMENT && !parse_fragment(header, pkt))
			return REASON_IP_OPTIONS;
		pkt->tuple.protocol = header->next;
		pkt->l4 += len;
		pkt->l4_len -= len;
		KEEP_WHOLE(*pkt); /* for the verifier, to which any two offsets read from there are alike */
	}
	return is_extension(pkt->tuple.protocol) && pkt->piece != PIECE_LATER ? REASON_IP_OPTIONS : PARSED;
}

/* Fill in what the IP header says; returns PARSED, or why the packet is not for us. */
static __always_inline u32 parse_ip(ctx_t *ctx, struct packet *pkt)
{
	struct ipv6hdr *ip;

	ip = ctx_at(ctx, pkt->l3, sizeof(*ip));
	if (!ip)
		return REASON_MALFORMED;
	pkt->l4 = pkt->l3 + sizeof(*ip);
	pkt->l4_len = ctx_told_len(ctx, pkt->l4, bpf_ntohs(ip->payload_len));
	/* No payload length, no packet: but for what awaits segmentation. */
	if (ip->version != 6 || !pkt->l4_len || pkt->l4 + pkt->l4_len > ctx_len(ctx))
		return REASON_MALFORMED;
	pkt->ip_len = sizeof(*ip) + pkt->l4_len;
	pkt->tuple.src = addr_from6(&ip->saddr);
	pkt->tuple.dst = addr_from6(&ip->daddr);
	pkt->tuple.protocol = ip->nexthdr;
	pkt->ttl = ip->hop_limit;
	if (likely(!is_extension(ip->nexthdr)))
		return PARSED;
	return parse_extensions(ctx, pkt);
}

/* The extension headers: parse_ip() has walked over them. */
static __always_inline u32 parse_options(ctx_t *ctx, const struct packet *pkt)
{
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

/* The IP header of the packet that an ICMP error quotes, and behind how many bytes that packet's L4 header
 * begins. */
struct quoted {
	struct ipv6hdr ip;
	u8 l4;
};

/* Read the quoted IP header and walk over its extension headers; *answer becomes the tuple of a packet that
 * would answer the quoted one, whose source is the quoted packet's destination; without ports. */
static __always_inline u32 parse_quoted_ip(ctx_t *ctx, const struct packet *pkt, struct quoted *quoted,
					   struct tuple *answer)
{
	const u32 from = sizeof(struct icmphdr);
	struct extension header;
	u32 len;
	u8 number;
	int i;

	if (pkt->l4_len < from + sizeof(quoted->ip) ||
	    !ctx_load(ctx, pkt->l4 + from, &quoted->ip, sizeof(quoted->ip)) || quoted->ip.version != 6)
		return REASON_MALFORMED;
	quoted->l4 = sizeof(quoted->ip);
	answer->src = addr_from6(&quoted->ip.daddr);
	answer->dst = addr_from6(&quoted->ip.saddr);
	answer->protocol = quoted->ip.nexthdr;
#pragma clang loop unroll(disable)
	for (i = 0; i < EXTENSIONS && is_extension(answer->protocol); i++) {
		number = answer->protocol;
		if (pkt->l4_len < from + quoted->l4 + sizeof(header) ||
		    !ctx_load(ctx, pkt->l4 + from + quoted->l4, &header, sizeof(header)))
			return REASON_MALFORMED;
		len = extension_len(number, &header);
		if (!len || quoted->l4 + len > L4_MAX)
			return REASON_IP_OPTIONS;
		if (number == IPPROTO_FRAGMENT && header.offset & bpf_htons(0xfff8))
			return REASON_OTHER_PROTOCOL;
		answer->protocol = header.next;
		quoted->l4 += len;
		KEEP_WHOLE(*quoted); /* as in parse_extensions() */
	}
	return is_extension(answer->protocol) ? REASON_IP_OPTIONS : PARSED;
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

/* What ip_header() is told where the length does not fit: the header then says 0. */
static __always_inline u16 no_ip_len(void)
{
	return sizeof(struct ipv6hdr);
}

/* As in ip4.h. */
static __always_inline bool copy_class(ctx_t *ctx, const struct packet *pkt, struct ipv6hdr *ip)
{
	__be16 first;

	if (!ctx_load(ctx, pkt->l3, &first, sizeof(first)))
		return false;
	*(__be16 *)ip = first & bpf_htons(0xffc0);
	return true;
}

/* Is it the header of a whole UDP datagram? */
static __always_inline bool is_whole_udp(const struct ipv6hdr *ip)
{
	return ip->version == 6 && ip->nexthdr == IPPROTO_UDP;
}

static __always_inline void fib_addresses(struct bpf_fib_lookup *fib, const struct packet *pkt,
					  const struct addr *src, const struct addr *dst)
{
	__builtin_memcpy(fib->ipv6_src, src, sizeof(*src));
	__builtin_memcpy(fib->ipv6_dst, dst, sizeof(*dst));
}
