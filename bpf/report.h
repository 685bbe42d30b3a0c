/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Two steps that report a packet to `lbctl monitor`. The first one, before the long way, copies the packet's
 * first bytes; the second one, after the program that decided, makes the event. */
#pragma once
#include "event.h"
#include "forward.h"
#include "watch.h"

/* The first step: keeps the packet as it came. */
static __always_inline int capture(ctx_t *ctx)
{
	const struct note *note = get_note();
	struct event *event = get_draft();

	if (!note || !event) /* never: an array has its first entry */
		return VERDICT_PASS;
	event->captured = ctx_copy_head(ctx, event->before);
	next_step(ctx, long_step(note));
	return finish(note->hook, strand(ctx, is_for_vip(ctx, note->l3)), ctx_len(ctx));
}

/* A connection is reported with all of its packets or not at all, so the tuple of the client's packets
 * decides. */
static __always_inline bool is_sample(const struct watch *watch, const struct work *work)
{
	struct tuple t = work->pkt.tuple;

	if (watch->one_in < 2)
		return true;
	if (work->d.direction == DIR_REPLY)
		t = reverse(&work->d.flow.to);
	return in_sample(watch, hash_tuple(&t));
}

static __always_inline void describe(ctx_t *ctx, struct event *event, const struct work *work,
				     const struct note *note)
{
	const struct tuple *from = &work->pkt.tuple, *to = &work->d.flow.to;

	event->hook = note->hook;
	event->ifindex = ctx_ifindex(ctx);
	event->service = work->d.flow.service;
	event->backend = work->d.flow.backend;
	event->sent_len = event->verdict == VERDICT_DROP ? 0 : ctx_len(ctx);
	put_address(event->src, &from->src);
	put_address(event->dst, &from->dst);
	put_address(event->to_src, &to->src);
	put_address(event->to_dst, &to->dst);
	event->sport = from->sport;
	event->dport = from->dport;
	event->to_sport = to->sport;
	event->to_dport = to->dport;
	event->family = FAMILY;
	event->protocol = from->protocol;
	event->direction = work->d.direction;
	event->tcp_flags = work->pkt.tcp_flags;
	event->closes = work->d.closes;
	event->l3 = note->l3;
}

static __always_inline void report_packet(ctx_t *ctx, struct watch *watch, struct event *event,
					  const struct work *work, const struct note *note)
{
	bool bytes = note->watch & WATCH_BYTES;
	long full;

	if (!(events_for(event->reason, event->verdict == VERDICT_DROP, work->d.closes) & watch->what) ||
	    !watches_service(watch, work->d.flow.service) || !is_sample(watch, work))
		return;
	describe(ctx, event, work, note);
	if (bytes) {
		event->sent_captured = event->sent_len ? ctx_copy_head(ctx, event->after) : 0;
		full = bpf_ringbuf_output(events, event, sizeof(*event), 0);
	} else {
		event->captured = 0;
		event->sent_captured = 0;
		full = bpf_ringbuf_output(events, event, __builtin_offsetof(struct event, before), 0);
	}
	if (full)
		__sync_fetch_and_add(&watch->lost, 1);
}

/* The second step: makes the event and ends the packet's way with the verdict that was reached before. */
static __always_inline int report(ctx_t *ctx)
{
	const struct note *note = get_note();
	struct event *event = get_draft();
	const struct work *work = peek_work();
	struct watch *watch;
	u32 zero = 0;

	watch = bpf_map_lookup_elem(watch_map, &zero);
	if (!note || !event || !work || !watch)
		return VERDICT_DROP;
	event->time_ns = bpf_ktime_get_ns();
	if (lease_runs(watch, event->time_ns))
		report_packet(ctx, watch, event, work, note);
	return event->verdict;
}
