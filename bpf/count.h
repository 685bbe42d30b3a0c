/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How a program ends: with a verdict for the kernel and a reason for the counters. */
#pragma once
#include "maps.h"
#include "reasons.h"

struct outcome {
	int verdict;
	u32 reason;
};

static __always_inline struct outcome outcome(int verdict, u32 reason)
{
	struct outcome o = {.verdict = verdict, .reason = reason};

	return o;
}

static __always_inline struct outcome pass(u32 reason)
{
	return outcome(VERDICT_PASS, reason);
}

static __always_inline struct outcome drop(u32 reason)
{
	return outcome(VERDICT_DROP, reason);
}

/* Every exit of every hook is counted here. */
static __always_inline int finish(u32 hook, struct outcome o, u32 bytes)
{
	u32 index = hook * REASONS_PER_HOOK + o.reason;
	struct counter *counter = bpf_map_lookup_elem(reasons, &index);

	if (counter) {
		counter->packets++;
		counter->bytes += bytes;
	}
	return o.verdict;
}
