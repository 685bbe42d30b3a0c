/* The order of work. Ingress: VIP? flow? backend, flow, translation. Egress: reply of a flow? */
#pragma once
#include "affinity.h"
#include "forward.h"

/* On which side of the node the client is. */
enum side {
	INSIDE,	 /* a pod of this node: its interface sees both directions */
	OUTSIDE, /* behind an uplink or a tunnel */
};

static __always_inline void decide(struct decision *d, u32 action, u32 reason)
{
	d->action = action;
	d->reason = reason;
}

/* Find the way to d->to.dst for a packet that we forward. True when there is one that this hook can take, or
 * the stack must; else the decision is taken. */
static __always_inline bool decide_route(ctx_t *ctx, const struct packet *pkt, const struct addr *src,
					 struct decision *d)
{
	u32 result = find_route(ctx, pkt, src, &d->to.dst, &d->route);

	if (result == ROUTE_STACK)
		decide(d, ACTION_STACK, d->reason);
	else if (result == ROUTE_TOO_BIG)
		decide(d, ACTION_DROP, REASON_TOO_BIG);
	else if (result == ROUTE_NONE)
		decide(d, ACTION_DROP, REASON_NO_ROUTE);
	else if (!ctx_can_send(ctx, d->route.ifindex, d->route.smac, d->route.neighbour_known))
		decide(d, ACTION_PASS, REASON_TO_TC);
	else
		decide(d, ACTION_FORWARD, d->reason);
	return d->action == ACTION_FORWARD || d->action == ACTION_STACK;
}

/* A packet of a known flow: to the backend, or back to the client. */
static __always_inline void decide_flow(ctx_t *ctx, const struct packet *pkt, u8 direction, struct flow *flow,
					u64 now, u32 reason, struct decision *d)
{
	d->to = flow->to;
	decide(d, flow->path == PATH_HAIRPIN ? ACTION_HAIRPIN : ACTION_STACK, reason);
	if (flow->path == PATH_FORWARD && !decide_route(ctx, pkt, &flow->to.src, d))
		return;
	touch_flow(pkt, direction, flow, now);
}

static __always_inline bool pick_backend(const struct packet *pkt, const struct vip *vip, u8 side,
					 const struct backend_set *set, u64 now, struct backend *out)
{
	u8 local = side == INSIDE ? VIP_INSIDE_LOCAL : VIP_OUTSIDE_LOCAL;
	u8 member = vip->flags & local ? BACKEND_IN_LOCAL_SET : BACKEND_IN_CLUSTER_SET;

	if (!vip->affinity_seconds)
		return select_backend(set, vip->service, hash_tuple(&pkt->tuple), out);
	if (lookup_affinity(vip, &pkt->tuple, member, now, out))
		return true;
	if (!select_backend(set, vip->service, hash_client(&pkt->tuple), out))
		return false;
	remember_affinity(vip, &pkt->tuple, now, out);
	return true;
}

/* The address that packets out of ifindex carry as SNAT source; false when we do not SNAT there. */
static __always_inline bool snat_address(u32 ifindex, struct addr *out)
{
	const struct iface *iface = bpf_map_lookup_elem(ifaces, &ifindex);

	if (!iface || !iface->source4)
		return false;
	out->word[0] = iface->source4;
	return true;
}

/* Give flow->to.sport a value that makes the translated tuple unique, and store both halves. A client that
 * keeps its address keeps its port too, unless another flow of its own has taken it. */
static __always_inline u32 create_flow(const struct packet *pkt, struct flow *flow, u64 now,
				       const struct settings *settings)
{
	u32 first = bpf_ntohs(settings->snat_port_min);
	u32 ports = bpf_ntohs(settings->snat_port_max) - first + 1;
	u32 hash = hash_tuple(&pkt->tuple);
	struct tuple reply;
	int tries;

	if (flow->path != PATH_STACK)
		flow->to.sport = bpf_htons(first + (u32)(((u64)hash * ports) >> 32));
#pragma clang loop unroll(disable)
	for (tries = 0; tries < SNAT_TRIES; tries++) {
		if (claim_reply(&pkt->tuple, flow, now, settings))
			break;
		hash = hash_words(hash, tries, 0);
		flow->to.sport = bpf_htons(first + (u32)(((u64)hash * ports) >> 32));
	}
	if (tries == SNAT_TRIES)
		return REASON_SNAT_EXHAUSTED;
	if (store_flow(&pkt->tuple, DIR_FORWARD, flow, BPF_ANY) == 0)
		return PARSED;
	reply = reverse(&flow->to);
	delete_flow(&reply, DIR_REPLY);
	return REASON_FLOWS_FULL;
}

