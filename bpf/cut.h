/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Step: a packet that is too big for the way on, and whose sender lets routers cut it (IPv4 without DF), goes
 * on in pieces: RFC 791, section 3.2. It is cut before it is translated. The pieces enter anew, in order, by
 * the hook that the packet has come to, and are treated there like pieces that have come from outside: all of
 * them go to one backend, since the later ones follow the first. A program can send many copies of a packet,
 * but shorten only the packet itself; so the copy for a piece has all that follows still behind it, which
 * trim_piece() takes off.
 *
 * A packet that stands for several UDP datagrams (segmentation offload) enters anew once for each of them. */
#pragma once
#include "forward.h"

#if FAMILY == 4

/* How many pieces are cut at once; the rest enters as one piece, too big again. */
#define CUT_PIECES 12

/* The most datagrams that one packet stands for: Linux' UDP_MAX_SEGMENTS. */
#define GSO_DATAGRAMS 128

/* What bpf_skb_adjust_room() takes and gives at a time: below 4096, a multiple of 8. */
#define ROOM_STEP 4088

/* The longest packet that bpf_skb_adjust_room() gives bytes to: a little less than four pages. */
#define ROOM_MOST 15800

/* Pieces of a longer packet: of so many bytes behind their IP header, a multiple of 8. */
#define LONG_PIECE 15688

/* So much behind the end of the IP header, the start of the L4 header is gone even with a link header. */
#define PAST_L4 16

#define SUM_BYTES 512 /* what bpf_csum_diff() adds up at a time */

/* An IP header and its options, which may be fewer. */
struct head {
	struct iphdr ip;
	u8 options[IP_OPTIONS_MAX];
};

/* What has become of the checksum that a device was to complete, before the packet is cut. */
enum csum_left {
	CSUM_NONE,	/* no device was to complete it */
	CSUM_DONE,	/* it is complete, and the kernel knows so */
	CSUM_UNTOLD,	/* it is complete, but the kernel would still have the device complete it */
	CSUM_IMPOSSIBLE /* it cannot be completed here */
};

/* The one's complement sum of some bytes, at most `most`. False: the kernel refused. The rest of the length
 * is computed anew in each turn: if the loop kept it in a variable, the verifier would follow what comes
 * after the loop for each of its values. */
static __always_inline bool sum_packet(ctx_t *ctx, u32 from, u32 bytes, u32 most, u32 *sum)
{
	struct held_piece *room;
	u32 zero = 0, at;
	u64 len;

	*sum = 0;
	room = bpf_map_lookup_elem(piece_room, &zero);
	if (!room)
		return false;
#pragma clang loop unroll(disable)
	for (at = 0; at < most; at += SUM_BYTES) {
		if (at >= bytes)
			break;
		len = bytes - at;
		AT_MOST(len, SUM_BYTES);
		AT_LEAST(len, 1);
		if (bpf_skb_load_bytes(ctx, from + at, room->frame, len))
			return false;
		__builtin_memset(&room->frame[len], 0, sizeof(u32));
		*sum = (u32)bpf_csum_diff(NULL, 0, (void *)room->frame, (len + 3) & ~3ULL, *sum);
	}
	return true;
}

/* Take bytes off the front of the packet, behind its link header. If the packet awaits segmentation, its
 * segments keep their size. */
