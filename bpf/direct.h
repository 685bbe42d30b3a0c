/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Direct return: a packet for a backend on another node goes there encapsulated, as its client sent it
 * (gue.h). The backend's node takes it out, translates it as for any backend of its own, and the answer goes
 * from there to the client, with the VIP as its source. Two steps: out, where the packet came in, and in, at
 * the backend's node.
 *
 * Whoever can send from a node's address could speak to backends in any client's name; so the network has to
 * keep others from that, as with any tunnel between nodes. All other senders are refused here. */
#pragma once
#include "announced.h"
#include "connect.h"
#include "forward.h"
#include "lb.h"

/* What one node tells another about a packet that it sends encapsulated. */
struct handed {
	struct addr node; /* the other one */
	struct addr backend;
	__be16 port;
	u8 hops;
	u8 len; /* bytes before the packet */
};

/* The UDP source port of the encapsulation: one for each connection. */
static __always_inline __be16 gue_source(const struct tuple *t)
{
	return bpf_htons(GUE_SOURCE_MIN | hash_words(hash_tuple(t), 0, 0) >> (32 - GUE_SOURCE_BITS));
}

static __always_inline bool make_outer(ctx_t *ctx, const struct packet *pkt, const struct handed *to,
				       u32 words, struct outer *outer)
{
	const struct settings *settings = get_settings();
	u32 len = pkt->ip_len + sizeof(outer->ip) + sizeof(outer->udp) + (words + 1) * sizeof(u32);
	bool told = len <= 0xffff; /* else it awaits segmentation, and its parts are told their lengths */
	struct addr from;

	if (!settings || !own_address(0, &from))
		return false;
	outer->ip = ip_header(&from, &to->node, IPPROTO_UDP, told ? len : no_ip_len());
	outer->udp.source = gue_source(&pkt->tuple);
	outer->udp.dest = settings->direct_port;
	outer->udp.len = told ? bpf_htons(len - sizeof(outer->ip)) : 0;
	outer->gue.words = words;
	outer->gue.protocol = GUE_INSIDE;
	outer->gue.kind = GUE_KIND;
	outer->gue.hops = to->hops;
	outer->gue.port = to->port;
	outer->gue.backend = to->backend;
	return copy_class(ctx, pkt, &outer->ip);
}

/* Fill in a backend that the packet may go to, and its node if that is known. */
static __always_inline bool read_chance(u32 id, u32 service, struct gue_chance *out)
{
	const struct addr *host;
	struct backend backend;
	u32 node;

	if (likely(!id) || !read_backend(id, service, &backend))
		return false;
	node = backend.node;
	host = bpf_map_lookup_elem(hosts, &node);
	if (backend.local ? !own_address(0, &out->node) : !host)
		return false;
	if (!backend.local && host)
		out->node = *host;
	out->backend = backend.address;
	out->port = backend.port;
	return true;
}

/* A packet whose connection did not begin here says so, and where else to try: at the choice before the one
 * that it is sent to; or, where today's choice is on this node and has been passed over, at that again, when
 * all others have been asked: then this node counts as the first that has sent it on. */
static __always_inline void add_chance(const struct note *note, const struct flow *flow, struct handed *to,
				       struct gue_chance *out)
{
	struct backend today;

	if (note->today && note->today != flow->backend && read_backend(note->today, flow->service, &today) &&
	    today.local) {
		if (read_chance(note->today, flow->service, out))
			to->hops = 1;
	} else if (note->former != flow->backend) {
		read_chance(note->former, flow->service, out);
	}
}

static __always_inline struct outcome encapsulate(ctx_t *ctx, struct work *work, struct note *note)
{
	const struct packet *pkt = &work->pkt;
	struct decision *d = &work->d;
	struct outer_with_chance head = {};
	struct handed to = {
	    .node = d->flow.to.src,
	    .backend = d->flow.to.dst,
	    .port = d->flow.to.dport,
	};
	bool chance = unlikely(d->flow.fins & MET_LATE) && pkt->piece == PIECE_WHOLE;

	if (chance) {
		look_for_former(ctx, note, d->flow.backend, STEP_DIRECT_OUT);
		add_chance(note, &d->flow, &to, &head.chance);
	}
	if (!make_outer(ctx, pkt, &to, GUE_WORDS + (chance ? GUE_CHANCE_WORDS : 0), &head.outer))
		return drop(REASON_NO_ROUTE);
	if (FAMILY == 4 && unlikely(pkt->piece) && !trim_piece(ctx, pkt))
		return drop(REASON_REWRITE_FAILED);
	count_traffic(d->flow.backend, d->flow.generation, false, ctx_len(ctx));
	if (!store_ip(ctx, pkt, pkt->tuple.protocol, pkt->ttl - 1, 0, &pkt->tuple.src, &pkt->tuple.dst) ||
	    !(chance ? ctx_wrap(ctx, pkt->l3, &head, sizeof(head))
		     : ctx_wrap(ctx, pkt->l3, &head, sizeof(head.outer))))
		return drop(REASON_REWRITE_FAILED);
	return send_along(ctx, pkt, &d->route, note->reason);
}

