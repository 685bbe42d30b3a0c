/* Flows: one entry for each direction of a translated connection, created, aged and refreshed as a pair. */
#pragma once
#include "backend.h"

/* A flow entry read into registers. */
struct flow {
	struct tuple to; /* what the packet becomes */
	u32 service;
	u32 backend;
	u32 generation;
	u8 state;
	u8 fins;
	u8 path;
	u64 last_seen;
};

static __always_inline struct flow4_key flow4_key(const struct tuple *t, u8 direction)
{
	struct flow4_key key = {
	    .src = t->src.word[0],
	    .dst = t->dst.word[0],
	    .sport = t->sport,
	    .dport = t->dport,
	    .protocol = t->protocol,
	    .direction = direction,
	};

	return key;
}

static __always_inline struct flow4 flow4_value(const struct flow *flow)
{
	struct flow4 value = {
	    .src = flow->to.src.word[0],
	    .dst = flow->to.dst.word[0],
	    .sport = flow->to.sport,
	    .dport = flow->to.dport,
	    .service = flow->service,
	    .backend = flow->backend,
	    .generation = flow->generation,
	    .state = flow->state,
	    .fins = flow->fins,
	    .path = flow->path,
	    .last_seen = flow->last_seen,
	};

	return value;
}

static __always_inline void flow_from4(const struct flow4 *value, u8 protocol, struct flow *out)
{
	out->to.src.word[0] = value->src;
	out->to.dst.word[0] = value->dst;
	out->to.sport = value->sport;
	out->to.dport = value->dport;
	out->to.protocol = protocol;
	out->service = value->service;
	out->backend = value->backend;
	out->generation = value->generation;
	out->state = value->state;
	out->fins = value->fins;
	out->path = value->path;
	out->last_seen = value->last_seen;
}

static __always_inline bool lookup_flow(const struct tuple *t, u8 direction, struct flow *out)
{
	struct flow4_key key = flow4_key(t, direction);
	const struct flow4 *value = bpf_map_lookup_elem(flows4, &key);

	if (!value)
		return false;
	flow_from4(value, t->protocol, out);
	return true;
}

/* flags: BPF_ANY or BPF_NOEXIST. Returns 0 or a negative errno. */
static __always_inline int store_flow(const struct tuple *t, u8 direction, const struct flow *flow, u64 flags)
{
	struct flow4_key key = flow4_key(t, direction);
	struct flow4 value = flow4_value(flow);

	return bpf_map_update_elem(flows4, &key, &value, flags);
}

/* The tuple of the same connection's packets the other way. */
static __always_inline struct tuple reverse(const struct tuple *t)
{
	struct tuple r = {
	    .src = t->dst,
	    .dst = t->src,
	    .sport = t->dport,
	    .dport = t->sport,
	    .protocol = t->protocol,
	};

	return r;
}

static __always_inline bool same_tuple(const struct tuple *a, const struct tuple *b)
{
	return same_addr(&a->src, &b->src) && same_addr(&a->dst, &b->dst) && a->sport == b->sport &&
	       a->dport == b->dport && a->protocol == b->protocol;
}

static __always_inline void delete_flow(const struct tuple *t, u8 direction)
{
	struct flow4_key key = flow4_key(t, direction);

	bpf_map_delete_elem(flows4, &key);
}

/* Delete the entry of t unless it has come to mean another connection. */
static __always_inline void delete_flow_to(const struct tuple *t, u8 direction, const struct tuple *to)
{
	struct flow flow;

	if (lookup_flow(t, direction, &flow) && same_tuple(&flow.to, to))
		delete_flow(t, direction);
}

static __always_inline u64 idle_limit(const struct flow *flow, const struct settings *settings)
{
	if (flow->to.protocol == IPPROTO_UDP)
		return flow->state == FLOW_NEW ? settings->udp_new_ns : settings->udp_ns;
	if (flow->state == FLOW_NEW)
		return settings->tcp_syn_ns;
	if (flow->state == FLOW_ESTABLISHED)
		return settings->tcp_established_ns;
	return settings->tcp_closing_ns;
}

static __always_inline bool expired(const struct flow *flow, u64 now, const struct settings *settings)
{
	return now - flow->last_seen > idle_limit(flow, settings);
}

/* May a packet of the client still use this flow, or must a backend be selected afresh?
 *
 * A TCP packet without SYN goes on as it went, whatever became of the backend: the connection is the peers'
 * to end. A SYN sent again stays; a SYN on a closed or forgotten 5-tuple, or towards a backend that is gone,
 * selects afresh; so does every UDP packet whose flow is forgotten or whose backend is gone. */
