/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Does `lbctl monitor` watch packets, and how does a program hand over to the one that reports? The event
 * itself is made in report.h, by programs of their own. */
#pragma once
#include "step.h"

/* enum watch_flags; 0: nobody watches, and this is all that it costs. */
static __always_inline u32 watched(void)
{
	u32 zero = 0;
	const struct watch *watch = bpf_map_lookup_elem(watch_map, &zero);

	return watch ? watch->what : 0;
}

/* The event that is being made on this CPU. */
static __always_inline struct event *get_draft(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(draft_map, &zero);
}

/* The end of a step that has decided about the packet: while somebody watches, the step that reports comes
 * next. at is get_note(). */
static __always_inline int finish_and_report(ctx_t *ctx, const struct note *note, struct outcome o, u32 bytes)
{
	int verdict = finish(note->hook, o, bytes);
	struct event *event;

	if (likely(!note->watch))
		return verdict;
	event = get_draft();
	if (!event)
		return verdict;
	event->verdict = verdict;
	event->reason = o.reason;
	event->len = bytes;
	next_step(ctx, STEP_REPORT);
	return verdict;
}