static __always_inline bool take_off(ctx_t *ctx, u32 bytes)
{
	/* This changes nothing. What the verifier learns of this copy it does not learn of the caller's
	 * variable. */
	asm volatile("%0 &= 0xffff" : "+r"(bytes));
#pragma clang loop unroll(disable)
	for (int i = 0; i < (1 << 16) / ROOM_STEP + 1 && bytes; i++) {
		u32 step = bytes < ROOM_STEP ? bytes : ROOM_STEP;

		if (bpf_skb_adjust_room(ctx, -(s32)step, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
			return false;
		bytes -= step;
	}
	return !bytes;
}

/* Have the kernel forget that a device is to complete the checksum (CHECKSUM_PARTIAL). It does so when the
 * bytes are taken off at which the sum was to begin. */
static __always_inline bool forget_partial(ctx_t *ctx, u32 l3, u32 l4)
{
	u8 front[sizeof(struct head) + PAST_L4] = {};
	u64 len = l4 - l3 + PAST_L4;

	AT_MOST(len, sizeof(front));
	AT_LEAST(len, sizeof(struct iphdr) + PAST_L4);
	return !bpf_skb_load_bytes(ctx, l3, front, len) &&
	       !bpf_skb_adjust_room(ctx, -(s32)len, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO) &&
	       !bpf_skb_adjust_room(ctx, len, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO) &&
	       !bpf_skb_store_bytes(ctx, l3, front, len, 0);
}

/* Complete the checksum if a device was to do it. If the kernel cannot be told so (CSUM_UNTOLD), the first
 * piece of the packet comes here again. SCTP's checksum is of another kind, and cannot be completed here. */
static __always_inline u32 complete_csum(ctx_t *ctx, const struct packet *pkt)
{
	bool udp = pkt->tuple.protocol == IPPROTO_UDP;
	u32 csum_at = pkt->l4 + (udp ? UDP_CSUM : TCP_CSUM), sum;
	__sum16 check;
	bool partial;

	if (pkt->piece == PIECE_LATER)
		return CSUM_NONE;
	if (pkt->tuple.protocol == IPPROTO_SCTP)
		csum_at = pkt->l4 + __builtin_offsetof(struct sctp_head, checksum);
	if (bpf_skb_load_bytes(ctx, csum_at, &check, sizeof(check)))
		return CSUM_IMPOSSIBLE;
	partial = ctx_csum_partial(ctx, csum_at);
	if (bpf_skb_store_bytes(ctx, csum_at, &check, sizeof(check), 0))
		return CSUM_IMPOSSIBLE;
	if (!partial)
		return CSUM_NONE;
	if (pkt->tuple.protocol == IPPROTO_SCTP)
		return CSUM_IMPOSSIBLE;
	if (pkt->piece == PIECE_WHOLE) {
		if (!sum_packet(ctx, pkt->l4, pkt->l4_len, 1 << 16, &sum))
			return CSUM_IMPOSSIBLE;
		check = (__sum16)~fold16(sum);
		if (udp && !check)
			check = 0xffff;
		if (bpf_skb_store_bytes(ctx, csum_at, &check, sizeof(check), 0))
			return CSUM_IMPOSSIBLE;
	}
	if (ctx_len(ctx) > ROOM_MOST)
		return CSUM_UNTOLD;
	return forget_partial(ctx, pkt->l3, pkt->l4) ? CSUM_DONE : CSUM_IMPOSSIBLE;
}

/* Shorten the TCP segments that a packet awaits by so many bytes. The kernel does it when more headers are
 * put in front of the packet, and does not undo it when they are taken off again. */
static __always_inline bool shorten_segments(ctx_t *ctx, u32 bytes)
{
#pragma clang loop unroll(disable)
	for (int i = 0; i < (1 << 16) / ROOM_STEP + 1 && bytes; i++) {
		u32 step = bytes < ROOM_STEP ? bytes : ROOM_STEP;

		if (bpf_skb_adjust_room(ctx, step, BPF_ADJ_ROOM_MAC, 0) ||
		    bpf_skb_adjust_room(ctx, -(s32)step, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
			return false;
		bytes -= step;
	}
	return !bytes;
}

/* Read the IP header; behind its options *head is 0. */
static __always_inline bool load_head(ctx_t *ctx, u32 l3, u32 l4, struct head *head)
{
	u64 len = l4 - l3;

	__builtin_memset(head, 0, sizeof(*head));
	AT_MOST(len, sizeof(*head));
	AT_LEAST(len, sizeof(head->ip));
	return !bpf_skb_load_bytes(ctx, l3, head, len);
}

/* Store an IP header at the packet's front, with its checksum. */
static __always_inline bool store_head(ctx_t *ctx, u32 l3, u32 l4, struct head *head)
{
	u64 len = l4 - l3;

	head->ip.check = 0;
	head->ip.check = (__sum16)~fold16(sum_bytes(head, sizeof(*head)));
	AT_MOST(len, sizeof(*head));
	AT_LEAST(len, sizeof(head->ip));
	return !bpf_skb_store_bytes(ctx, l3, head, len, BPF_F_RECOMPUTE_CSUM);
}

/* Blank the options that belong into the first piece alone (RFC 791, section 3.1: the copied flag). Options
 * of no operation take their place, as in Linux, so the headers of all pieces have one length. This is done
 * in the packet, not on the stack: there the verifier does not allow writes at a variable offset. */
static __always_inline bool blank_options(ctx_t *ctx, u32 l3, u32 l4, struct head *head)
{
	u32 at = l3 + sizeof(struct iphdr);
	u8 none[IP_OPTIONS_MAX], option[2];
	u64 len;
	int i;

	if (!store_head(ctx, l3, l4, head))
		return false;
	__builtin_memset(none, IP_OPTION_NONE, sizeof(none));
#pragma clang loop unroll(disable)
	for (i = 0; i < IP_OPTIONS_MAX && at < l4; i++) {
		if (bpf_skb_load_bytes(ctx, at, option, sizeof(option)))
			return false;
		if (option[0] == IP_OPTION_END)
			break;
		len = option[0] == IP_OPTION_NONE ? 1 : option[1];
		AT_MOST(len, sizeof(none));
		AT_LEAST(len, 1);
		if (!(option[0] & IP_OPTION_COPIED) && bpf_skb_store_bytes(ctx, at, none, len, 0))
			return false;
		at += len;
		asm volatile("%0 &= 255" : "+r"(at)); /* as in parse_options() */
	}
	return load_head(ctx, l3, l4, head);
}

/* Give the packet the IP header of a piece: so many bytes, of which there are `at` before it. */
static __always_inline bool store_piece_head(ctx_t *ctx, u32 l3, u32 l4, struct head *head, u32 at, u32 bytes,
					     bool more)
{
	head->ip.tot_len = bpf_htons(l4 - l3 + bytes);
	head->ip.frag_off = bpf_htons(at / 8 | (more ? IP_MF : 0));
	return store_head(ctx, l3, l4, head);
}

/* Take apart a packet that stands for datagrams of `size` bytes of data each, of which the last may have
 * less. A copy for each datagram enters anew. Its header has the reserved flag, and the number of the
 * datagram in place of a checksum: take_out() then leaves only that datagram. At a hook where packets leave,
 * each copy has been led on before this function returns. */
static __always_inline struct outcome take_apart(ctx_t *ctx, const struct packet *pkt, bool leaves, u32 size,
						 struct head *head)
{
	u32 csum_at = pkt->l4 + UDP_CSUM, payload = pkt->payload_len, ifindex = ctx_ifindex(ctx), at = 0;
	__be16 number;

	head->ip.frag_off |= bpf_htons(IP_RESERVED);
	if (!store_head(ctx, pkt->l3, pkt->l4, head))
		return drop(REASON_REWRITE_FAILED);
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < GSO_DATAGRAMS && at < payload; i++) {
		number = bpf_htons(i);
		if (bpf_skb_store_bytes(ctx, csum_at, &number, sizeof(number), 0) ||
		    bpf_clone_redirect(ctx, ifindex, leaves ? 0 : BPF_F_INGRESS))
			return drop(REASON_REWRITE_FAILED);
		at += size;
	}
	return outcome(VERDICT_TAKEN, REASON_FRAGMENTED);
}

/* Shorten such a copy to its one datagram. False: the kernel refused. The change of its length makes it a
 * packet that stands for no other. */
static __always_inline bool take_out(ctx_t *ctx, const struct packet *pkt, u32 size, struct head *head)
{
	u32 l4 = pkt->l4, from, bytes, sum;
	struct udphdr udp;
	u16 number;

	if (bpf_skb_load_bytes(ctx, l4, &udp, sizeof(udp)))
		return false;
	number = bpf_ntohs(udp.check);
	from = number * size;
	if (from >= pkt->payload_len || !take_off(ctx, from))
		return false;
	bytes = pkt->payload_len - from;
	bytes = sizeof(udp) + (bytes < size ? bytes : size);
	head->ip.frag_off = 0;
	head->ip.id = bpf_htons(bpf_ntohs(head->ip.id) + number);
	head->ip.tot_len = bpf_htons(l4 - pkt->l3 + bytes);
	udp.len = bpf_htons(bytes);
	udp.check = 0;
	if (!ctx_resize(ctx, l4 + bytes) || !store_head(ctx, pkt->l3, l4, head) ||
	    bpf_skb_store_bytes(ctx, l4, &udp, sizeof(udp), 0) || !sum_packet(ctx, l4, bytes, 1 << 14, &sum))
		return false;
	udp.check =
	    (__sum16)~fold16(sum + sum_pseudo_header(&pkt->tuple.src, &pkt->tuple.dst, IPPROTO_UDP, bytes));
	if (!udp.check)
		udp.check = 0xffff;
	return !bpf_skb_store_bytes(ctx, l4, &udp, sizeof(udp), 0);
}

/* Tell the sender of a packet that cannot be cut how large it may be. */
static __always_inline struct outcome refuse_cut(ctx_t *ctx, struct note *note)
{
	note->answer = ANSWER_TOO_BIG;
	note->reason = REASON_TOO_BIG;
	next_step(ctx, STEP_ANSWER);
	return drop(REASON_TOO_BIG);
}

/* A packet that awaits segmentation, in segments of `size` bytes of payload, which are too big. */
static __always_inline struct outcome cut_segments(ctx_t *ctx, const struct packet *pkt, u32 size,
						   struct note *note)
{
	u32 headers = pkt->ip_len - pkt->payload_len;
	bool leaves = note->side == HOST;
	struct head head;

	if (pkt->tuple.protocol == IPPROTO_TCP) {
		if (!shorten_segments(ctx, headers + size - note->mtu))
			return drop(REASON_REWRITE_FAILED);
		return outcome(ctx_send_back(ctx, !leaves), REASON_FRAGMENTED);
	}
	if (!load_head(ctx, pkt->l3, pkt->l4, &head))
		return drop(REASON_REWRITE_FAILED);
	if (!(head.ip.frag_off & bpf_htons(IP_RESERVED)))
		return forget_partial(ctx, pkt->l3, pkt->l4) ? take_apart(ctx, pkt, leaves, size, &head)
							     : refuse_cut(ctx, note);
	if (!take_out(ctx, pkt, size, &head))
		return drop(REASON_REWRITE_FAILED);
	return outcome(ctx_send_back(ctx, !leaves), REASON_FRAGMENTED);
}

/* Cut the packet, which may be a piece itself, to the MTU. What has to be changed before enters anew first.
 * Where packets leave (also at lo) the pieces are led on before this returns: then *pkt is theirs. */
static __always_inline struct outcome cut(ctx_t *ctx, const struct packet *pkt, struct note *note)
{
	u32 l3 = pkt->l3, l4 = pkt->l4, at = pkt->piece_at, left = pkt->l4_len, ifindex = ctx_ifindex(ctx);
	u32 most = (note->mtu - (l4 - l3)) & ~7;
	u32 headers = pkt->ip_len - pkt->payload_len, wire = ctx_wire_len(ctx, headers, pkt->payload_len);
	bool leaves = note->side == HOST, options, more;
	struct head head;

	if (wire < pkt->ip_len)
		return cut_segments(ctx, pkt, wire - headers, note);
	if (!trim_piece(ctx, pkt))
		return drop(REASON_REWRITE_FAILED);
	switch (complete_csum(ctx, pkt)) {
	case CSUM_NONE:
		break;
	case CSUM_DONE:
		/* The verifier would follow the loop below for each length of what was summed up. */
		if (pkt->piece == PIECE_WHOLE)
			return outcome(ctx_send_back(ctx, !leaves), REASON_FRAGMENTED);
		break;
	case CSUM_UNTOLD:
		if (most >= LONG_PIECE)
			return refuse_cut(ctx, note);
		most = LONG_PIECE;
		break;
	default:
		return refuse_cut(ctx, note);
	}
	if (!load_head(ctx, l3, l4, &head))
		return drop(REASON_REWRITE_FAILED);
	if (pkt->tuple.protocol == IPPROTO_SCTP && pkt->piece == PIECE_WHOLE)
		announce_pieces(pkt, head.ip.id);
	more = head.ip.frag_off & bpf_htons(IP_MF);
	options = !at && l4 - l3 > sizeof(head.ip);
#pragma clang loop unroll(disable)
	for (int i = 0; i < (options ? 1 : CUT_PIECES) && left > most; i++) {
		if (!store_piece_head(ctx, l3, l4, &head, at, most, true) ||
		    bpf_clone_redirect(ctx, ifindex, leaves ? 0 : BPF_F_INGRESS) || !take_off(ctx, most))
			return drop(REASON_REWRITE_FAILED);
		at += most;
		left -= most;
	}
	if (options && !blank_options(ctx, l3, l4, &head))
		return drop(REASON_REWRITE_FAILED);
	if (!store_piece_head(ctx, l3, l4, &head, at, left, more))
		return drop(REASON_REWRITE_FAILED);
	return outcome(ctx_send_back(ctx, !leaves), REASON_FRAGMENTED);
}

#endif
