/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The short way of the common packets: those for no VIP, and those of a known flow of which there is nothing
 * new to note down. Every other packet is left to the long way (lb.h) before anything was done to it.
 *
 * This is the order of work of lb.h a second time: SNAT port, VIP, flow. The long way fills a struct packet
 * and a struct decision first; without them an established packet takes a quarter of the floor less (2.15
 * to 1.91 in XDP, 2.55 to 2.30 in tc, a reply 2.12 to 1.85: docs/performance.md, "What was tried"). So
 * whoever changes the order here changes it there; tests/packet/reference.py is the model that both ways are
 * compared with. */
#pragma once
#include "flow_state.h"
#include "nat.h"
#include "route.h"
#include "watch.h"

/* No verdicts of any hook: */
#define SLOW	     (-2) /* to be looked at on the long way */
#define OURS	     (-3) /* the same, of a packet to a VIP or of a flow */
#define FIRST	     (-4) /* the first packet of a connection */
#define ENCAPSULATED (-5) /* another node has encapsulated it: direct.h */

#define LATER_FLAGS (TCP_FIN | TCP_SYN | TCP_RST)

/* Fill in the tuple; true when the packet is a common one. */
static __always_inline bool fast_parse(ctx_t *ctx, u32 l3, struct tuple *t, u8 *later)
{
	void *data = ctx_data(ctx), *end = ctx_data_end(ctx);
	void *l4 = data + l3 + sizeof(ip_header_t);
	u32 l4_len;

	if (ctx_vlan(ctx) || l4 + sizeof(struct udphdr) > end)
		return false;
	if (l3 && *(__be16 *)(data + l3 - sizeof(__be16)) != bpf_htons(IP_ETHERTYPE))
		return false;
	l4_len = common_ip(data + l3, ctx_len(ctx) - l3, t);
	if (FAMILY == 6)
		IN_MEMORY(*t);
	if (t->protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;
		u32 header;

		if (l4 + sizeof(*tcp) > end)
			return false;
		header = tcp->doff * 4;
		*later = ((u8 *)tcp)[13] & LATER_FLAGS;
		t->sport = tcp->source;
		t->dport = tcp->dest;
		return header >= sizeof(*tcp) && header <= l4_len;
	}
	if (t->protocol == IPPROTO_UDP) {
		struct udphdr *udp = l4;

		t->sport = udp->source;
		t->dport = udp->dest;
		return bpf_ntohs(udp->len) >= sizeof(*udp) && bpf_ntohs(udp->len) <= l4_len;
	}
	return false;
}

/* Copy what a packet of the flow becomes, before anything is done with it: the entry may become another
 * flow's at any time. */
static __always_inline void entry_tuple(const struct flow_entry *e, struct tuple *to)
{
	to->src = e->src;
	to->dst = e->dst;
	to->sport = e->sport;
	to->dport = e->dport;
	if (FAMILY == 6)
		IN_MEMORY(*to);
}

/* Translate a packet where it is; hops: by how much its TTL is lowered. */
static __always_inline bool fast_translate(ctx_t *ctx, u32 l3, const struct tuple *t, const struct tuple *to,
					   u8 hops)
{
	const u32 l4 = l3 + sizeof(ip_header_t);
	bool udp = t->protocol == IPPROTO_UDP;
	u64 addresses = addresses_delta(t, to);
	__be16 *ports;
	void *data;

	if (!ctx_update_l4_csum(ctx, l4 + (udp ? UDP_CSUM : TCP_CSUM), udp, addresses, ports_delta(t, to)))
		return false;
	data = ctx_data(ctx);
	if (data + l4 + 2 * sizeof(*ports) > ctx_data_end(ctx))
		return false;
	ports = data + l4;
	ports[0] = to->sport;
	ports[1] = to->dport;
	store_common_ip(data + l3, addresses, to, hops);
	return true;
}

/* The packet as fast_parse() has found it, as far as routes depend on it. */
static __always_inline bool fast_packet(ctx_t *ctx, u32 l3, const struct tuple *t, struct packet *pkt)
{
	void *header = ctx_data(ctx) + l3, *l4 = header + sizeof(ip_header_t);
	u32 headers = sizeof(ip_header_t) + sizeof(struct udphdr);

	if (l4 + sizeof(struct tcphdr) > ctx_data_end(ctx))
		return false;
	pkt->tuple = *t;
	pkt->l3 = l3;
	common_ip_rest(header, pkt);
	if (t->protocol == IPPROTO_TCP)
		headers = sizeof(ip_header_t) + ((struct tcphdr *)l4)->doff * 4;
	pkt->payload_len = pkt->ip_len - headers;
	return true;
}

/* Sent by us: past the stack to a pod of this node, or along the FIB. OURS, before anything was done to it,
 * where that is not the packet's way. */
static __always_inline int fast_send(ctx_t *ctx, const struct note *note, const struct tuple *t,
				     const struct flow_entry *e, enum way way, u32 reason)
{
	const bool past = way == WAY_PAST_STACK;
	u32 bytes = ctx_len(ctx);
	struct packet pkt = {};
	struct route route;
	struct tuple to;

	if (past && !ctx_can_redirect())
		return finish(note->hook, pass(REASON_TO_TC), bytes);
	entry_tuple(e, &to);
	if (!fast_packet(ctx, note->l3, t, &pkt) || (past ? !may_go_past(ctx, &pkt) : pkt.ttl <= 1) ||
	    find_route(ctx, &pkt, past ? &pkt.tuple.src : &to.src, &to.dst, way, &route) != ROUTE_FOUND)
		return OURS;
	if (!past && !ctx_can_send(ctx, route.ifindex, route.link_known))
		return finish(note->hook, pass(REASON_TO_TC), bytes);
	count_traffic(e->backend, e->generation, reason == REASON_REPLY, bytes);
	if (!fast_translate(ctx, note->l3, t, &to, 1))
		return finish(note->hook, drop(REASON_REWRITE_FAILED), bytes);
	return finish(note->hook, send_along(ctx, &pkt, &route, reason), bytes);
}

