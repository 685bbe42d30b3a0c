/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Step: which backend did an older set name? With direct return a packet in mid-connection that meets no flow
 * gets a second chance: it is sent to the node of today's choice, which if it does not know the connection
 * sends it on to that of an older one, and so on: direct.h. So a router may hash anew while the set of
 * backends changes.
 *
 * Of a list (a small set) every former set is known by one line, which has its backends in the order in which
 * they came (lb/datapath/sync/former_sets.py). What rendezvous has chosen at some time is a backend whose
 * number is greater than those of all older ones; so the choice before that of `than` is the greatest among
 * the backends that are older. Of tables the last FORMER_SETS are kept. */
#pragma once
#include "affinity.h"
#include "forward.h"

/* Does a packet perhaps begin nothing, so that its connection may be known elsewhere? Of UDP nothing tells.
 */
static __always_inline bool in_mid_connection(const struct packet *pkt)
{
	if (pkt->piece != PIECE_WHOLE)
		return false;
	return pkt->tuple.protocol == IPPROTO_UDP || !(pkt->tcp_flags & (TCP_SYN | TCP_RST));
}

/* Does it begin something for a client whom another node may remember? With policy Local each node has
 * backends of its own for him. */
static __always_inline bool is_of_affinity(const struct packet *pkt, const struct vip *vip)
{
	return vip->affinity_seconds && opens(pkt) && !(vip->flags & VIP_OUTSIDE_LOCAL);
}

/* Is that to be asked of others? Of UDP where the Service says so, or has affinity. */
static __always_inline bool may_be_known_elsewhere(const struct packet *pkt, const struct vip *vip)
{
	if (!(vip->flags & VIP_DIRECT) || pkt->piece != PIECE_WHOLE)
		return false;
	return is_of_affinity(pkt, vip) ||
	       (in_mid_connection(pkt) && (pkt->tuple.protocol != IPPROTO_UDP || vip->flags & VIP_UDP_STAYS));
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

/* The row of an id in a small set's line, SMALL_SET if it is not there. It goes through memory, or the
 * verifier would follow what comes next for every row. */
static __always_inline u32 row_of(const struct table_line *line, u32 id, struct note *note)
{
	note->row = SMALL_SET;
#pragma clang loop unroll(disable)
	for (u32 row = 0; row < SMALL_SET; row++) {
		asm volatile("" : "+r"(row));
		if (line->rows[row & (SMALL_SET - 1)] == id)
			note->row = row;
	}
	asm volatile("" : : : "memory");
	return note->row;
}

/* Where the ids end that are older than `than`, which is of this node or not, in a line whose first
 * `unordered` came in no known order: of these, a backend of this node counts as newer than all others. A
 * node that remembers nothing has started not long ago, and its pods with it. */
static __always_inline u32 end_of_older(u32 than, u32 unordered, bool local)
{
	if (than >= unordered)
		return than;
	return local ? unordered : 0;
}

/* The id of the newest backend on another node that is older than `than` and was ever chosen; 0: none. */
static __always_inline u32 find_older(const struct vip *vip, const struct former *former, u32 hash, u32 than,
				      bool local, struct note *note)
{
	const struct backend_set *ages = former && former->ages.size ? &former->ages : &vip->outside;
	u32 size = ages->size, at = ages->offset / LINE_ROWS, found = 0, end;
	u32 unordered = ages == &vip->outside ? size : former->unordered;
	const struct table_line *line = bpf_map_lookup_elem(tables, &at);
	struct backend one;
	u64 best = 0;

	if (!line || size > SMALL_SET)
		return 0;
	end = end_of_older(row_of(line, than, note), unordered, local);
#pragma clang loop unroll(disable)
	for (u32 row = 0; row < SMALL_SET; row++) {
		u64 mixed;

		asm volatile("" : "+r"(row));
		if (row >= end)
			break;
		mixed = mix(line->rows[SMALL_SET + row], hash);
		if (mixed <= best || !read_backend(line->rows[row], vip->service, &one))
			continue;
		if (one.local && row < unordered)
			continue;
		best = mixed;
		if (!one.local)
			found = one.id;
	}
	return found;
}

/* The same of tables: the newest that names another one than today's. */
static __always_inline u32 find_in_tables(const struct former *former, u32 service, u32 hash, u32 today)
{
	struct backend chosen;
	struct backend_set set;

#pragma clang loop unroll(disable)
	for (u32 i = 0; i < FORMER_SETS; i++) {
		asm volatile("" : "+r"(i));
		if (i >= FORMER_SETS)
			break;
		set = former->sets[i];
		if (!set.size || is_weighted(&set))
			break;
		if (select_backend(&set, service, hash, 0, &chosen) && chosen.id != today && !chosen.local)
			return chosen.id;
	}
	return 0;
}

/* With policy Local each node has a set of its own, and which one began the connection no node can tell. So
 * all nodes that have backends are asked, in the order of those: the one behind `than` on another node. */
static __always_inline u32 find_next(const struct backend_set *all, u32 service, u32 than, struct note *note)
{
	u32 at = all->offset / LINE_ROWS, row;
	const struct table_line *line = bpf_map_lookup_elem(tables, &at);
	struct backend one;

	if (!line || all->size > SMALL_SET)
		return 0;
	row = row_of(line, than, note);
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < SMALL_SET; i++) { /* rows behind the set's have no backend */
		asm volatile("" : "+r"(i));
		row++;
		if (read_backend(line->rows[row & (SMALL_SET - 1)], service, &one) && !one.local)
			return one.id;
	}
	return 0;
}

