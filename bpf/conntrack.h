/* Flows: one entry for each direction of a translated connection, created, aged and refreshed as a pair. */
#pragma once
#include "backend.h"
#include "packet.h"

/* bcc has no declaration of this helper, which the kernel replaces by a load. */
static u64 (*jiffies64)(void) = (void *)BPF_FUNC_jiffies64;

static __always_inline u32 ticks(void)
{
	return (u32)jiffies64();
}

/* A flow entry read into registers. */
struct flow {
	struct tuple to; /* what the packet becomes */
	u32 service;
	u32 backend;
	u32 generation;
	u8 state;
	u8 fins;
	u8 path;
	u32 touched;
	u64 last_seen;
};

/* Keys and values are written field by field where they stand: a struct returned would be a second one on the
 * stack. */
static __always_inline void flow_key(struct flow_key *key, const struct tuple *t, u8 direction)
{
	if (FAMILY == 4) {
		u64 *words = (u64 *)key;

		words[0] = JOIN(u64, 32, t->src.word[0], t->dst.word[0]);
		words[1] = JOIN(u64, 32, JOIN(u32, 16, t->sport, t->dport),
				JOIN(u32, 16, JOIN(u16, 8, t->protocol, direction), 0));
		return;
	}
	key->src = t->src;
	key->dst = t->dst;
	key->sport = t->sport;
	key->dport = t->dport;
	key->protocol = t->protocol;
	key->direction = direction;
	key->pad[0] = key->pad[1] = 0;
}

static __always_inline void flow_value(struct flow_entry *value, const struct flow *flow)
{
	value->src = flow->to.src;
	value->dst = flow->to.dst;
	value->sport = flow->to.sport;
	value->dport = flow->to.dport;
	value->service = flow->service;
	value->backend = flow->backend;
	value->generation = flow->generation;
	value->state = flow->state;
	value->fins = flow->fins;
	value->path = flow->path;
	value->pad = 0;
	value->touched = ticks();
	value->last_seen = flow->last_seen;
}

static __always_inline void flow_from(const struct flow_entry *value, u8 protocol, struct flow *out)
{
	out->to.src = value->src;
	out->to.dst = value->dst;
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
	out->touched = value->touched;
}

static __always_inline bool lookup_flow(const struct tuple *t, u8 direction, struct flow *out)
{
	const struct flow_entry *value;
	struct flow_key key;

	flow_key(&key, t, direction);
	value = bpf_map_lookup_elem(flows, &key);
	if (!value)
		return false;
	flow_from(value, t->protocol, out);
	return true;
}

/* Does the entry turn a packet into what is `t`, the other way round? */
static __always_inline bool leads_back(const struct flow_entry *entry, const struct tuple *t)
{
	return same_addr(&entry->src, &t->dst) && same_addr(&entry->dst, &t->src) &&
	       entry->sport == t->dport && entry->dport == t->sport;
}

/* Does the entry turn a packet into `t`? */
static __always_inline bool leads_to(const struct flow_entry *entry, const struct tuple *t)
{
	return same_addr(&entry->src, &t->src) && same_addr(&entry->dst, &t->dst) &&
	       entry->sport == t->sport && entry->dport == t->dport;
}

/* Key of the forward half of the pair that a reply half belongs to. */
static __always_inline void forward_key(struct flow_key *key, const struct flow_entry *reply, u8 protocol)
{
	key->src = reply->dst;
	key->dst = reply->src;
	key->sport = reply->dport;
	key->dport = reply->sport;
	key->protocol = protocol;
	key->direction = DIR_FORWARD;
	key->pad[0] = key->pad[1] = 0;
}

/* Key of the other half of a pair: of the packets that answer those which this half makes, `to`. */
static __always_inline void other_key(struct flow_key *key, const struct tuple *to, u8 direction)
{
	key->src = to->dst;
	key->dst = to->src;
	key->sport = to->dport;
	key->dport = to->sport;
	key->protocol = to->protocol;
	key->direction = direction == DIR_REPLY ? DIR_FORWARD : DIR_REPLY;
	key->pad[0] = key->pad[1] = 0;
}

