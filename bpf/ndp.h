/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Neighbour discovery on the wire (RFC 4861). Same names as arp.h. */
#pragma once
#include "ip.h"
#include "solicitation.h"

#define ND_SOLICITATION	 135
#define ND_ADVERTISEMENT 136
#define ND_HOP_LIMIT	 255 /* section 7.1: such a message was sent on the segment, by no router */
#define ND_SOURCE_LINK	 1   /* options: section 4.6.1 */
#define ND_TARGET_LINK	 2
#define ND_SOLICITED	 0x40 /* flags of an advertisement: section 4.4 */
#define ND_OVERRIDE	 0x20
#define ND_OPTIONS	 8  /* so many options are walked; one or two are usual */
#define ND_WORDS	 24 /* how long a message may be, in 8 bytes */

/* The head of a solicitation and of an advertisement: sections 4.3 and 4.4. */
struct nd_head {
	u8 type;
	u8 code;
	__sum16 check;
	u8 flags;
	u8 pad[3];
	struct addr target;
};

struct nd_option {
	u8 type;
	u8 len; /* in 8 bytes */
	u8 mac[ETH_ALEN];
};

/* Behind the link header. The option is that of an advertisement; those of a solicitation are not kept. */
struct nd_packet {
	struct ipv6hdr ip;
	struct nd_head head;
	struct nd_option option;
};

typedef struct nd_packet solicitation_packet_t;

#define ND_READ (sizeof(struct ipv6hdr) + sizeof(struct nd_head))

static __always_inline bool is_unspecified(const struct addr *address)
{
	return !(address->word[0] | address->word[1] | address->word[2] | address->word[3]);
}

static __always_inline bool is_multicast(const struct addr *address)
{
	return (bpf_ntohl(address->word[0]) >> 24) == 0xff;
}

/* Is the checksum of a message of len bytes right? len: a multiple of 8. */
static __always_inline bool nd_sum_right(ctx_t *ctx, const struct addr *src, const struct addr *dst, u32 len)
{
	u64 sum = sum_icmp_pseudo_header(src, dst, len);
	u32 words[2], at;
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i < ND_WORDS; i++) {
		at = i * sizeof(words);
		if (at >= len)
			break;
		if (!ctx_load(ctx, ETH_HLEN + sizeof(struct ipv6hdr) + at, words, sizeof(words)))
			return false;
		sum += sum_bytes(words, sizeof(words));
	}
	return fold16(sum) == 0xffff;
}

/* Walk over options of `left` bytes in all. False: one has no length, or is longer than what is left.
 * *source_link becomes true if the sender tells its link address. */
static __always_inline bool walk_nd_options(ctx_t *ctx, u32 left, bool *source_link)
{
	u32 at = ETH_HLEN + ND_READ, len;
	u8 option[2];
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i < ND_OPTIONS && left; i++) {
		if (!ctx_load(ctx, at, option, sizeof(option)))
			return false;
		len = option[1] * 8;
		if (!len || len > left)
			return false;
		if (option[0] == ND_SOURCE_LINK)
			*source_link = true;
		at += len;
		left -= len;
	}
	return !left;
}

/* Read a solicitation or an advertisement; false: it is neither, or not what section 7.1 demands. A sender
 * without an address asks whether the target is free (RFC 4862, section 5.4). */
static __always_inline bool read_solicitation(ctx_t *ctx, const struct ethhdr *eth, struct nd_packet *nd,
					      struct solicitation *s)
{
	bool source_link = false;
	struct addr to;
	u32 len;

	if (eth->h_proto != bpf_htons(ETH_P_IPV6) || !ctx_load(ctx, ETH_HLEN, nd, ND_READ) ||
	    nd->ip.version != 6 || nd->ip.nexthdr != IPPROTO_ICMPV6 || nd->ip.hop_limit != ND_HOP_LIMIT ||
	    nd->head.code)
		return false;
	s->asks = nd->head.type == ND_SOLICITATION;
	s->target = nd->head.target;
	if ((!s->asks && nd->head.type != ND_ADVERTISEMENT) || is_multicast(&s->target))
		return false;
	len = bpf_ntohs(nd->ip.payload_len);
	s->sender = addr_from6(&nd->ip.saddr);
	to = addr_from6(&nd->ip.daddr);
	if (len < sizeof(nd->head) || len > ND_WORDS * 8 || len % 8 ||
	    !walk_nd_options(ctx, len - sizeof(nd->head), &source_link) ||
	    !nd_sum_right(ctx, &s->sender, &to, len))
		return false;
	__builtin_memcpy(s->mac, eth->h_source, ETH_ALEN);
	if (!s->asks)
		s->sender = s->target; /* it tells the target's link address */
	s->claims = !is_unspecified(&s->sender);
	return s->claims || (!source_link && is_multicast(&to));
}

/* Sections 7.2.3 and 7.2.4: a sender without an address is answered at the address of all nodes, ff02::1. */
static __always_inline bool write_advertisement(ctx_t *ctx, struct ethhdr *eth, struct nd_packet *nd,
						const struct solicitation *s, const u8 *mac)
{
	const u16 len = sizeof(nd->head) + sizeof(nd->option);
	struct addr to = s->sender;
	u64 sum;

	if (ctx_len(ctx) != ETH_HLEN + sizeof(*nd) && !ctx_resize(ctx, ETH_HLEN + sizeof(*nd)))
		return false;
	nd->head.flags = ND_OVERRIDE;
	if (s->claims) {
		__builtin_memcpy(eth->h_dest, s->mac, ETH_ALEN);
		nd->head.flags |= ND_SOLICITED;
	} else {
		to.word[0] = bpf_htonl(0xff020000);
		to.word[3] = bpf_htonl(1);
		eth->h_dest[0] = eth->h_dest[1] = 0x33;
		__builtin_memcpy(eth->h_dest + 2, &to.word[3], sizeof(to.word[3]));
	}
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
	nd->ip = ip_header(&s->target, &to, IPPROTO_ICMPV6, sizeof(nd->ip) + len);
	nd->ip.hop_limit = ND_HOP_LIMIT;
	nd->head.type = ND_ADVERTISEMENT;
	nd->head.check = 0;
	__builtin_memset(nd->head.pad, 0, sizeof(nd->head.pad));
	nd->option.type = ND_TARGET_LINK;
	nd->option.len = 1;
	__builtin_memcpy(nd->option.mac, mac, ETH_ALEN);
	sum = sum_icmp_pseudo_header(&s->target, &to, len) + sum_bytes(&nd->head, sizeof(nd->head)) +
	      sum_bytes(&nd->option, sizeof(nd->option));
	nd->head.check = (__sum16)~fold16(sum);
	return ctx_store(ctx, 0, eth, sizeof(*eth)) && ctx_store(ctx, ETH_HLEN, nd, sizeof(*nd));
}