/* The step out: the route is in `work`, see decide_direct(). */
static __always_inline int direct_out(ctx_t *ctx)
{
	struct note *note = get_note();
	struct work *work = peek_work();
	u32 bytes = ctx_len(ctx);

	if (!note || !work)
		return VERDICT_DROP;
	return finish_and_report(ctx, note, encapsulate(ctx, work, note), bytes);
}

/* Read what stands before the packet. PARSED, or why it is refused. */
static __always_inline u32 read_outer(ctx_t *ctx, u32 l3, struct handed *out, struct gue_chance *chance)
{
	const struct outer *outer = ctx_at(ctx, l3, sizeof(*outer));
	struct tuple t;

	if (!outer || !is_whole_udp(&outer->ip))
		return REASON_DIRECT_REFUSED;
	common_ip(&outer->ip, ctx_len(ctx) - l3, &t);
	out->node = t.src;
	out->backend = outer->gue.backend;
	out->port = outer->gue.port;
	out->hops = outer->gue.hops;
	out->len = sizeof(*outer);
	if (outer->gue.protocol != GUE_INSIDE || outer->gue.flags || outer->gue.kind != GUE_KIND)
		return REASON_DIRECT_REFUSED;
	if (outer->gue.words == GUE_WORDS)
		return PARSED;
	if (outer->gue.words != GUE_WORDS + GUE_CHANCE_WORDS ||
	    !ctx_load(ctx, l3 + sizeof(*outer), chance, sizeof(*chance)))
		return REASON_DIRECT_REFUSED;
	out->len = sizeof(struct outer_with_chance);
	return PARSED;
}

/* Take the packet out. False: the kernel refused. */
static __always_inline bool take_out_of_gue(ctx_t *ctx, u8 len, struct packet *pkt)
{
	pkt->l3 -= len;
	pkt->l4 -= len;
	return len == GUE_OVERHEAD ? ctx_unwrap(ctx, GUE_OVERHEAD) : ctx_unwrap(ctx, GUE_MOST_OVERHEAD);
}

/* The VIP that a packet from another node is for: one that all nodes have, or a NodePort of that node's. A
 * packet that has been sent on has come to a third one. */
static __always_inline const struct vip *find_handed_vip(const struct packet *pkt,
							 const struct handed *handed)
{
	const struct vip *vip = find_vip_of_node(&pkt->tuple);
	struct addr dst = pkt->tuple.dst;

	if (!vip || vip->kind != VIP_NODE_PORT)
		return vip;
	return bpf_map_lookup_elem(host_addresses, &dst) ? vip : NULL;
}

/* The slot of the backend that the sender names; 0: this node has not heard of it. */
static __always_inline u32 find_endpoint(const struct handed *handed, u32 service)
{
	struct socket_address key = {
	    .address = handed->backend,
	    .service = service,
	    .port = handed->port,
	};
	const u32 *id = bpf_map_lookup_elem(endpoints, &key);

	return id ? *id : 0;
}

/* The backend that the sending node has chosen. If this node has not heard of it (yet, or since its agent
 * went) the address and port will do: its packets are counted for nobody. */
static __always_inline void read_handed(const struct handed *handed, u32 service, struct flow *flow)
{
	u32 id = find_endpoint(handed, service);
	struct backend backend;

	flow->service = service;
	flow->to.dst = handed->backend;
	flow->to.dport = handed->port;
	if (id && read_backend(id, service, &backend)) {
		flow->backend = backend.id;
		flow->generation = backend.generation;
	}
}

/* Decide about a packet from another node whose connection has no flow here. */
static __always_inline void begin_handed(ctx_t *ctx, const struct handed *handed, u64 now,
					 const struct settings *settings, struct note *note,
					 struct work *work)
{
	const struct packet *pkt = &work->pkt;
	struct decision *d = &work->d;
	const struct vip *vip = find_handed_vip(pkt, handed);

	if (!vip || is_gone(vip)) {
		decide(d, ACTION_DROP, REASON_DIRECT_REFUSED);
		return;
	}
	__builtin_memset(&d->flow, 0, sizeof(d->flow));
	d->flow.to = pkt->tuple;
	read_handed(handed, vip->service, &d->flow);
	decide(d, ACTION_STACK, REASON_NEW_LOCAL);
	if (!decide_redirect(ctx, pkt, settings, d))
		return;
	d->flow.last_seen = now;
	if (!opens(pkt))
		d->flow.fins = MET_LATE;
	else if (vip->affinity_seconds && d->flow.backend)
		remember_affinity(vip, &pkt->tuple.src, now, d->flow.backend, d->flow.generation, true);
	advance_state(pkt, DIR_FORWARD, &d->flow, now);
	if (make_flow(ctx, pkt, hash_tuple(&pkt->tuple), now, settings, STEP_DIRECT_IN, note, &work->entries,
		      d) &&
	    opens(pkt))
		count_opened(d->flow.backend);
}

