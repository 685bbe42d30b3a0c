/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A packet that is too big for the way on, and whose sender lets routers cut it (IPv4 without DF), goes on in
 * pieces: RFC 791, section 3.2. It is cut as it came. The pieces enter anew by the hook that the packet has
 * come to, in order, where each is led on as a piece that came so: to one backend, since the later ones
 * follow the first. A program can send many copies of a packet, but shorten only the packet itself; so the
 * copy for a piece has all that follows still behind it, which trim_piece() takes off. */
#pragma once
#include "forward.h"

#if FAMILY == 4

/* How many pieces are cut at once; the rest enters as one piece, too big again. */
#define CUT_PIECES 8

/* What bpf_skb_adjust_room() takes and gives at a time: below 4096, a multiple of 8. */
#define ROOM_STEP 4088

/* So much behind the start of the IP header, the start of the L4 header is gone even with a link header. */
#define UNSUM_BYTES 36

#define SUM_BYTES 512 /* what bpf_csum_diff() adds up at a time */

/* The one's complement sum of the packet from the L4 header on. False: the kernel refused. What is left is
 * worked out anew each time: a loop's own variable would make the verifier follow what comes behind the loop
 * for each of its values. */
static __always_inline bool sum_l4(ctx_t *ctx, const struct packet *pkt, u32 *sum)
{
	struct held_piece *room;
	u32 zero = 0, at;
	u64 len;

	*sum = 0;
	room = bpf_map_lookup_elem(piece_room, &zero);
	if (!room)
		return false;
#pragma clang loop unroll(disable)
	for (at = 0; at < 1 << 16; at += SUM_BYTES) {
		if (at >= pkt->l4_len)
			break;
		len = pkt->l4_len - at;
		AT_MOST(len, SUM_BYTES);
		AT_LEAST(len, 1);
		if (bpf_skb_load_bytes(ctx, pkt->l4 + at, room->frame, len))
			return false;
		__builtin_memset(&room->frame[len], 0, sizeof(u32));
		*sum = (u32)bpf_csum_diff(NULL, 0, (void *)room->frame, (len + 3) & ~3ULL, *sum);
	}
	return true;
}

/* Take bytes off the packet's front, but for its link header. */
static __always_inline bool take_off(ctx_t *ctx, u32 bytes)
{
#pragma clang loop unroll(disable)
	for (int i = 0; i < (1 << 16) / ROOM_STEP + 1 && bytes; i++) {
		u32 step = bytes < ROOM_STEP ? bytes : ROOM_STEP;

		if (bpf_skb_adjust_room(ctx, -(s32)step, BPF_ADJ_ROOM_MAC, 0))
			return false;
		bytes -= step;
	}
	return !bytes;
}

/* Where the device was to complete the checksum (CHECKSUM_PARTIAL), do it: the packet is more than a piece.
 * The kernel then has to be told that nothing is left to do. It understands so when the place where the sum
 * was to begin is taken off. */
static __always_inline bool complete_csum(ctx_t *ctx, const struct packet *pkt)
{
	bool udp = pkt->tuple.protocol == IPPROTO_UDP;
	u32 csum_at = pkt->l4 + (udp ? UDP_CSUM : TCP_CSUM), sum;
	u8 front[UNSUM_BYTES];
	__sum16 check;
	bool partial;

	if (pkt->piece || !ctx_load(ctx, csum_at, &check, sizeof(check)))
		return pkt->piece;
	partial = ctx_csum_partial(ctx, csum_at);
	if (!ctx_store(ctx, csum_at, &check, sizeof(check)))
		return false;
	if (!partial)
		return true;
	if (!sum_l4(ctx, pkt, &sum))
		return false;
	check = (__sum16)~fold16(sum);
	if (udp && !check)
		check = 0xffff;
	return ctx_store(ctx, csum_at, &check, sizeof(check)) &&
	       ctx_load(ctx, pkt->l3, front, sizeof(front)) && take_off(ctx, sizeof(front)) &&
	       !bpf_skb_adjust_room(ctx, sizeof(front), BPF_ADJ_ROOM_MAC, 0) &&
	       ctx_store(ctx, pkt->l3, front, sizeof(front));
}

/* Segments of TCP that a packet is yet to be made of become shorter by so many bytes: the kernel makes room
 * for what it takes for more headers, and does not notice that they go again. */
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

/* Give the packet the IP header of a piece of `whole`: so many bytes, of which there are `at` before it. */
static __always_inline bool store_piece_head(ctx_t *ctx, u32 l3, const struct iphdr *whole, u32 at, u32 bytes,
					     bool more)
{
	struct iphdr ip = *whole;

	ip.tot_len = bpf_htons(sizeof(ip) + bytes);
	ip.frag_off = bpf_htons(at / 8 | (more ? IP_MF : 0));
	ip.check = csum_update(ip.check,
			       delta16(delta16(0, whole->tot_len, ip.tot_len), whole->frag_off, ip.frag_off));
	return !bpf_skb_store_bytes(ctx, l3, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
}

/* Cut the packet, which may be a piece itself, to the MTU. Where packets leave (also at lo) the pieces are
 * led on before this returns: then *pkt is theirs. */
static __always_inline struct outcome cut(ctx_t *ctx, const struct packet *pkt, const struct note *note)
{
	u32 l3 = pkt->l3, at = pkt->piece_at, left = pkt->l4_len, ifindex = ctx_ifindex(ctx);
	u32 most = (note->mtu - sizeof(struct iphdr)) & ~7;
	u32 wire = ctx_wire_len(ctx, pkt->ip_len - pkt->payload_len, pkt->payload_len);
	bool leaves = note->side == HOST, more;
	struct iphdr ip;

	if (wire < pkt->ip_len) {
		if (!shorten_segments(ctx, wire - note->mtu))
			return drop(REASON_REWRITE_FAILED);
		return outcome(ctx_send_back(ctx, !leaves), REASON_FRAGMENTED);
	}
	if (!ctx_load(ctx, l3, &ip, sizeof(ip)) || !complete_csum(ctx, pkt))
		return drop(REASON_REWRITE_FAILED);
	more = ip.frag_off & bpf_htons(IP_MF);
#pragma clang loop unroll(disable)
	for (int i = 0; i < CUT_PIECES && left > most; i++) {
		if (!store_piece_head(ctx, l3, &ip, at, most, true) ||
		    bpf_clone_redirect(ctx, ifindex, leaves ? 0 : BPF_F_INGRESS) || !take_off(ctx, most))
			return drop(REASON_REWRITE_FAILED);
		at += most;
		left -= most;
	}
	if (!store_piece_head(ctx, l3, &ip, at, left, more))
		return drop(REASON_REWRITE_FAILED);
	return outcome(ctx_send_back(ctx, !leaves), REASON_FRAGMENTED);
}

#endif
