/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the data plane answers itself: a TCP reset or an ICMP error on behalf of a VIP that cannot serve, ICMP
 * errors of a router for what we forward, and echo replies. */
#pragma once
#include "forward.h"

/* RFC 1122, section 3.2.2, and RFC 4443, section 2.4 (e): no ICMP error about a later
 * fragment, or about what was sent to many (link_back is the turned-round link header). */
static __always_inline bool answerable(const struct packet *pkt, const struct ethhdr *link_back)
{
	return pkt->piece != PIECE_LATER && !(link_back->h_source[0] & 1);
}

/* May one more answer of a kind be given? RFC 4443, section 2.4 (f), and RFC 1812, section 4.3.2.8, demand a
 * limit, and propose a token bucket. Each kind has one of its own on each CPU, so that a flood of one kind
 * does not use up the answers of another: "too big" least of all, without which connections hang. */
static __always_inline bool within_rate(u32 kind)
{
	const struct settings *settings = get_settings();
	struct rate *rate = bpf_map_lookup_elem(rates, &kind);
	u64 now = bpf_ktime_get_ns(), full, latest;

	if (!settings || !rate || !settings->answer_interval_ns)
		return true;
	latest = now + settings->answer_burst_ns;
	full = rate->full_ns > now ? rate->full_ns : now;
	if (full > latest) /* the burst was larger before */
		full = rate->full_ns = latest;
	if (full + settings->answer_interval_ns > latest)
		return false;
	rate->full_ns = full + settings->answer_interval_ns;
	return true;
}

/* Back to whoever has sent the packet, whose place in the link header he has got. A process of this node that
 * is told something in the node's own name is told by lo: the kernel takes no such packet from elsewhere. */
static __always_inline struct outcome send_answer(ctx_t *ctx, const struct packet *pkt,
						  const struct note *note)
{
	bool own_name = note->answer == ANSWER_TOO_BIG || note->answer == ANSWER_TTL_EXPIRED;

	if (ctx_at_loopback(ctx) || (note->egress && own_name))
		return send_inward(ctx, pkt, note->reason);
	return outcome(ctx_send_back(ctx, note->egress), note->reason);
}

struct reset {
	ip_header_t ip;
	struct tcphdr tcp;
};

/* Bytes of IPv4 options, or of IPv6 extension headers. */
static __always_inline u32 between_len(const struct packet *pkt)
{
	return pkt->l4 - pkt->l3 - sizeof(ip_header_t);
}

/* RFC 9293, section 3.10.7.1: the answer of a closed port. */
static __always_inline struct outcome answer_reset(ctx_t *ctx, const struct packet *pkt,
						   const struct note *note)
{
	struct reset frame = {};
	struct ethhdr eth = {};
	struct tcphdr segment;
	bool partial;
	u64 sum;

	if (!ctx_load(ctx, pkt->l4, &segment, sizeof(segment)) || !load_link_back(ctx, pkt, &eth))
		return drop(REASON_REWRITE_FAILED);
	if (pkt->tcp_flags & TCP_RST || !answerable(pkt, &eth))
		return drop(REASON_REJECT_UNANSWERED);
	if (!within_rate(ANSWER_NONE))
		return drop(REASON_RATE_LIMITED);
	partial = ctx_csum_partial(ctx, pkt->l4 + TCP_CSUM);
	/* The device looks for the checksum where the L4 header is: so options have to go first. */
	if (partial && between_len(pkt) && !ctx_cut_options(ctx, between_len(pkt)))
		return drop(REASON_REWRITE_FAILED);

	frame.ip = ip_header(&pkt->tuple.dst, &pkt->tuple.src, IPPROTO_TCP, sizeof(frame));
	frame.tcp.source = pkt->tuple.dport;
	frame.tcp.dest = pkt->tuple.sport;
	frame.tcp.doff = sizeof(frame.tcp) / 4;
	frame.tcp.rst = 1;
	if (segment.ack) {
		frame.tcp.seq = segment.ack_seq;
	} else {
		frame.tcp.ack = 1;
		frame.tcp.ack_seq =
		    bpf_htonl(bpf_ntohl(segment.seq) + pkt->payload_len + segment.syn + segment.fin);
	}
	sum = sum_pseudo_header(&pkt->tuple.dst, &pkt->tuple.src, IPPROTO_TCP, sizeof(frame.tcp));
	if (partial)
		frame.tcp.check = fold16(sum); /* the device adds the rest and the complement */
	else
		frame.tcp.check = (__sum16)~fold16(sum + sum_bytes(&frame.tcp, sizeof(frame.tcp)));

	if (!ctx_resize(ctx, pkt->l3 + sizeof(frame)) || !store_link(ctx, pkt, &eth) ||
	    !ctx_store(ctx, pkt->l3, &frame, sizeof(frame)))
		return drop(REASON_REWRITE_FAILED);
	return send_answer(ctx, pkt, note);
}

