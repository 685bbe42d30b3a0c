/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ICMP errors about translated packets: path-MTU discovery, unreachable ports and traceroute work through a
 * VIP.
 *
 * An error quotes the head of a packet that went the other way. With that head's tuple turned round it is
 * looked up, and translated, like an answer to the packet; it says nothing about the flow's own life. */
#pragma once
#include "flow_state.h"
#include "forward.h"

/* The checksum in the L4 header that an ICMP error quotes, which may end before it; *delta is what its update
 * adds to ICMP's own. */
static __always_inline bool update_quoted_csum(ctx_t *ctx, const struct packet *pkt, u8 protocol,
					       u32 quoted_l4, u64 quoted_delta, u64 *delta)
{
	u32 offset = quoted_l4 + (protocol == IPPROTO_UDP ? UDP_CSUM : TCP_CSUM);
	__sum16 old, new;

	*delta = 0;
	if (protocol == IPPROTO_SCTP || offset + sizeof(old) > pkt->l3 + pkt->ip_len)
		return true;
	if (!ctx_load(ctx, offset, &old, sizeof(old)))
		return false;
	if (protocol == IPPROTO_UDP && !old)
		return true;
	new = csum_update(old, quoted_delta);
	*delta = delta16(0, old, new);
	return ctx_store(ctx, offset, &new, sizeof(new));
}

/* Kept in the scratch, in the room of `entries`: this step makes no flow. */
struct icmp_error {
	struct quoted quoted; /* the quoted packet's head */
	struct tuple tuple;   /* of the quoted packet, turned round */
	struct tuple to;      /* what that becomes */
	struct addr src;      /* what the error's own source becomes */
};

static __always_inline struct icmp_error *get_icmp_error(struct work *work)
{
	struct icmp_error *e = (void *)&work->entries;

	_Static_assert(sizeof(*e) <= sizeof(work->entries), "struct icmp_error has room in the scratch");
	__builtin_memset(e, 0, sizeof(*e));
	return e;
}

/* Read the head of the quoted packet. */
static __always_inline u32 parse_quoted(ctx_t *ctx, const struct packet *pkt, struct icmp_error *e)
{
	const u32 from = sizeof(struct icmphdr);
	u32 parsed = parse_quoted_ip(ctx, pkt, &e->quoted, &e->tuple);
	__be16 ports[2];

	if (parsed != PARSED)
		return parsed;
	if (e->tuple.protocol != IPPROTO_TCP && e->tuple.protocol != IPPROTO_UDP &&
	    e->tuple.protocol != IPPROTO_SCTP)
		return REASON_OTHER_PROTOCOL;
	if (pkt->l4_len < from + e->quoted.l4 + QUOTED_L4 ||
	    !ctx_load(ctx, pkt->l4 + from + e->quoted.l4, ports, sizeof(ports)))
		return REASON_MALFORMED;
	e->tuple.sport = ports[1];
	e->tuple.dport = ports[0];
	return PARSED;
}

/* Rewrite the error's own addresses, and the head that it quotes. False: the kernel refused. */
static __always_inline bool translate_error(ctx_t *ctx, const struct packet *pkt, const struct icmp_error *e,
					    u8 ttl)
{
	u32 quoted_ip = pkt->l4 + sizeof(struct icmphdr);
	u32 quoted_l4 = quoted_ip + e->quoted.l4;
	u64 inner = addresses_delta(&e->tuple, &e->to), ports = ports_delta(&e->tuple, &e->to), check, outer;

	outer = delta_addr(0, &pkt->tuple.src, &e->src);
	outer = delta_addr(outer, &pkt->tuple.dst, &e->to.dst);
	return update_quoted_csum(ctx, pkt, e->tuple.protocol, quoted_l4, inner + ports, &check) &&
	       store_quoted_ip(ctx, quoted_ip, inner, &e->to.dst, &e->to.src) &&
	       store_ports(ctx, quoted_l4, e->to.dport, e->to.sport) &&
	       ctx_update_l4_csum(ctx, pkt->l4 + __builtin_offsetof(struct icmphdr, checksum), false,
				  icmp_pseudo_delta(outer), quoted_ip_delta(inner) + ports + check) &&
	       store_ip(ctx, pkt, ICMP_PROTOCOL, ttl, outer, &e->src, &e->to.dst);
}