/* Decide about a packet from another node, while it is still encapsulated. */
static __always_inline void decide_handed(ctx_t *ctx, const struct handed *handed,
					  const struct settings *settings, struct note *note,
					  struct work *work)
{
	struct packet *pkt = &work->pkt;
	struct decision *d = &work->d;
	u64 now = bpf_ktime_get_ns();

	if (unlikely(pkt->piece == PIECE_LATER) && !lookup_fragment(pkt)) {
		if (ctx_decides())
			decide(d, ACTION_PIECES, REASON_FRAGMENT_HELD);
		else
			decide(d, ACTION_PASS, REASON_TO_TC);
		return;
	}
	if (lookup_flow(&pkt->tuple, DIR_FORWARD, &d->flow) && d->flow.path != PATH_DIRECT) {
		if (pkt->piece == PIECE_LATER || flow_usable(pkt, &d->flow, now, settings)) {
			decide_flow(ctx, DIR_FORWARD, way_of(&d->flow, settings), now, settings, work);
			return;
		}
		delete_pair(&pkt->tuple, &d->flow.to, DIR_FORWARD);
	}
	if (unlikely(pkt->piece == PIECE_LATER))
		decide(d, ACTION_DROP, REASON_STRAY_FRAGMENT);
	else
		begin_handed(ctx, handed, now, settings, note, work);
}

/* An ICMP error of a client, or about what was sent to one: the step for such finds the flow that it is
 * about, or drops it. */
static __always_inline struct outcome hand_error_on(ctx_t *ctx, const struct handed *handed,
						    struct packet *pkt, struct note *note)
{
	if (!lookup_address(&pkt->tuple.dst) && !same_addr(&pkt->tuple.dst, &handed->node))
		return drop(REASON_DIRECT_REFUSED);
	if (!take_out_of_gue(ctx, handed->len, pkt))
		return drop(REASON_REWRITE_FAILED);
	next_step(ctx, STEP_ICMP_ERROR);
	return strand(ctx, true);
}

/* Has this node a flow of the packet's connection, other than one that leads to yet another node? What is
 * left of another connection from the same port does not count. */
static __always_inline bool is_known(const struct packet *pkt)
{
	const struct settings *settings = get_settings();
	struct flow flow;

	if (!settings || !lookup_flow(&pkt->tuple, DIR_FORWARD, &flow) || flow.path == PATH_DIRECT)
		return false;
	return (pkt->tuple.protocol != IPPROTO_UDP && flow.state != FLOW_NEW && flow.state != FLOW_CLOSED) ||
	       !expired(flow.to.protocol, flow.state, flow.last_seen, bpf_ktime_get_ns(), settings);
}

static __always_inline bool is_none(const struct addr *node)
{
	struct addr none = {};

	return same_addr(node, &none);
}

/* Where to next with a packet whose connection is not known here? To the choice before the one that it came
 * for; if there is none, from the first node to the one that the sender has named, and from others to where
 * it came for at first, which `chance` names then. False: nowhere, it is delivered here. */
static __always_inline bool find_chance(const struct note *note, const struct handed *handed,
					const struct packet *pkt, struct gue_chance *chance,
					struct handed *to)
{
	const struct vip *vip = find_vip_of_node(&pkt->tuple);
	struct gue_chance next = {};
	bool first = !handed->hops;
	struct addr own;

	if (!vip || !own_address(0, &own))
		return false;
	if (!read_chance(handed->hops < GUE_MOST_HOPS ? note->former : 0, vip->service, &next) ||
	    (!first && vip->flags & VIP_OUTSIDE_LOCAL && same_addr(&next.node, &chance->node)))
		next = *chance;
	if (is_none(&next.node) || same_addr(&next.node, &own))
		return false;
	to->node = next.node;
	to->backend = next.backend;
	to->port = next.port;
	to->hops = handed->hops + 1;
	if (first) {
		chance->node = own;
		chance->backend = handed->backend;
		chance->port = handed->port;
	}
	return true;
}

/* What the step in has read and makes, kept in the scratch in the room of `entries`: that is needed only when
 * all of this was used. */
struct direct_room {
	struct handed handed;
	struct gue_chance chance;
	struct handed to;
	struct outer_with_chance head;
};

