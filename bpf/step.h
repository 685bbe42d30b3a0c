/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From one program to the next. A program has 512 bytes of stack and should be short where packets are many;
 * what is rare is done in others, entered by tail call with a note of what is known. */
#pragma once
#include "count.h"

/* bcc's own declaration of this helper takes a map of its dialect. */
static long (*tail_call)(void *ctx, void *map, u32 index) = (void *)BPF_FUNC_tail_call;

/* The note on this CPU; nothing else runs between its writing and its reading. */
static __always_inline struct note *get_note(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(notes, &zero);
}

/* Go on in a step of this family, with the note as it is. Comes back only when there is no such program. */
static __always_inline void next_step(ctx_t *ctx, u32 step)
{
	tail_call(ctx, MAP(FD_programs), (FAMILY == 6 ? PROGRAMS_PER_FAMILY : 0) + step);
}

/* The first step behind a hook, which writes the note. The steps read it where it is: their stacks have no
 * room for a copy. */
static __always_inline void take_step(ctx_t *ctx, u32 step, const struct note *what)
{
	struct note *note = get_note();

	if (!note)
		return;
	*note = *what;
	next_step(ctx, step);
}

/* The IPv4 programs are the entries of every hook. What is IPv6 goes on in their twins. */
static __always_inline void hand_over(ctx_t *ctx, u32 hook)
{
	if (FAMILY == 4 && ctx_ethertype(ctx) == bpf_htons(ETH_P_IPV6))
		tail_call(ctx, MAP(FD_programs), PROGRAMS_PER_FAMILY + hook);
}
