/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What comes from netfilter, into tables that other programs write at the same time: `lbctl cutover` runs
 * these by BPF_PROG_TEST_RUN, on a frame that has an entry behind its link header. No hook runs them, so they
 * are loaded for that time alone. They return enum adopted. */
#include "ctx_tc.h"
#include "affinity.h"
#include "flow_state.h"
#include "forward.h"

enum adopted {
	ADOPTED = 1,
	ADOPTED_BAD = 2,   /* the frame is too short, or a map is missing */
	ADOPTED_KNOWN = 3, /* the client's packets lead elsewhere already: its connection began anew here */
	ADOPTED_TAKEN = 4, /* to the backend, another connection has its addresses and ports */
};

#define SIGNS_THAT_STAY (FIN_CLIENT | FIN_BACKEND | RST_CLIENT | RST_BACKEND)

/* The flow of a client's packets, as the forward half. What it has seen meanwhile stays seen. */
int lb_adopt_flow(struct __sk_buff *ctx)
{
	const struct settings *settings = get_settings();
	struct work *work = get_work();
	const struct flow_entry *known;
	u64 now = bpf_ktime_get_ns(), idle;
	struct tuple from, to;
	struct entries *e;
	struct flow flow;

	if (!settings || !work)
		return ADOPTED_BAD;
	e = &work->entries;
	if (bpf_skb_load_bytes(ctx, ETH_HLEN, &e->gone, sizeof(e->gone)))
		return ADOPTED_BAD;
	from.src = e->gone.key.src;
	from.dst = e->gone.key.dst;
	from.sport = e->gone.key.sport;
	from.dport = e->gone.key.dport;
	from.protocol = e->gone.key.protocol;
	flow_from(&e->gone.value, from.protocol, &flow);
	to = flow.to;
	flow.last_seen = now;
	idle = idle_limit(from.protocol, flow.state, settings);
	flow_key(&e->made.key, &from, DIR_FORWARD);
	known = get_flow(&e->made.key);
	if (known && SAME_ENDS(known, &to)) {
		flow.fins |= known->fins & SIGNS_THAT_STAY;
		if (!(known->fins & HALF_OPEN))
			flow.fins &= ~(HALF_OPEN | ANSWERED | MET_LATE);
		if (known->state > flow.state)
			flow.state = known->state;
	} else if (known && known->state != FLOW_CLOSED &&
		   !expired(from.protocol, known->state, known->last_seen, now, settings))
		return ADOPTED_KNOWN;
	e->half.tag = 0;
	other_key(&e->made.key, &to, DIR_FORWARD);
	known = get_flow(&e->made.key);
	if (known && !leads_back(known, &from) && known->state != FLOW_CLOSED &&
	    !expired(from.protocol, known->state, known->last_seen, now, settings))
		return ADOPTED_TAKEN;
	flow_value(&e->made.value, &flow);
	turn_round(&e->made.value, &from);
	put_flow(e, idle, true);
	flow_key(&e->made.key, &from, DIR_FORWARD);
	flow_value(&e->made.value, &flow);
	put_flow(e, idle, true);
	return ADOPTED;
}

/* A client that keeps its backend. */
struct adopted_affinity {
	struct affinity value;
	struct affinity_key key;
	u32 seconds; /* the Service's affinity_seconds */
};

int lb_adopt_affinity(struct __sk_buff *ctx)
{
	struct adopted_affinity it = {};
	struct vip vip = {};

	if (bpf_skb_load_bytes(ctx, ETH_HLEN, &it, sizeof(it)))
		return ADOPTED_BAD;
	vip.service = it.key.service;
	vip.affinity_seconds = it.seconds;
	remember_affinity(&vip, &it.key.client, it.value.last_used, it.value.backend, it.value.generation,
			  false);
	return ADOPTED;
}