/* The first packet of a connection, or the first after its flow was lost. */
static __always_inline void decide_new(ctx_t *ctx, const struct packet *pkt, const struct vip *vip, u8 side,
				       u64 now, const struct settings *settings, struct decision *d)
{
	const struct backend_set set = side == INSIDE ? vip->inside : vip->outside;
	struct flow flow = {.last_seen = now, .service = vip->service};
	struct backend backend;
	u32 created;

	if (!source_allowed(pkt, vip)) {
		decide(d, ACTION_DROP, REASON_SOURCE_NOT_ALLOWED);
		return;
	}
	if (!set.size) {
		if (vip->flags & VIP_USABLE)
			decide(d, ACTION_DROP, REASON_NO_LOCAL_ENDPOINT);
		else
			decide(d, ACTION_REJECT, REASON_REJECT_NO_ENDPOINT);
		return;
	}
	if (!pick_backend(pkt, vip, side, &set, now, &backend)) {
		decide(d, ACTION_DROP, REASON_NO_BACKEND);
		return;
	}
	d->to = pkt->tuple;
	d->to.dst = backend.address;
	d->to.dport = backend.port;
	decide(d, ACTION_STACK, backend.local ? REASON_NEW_LOCAL : REASON_NEW_REMOTE);

	if (side == INSIDE && same_addr(&backend.address, &pkt->tuple.src)) {
		if (!snat_address(0, &d->to.src)) {
			decide(d, ACTION_DROP, REASON_NO_ROUTE);
			return;
		}
		flow.path = PATH_HAIRPIN;
		decide(d, ACTION_HAIRPIN, REASON_NEW_HAIRPIN);
	} else if (side == OUTSIDE && !backend.local) {
		if (!decide_route(ctx, pkt, &pkt->tuple.src, d))
			return;
		if (d->action == ACTION_FORWARD && snat_address(d->route.ifindex, &d->to.src))
			flow.path = PATH_FORWARD;
		else /* an endpoint on this node that does not say so */
			d->action = ACTION_STACK;
	}

	flow.backend = backend.id;
	flow.generation = backend.generation;
	flow.to = d->to;
	advance_state(pkt, DIR_FORWARD, &flow);
	created = create_flow(pkt, &flow, now, settings);
	if (created != PARSED)
		decide(d, ACTION_DROP, created);
	d->to.sport = flow.to.sport;
}

/* A packet that enters the node: from a pod, an uplink or a tunnel. */
static __always_inline void decide_ingress(ctx_t *ctx, const struct packet *pkt, u8 side, struct decision *d)
{
	const struct settings *settings = get_settings();
	const struct vip *vip;
	struct flow flow;
	u64 now;

	decide(d, ACTION_PASS, REASON_NOT_VIP);
	if (unlikely(!settings))
		return;
	/* A reply to an address of ours. One to a client that kept its address is the business of the hook
	 * that faces the client. */
	if (unlikely(to_snat_port(pkt, settings)) && lookup_flow(&pkt->tuple, DIR_REPLY, &flow) &&
	    flow.path == (side == INSIDE ? PATH_HAIRPIN : PATH_FORWARD)) {
		if (side == OUTSIDE && unlikely(!ctx_for_us(ctx)))
			decide(d, ACTION_PASS, REASON_NOT_FOR_US);
		else
			decide_flow(ctx, pkt, DIR_REPLY, &flow, bpf_ktime_get_ns(), REASON_REPLY, d);
		return;
	}
	vip = lookup_vip(pkt);
	if (likely(!vip))
		return;
	/* A pod behind a bridge addresses its frames to the bridge: that is no business of its interface. */
	if (side == OUTSIDE && unlikely(!ctx_for_us(ctx))) {
		decide(d, ACTION_PASS, REASON_NOT_FOR_US);
		return;
	}
	now = bpf_ktime_get_ns();
	if (lookup_flow(&pkt->tuple, DIR_FORWARD, &flow)) {
		if (flow_usable(pkt, &flow, now, settings)) {
			decide_flow(ctx, pkt, DIR_FORWARD, &flow, now, REASON_FLOW_HIT, d);
			return;
		}
		forget_flow(&pkt->tuple, &flow);
	}
	decide_new(ctx, pkt, vip, side, now, settings, d);
}

/* A packet that leaves towards a client: to a pod, or out of an uplink or a tunnel. */
static __always_inline void decide_egress(ctx_t *ctx, const struct packet *pkt, struct decision *d)
{
	struct flow flow;

	decide(d, ACTION_PASS, REASON_NOT_VIP);
	if (likely(!lookup_flow(&pkt->tuple, DIR_REPLY, &flow)) || flow.path != PATH_STACK)
		return;
	if (accepts_another(pkt, &flow))
		forget_closed(&pkt->tuple, &flow);
	else
		decide_flow(ctx, pkt, DIR_REPLY, &flow, bpf_ktime_get_ns(), REASON_REPLY, d);
}

static __always_inline int ingress(ctx_t *ctx, u32 hook, u8 side)
{
	u32 bytes = ctx_len(ctx);
	struct decision d = {};
	struct packet pkt = {};
	u32 parsed = parse(ctx, &pkt);

	if (parsed != PARSED)
		return finish(hook, pass(parsed), bytes);
	decide_ingress(ctx, &pkt, side, &d);
	return finish(hook, carry_out(ctx, &pkt, &d), bytes);
}

static __always_inline int egress(ctx_t *ctx, u32 hook)
{
	u32 bytes = ctx_len(ctx);
	struct decision d = {};
	struct packet pkt = {};
	u32 parsed = parse(ctx, &pkt);

	if (parsed != PARSED)
		return finish(hook, pass(parsed), bytes);
	decide_egress(ctx, &pkt, &d);
	return finish(hook, carry_out(ctx, &pkt, &d), bytes);
}
