/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Step: questions for the link address of an IP address. For addresses that this node owns (`announced`) it
 * answers ARP requests in IPv4 and neighbour solicitations in IPv6. Everything else is left as it came. */
#pragma once
#include "announced.h"
#include "answer.h"

#if FAMILY == 6
#include "ndp.h"
#else
#include "arp.h"
#endif

/* The entry of an address; NULL: this node does not own it, or the time that its agent has set is over. */
static __always_inline const struct announced *lookup_owned(ctx_t *ctx, const struct addr *address)
{
	const struct announced *found = lookup_announced(ctx, address);

	return found && bpf_ktime_get_ns() < found->until_ns ? found : NULL;
}

/* Note a stranger who claims an address that is announced here. */
static __always_inline void note_rival(ctx_t *ctx, const struct solicitation *s)
{
	struct announced_key key = {.address = s->sender, .ifindex = ctx_ifindex(ctx)};
	struct rival first = {.frames = 1}, *known = bpf_map_lookup_elem(rivals, &key);
	struct rival *rival = known ? known : &first;

	rival->seen_ns = bpf_ktime_get_ns();
	__builtin_memcpy(rival->mac, s->mac, ETH_ALEN);
	if (known)
		__sync_fetch_and_add(&known->frames, 1);
	else
		bpf_map_update_elem(rivals, &key, &first, BPF_ANY);
}

/* Is the frame addressed to many hosts, or to this interface? A switch that floods shows frames for others as
 * well. A question of this node's own processes leaves by this interface, and is none for us. */
static __always_inline bool asks_us(const struct ethhdr *eth, const struct announced *ours,
				    const struct note *note)
{
	return note->egress || eth->h_dest[0] & 1 || same_mac(eth->h_dest, ours->mac);
}

static __always_inline struct outcome answer_neighbour(ctx_t *ctx, const struct note *note)
{
	solicitation_packet_t packet = {};
	const struct announced *ours;
	struct solicitation s = {};
	struct ethhdr eth;

	if (ctx_vlan(ctx) || !ctx_load(ctx, 0, &eth, sizeof(eth)) ||
	    !read_solicitation(ctx, &eth, &packet, &s) || s.mac[0] & 1)
		return pass(note->reason);
	if (s.claims && !note->egress) {
		ours = lookup_owned(ctx, &s.sender);
		if (ours) { /* our own frame, if a switch brings it back, is none of another */
			if (same_mac(s.mac, ours->mac))
				return pass(note->reason);
			note_rival(ctx, &s);
			return pass(REASON_RIVAL);
		}
	}
	ours = s.asks ? lookup_owned(ctx, &s.target) : NULL;
	if (!ours || !asks_us(&eth, ours, note))
		return pass(note->reason);
	if (!within_rate(ANSWER_NEIGHBOUR))
		return drop(REASON_RATE_LIMITED);
	/* XDP of some drivers makes no frame longer: then it is as it came. */
	if (!write_advertisement(ctx, &eth, &packet, &s, ours->mac))
		return ctx_decides() ? drop(REASON_REWRITE_FAILED) : pass(REASON_TO_TC);
	return outcome(ctx_send_back(ctx, note->egress), REASON_NEIGHBOUR);
}

/* The step. */
static __always_inline int neighbour(ctx_t *ctx)
{
	const struct note *note = get_note();
	u32 bytes = ctx_len(ctx);

	if (!note) /* never: an array has its first entry */
		return VERDICT_PASS;
	return finish(note->hook, answer_neighbour(ctx, note), bytes);
}