/* How much of the L4 header an ICMP error quotes: at least 8 bytes (RFC 792), and so much that a checksum
 * which the device has yet to complete stays inside. */
static __always_inline u32 quoted_len(u8 protocol)
{
	if (protocol == IPPROTO_TCP)
		return sizeof(struct tcphdr);
	return protocol == IPPROTO_SCTP ? 12 : QUOTED_L4;
}

/* Add up the part of the L4 header that is quoted. A device that completes the checksum makes these bytes add
 * up to the complement of what the checksum's field holds now. */
static __always_inline bool sum_quoted_l4(ctx_t *ctx, const struct packet *pkt, u64 *sum)
{
	union {
		struct tcphdr tcp;
		struct udphdr udp;
		u32 words[sizeof(struct tcphdr) / 4];
	} l4 = {};
	u8 protocol = pkt->kind == KIND_FLOW ? pkt->tuple.protocol : 0;
	u32 csum_at = pkt->l4 + (protocol == IPPROTO_TCP ? TCP_CSUM : UDP_CSUM);
	bool loaded;
	__sum16 check;

	if (protocol == IPPROTO_TCP)
		loaded = ctx_load(ctx, pkt->l4, &l4, sizeof(struct tcphdr));
	else if (protocol == IPPROTO_SCTP)
		loaded = ctx_load(ctx, pkt->l4, &l4, 12);
	else
		loaded = ctx_load(ctx, pkt->l4, &l4, QUOTED_L4);
	if (!loaded)
		return false;
	*sum = sum_bytes(&l4, sizeof(l4));
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return true;
	check = protocol == IPPROTO_TCP ? l4.tcp.check : l4.udp.check;
	if (protocol == IPPROTO_UDP && !check)
		return true;
	if (ctx_csum_partial(ctx, csum_at))
		*sum = (u16)~check;
	return ctx_store(ctx, csum_at, &check, sizeof(check));
}

#define BETWEEN_WORDS (FAMILY == 6 ? 2 : 1) /* what options and extension headers are multiples of */
#define BETWEEN_PARTS (FAMILY == 6 ? 26 : 10)

/* Add up what is between the IP header and the L4 header. */
static __always_inline bool sum_between(ctx_t *ctx, const struct packet *pkt, u64 *sum)
{
	u32 words[BETWEEN_WORDS], at;
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i < BETWEEN_PARTS; i++) {
		at = pkt->l3 + sizeof(ip_header_t) + i * sizeof(words);
		if (at >= pkt->l4)
			break;
		if (!ctx_load(ctx, at, words, sizeof(words)))
			return false;
		*sum += sum_bytes(words, sizeof(words));
	}
	return true;
}

struct icmp_error_headers {
	ip_header_t ip;
	struct icmphdr icmp;
};

/* An ICMP error from `from` about the packet. Its head stays where it is and the new headers go in front. */
static __always_inline struct outcome answer_error(ctx_t *ctx, const struct packet *pkt, u32 error,
						   const struct addr *from, const struct note *note)
{
	u32 quoted = sizeof(ip_header_t) + between_len(pkt) +
		     quoted_len(pkt->kind == KIND_FLOW ? pkt->tuple.protocol : 0);
	struct icmp_error_headers frame = {};
	u32 icmp_len = sizeof(frame.icmp) + quoted;
	ip_header_t quoted_ip;
	struct ethhdr eth = {};
	u64 sum;

	if (!load_link_back(ctx, pkt, &eth))
		return drop(REASON_REWRITE_FAILED);
	if (!answerable(pkt, &eth))
		return drop(REASON_REJECT_UNANSWERED);
	if (!within_rate(note->answer))
		return drop(REASON_RATE_LIMITED);
	if (!ctx_resize(ctx, pkt->l3 + quoted) || !ctx_load(ctx, pkt->l3, &quoted_ip, sizeof(quoted_ip)) ||
	    !sum_quoted_l4(ctx, pkt, &sum) || !sum_between(ctx, pkt, &sum))
		return drop(REASON_REWRITE_FAILED);

	frame.ip = ip_header(from, &pkt->tuple.src, ICMP_PROTOCOL, sizeof(frame.ip) + icmp_len);
	frame.icmp.type = error >> 8;
	frame.icmp.code = error;
	frame.icmp.un.gateway = bpf_htonl(note->mtu);
	sum += sum_icmp_pseudo_header(from, &pkt->tuple.src, icmp_len) +
	       sum_bytes(&quoted_ip, sizeof(quoted_ip)) + sum_bytes(&frame.icmp, sizeof(frame.icmp));
	frame.icmp.checksum = (__sum16)~fold16(sum);

	if (!ctx_insert_l3(ctx, sizeof(frame)) || !store_link(ctx, pkt, &eth) ||
	    !ctx_store(ctx, pkt->l3, &frame, sizeof(frame)))
		return drop(REASON_REWRITE_FAILED);
	return send_answer(ctx, pkt, note);
}