/* Fill in note->today and note->former. Sets of unequal weights are left out: to weigh them here as well is
 * too much for the verifier. */
static __always_inline void find_former(const struct tuple *t, struct note *note)
{
	const struct vip *vip = find_vip_of_node(t);
	u32 service, hash, than = note->former, today = 0;
	const struct former *former;
	struct backend chosen = {};
	struct backend_set set;

	note->former = 0;
	if (!vip || !(vip->flags & VIP_DIRECT))
		return;
	set = vip->outside;
	service = vip->service;
	hash = hash_choice(vip, &t->src, hash_tuple(t), bpf_ktime_get_ns());
	if (set.size && !is_weighted(&set) && select_backend(&set, service, hash, 0, &chosen))
		today = chosen.id;
	note->today = today;
	if (vip->flags & VIP_OUTSIDE_LOCAL) {
		note->former = find_next(&vip->inside, service, than ?: today, note);
		return;
	}
	if (!today)
		return;
	if (!than && note->direct && !chosen.local) { /* another node has chosen one that is not known here */
		note->former = today;
		return;
	}
	if (than && than != today && !read_backend(than, service, &chosen))
		chosen.local = false;
	former = bpf_map_lookup_elem(formers, &service);
	if (set.size <= SMALL_SET)
		note->former = find_older(vip, former, hash, than ?: today, chosen.local, note);
	if (!note->former && former && !note->hops)
		note->former = find_in_tables(former, service, hash, today);
}

/* The step. The packet is in `work`, as the program before has left it. */
static __always_inline int former(ctx_t *ctx)
{
	struct work *work = peek_work();
	struct note *note = get_note();

	if (!note || !work)
		return VERDICT_DROP;
	find_former(&work->pkt.tuple, note);
	next_step(ctx, note->after);
	return finish(note->hook, strand(ctx, true), ctx_len(ctx));
}

/* Look for the choice before that of `than` (0: before today's), and come back in the step `after`. Comes
 * back here if it was looked for, or if the step is missing. */
static __always_inline void look_for_former(ctx_t *ctx, struct note *note, u32 than, u8 after)
{
	if (note->looked)
		return;
	note->looked = true;
	note->former = than;
	note->after = after;
	next_step(ctx, STEP_FORMER);
	note->former = 0;
}