static __always_inline int fast_stack(ctx_t *ctx, const struct note *note, const struct tuple *t,
				      const struct flow_entry *e, u32 reason, u32 bytes)
{
	struct tuple to;

	entry_tuple(e, &to);
	count_traffic(e->backend, e->generation, reason == REASON_REPLY, bytes);
	if (!fast_translate(ctx, note->l3, t, &to, 0))
		return finish(note->hook, drop(REASON_REWRITE_FAILED), bytes);
	return finish(note->hook, pass(reason), bytes);
}

static __always_inline const struct flow_entry *fast_lookup(const struct tuple *t, u8 direction)
{
	struct flow_key key;

	flow_key(&key, t, direction);
	return get_flow(&key);
}

/* Is there nothing to note down for a packet of this flow, and nothing to tell of it? */
static __always_inline bool settled(const struct flow_entry *e, u8 direction)
{
	return !(e->fins & ~(HALF_OPEN | MET_LATE)) && e->state <= FLOW_ESTABLISHED &&
	       (direction == DIR_FORWARD || e->state == FLOW_ESTABLISHED) &&
	       ticks() - e->touched < FLOW_REFRESH_TICKS && likely(!(watched() & WATCH_PACKETS));
}

/* See meets_vip_again(). A VIP that is a backend of this node is an address of the node itself, so only such
 * backends cost a look. */
static __always_inline bool backend_is_vip(const struct flow_entry *e, u8 protocol,
					   const struct settings *settings)
{
	struct tuple to;

	if (ctx_decides() || likely(!is_snat_source(&e->dst, settings)))
		return false;
	entry_tuple(e, &to);
	to.protocol = protocol;
	return meets_vip_again(&to);
}

static __always_inline int fast_ingress(ctx_t *ctx, const struct note *note)
{
	const struct settings *settings;
	u32 bytes = ctx_len(ctx);
	const struct flow_entry *e;
	const struct vip *vip;
	struct tuple t;
	u8 later = 0;

	if (!fast_parse(ctx, note->l3, &t, &later))
		return SLOW;
	settings = get_settings();
	if (!settings)
		return SLOW;
	if (unlikely(to_snat_port(&t, settings))) {
		e = fast_lookup(&t, DIR_REPLY);
		if (!e)
			return is_direct_port(&t, note->side, settings) ? ENCAPSULATED : SLOW;
		if (note->side != OUTSIDE || e->path != PATH_FORWARD)
			return SLOW;
		if (later || !settled(e, DIR_REPLY))
			return OURS;
		return fast_send(ctx, note, &t, e, WAY_OF_PATH, REASON_REPLY);
	}
	vip = lookup_vip(&t);
	if (!vip) {
		if (note->side == INSIDE && unlikely(settings->redirect)) {
			e = fast_lookup(&t, DIR_REPLY);
			if (e && e->path == PATH_REDIRECT)
				return later || !settled(e, DIR_REPLY)
					   ? OURS
					   : fast_send(ctx, note, &t, e, WAY_PAST_STACK, REASON_REPLY);
		}
		return in_cluster_net(&t.dst, settings) ? SLOW
							: finish(note->hook, pass(REASON_NOT_VIP), bytes);
	}
	e = fast_lookup(&t, DIR_FORWARD);
	if (!e) {
		note_vip(vip);
		return is_martian(&t.src) ? SLOW : FIRST;
	}
	if (later || !settled(e, DIR_FORWARD) ||
	    (t.protocol == IPPROTO_UDP && !backend_alive(e->backend, e->generation, e->service)))
		return OURS;
	if (e->path == PATH_FORWARD || (e->path == PATH_REDIRECT && settings->redirect))
		return fast_send(ctx, note, &t, e, e->path == PATH_REDIRECT ? WAY_PAST_STACK : WAY_OF_PATH,
				 REASON_FLOW_HIT);
	if (!keeps_client(e->path))
		return OURS;
	if (backend_is_vip(e, t.protocol, settings))
		return finish(note->hook, pass(REASON_TO_TC), bytes);
	return fast_stack(ctx, note, &t, e, REASON_FLOW_HIT, bytes);
}

static __always_inline int fast_egress(ctx_t *ctx, const struct note *note)
{
	u32 bytes = ctx_len(ctx);
	const struct flow_entry *e;
	struct tuple t;
	u8 later = 0;

	if (!fast_parse(ctx, note->l3, &t, &later))
		return SLOW;
	e = fast_lookup(&t, DIR_REPLY);
	if (!e && !ctx_from_host(ctx) && !is_martian(&t.src))
		return finish(note->hook, pass(REASON_NOT_VIP), bytes);
	if (!e || !keeps_client(e->path))
		return SLOW;
	if (later || !settled(e, DIR_REPLY))
		return OURS;
	return fast_stack(ctx, note, &t, e, REASON_REPLY, bytes);
}