/* The flow that the error is about, as this hook would find it; *direction is the error's own. */
static __always_inline bool find_flow(ctx_t *ctx, const struct tuple *t, const struct note *note,
				      u8 *direction, struct flow *flow)
{
	*direction = DIR_REPLY;
	if (lookup_flow(t, DIR_REPLY, flow) &&
	    (note->egress ? keeps_client(flow->path) : undone_at_ingress(flow, note->side)))
		return true;
	*direction = DIR_FORWARD;
	return (!note->egress || ctx_from_host(ctx)) && lookup_flow(t, DIR_FORWARD, flow);
}

/* The source that the error gets. Each end of a connection knows the other one by a translated address, so an
 * error of the other end itself gets that. An error of a router behind the client gets it as well if we stand
 * for the client: the backend has no other way to it. */
static __always_inline struct addr error_source(const struct packet *pkt, const struct icmp_error *e,
						const struct flow *flow, u8 direction)
{
	if (same_addr(&pkt->tuple.src, &e->tuple.src) ||
	    (direction == DIR_FORWARD && !keeps_client(flow->path)))
		return e->to.src;
	return pkt->tuple.src;
}

/* An error about answers that another node has sent: it goes there as it came, like the client's packets. */
static __always_inline struct outcome send_error_on(ctx_t *ctx, const struct packet *pkt, struct decision *d,
						    struct note *note)
{
	if (note->direct || pkt->ttl <= 1)
		return drop(REASON_REJECT_UNANSWERED);
	d->reason = REASON_ICMP_ERROR;
	if (decide_direct(ctx, pkt, d))
		return go_on(ctx, STEP_DIRECT_OUT, d, true, note);
	return d->action == ACTION_PASS ? pass(d->reason) : drop(REASON_NO_ROUTE);
}

static __always_inline struct outcome pass_on_error(ctx_t *ctx, const struct packet *pkt,
						    struct icmp_error *e, struct decision *d,
						    struct note *note)
{
	struct flow *flow = &d->flow;
	bool along, back, into; /* sent by us, or else the stack's */
	u8 hops;
	u8 direction;

	if (!find_flow(ctx, &e->tuple, note, &direction, flow))
		return note->direct ? drop(REASON_DIRECT_REFUSED) : pass(REASON_NOT_VIP);
	if (unlikely(flow->path == PATH_DIRECT))
		return send_error_on(ctx, pkt, d, note);
	back = flow->path == PATH_HAIRPIN;
	e->to = flow->to;
	e->src = error_source(pkt, e, flow, direction);
	along = forwards(flow, direction);
	into = direction == DIR_REPLY && comes_by_lo(ctx, pkt, flow, &e->src);
	if (along) {
		u32 result = find_route(ctx, pkt, &e->src, &e->to.dst, false, &d->route);

		if (result == ROUTE_STACK)
			along = false, into = of_host(flow->path);
		else if (result != ROUTE_FOUND)
			return drop(REASON_NO_ROUTE);
		else if (!ctx_can_send(ctx, d->route.ifindex, d->route.link_known))
			return pass(REASON_TO_TC);
	}
	if (into && !ctx_can_redirect())
		return pass(REASON_TO_TC);
	hops = (along || back) && note->side != HOST;
	if (hops && pkt->ttl <= 1)
		return drop(REASON_REJECT_UNANSWERED);
	if (!translate_error(ctx, pkt, e, pkt->ttl - hops))
		return drop(REASON_REWRITE_FAILED);
	flow->to.src = e->src; /* for whoever watches: what the error has become */
	flow->to.sport = 0;
	flow->to.dport = 0;
	if (along)
		return send_along(ctx, pkt, &d->route, REASON_ICMP_ERROR);
	if (back)
		return send_hairpin(ctx, pkt, REASON_ICMP_ERROR);
	if (into && !ctx_at_loopback(ctx))
		return send_inward(ctx, pkt, REASON_ICMP_ERROR);
	return pass(REASON_ICMP_ERROR);
}

/* The step. What is known of the packet so far, the long way has left in `scratch`. */
static __always_inline int icmp_error(ctx_t *ctx)
{
	struct note *note = get_note();
	u32 bytes = ctx_len(ctx), parsed;
	struct work *work = peek_work();
	struct icmp_error *e;
	struct packet *pkt;

	if (!note || !work)
		return VERDICT_PASS;
	pkt = &work->pkt;
	e = get_icmp_error(work);
	parsed = parse(ctx, pkt);
	if (parsed == ICMP_ERROR)
		parsed = parse_quoted(ctx, pkt, e);
	if (parsed != PARSED)
		return finish(note->hook, pass(parsed), bytes);
	return finish_and_report(ctx, note, pass_on_error(ctx, pkt, e, &work->d, note), bytes);
}
