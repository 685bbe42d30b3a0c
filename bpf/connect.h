/* The first packet of a connection, or the first after its flow was lost: affinity or consistent hash, the
 * way, the flow. */
#pragma once
#include "affinity.h"
#include "conntrack.h"
#include "forward.h"

/* Give flow->to.sport a value that makes the translated tuple unique, and store both halves. A client that
 * keeps its address keeps its port too, unless another flow of its own has taken it. */
static __always_inline u32 create_flow(const struct packet *pkt, struct flow *flow, u64 now,
				       const struct settings *settings, struct entry *entry)
{
	u32 first = bpf_ntohs(settings->snat_port_min);
	u32 ports = bpf_ntohs(settings->snat_port_max) - first + 1;
	u32 hash = hash_tuple(&pkt->tuple);
	int tries;

	if (!keeps_client(flow->path))
		flow->to.sport = bpf_htons(first + (u32)(((u64)hash * ports) >> 32));
#pragma clang loop unroll(disable)
	for (tries = 0; tries < SNAT_TRIES; tries++) {
		if (claim_reply(&pkt->tuple, flow, now, settings, entry))
			break;
		hash = hash_words(hash, tries, 0);
		flow->to.sport = bpf_htons(first + (u32)(((u64)hash * ports) >> 32));
	}
	if (tries == SNAT_TRIES)
		return REASON_SNAT_EXHAUSTED;
	flow_key(&entry->key, &pkt->tuple, DIR_FORWARD);
	flow_value(&entry->value, flow);
	if (bpf_map_update_elem(flows, &entry->key, &entry->value, BPF_ANY) == 0)
		return PARSED;
	other_key(&entry->key, &flow->to, DIR_FORWARD);
	bpf_map_delete_elem(flows, &entry->key);
	return REASON_FLOWS_FULL;
}

/* The way to a backend of this node, from elsewhere or from another pod: both directions go past the stack,
 * or none. False: the decision is taken. */
static __always_inline bool decide_redirect(ctx_t *ctx, const struct packet *pkt,
					    const struct settings *settings, struct decision *d)
{
	if (likely(!settings->redirect))
		return true;
	if (!ctx_can_redirect()) {
		decide(d, ACTION_PASS, REASON_TO_TC);
		return false;
	}
	if (may_go_past(ctx, pkt) && decide_route(ctx, pkt, &pkt->tuple.src, true, d)) {
		if (d->route.peer)
			d->flow.path = PATH_REDIRECT;
		else
			d->action = ACTION_STACK;
	}
	return true;
}

/* The way to a backend just selected. False: there is none, and the decision is taken. */
static __always_inline bool decide_path(ctx_t *ctx, const struct packet *pkt, u8 side,
					const struct backend *backend, const struct settings *settings,
					struct decision *d)
{
	decide(d, ACTION_STACK, backend->local ? REASON_NEW_LOCAL : REASON_NEW_REMOTE);
	if (side == INSIDE) {
		if (!same_addr(&backend->address, &pkt->tuple.src))
			return !backend->local || decide_redirect(ctx, pkt, settings, d);
		d->flow.path = PATH_HAIRPIN;
		if (own_address(0, &d->flow.to.src))
			decide(d, ACTION_HAIRPIN, REASON_NEW_HAIRPIN);
		else
			decide(d, ACTION_DROP, REASON_NO_ROUTE);
		return d->action == ACTION_HAIRPIN;
	}
	if (side == OUTSIDE && backend->local)
		return decide_redirect(ctx, pkt, settings, d);
	if (!decide_route(ctx, pkt, &pkt->tuple.src, false, d))
		return false;
	if (side == HOST) {
		/* Its address is the node's already. An endpoint that is a process of this node as well is
		 * not reached from here: nothing leads back into the node's own stack. */
		d->flow.path = PATH_HOST;
		if (d->action != ACTION_FORWARD)
			decide(d, ACTION_DROP, REASON_NO_ROUTE);
		return d->action == ACTION_FORWARD;
	}
	if (d->action == ACTION_FORWARD && own_address(d->route.ifindex, &d->flow.to.src))
		d->flow.path = PATH_FORWARD;
	else /* an endpoint on this node that does not say so */
		d->action = ACTION_STACK;
	return true;
}

static __always_inline void decide_connect(ctx_t *ctx, const struct packet *pkt, const struct vip *vip,
					   u8 side, u64 now, const struct settings *settings,
					   struct entry *entry, struct decision *d)
{
	const struct backend_set set = offered_set(vip, side);
	struct backend backend;
	u32 created;

	if (decide_refusal(pkt, vip, &set, d))
		return;
	if (!pick_backend(vip, side, &set, &pkt->tuple.src, hash_tuple(&pkt->tuple), now, &backend)) {
		decide(d, ACTION_DROP, REASON_NO_BACKEND);
		return;
	}
	d->flow.to = pkt->tuple;
	d->flow.to.dst = backend.address;
	d->flow.to.dport = backend.port;
	if (!decide_path(ctx, pkt, side, &backend, settings, d))
		return;
	d->flow.service = vip->service;
	d->flow.backend = backend.id;
	d->flow.generation = backend.generation;
	d->flow.last_seen = now;
	advance_state(pkt, DIR_FORWARD, &d->flow);
	created = create_flow(pkt, &d->flow, now, settings, entry);
	if (created != PARSED)
		decide(d, ACTION_DROP, created);
}

/* What a connect works on. It is not on the stack, which is too small for it, and of whose contents the
 * verifier would follow every combination. */
struct work {
	struct packet pkt;
	struct decision d;
	struct entry entry;
};
_Static_assert(sizeof(struct work) <= sizeof(struct scratch), "struct work has room in the scratch map");

static __always_inline struct work *get_work(void)
{
	u32 zero = 0;
	struct work *work = bpf_map_lookup_elem(scratches, &zero);

	if (work)
		__builtin_memset(work, 0, sizeof(*work));
	return work;
}

static __always_inline struct outcome connect_packet(ctx_t *ctx, struct work *work,
						     const struct settings *settings, const struct note *at)
{
	struct packet *pkt = &work->pkt;
	struct decision *d = &work->d;
	const struct vip *vip;

	pkt->l3 = at->l3;
	if (parse(ctx, pkt) != PARSED)
		return drop(REASON_REWRITE_FAILED);
	vip = lookup_vip(&pkt->tuple);
	if (!vip) /* gone in this moment */
		return drop(REASON_NO_BACKEND);
	if (at->stale && lookup_flow(&pkt->tuple, DIR_FORWARD, &d->flow)) {
		delete_pair(&pkt->tuple, &d->flow.to, DIR_FORWARD);
		__builtin_memset(&d->flow, 0, sizeof(d->flow));
	}
	decide_connect(ctx, pkt, vip, at->side, bpf_ktime_get_ns(), settings, &work->entry, d);
	return conclude(ctx, pkt, d, at);
}

/* The step. */
static __always_inline int connect(ctx_t *ctx)
{
	const struct settings *settings = get_settings();
	const struct note *found = get_note();
	struct work *work = get_work();
	u32 bytes = ctx_len(ctx);
	struct note at;

	if (!found || !settings || !work)
		return VERDICT_DROP;
	at = *found;
	return finish(at.hook, connect_packet(ctx, work, settings, &at), bytes);
}