/* Make of one half's value the other's: the half for the answers to `from`. */
static __always_inline void turn_round(struct flow_entry *value, const struct tuple *from)
{
	value->src = from->dst;
	value->dst = from->src;
	value->sport = from->dport;
	value->dport = from->sport;
}

/* Delete the pair of the half that turns `from` into `to`; the other half stays if it means another
 * connection. */
static __always_inline void delete_pair(const struct tuple *from, const struct tuple *to, u8 direction)
{
	const struct flow_entry *other;
	struct flow_key key;

	other_key(&key, to, direction);
	other = bpf_map_lookup_elem(flows, &key);
	if (other && leads_back(other, from))
		bpf_map_delete_elem(flows, &key);
	flow_key(&key, from, direction);
	bpf_map_delete_elem(flows, &key);
}

static __always_inline u64 idle_limit(u8 protocol, u8 state, const struct settings *settings)
{
	if (protocol == IPPROTO_UDP)
		return state == FLOW_NEW ? settings->udp_new_ns : settings->udp_ns;
	if (state == FLOW_NEW)
		return settings->tcp_syn_ns;
	if (state == FLOW_ESTABLISHED)
		return protocol == IPPROTO_SCTP ? settings->sctp_ns : settings->tcp_established_ns;
	return settings->tcp_closing_ns;
}

static __always_inline bool expired(u8 protocol, u8 state, u64 last_seen, u64 now,
				    const struct settings *settings)
{
	/* Signed: another CPU may have written last_seen after this one has read the clock. */
	return (s64)(now - last_seen) > (s64)idle_limit(protocol, state, settings);
}

/* May a packet of the client still use this flow, or must a backend be selected afresh?
 *
 * A TCP packet without SYN (or SCTP's without INIT) goes on as it went, whatever became of the backend: the
 * connection is the peers' to end. A SYN sent again stays; a SYN on a closed or forgotten 5-tuple, or towards
 * a backend that is gone, selects afresh; so does every UDP packet whose flow is forgotten or whose backend
 * is gone. */
static __always_inline bool flow_usable(const struct packet *pkt, const struct flow *flow, u64 now,
					const struct settings *settings)
{
	if (pkt->tuple.protocol != IPPROTO_UDP) {
		if ((pkt->tcp_flags & (TCP_SYN | TCP_ACK)) != TCP_SYN)
			return true;
		if (flow->state == FLOW_CLOSED)
			return false;
	}
	return !expired(flow->to.protocol, flow->state, flow->last_seen, now, settings) &&
	       backend_alive(flow->backend, flow->generation, flow->service);
}

/* The state after this packet. A reset ends the flow, but whoever goes on sending after his own reset has not
 * sent it: it was a stranger's guess, or out of the window, and the connection lives. */
static __always_inline void advance_state(const struct packet *pkt, u8 direction, struct flow *flow)
{
	u8 fin = direction == DIR_REPLY ? FIN_BACKEND : FIN_CLIENT;
	u8 rst = direction == DIR_REPLY ? RST_BACKEND : RST_CLIENT;

	if (direction == DIR_REPLY && flow->state == FLOW_NEW)
		flow->state = FLOW_ESTABLISHED;
	if (pkt->tcp_flags & TCP_RST)
		flow->fins |= rst;
	else
		flow->fins &= ~rst;
	if (pkt->tcp_flags & TCP_FIN)
		flow->fins |= fin;
	if (flow->fins & (RST_CLIENT | RST_BACKEND) || flow->fins == (FIN_CLIENT | FIN_BACKEND))
		flow->state = FLOW_CLOSED;
	else if (flow->fins)
		flow->state = FLOW_CLOSING;
	else if (flow->state == FLOW_CLOSED)
		flow->state = FLOW_ESTABLISHED;
}