/* RFC 1122, section 3.2.2.6; RFC 4443, section 4.2: the request with its ends exchanged, or a piece of it. */
static __always_inline struct outcome answer_echo(ctx_t *ctx, const struct packet *pkt,
						  const struct note *note)
{
	u8 type = echo_reply_type();
	u64 delta = delta16(0, bpf_htons(ECHO_REQUEST << 8), bpf_htons(type << 8));
	struct ethhdr eth = {};

	if (!load_link_back(ctx, pkt, &eth))
		return drop(REASON_REWRITE_FAILED);
	if (eth.h_source[0] & 1) /* it was sent to many */
		return drop(REASON_REJECT_UNANSWERED);
	if (!within_rate(note->answer))
		return drop(REASON_RATE_LIMITED);
	if (pkt->piece != PIECE_LATER &&
	    (!ctx_update_l4_csum(ctx, pkt->l4 + __builtin_offsetof(struct icmphdr, checksum), false, 0,
				 delta) ||
	     !ctx_store(ctx, pkt->l4, &type, sizeof(type))))
		return drop(REASON_REWRITE_FAILED);
	if (!store_ip(ctx, pkt, ICMP_PROTOCOL, REPLY_TTL, 0, &pkt->tuple.dst, &pkt->tuple.src) ||
	    !store_link(ctx, pkt, &eth))
		return drop(REASON_REWRITE_FAILED);
	return send_answer(ctx, pkt, note);
}

/* Where a router's errors come from: its address on the side that the packet came from (RFC 1812, section
 * 4.3.2.4), or its primary one. */
static __always_inline bool router_address(u32 ifindex, struct addr *out)
{
	return own_address(ifindex, out) || own_address(0, out);
}

/* RFC 9293 for TCP; RFC 1122, section 4.1.3.1, and RFC 9260, section 8.4, for the rest: no one is there. */
static __always_inline struct outcome give_answer(ctx_t *ctx, const struct packet *pkt,
						  const struct note *note)
{
	struct addr from = pkt->tuple.dst;
	u32 error;

	switch (note->answer) {
	case ANSWER_ECHO:
		return answer_echo(ctx, pkt, note);
	case ANSWER_TOO_BIG:
		error = ERROR_TOO_BIG;
		break;
	case ANSWER_TTL_EXPIRED:
		error = ERROR_TTL_EXPIRED;
		break;
	default:
		if (pkt->kind == KIND_FLOW && pkt->tuple.protocol == IPPROTO_TCP)
			return answer_reset(ctx, pkt, note);
		error = pkt->kind == KIND_ECHO ? ERROR_HOST_UNREACHABLE : ERROR_PORT_UNREACHABLE;
	}
	if (note->answer != ANSWER_REJECT && !router_address(ctx_ifindex(ctx), &from))
		return drop(note->reason);
	return answer_error(ctx, pkt, error, &from, note);
}

/* The step. */
static __always_inline int answer(ctx_t *ctx)
{
	const struct note *note = get_note();
	u32 bytes = ctx_len(ctx);
	struct work *work = peek_work();
	struct packet *pkt;

	if (!note || !work)
		return VERDICT_DROP;
	pkt = &work->pkt;
	if (parse(ctx, pkt) != PARSED)
		return finish(note->hook, drop(REASON_REWRITE_FAILED), bytes);
	return finish_and_report(ctx, note, give_answer(ctx, pkt, note), bytes);
}
