/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From bytes to a struct packet. Reads only: no map, no write. */
#pragma once
#include "ip.h"

/* Fill in what an L4 header says. Each returns PARSED, or why the packet is not for us. */
static __always_inline u32 parse_tcp(ctx_t *ctx, struct packet *pkt)
{
	struct tcphdr *tcp;
	u32 header;

	tcp = ctx_at(ctx, pkt->l4, sizeof(*tcp));
	if (!tcp || pkt->l4_len < sizeof(*tcp))
		return REASON_MALFORMED;
	header = tcp->doff * 4;
	if (header < sizeof(*tcp) || header > pkt->l4_len)
		return REASON_MALFORMED;
	pkt->tuple.sport = tcp->source;
	pkt->tuple.dport = tcp->dest;
	pkt->tcp_flags = ((u8 *)tcp)[13];
	pkt->secret = bpf_ntohl(tcp->seq) + 1;
	pkt->shown = bpf_ntohl(tcp->ack_seq);
	pkt->payload_len = pkt->l4_len - header;
	return PARSED;
}

static __always_inline u32 parse_udp(ctx_t *ctx, struct packet *pkt)
{
	struct udphdr *udp;

	udp = ctx_at(ctx, pkt->l4, sizeof(*udp));
	if (!udp || pkt->l4_len < sizeof(*udp))
		return REASON_MALFORMED;
	/* A length above what IP carries is a lie, unless more is to follow; a segmented skb has one below.
	 */
	if (bpf_ntohs(udp->len) < sizeof(*udp) ||
	    (bpf_ntohs(udp->len) > pkt->l4_len && pkt->piece != PIECE_FIRST))
		return REASON_MALFORMED;
	pkt->tuple.sport = udp->source;
	pkt->tuple.dport = udp->dest;
	pkt->payload_len = pkt->l4_len - sizeof(*udp);
	return PARSED;
}

/* RFC 9260, section 3: the common header, and the head of the first chunk, which alone starts or ends an
 * association. What TCP says with flags, an association's states take from there. */
static __always_inline u32 parse_sctp(ctx_t *ctx, struct packet *pkt)
{
	struct sctp_head *sctp;
	const u32 *tag;

	sctp = ctx_at(ctx, pkt->l4, sizeof(*sctp));
	if (!sctp || pkt->l4_len < sizeof(*sctp))
		return REASON_MALFORMED;
	pkt->tuple.sport = sctp->source;
	pkt->tuple.dport = sctp->dest;
	pkt->payload_len = pkt->l4_len - sizeof(*sctp);
	pkt->sum_len = pkt->piece == PIECE_FIRST ? 0 : pkt->l4_len;
	pkt->shown = sctp->tag;
	switch (sctp->chunk) {
	case SCTP_INIT:
		pkt->tcp_flags = TCP_SYN;
		break;
	case SCTP_INIT_ACK:
		pkt->tcp_flags = TCP_SYN | TCP_ACK;
		tag = ctx_at(ctx, pkt->l4 + sizeof(*sctp), sizeof(*tag));
		if (tag)
			pkt->secret = *tag;
		break;
	case SCTP_ABORT:
	case SCTP_SHUTDOWN_COMPLETE:
		pkt->tcp_flags = TCP_RST;
		break;
	default:
		pkt->tcp_flags = TCP_ACK;
	}
	return PARSED;
}

static __always_inline u32 parse_icmp(ctx_t *ctx, struct packet *pkt)
{
	struct icmphdr *icmp;

	icmp = ctx_at(ctx, pkt->l4, sizeof(*icmp));
	if (!icmp || pkt->l4_len < sizeof(*icmp))
		return REASON_MALFORMED;
	if (icmp->type == ECHO_REQUEST && icmp->code == 0) {
		pkt->kind = KIND_ECHO;
		return PARSED;
	}
	if (pkt->piece != PIECE_WHOLE)
		return REASON_OTHER_PROTOCOL;
	if (is_icmp_error(icmp->type))
		return ICMP_ERROR;
	return REASON_OTHER_PROTOCOL;
}

/* A later piece: what follows its IP header is of the datagram's middle. What an IPv6 piece that names an
 * extension header is of, only the first piece tells. RFC 4443, section 2.4 (c): errors are whole, so what is
 * of ICMP may be of a ping. */
static __always_inline u32 parse_later(struct packet *pkt)
{
	switch (pkt->tuple.protocol) {
	case ICMP_PROTOCOL:
		pkt->kind = KIND_ECHO;
		return PARSED;
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		return PARSED;
	default:
		return is_extension(pkt->tuple.protocol) ? PARSED : REASON_OTHER_PROTOCOL;
	}
}

/* Fill *pkt, of which l3 is set; returns PARSED, ICMP_ERROR, or the reason why the packet is not for us. */
static __always_inline u32 parse(ctx_t *ctx, struct packet *pkt)
{
	__be16 ethertype = ctx_ethertype(ctx);
	u32 result;

	if (ctx_vlan(ctx) || ethertype == bpf_htons(ETH_P_8021Q) || ethertype == bpf_htons(ETH_P_8021AD))
		return REASON_VLAN;
	if (ethertype != bpf_htons(IP_ETHERTYPE))
		return ethertype ? REASON_NOT_IP : REASON_MALFORMED;
	result = parse_ip(ctx, pkt);
	if (result != PARSED)
		return result;
	if (unlikely(is_martian(&pkt->tuple.src)))
		return REASON_MARTIAN;
	if (unlikely(pkt->piece == PIECE_LATER))
		return parse_later(pkt);
	switch (pkt->tuple.protocol) {
	case IPPROTO_TCP:
		return parse_tcp(ctx, pkt);
	case IPPROTO_UDP:
		return parse_udp(ctx, pkt);
	case IPPROTO_SCTP:
		return parse_sctp(ctx, pkt);
	case ICMP_PROTOCOL:
		return parse_icmp(ctx, pkt);
	default:
		return REASON_OTHER_PROTOCOL;
	}
}
