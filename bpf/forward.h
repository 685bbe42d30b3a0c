/* What becomes of a packet, and doing it: a decision is taken without touching the packet (lb.h), then
 * carried out here, once, by the last step of every program. */
#pragma once
#include "reply.h"

enum action {
	ACTION_PASS,	/* as it came */
	ACTION_DROP,	/* not at all */
	ACTION_REJECT,	/* answer for the VIP */
	ACTION_STACK,	/* translate, on to the kernel's stack */
	ACTION_HAIRPIN, /* translate, back out of the interface it came from */
	ACTION_FORWARD, /* translate, out along the route */
};

/* Where a packet that we forward ourselves leaves the node. */
struct route {
	u32 ifindex;
	bool neighbour_known; /* else smac and dmac are unset and the kernel must resolve them */
	u8 dmac[ETH_ALEN];
	u8 smac[ETH_ALEN];
};

struct decision {
	u32 action;
	u32 reason;
	struct tuple to;    /* the translated packet; STACK, HAIRPIN and FORWARD */
	struct route route; /* FORWARD */
};

enum route_result {
	ROUTE_FOUND,
	ROUTE_STACK, /* the kernel would not forward it: an address of this node */
	ROUTE_NONE,
	ROUTE_TOO_BIG,
};

static __always_inline u32 find_route(ctx_t *ctx, const struct packet *pkt, const struct addr *src,
				      const struct addr *dst, struct route *out)
{
	struct bpf_fib_lookup fib = {
	    .family = 2, /* AF_INET */
	    .tos = pkt->tos,
	    .l4_protocol = pkt->tuple.protocol,
	    .tot_len = ctx_fib_len(pkt->ip_len),
	    .ifindex = ctx_ifindex(ctx),
	    .ipv4_src = src->word[0],
	    .ipv4_dst = dst->word[0],
	};
	int result = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);

	out->ifindex = fib.ifindex;
	out->neighbour_known = result == BPF_FIB_LKUP_RET_SUCCESS;
	__builtin_memcpy(out->dmac, fib.dmac, ETH_ALEN);
	__builtin_memcpy(out->smac, fib.smac, ETH_ALEN);
	switch (result) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		return ROUTE_FOUND;
	case BPF_FIB_LKUP_RET_NOT_FWDED:
		return ROUTE_STACK;
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		return ROUTE_TOO_BIG;
	default:
		return ROUTE_NONE;
	}
}

static __always_inline struct outcome send_along(ctx_t *ctx, const struct decision *d)
{
	const struct route *route = &d->route;

	if (route->neighbour_known &&
	    (!ctx_store(ctx, 0, route->dmac, ETH_ALEN) || !ctx_store(ctx, ETH_ALEN, route->smac, ETH_ALEN)))
		return drop(REASON_REWRITE_FAILED);
	return outcome(ctx_send(ctx, route->ifindex, route->neighbour_known), d->reason);
}

static __always_inline struct outcome send_hairpin(ctx_t *ctx, const struct decision *d)
{
	struct ethhdr eth;

	if (!load_swapped_ethernet(ctx, &eth) || !ctx_store(ctx, 0, &eth, sizeof(eth)))
		return drop(REASON_REWRITE_FAILED);
	return outcome(ctx_send_back(ctx), d->reason);
}

static __always_inline struct outcome carry_out(ctx_t *ctx, const struct packet *pkt,
						const struct decision *d)
{
	bool by_us = d->action == ACTION_HAIRPIN || d->action == ACTION_FORWARD;

	if (d->action == ACTION_PASS)
		return pass(d->reason);
	if (d->action == ACTION_DROP)
		return drop(d->reason);
	if (d->action == ACTION_REJECT)
		return reject(ctx, pkt);
	if (by_us && pkt->ttl <= 1)
		return drop(REASON_TTL_EXPIRED);
	if (!translate(ctx, pkt, &d->to, by_us))
		return drop(REASON_REWRITE_FAILED);
	if (d->action == ACTION_FORWARD)
		return send_along(ctx, d);
	if (d->action == ACTION_HAIRPIN)
		return send_hairpin(ctx, d);
	return pass(d->reason);
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
