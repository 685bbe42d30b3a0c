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

/* Tell STEP_CONNECT which VIP the packet is for: it need not look again. */
static __always_inline void note_vip(const struct vip *vip)
{
	struct note *note = get_note();

	if (note)
		note->vip = *vip;
}

/* But for the VIP, see note_vip(). */
static __always_inline bool write_note(const struct note *what)
{
	struct note *note = get_note();

	if (!note)
		return false;
	/* Field by field: of a note that is constant but for a field or two, and longer than 20 bytes, clang
	 * 14 loses the constant part when the whole is assigned (tests/packet/test_icmp_errors.py, at lo). */
	note->hook = what->hook;
	note->reason = what->reason;
	note->mtu = what->mtu;
	note->l3 = what->l3;
	note->side = what->side;
	note->answer = what->answer;
	note->egress = what->egress;
	note->stale = what->stale;
	note->watch = what->watch;
	note->asked = what->asked;
	note->attempt = what->attempt;
	note->run = what->run;
	note->weighed = what->weighed;
	note->row = what->row;
	note->direct = what->direct;
	note->looked = what->looked;
	note->after = what->after;
	note->hops = what->hops;
	note->today = what->today;
	note->former = what->former;
	return true;
}

/* The first step behind a hook, which writes the note. The steps read it where it is: their stacks have no
 * room for a copy. */
static __always_inline void take_step(ctx_t *ctx, u32 step, const struct note *what)
{
	if (write_note(what))
		next_step(ctx, step);
}

/* The step that takes the long way. */
static __always_inline u32 long_step(const struct note *note)
{
	return note->egress ? STEP_EGRESS : STEP_INGRESS;
}

/* The IPv4 programs are the entries of every hook. What is IPv6 goes on in their twins; where a twin is
 * missing, on IPv6's long way, which does all that the twin does. False: the packet is this family's. True:
 * there are no programs of its family. */
static __always_inline bool hand_over(ctx_t *ctx, const struct note *note)
{
	if (FAMILY != 4 || ctx_ethertype(ctx) != bpf_htons(ETH_P_IPV6))
		return false;
	tail_call(ctx, MAP(FD_programs), PROGRAMS_PER_FAMILY + note->hook);
	if (write_note(note))
		tail_call(ctx, MAP(FD_programs), PROGRAMS_PER_FAMILY + long_step(note));
	return true;
}
