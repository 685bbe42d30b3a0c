/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Later fragments have no ports: they get those of the first, which the hook that translated it has noted. */
#pragma once
#include "ip.h"
#include "service.h"

static __always_inline struct fragment_key fragment_key(const struct packet *pkt)
{
	struct fragment_key key = {
	    .src = pkt->tuple.src,
	    .dst = pkt->tuple.dst,
	    .id = pkt->fragment_id,
	    .protocol = pkt->piece_next,
	};

	return key;
}

/* How long is the datagram as a whole of which this is the first piece? 0: nobody has told. */
static __always_inline u32 whole_len(const struct packet *pkt)
{
	struct fragment_key key = fragment_key(pkt);
	const struct fragment *datagram = bpf_map_lookup_elem(fragments, &key);

	return datagram && bpf_ktime_get_ns() - datagram->seen_ns <= FRAGMENT_NS ? datagram->whole : 0;
}

/* An SCTP packet of this number is about to be cut, by us: note how long it is as a whole. */
static __always_inline void announce_pieces(const struct packet *pkt, u32 id)
{
	struct fragment_key key = {
	    .src = pkt->tuple.src,
	    .dst = pkt->tuple.dst,
	    .id = id,
	    .protocol = pkt->tuple.protocol,
	};
	struct fragment datagram = {
	    .seen_ns = bpf_ktime_get_ns(),
	    .whole = pkt->l4_len,
	    .sport = pkt->tuple.sport,
	    .dport = pkt->tuple.dport,
	    .protocol = pkt->tuple.protocol,
	};

	bpf_map_update_elem(fragments, &key, &datagram, BPF_ANY);
}

static __always_inline void remember_fragment(const struct packet *pkt, u32 hook)
{
	struct fragment_key key = fragment_key(pkt);
	struct fragment ports = {
	    .seen_ns = bpf_ktime_get_ns(),
	    .passed = pkt->piece_len,
	    .whole = pkt->sum_len,
	    .sport = pkt->tuple.sport,
	    .dport = pkt->tuple.dport,
	    .hook = hook,
	    .protocol = pkt->tuple.protocol,
	};

	bpf_map_update_elem(fragments, &key, &ports, BPF_ANY);
}

/* A later piece has passed the hook. Behind the last byte of the datagram its number is free for another one,
 * whose later pieces may come first. */
static __always_inline void count_piece(const struct packet *pkt, u32 hook)
{
	struct fragment_key key = fragment_key(pkt);
	struct fragment *datagram = bpf_map_lookup_elem(fragments, &key);

	if (!datagram || datagram->hook != hook)
		return;
	if (pkt->last)
		datagram->whole = pkt->piece_at + pkt->piece_len;
	__sync_fetch_and_add(&datagram->passed, pkt->piece_len);
	if (datagram->whole && datagram->passed >= datagram->whole)
		bpf_map_delete_elem(fragments, &key);
}

/* Did a later piece come before this one, the first? Those are held from the first place on. */
static __always_inline bool is_awaited(const struct packet *pkt)
{
	struct piece_key key = {.datagram = fragment_key(pkt)};

	return bpf_map_lookup_elem(pieces, &key);
}

/* Give a later fragment its ports, and its protocol where an extension header is in front of that; false when
 * its first has not been seen here. */
static __always_inline bool lookup_fragment(struct packet *pkt)
{
	struct fragment_key key = fragment_key(pkt);
	const struct fragment *ports = bpf_map_lookup_elem(fragments, &key);

	if (!ports || bpf_ktime_get_ns() - ports->seen_ns > FRAGMENT_NS)
		return false;
	pkt->tuple.sport = ports->sport;
	pkt->tuple.dport = ports->dport;
	if (is_extension(pkt->piece_next)) {
		pkt->tuple.protocol = ports->protocol;
		if (ports->protocol == ICMP_PROTOCOL)
			pkt->kind = KIND_ECHO;
	}
	return true;
}
