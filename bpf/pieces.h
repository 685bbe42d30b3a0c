/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Step: pieces of a datagram that come in any order. A later piece has no ports, so only the first one tells
 * which VIP it is for. A later piece that comes before the first is copied into `pieces`, and does not go on.
 * When the first one comes, all of them enter anew by the interface that they came in by, the first one
 * first. Those that turn out to be for no VIP then pass as they came. The delay costs nobody anything:
 * without its first piece a datagram is of no use. */
#pragma once
#include "cut.h"

/* May the datagram be for a VIP, or a reply of a translated flow? Node ports and replies to SNAT are at
 * addresses of the node, which the FIB knows. */
static __always_inline bool may_be_ours(ctx_t *ctx, const struct packet *pkt)
{
	struct bpf_fib_lookup fib = {
	    .family = IP_AF,
	    .l4_protocol = pkt->tuple.protocol,
	    .ifindex = ctx_ifindex(ctx),
	};

	if (lookup_address(&pkt->tuple.dst))
		return true;
	fib_addresses(&fib, pkt, &pkt->tuple.src, &pkt->tuple.dst);
	return bpf_fib_lookup(ctx, &fib, sizeof(fib), 0) == BPF_FIB_LKUP_RET_NOT_FWDED;
}

static __always_inline bool is_fresh(const struct held_piece *piece, u64 now)
{
	return now - piece->since_ns < FRAGMENT_NS;
}

/* Copy the packet to the first free place of its datagram, which becomes key->place. False: there is none, or
 * the packet is too long. A place whose time is over is free. */
static __always_inline bool keep_piece(ctx_t *ctx, struct piece_key *key)
{
	u64 now = bpf_ktime_get_ns(), len = ctx_len(ctx);
	struct held_piece *room, *other;
	u32 zero = 0, place;

	room = bpf_map_lookup_elem(piece_room, &zero);
	if (!room || len > HELD_BYTES)
		return false;
	AT_MOST(len, HELD_BYTES);
	AT_LEAST(len, 1);
	if (bpf_skb_load_bytes(ctx, 0, room->frame, len))
		return false;
	room->len = len;
	room->since_ns = now;
#pragma clang loop unroll(disable)
	for (place = 0; place < HELD_PIECES; place++) {
		key->place = place;
		other = bpf_map_lookup_elem(pieces, key);
		if (other && is_fresh(other, now))
			continue;
		if (!bpf_map_update_elem(pieces, key, room, other ? BPF_ANY : BPF_NOEXIST))
			return true;
	}
	return false;
}

/* A later piece. After the copy is made, the ports are looked for once more: the first piece may have come
 * meanwhile, on another CPU. Of the two CPUs, the one that deletes the copy sends the piece on. */
static __always_inline struct outcome hold_piece(ctx_t *ctx, struct packet *pkt)
{
	struct piece_key key = {.datagram = fragment_key(pkt)};

	if (!keep_piece(ctx, &key))
		return drop(REASON_STRAY_FRAGMENT);
	if (lookup_fragment(pkt) && !bpf_map_delete_elem(pieces, &key))
		return outcome(ctx_send_back(ctx, true), REASON_FRAGMENT_HELD);
	return outcome(VERDICT_TAKEN, REASON_FRAGMENT_HELD);
}

/* Turn the packet into a held piece, and have a copy of it enter anew. */
static __always_inline void release_piece(ctx_t *ctx, const struct held_piece *piece)
{
	u64 len = piece->len;

	AT_MOST(len, HELD_BYTES);
	AT_LEAST(len, 1);
	if (!bpf_skb_change_tail(ctx, len, 0) &&
	    !bpf_skb_store_bytes(ctx, 0, (void *)piece->frame, len, BPF_F_RECOMPUTE_CSUM))
		bpf_clone_redirect(ctx, ctx_ifindex(ctx), BPF_F_INGRESS);
}

/* The first piece, whose ports are noted by now: it enters anew, and then the pieces that wait for it. */
static __always_inline struct outcome release_pieces(ctx_t *ctx, const struct packet *pkt)
{
	struct piece_key key = {.datagram = fragment_key(pkt)};
	u64 now = bpf_ktime_get_ns();
	struct held_piece *piece;
	u32 place;

	if (bpf_clone_redirect(ctx, ctx_ifindex(ctx), BPF_F_INGRESS))
		return drop(REASON_REWRITE_FAILED);
#pragma clang loop unroll(disable)
	for (place = 0; place < HELD_PIECES; place++) {
		key.place = place;
		piece = bpf_map_lookup_elem(pieces, &key);
		if (!piece)
			continue;
		if (is_fresh(piece, now))
			release_piece(ctx, piece);
		bpf_map_delete_elem(pieces, &key);
	}
	return outcome(VERDICT_TAKEN, REASON_FRAGMENT_RELEASED);
}

static __always_inline struct outcome take_piece(ctx_t *ctx, struct packet *pkt, struct note *note)
{
	/* The reasons up to NOT_VIP are those of the parser. */
	bool left_alone = note->reason <= REASON_NOT_VIP;

#if FAMILY == 4
	if (note->reason == REASON_FRAGMENTED)
		return cut(ctx, pkt, note);
#endif
	if (left_alone && !may_be_ours(ctx, pkt))
		return pass(note->reason);
	if (pkt->piece == PIECE_LATER)
		return hold_piece(ctx, pkt);
	if (left_alone)
		remember_fragment(pkt, note->hook);
	if (left_alone && !is_awaited(pkt))
		return pass(note->reason);
	return release_pieces(ctx, pkt);
}

/* The step. The program before has left in `scratch` what is known of the packet. */
static __always_inline int take_pieces(ctx_t *ctx)
{
	struct note *note = get_note();
	u32 bytes = ctx_len(ctx);
	struct work *work = peek_work();

	if (!note || !work)
		return VERDICT_PASS;
	return finish_and_report(ctx, note, take_piece(ctx, &work->pkt, note), bytes);
}
