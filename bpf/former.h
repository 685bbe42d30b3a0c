/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Step: which backend did an older set name? With direct return a packet in mid-connection that meets no flow
 * gets a second chance: the node of today's choice, if it does not know the connection either, sends it on to
 * the node of the former one. So a router may hash anew while the set of backends changes. Of the sets that a
 * Service port has had Python keeps the last FORMER_SETS. */
#pragma once
#include "forward.h"

/* Does a packet begin nothing, so that its connection may be known elsewhere? Of UDP nothing tells. */
static __always_inline bool in_mid_connection(const struct packet *pkt)
{
	return pkt->tuple.protocol == IPPROTO_TCP && !(pkt->tcp_flags & (TCP_SYN | TCP_RST)) &&
	       pkt->piece == PIECE_WHOLE;
}

/* The VIP of a packet; a NodePort of another node's is ours at our own address. */
static __always_inline const struct vip *find_vip_of_node(const struct tuple *of)
{
	const struct vip *vip = lookup_vip(of);
	struct tuple t = *of;

	if (vip || !own_address(0, &t.dst))
		return vip;
	vip = lookup_vip(&t);
	return vip && vip->kind == VIP_NODE_PORT ? vip : NULL;
}

/* The id of the backend that the newest set names which does not name today's; 0: none. With affinity the
 * choice is by client and time, and stays in one set. Sets of unequal weights are left out: to weigh them
 * here as well is too much for the verifier. */
static __always_inline u32 find_former(const struct tuple *t)
{
	const struct vip *vip = find_vip_of_node(t);
	const struct former *former;
	u32 service, hash, today = 0;
	struct backend chosen;
	struct backend_set set;

	if (!vip || !(vip->flags & VIP_DIRECT) || vip->affinity_seconds)
		return 0;
	service = vip->service;
	former = bpf_map_lookup_elem(formers, &service);
	if (!former)
		return 0;
	hash = hash_tuple(t);
	set = vip->outside;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i <= FORMER_SETS; i++) {
		asm volatile("" : "+r"(i));
		if (is_weighted(&set))
			break;
		if (set.size && select_backend(&set, service, hash, 0, &chosen) && chosen.id != today) {
			if (i)
				return chosen.id;
			today = chosen.id;
		}
		if (i >= FORMER_SETS)
			break;
		set = former->sets[i];
		if (!set.size)
			break;
	}
	return 0;
}

/* The step. The packet is in `work`, as the program before has left it. */
static __always_inline int former(ctx_t *ctx)
{
	struct work *work = peek_work();
	struct note *note = get_note();

	if (!note || !work)
		return VERDICT_DROP;
	note->former = find_former(&work->pkt.tuple);
	next_step(ctx, note->after);
	return finish(note->hook, strand(ctx, true), ctx_len(ctx));
}

/* Look for it, and come back in the step `after`. Comes back here if it was looked for, or if the step is
 * missing. */
static __always_inline void look_for_former(ctx_t *ctx, struct note *note, u8 after)
{
	if (note->looked)
		return;
	note->looked = true;
	note->after = after;
	next_step(ctx, STEP_FORMER);
}