/* Account a packet of a known flow: when its state changes, or a second after the last time, both halves are
 * written. So neither half looks idler than the other to the LRU, and a half that was evicted comes back. If
 * its place has been taken meanwhile, the flow is over: its next packet starts a new one. */
static __always_inline void touch_flow(const struct packet *pkt, u8 direction, struct flow *flow, u64 now)
{
	u8 state = flow->state, fins = flow->fins;
	const struct flow_entry *other;
	struct flow_entry value;
	struct flow_key key;

	advance_state(pkt, direction, flow);
	if (likely(flow->state == state && flow->fins == fins &&
		   ticks() - flow->touched < FLOW_REFRESH_TICKS))
		return;
	flow->last_seen = now;
	other_key(&key, &flow->to, direction);
	other = bpf_map_lookup_elem(flows, &key);
	if (other && !leads_back(other, &pkt->tuple)) {
		flow_key(&key, &pkt->tuple, direction);
		bpf_map_delete_elem(flows, &key);
		return;
	}
	flow_value(&value, flow);
	turn_round(&value, &pkt->tuple);
	bpf_map_update_elem(flows, &key, &value, BPF_ANY);
	flow_key(&key, &pkt->tuple, direction);
	flow_value(&value, flow);
	bpf_map_update_elem(flows, &key, &value, BPF_ANY);
}

/* A backend's SYN-ACK when the flow of its tuple is closed accepts another connection: one that the client,
 * from the same port, opened to the backend itself. Through the VIP it would have made a new flow. */
static __always_inline bool accepts_another(const struct packet *pkt, const struct flow *reply)
{
	return reply->state == FLOW_CLOSED && (pkt->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK);
}

/* A flow entry being made. */
struct entry {
	struct flow_key key;
	struct flow_entry value;
};

/* Claim the reply half for flow->to, which names the translated packet. False: somebody else's live flow has
 * it. An own leftover or a dead flow is replaced, the dead flow as a pair. */
static __always_inline bool claim_reply(const struct tuple *from, const struct flow *flow, u64 now,
					const struct settings *settings, struct entry *entry)
{
	const struct flow_entry *holder, *other;

	other_key(&entry->key, &flow->to, DIR_FORWARD);
	flow_value(&entry->value, flow);
	turn_round(&entry->value, from);
	if (bpf_map_update_elem(flows, &entry->key, &entry->value, BPF_NOEXIST) == 0)
		return true;
	holder = bpf_map_lookup_elem(flows, &entry->key);
	if (!holder)
		return false;
	if (!leads_back(holder, from)) {
		if (!expired(from->protocol, holder->state, holder->last_seen, now, settings))
			return false;
		forward_key(&entry->key, holder, from->protocol);
		other = bpf_map_lookup_elem(flows, &entry->key);
		if (other && leads_to(other, &flow->to))
			bpf_map_delete_elem(flows, &entry->key);
		other_key(&entry->key, &flow->to, DIR_FORWARD);
	}
	return bpf_map_update_elem(flows, &entry->key, &entry->value, BPF_ANY) == 0;
}

/* Has the client kept its address? Then it is the hook that faces it that undoes the translation, unless a
 * reply has gone past the stack before. */
static __always_inline bool keeps_client(u8 path)
{
	return path == PATH_STACK || path == PATH_REDIRECT;
}

/* Is a packet of the flow sent along the FIB by us, in this direction? */
static __always_inline bool forwards(const struct flow *flow, u8 direction)
{
	return flow->path == PATH_FORWARD || (flow->path == PATH_HOST && direction == DIR_FORWARD);
}

/* Is a reply of the flow for an address and port that we put in the client's place? One to a client that kept
 * its address is the business of the hook that faces the client. */
static __always_inline bool undone_at_ingress(const struct flow *flow, u8 side)
{
	return flow->path == PATH_HOST || flow->path == (side == INSIDE ? PATH_HAIRPIN : PATH_FORWARD);
}