static __always_inline struct direct_room *get_direct_room(struct work *work)
{
	struct direct_room *room = (void *)&work->entries;

	_Static_assert(sizeof(*room) <= sizeof(work->entries), "struct direct_room has room in the scratch");
	__builtin_memset(room, 0, sizeof(*room));
	return room;
}

/* Send the packet on to the node of its second chance, with another outer header. */
static __always_inline struct outcome send_on(ctx_t *ctx, struct work *work, struct direct_room *room)
{
	struct packet *pkt = &work->pkt;
	struct decision *d = &work->d;

	d->flow.to.src = room->to.node;
	d->flow.fins = MET_LATE;
	if (!decide_direct(ctx, pkt, d))
		return d->action == ACTION_PASS ? pass(d->reason) : drop(REASON_NO_ROUTE);
	if (!make_outer(ctx, pkt, &room->to, GUE_WORDS + GUE_CHANCE_WORDS, &room->head.outer))
		return drop(REASON_NO_ROUTE);
	room->head.chance = room->chance;
	pkt->l3 -= room->handed.len;
	if (!ctx_store(ctx, pkt->l3, &room->head, sizeof(room->head)))
		return drop(REASON_REWRITE_FAILED);
	return send_along(ctx, pkt, &d->route, REASON_SECOND_CHANCE);
}

/* Is a packet for a backend of this node perhaps another node's? Its sender has not seen its connection
 * begin, nor has this node; and it has not come back from those that were asked. */
static __always_inline bool is_in_doubt(const struct packet *pkt, const struct direct_room *room,
					const struct vip *vip)
{
	const struct handed *handed = &room->handed;

	if (pkt->piece != PIECE_WHOLE || (handed->hops && handed->port == room->chance.port &&
					  same_addr(&handed->backend, &room->chance.backend)))
		return false;
	return (!opens(pkt) || pkt->tuple.protocol == IPPROTO_UDP || is_of_affinity(pkt, vip)) &&
	       !is_known(pkt);
}

/* Is a backend of this node the one that the client keeps? Then the packet is for that one. */
static __always_inline bool is_of_known_client(const struct packet *pkt, const struct vip *vip,
					       struct handed *handed)
{
	struct backend kept;

	if (!vip->affinity_seconds ||
	    !lookup_affinity(vip, &pkt->tuple.src, BACKEND_IN_CLUSTER_SET, bpf_ktime_get_ns(), &kept) ||
	    !kept.local)
		return false;
	handed->backend = kept.address;
	handed->port = kept.port;
	return true;
}

static __always_inline struct outcome decapsulate(ctx_t *ctx, const struct settings *settings,
						  struct work *work, struct note *note)
{
	struct direct_room *room = get_direct_room(work);
	struct packet *pkt = &work->pkt;
	struct decision *d = &work->d;
	const struct vip *vip;
	u32 refused, parsed;
	u8 len;

	refused = read_outer(ctx, note->l3, &room->handed, &room->chance);
	if (!bpf_map_lookup_elem(host_addresses, &room->handed.node))
		return drop(REASON_DIRECT_STRANGER);
	if (refused != PARSED)
		return drop(refused);
	note->direct = true;
	len = room->handed.len;
	pkt->l3 = note->l3 + len;
	parsed = parse_all(ctx, pkt);
	if (parsed == ICMP_ERROR)
		return hand_error_on(ctx, &room->handed, pkt, note);
	if (parsed != PARSED || pkt->kind != KIND_FLOW)
		return drop(REASON_DIRECT_REFUSED);
	vip = len == GUE_OVERHEAD ? NULL : find_vip_of_node(&pkt->tuple);
	if (unlikely(vip) && is_in_doubt(pkt, room, vip) && !is_of_known_client(pkt, vip, &room->handed)) {
		note->hops = room->handed.hops;
		look_for_former(ctx, note, find_endpoint(&room->handed, vip->service), STEP_DIRECT_IN);
		if (find_chance(note, &room->handed, pkt, &room->chance, &room->to))
			return send_on(ctx, work, room);
	}
	decide_handed(ctx, &room->handed, settings, note, work);
	arrange(ctx, pkt, d, note);
	if (d->action == ACTION_PASS && ctx_decides())
		decide(d, ACTION_DROP, REASON_DIRECT_REFUSED);
	if ((translates(d) || d->action == ACTION_ANSWER) && !take_out_of_gue(ctx, len, pkt))
		return drop(REASON_REWRITE_FAILED);
	return carry_out(ctx, pkt, d, note);
}

/* The step in. */
static __always_inline int direct_in(ctx_t *ctx)
{
	const struct settings *settings = get_settings();
	struct work *work = get_work();
	struct note *note = get_note();
	u32 bytes = ctx_len(ctx);

	if (!note || !settings || !work)
		return VERDICT_DROP;
	return finish_and_report(ctx, note, decapsulate(ctx, settings, work, note), bytes);
}