static __always_inline bool flow_usable(const struct packet *pkt, const struct flow *flow, u64 now,
					const struct settings *settings)
{
	if (pkt->tuple.protocol == IPPROTO_TCP) {
		if ((pkt->tcp_flags & (TCP_SYN | TCP_ACK)) != TCP_SYN)
			return true;
		if (flow->state == FLOW_CLOSED)
			return false;
	}
	return !expired(flow, now, settings) && backend_alive(flow->backend, flow->generation, flow->service);
}

/* The state after this packet. */
static __always_inline void advance_state(const struct packet *pkt, u8 direction, struct flow *flow)
{
	if (direction == DIR_REPLY && flow->state == FLOW_NEW)
		flow->state = FLOW_ESTABLISHED;
	if (pkt->tcp_flags & TCP_FIN) {
		flow->fins |= direction == DIR_REPLY ? FIN_BACKEND : FIN_CLIENT;
		flow->state = FLOW_CLOSING;
	}
	if (flow->fins == (FIN_CLIENT | FIN_BACKEND) || pkt->tcp_flags & TCP_RST)
		flow->state = FLOW_CLOSED;
}

/* Account a packet of a known flow: when its state changes, or a second after the last time, both halves are
 * written. So neither half looks idler than the other to the LRU, and a half that was evicted comes back. If
 * its place has been taken meanwhile, the flow is over: its next packet starts a new one. */
static __always_inline void touch_flow(const struct packet *pkt, u8 direction, struct flow *flow, u64 now)
{
	u8 other_direction = direction == DIR_REPLY ? DIR_FORWARD : DIR_REPLY;
	u8 state = flow->state, fins = flow->fins;
	struct tuple other_from, back;
	struct flow other;

	advance_state(pkt, direction, flow);
	if (likely(flow->state == state && flow->fins == fins && now - flow->last_seen < FLOW_REFRESH_NS))
		return;
	other_from = reverse(&flow->to);
	back = reverse(&pkt->tuple);
	if (lookup_flow(&other_from, other_direction, &other) && !same_tuple(&other.to, &back)) {
		delete_flow(&pkt->tuple, direction);
		return;
	}
	flow->last_seen = now;
	store_flow(&pkt->tuple, direction, flow, BPF_ANY);
	other = *flow;
	other.to = back;
	store_flow(&other_from, other_direction, &other, BPF_ANY);
}

/* The flow of from is over but its client begins anew: the old backend's replies are not the new
 * connection's. */
static __always_inline void forget_flow(const struct tuple *from, const struct flow *flow)
{
	struct tuple reply = reverse(&flow->to), to = reverse(from);

	delete_flow(from, DIR_FORWARD);
	delete_flow_to(&reply, DIR_REPLY, &to);
}

/* A backend's SYN-ACK when the flow of its tuple is closed accepts another connection: one that the client,
 * from the same port, opened to the backend itself. Through the VIP it would have made a new flow. */
static __always_inline bool accepts_another(const struct packet *pkt, const struct flow *reply)
{
	return reply->state == FLOW_CLOSED && (pkt->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK);
}

/* Forget the closed flow whose reply entry is that of reply_from, so that the other connection's packets are
 * left alone. */
static __always_inline void forget_closed(const struct tuple *reply_from, const struct flow *reply)
{
	struct tuple from = reverse(&reply->to), to = reverse(reply_from);

	delete_flow(reply_from, DIR_REPLY);
	delete_flow_to(&from, DIR_FORWARD, &to);
}

/* Claim the reply entry for flow->to, which names the translated packet. False: somebody else's live flow has
 * it. An own leftover or a dead flow is replaced, the dead flow as a pair. */
static __always_inline bool claim_reply(const struct tuple *from, const struct flow *flow, u64 now,
					const struct settings *settings)
{
	struct tuple key = reverse(&flow->to);
	struct flow reply = *flow, holder;
	struct tuple holder_from;

	reply.to = reverse(from);
	if (store_flow(&key, DIR_REPLY, &reply, BPF_NOEXIST) == 0)
		return true;
	if (!lookup_flow(&key, DIR_REPLY, &holder))
		return false;
	holder_from = reverse(&holder.to);
	if (!same_tuple(&holder_from, from)) {
		struct tuple holder_to = reverse(&key);

		if (!expired(&holder, now, settings))
			return false;
		delete_flow_to(&holder_from, DIR_FORWARD, &holder_to);
	}
	return store_flow(&key, DIR_REPLY, &reply, BPF_ANY) == 0;
}
