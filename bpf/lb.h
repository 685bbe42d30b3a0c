/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The order in which a packet is looked at. One that enters: is it a reply to an SNAT port? Else, is it for a
 * VIP, and of a known flow? One that leaves: is it a reply of a flow? fast.h has the same order for the
 * common packets, and says why it is there twice. */
#pragma once
#include "affinity.h"
#include "announced.h"
#include "flow_state.h"
#include "fast.h"
#include "forward.h"
#include "snat.h"

/* A ping, or a later piece of one. The entry of the address as a whole decides, and each piece is answered by
 * itself. Addresses of the node have no such entry: the stack answers there. */
static __always_inline void decide_echo(const struct packet *pkt, u8 side, struct decision *d)
{
	const struct vip *vip = lookup_address(&pkt->tuple.dst);
	struct backend_set set;

	if (!vip) {
		if (pkt->piece == PIECE_LATER)
			d->reason = REASON_FRAGMENT;
		return;
	}
	set = offered_set(vip, side);
	d->flow.service = vip->service;
	if (!decide_refusal(pkt, vip, &set, d))
		decide_answer(d, ANSWER_ECHO, REASON_PING);
}

/* A packet whose address and port are no VIP. A clusterIP leads nowhere else, so it is answered here:
 * otherwise the packet would travel between the node and its router until its TTL is over. */
static __always_inline void decide_not_vip(const struct packet *pkt, const struct settings *settings,
					   struct decision *d)
{
	const struct vip *vip;

	if (likely(!in_cluster_net(&pkt->tuple.dst, settings)))
		return;
	vip = lookup_address(&pkt->tuple.dst);
	if (!vip || vip->kind != VIP_CLUSTER_IP)
		return;
	d->flow.service = vip->service;
	if (pkt->piece == PIECE_LATER) /* of a datagram to a port that went meanwhile */
		decide(d, ACTION_DROP, REASON_STRAY_FRAGMENT);
	else
		decide_answer(d, ANSWER_REJECT, REASON_REJECT_UNKNOWN_PORT);
}

/* The next packet of a connection revives its flow, even after the flow's time is over. But while connections
 * of the address's former owner go on, such a packet is more likely of one of those, whose client has used
 * the same port here before. */
static __always_inline bool is_of_another_time(ctx_t *ctx, const struct packet *pkt, u8 side,
					       const struct flow *flow, u64 now,
					       const struct settings *settings)
{
	struct ethhdr eth;

	return side == OUTSIDE &&
	       unlikely(expired(flow->to.protocol, flow->state, flow->last_seen, now, settings)) &&
	       is_former_owner_s(ctx, pkt, &eth);
}

/* The node may have opened a connection to the very address and port that a client of a Service came from,
 * and from the node port that it came to. Then the client's flow is over, or that packet would not come. */
static __always_inline bool is_of_later_connection(ctx_t *ctx, const struct packet *pkt, u8 side,
						   const struct vip *vip, const struct flow *flow, u64 now,
						   const struct settings *settings)
{
	if (likely(flow->state != FLOW_CLOSED) &&
	    likely(!expired(flow->to.protocol, flow->state, flow->last_seen, now, settings)))
		return false;
	return (side != HOST || ctx_at_loopback(ctx)) && is_nodes_own(vip, &pkt->tuple.dst) &&
	       node_owns(ctx, pkt);
}

/* A packet that may be for a VIP, from any side. True: it is of the known flow d->flow. False: it is decided.
 */
static __always_inline bool decide_request(ctx_t *ctx, const struct packet *pkt, u8 side,
					   const struct settings *settings, u64 *now, struct decision *d)
{
	const struct vip *vip;

	if (unlikely(pkt->kind == KIND_ECHO)) {
		decide_echo(pkt, side, d);
		return false;
	}
	vip = lookup_vip(&pkt->tuple);
	if (likely(!vip)) {
		decide_not_vip(pkt, settings, d);
		return false;
	}
	if (lookup_flow(&pkt->tuple, DIR_FORWARD, &d->flow)) {
		*now = bpf_ktime_get_ns();
		if (pkt->piece == PIECE_LATER)
			return true;
		if (flow_usable(pkt, &d->flow, *now, settings) &&
		    !is_of_another_time(ctx, pkt, side, &d->flow, *now, settings)) {
			if (likely(!is_of_later_connection(ctx, pkt, side, vip, &d->flow, *now, settings)))
				return true;
			decide(d, ACTION_PASS, REASON_OWN_CONNECTION);
			return false;
		}
		d->stale = true;
	}
	note_vip(vip);
	if (likely(pkt->piece != PIECE_LATER))
		decide(d, ACTION_CONNECT, REASON_NOT_VIP);
	else if (!is_left_alone(vip))
		decide(d, ACTION_DROP, REASON_STRAY_FRAGMENT);
	return false;
}

/* The packet has completed the handshake of its flow: the affinity of its client is no longer provisional. */
static __always_inline void confirm_affinity(const struct packet *pkt, u8 direction, const struct flow *flow,
					     u64 now)
{
	struct tuple request = direction == DIR_REPLY ? reverse(&flow->to) : pkt->tuple;
	const struct vip *vip = lookup_vip(&request);

	if (vip && vip->affinity_seconds)
		remember_affinity(vip, &request.src, now, flow->backend, flow->generation, false);
}

/* The flow's way: past the stack if it was made so, and the setting is still on. */
static __always_inline enum way way_of(const struct flow *flow, const struct settings *settings)
{
	return settings->redirect && flow->path == PATH_REDIRECT ? WAY_PAST_STACK : WAY_OF_PATH;
}

/* A packet of the flow work->d.flow: to the backend, or back to the client. */
static __always_inline void decide_flow(ctx_t *ctx, u8 direction, enum way way, u64 now,
					const struct settings *settings, struct work *work)
{
	const bool past = way == WAY_PAST_STACK;
	const struct packet *pkt = &work->pkt;
	struct decision *d = &work->d;
	u8 state = d->flow.state;
	bool half_open = state == FLOW_NEW || d->flow.fins & HALF_OPEN;

	d->direction = direction;
	decide(d, d->flow.path == PATH_HAIRPIN ? ACTION_HAIRPIN : ACTION_STACK,
	       direction == DIR_REPLY ? REASON_REPLY : REASON_FLOW_HIT);
	if (unlikely(d->flow.path == PATH_DIRECT)) {
		if (decide_direct(ctx, pkt, d) && pkt->piece != PIECE_LATER)
			touch_direct(pkt, &d->flow, now, settings, &work->entries);
		d->closes = d->flow.state == FLOW_CLOSED && state != FLOW_CLOSED;
		return;
	}
	if (past && !ctx_can_redirect()) {
		decide(d, ACTION_PASS, REASON_TO_TC);
		return;
	}
	if (direction == DIR_REPLY && comes_by_lo(ctx, pkt, &d->flow, &d->flow.to.src)) {
		if (!ctx_can_redirect()) {
			decide(d, ACTION_PASS, REASON_TO_TC);
			return;
		}
		d->action = inward(ctx);
	}
	if (past ? may_go_past(ctx, pkt) : forwards(&d->flow, direction)) {
		if (!decide_route(ctx, pkt, past ? &pkt->tuple.src : &d->flow.to.src, way, d))
			return;
	}
	if (past && direction == DIR_REPLY && d->action != ACTION_REDIRECT) {
		decide(d, ACTION_PASS, REASON_NOT_VIP); /* the hook that faces the client will see it */
		return;
	}
	if (likely(pkt->piece != PIECE_LATER))
		touch_flow(pkt, direction, &d->flow, now, settings, &work->entries);
	if (unlikely(half_open && !(d->flow.fins & HALF_OPEN)))
		confirm_affinity(pkt, direction, &d->flow, now);
	d->closes = d->flow.state == FLOW_CLOSED && state != FLOW_CLOSED;
}

/* Is it a reply whose translation is undone where it comes in, of the flow d->flow? */
static __always_inline bool undone_here(const struct packet *pkt, u8 side, const struct settings *settings,
					struct decision *d)
{
	bool past = side == INSIDE && settings->redirect;

	if (likely(!past && !to_snat_port(&pkt->tuple, settings)))
		return false;
	return lookup_flow(&pkt->tuple, DIR_REPLY, &d->flow) &&
	       (undone_at_ingress(&d->flow, side) || (past && d->flow.path == PATH_REDIRECT));
}

/* A later piece whose first piece has not been seen. Those of the node itself are passed: the kernel sends
 * the pieces of a datagram in order. */
static __always_inline void decide_early_piece(const struct packet *pkt, u8 side, struct decision *d)
{
	if (side == HOST)
		decide(d, ACTION_PASS, REASON_FRAGMENT);
	else if (ctx_decides())
		decide(d, ACTION_PIECES, REASON_FRAGMENT);
	else
		decide(d, ACTION_PASS, lookup_address(&pkt->tuple.dst) ? REASON_TO_TC : REASON_FRAGMENT);
}

/* A packet that enters the node: from a pod, an uplink or a tunnel. */
static __always_inline void decide_ingress(ctx_t *ctx, u8 side, struct work *work)
{
	const struct settings *settings = get_settings();
	struct packet *pkt = &work->pkt;
	struct decision *d = &work->d;
	u8 direction = DIR_REPLY;
	u64 now;

	decide(d, ACTION_PASS, REASON_NOT_VIP);
	if (unlikely(!settings))
		return;
	if (unlikely(pkt->piece == PIECE_LATER) && pkt->kind == KIND_FLOW && !lookup_fragment(pkt)) {
		decide_early_piece(pkt, side, d);
		return;
	}
	if (undone_here(pkt, side, settings, d)) {
		if (d->flow.path == PATH_REDIRECT && accepts_another(pkt, &d->flow)) {
			delete_pair(&pkt->tuple, &d->flow.to, DIR_REPLY);
			return;
		}
		now = bpf_ktime_get_ns();
	} else {
		direction = DIR_FORWARD;
		if (!decide_request(ctx, pkt, side, settings, &now, d))
			return;
	}
	decide_flow(ctx, direction, way_of(&d->flow, settings), now, settings, work);
}

/* A packet that leaves towards a client: to a pod, or out of an uplink or a tunnel. */
static __always_inline void decide_egress(ctx_t *ctx, struct work *work)
{
	const struct settings *settings = get_settings();
	struct packet *pkt = &work->pkt;
	struct decision *d = &work->d;
	u8 direction = DIR_REPLY;
	u64 now;

	decide(d, ACTION_PASS, REASON_NOT_VIP);
	if (unlikely(!settings))
		return;
	if (unlikely(pkt->piece == PIECE_LATER) && !(pkt->kind == KIND_ECHO && ctx_from_host(ctx)) &&
	    !lookup_fragment(pkt)) {
		decide(d, ACTION_PASS, REASON_FRAGMENT);
		return;
	}
	if (lookup_flow(&pkt->tuple, DIR_REPLY, &d->flow) && keeps_client(d->flow.path)) {
		if (accepts_another(pkt, &d->flow)) {
			delete_pair(&pkt->tuple, &d->flow.to, DIR_REPLY);
			return;
		}
		now = bpf_ktime_get_ns();
	} else {
		direction = DIR_FORWARD;
		if (likely(!ctx_from_host(ctx)))
			return;
		if (!decide_request(ctx, pkt, HOST, settings, &now, d)) {
			if (d->reason == REASON_NOT_VIP && d->action == ACTION_PASS)
				take_port_back(ctx, pkt, settings, d);
			return;
		}
	}
	decide_flow(ctx, direction, WAY_OF_PATH, now, settings, work);
}

/* Parse the packet and its IPv4 options. The steps behind the long way need not look at options again:
 * packets with options that forbid a translation do not get there. */
static __always_inline u32 parse_all(ctx_t *ctx, struct packet *pkt)
{
	u32 parsed = parse(ctx, pkt), options;

	if (likely(pkt->l4 <= pkt->l3 + sizeof(ip_header_t)) || parsed < PARSED)
		return parsed;
	options = parse_options(ctx, pkt);
	return options == PARSED ? parsed : options;
}

/* A frame to many hosts may ask for the link address that belongs to an IP address. If this one can, the step
 * goes on that answers for announced addresses. Comes back if the frame cannot ask, or the step is missing.
 */
static __always_inline void take_neighbour_step(ctx_t *ctx, struct note *note)
{
	__be16 ethertype = ctx_ethertype(ctx);

	if (!note->l3 || (ethertype != bpf_htons(ETH_P_ARP) && ethertype != bpf_htons(ETH_P_IPV6)))
		return;
	note->reason = REASON_NOT_FOR_US;
	if (write_note(note))
		tail_call(ctx, MAP(FD_programs),
			  (ethertype == bpf_htons(ETH_P_ARP) ? 0 : PROGRAMS_PER_FAMILY) + STEP_NEIGHBOUR);
}

/* May a packet that the parser leaves alone be ARP, or neighbour discovery? Pods ask their gateway. */
static __always_inline bool may_solicit(const struct packet *pkt, u32 parsed, const struct note *note)
{
	if (note->side == INSIDE || !note->l3)
		return false;
	if (FAMILY == 4)
		return parsed == REASON_NOT_IP;
	return pkt->tuple.protocol == ICMP_PROTOCOL &&
	       (parsed == REASON_OTHER_PROTOCOL || parsed == REASON_MARTIAN);
}

/* A packet that the parser does not take: an ICMP error, a question for a link address, or one that is left
 * alone. A first piece may have later pieces waiting for it that name an extension header. It releases them
 * even if it is left alone itself. */
static __always_inline int not_parsed(ctx_t *ctx, const struct packet *pkt, u32 parsed, struct note *note,
				      u32 bytes)
{
	if (pkt->piece == PIECE_FIRST && is_extension(pkt->piece_next) && !note->egress && ctx_decides()) {
		note->reason = parsed;
		next_step(ctx, STEP_PIECES);
	}
	if (parsed == ICMP_ERROR) {
		next_step(ctx, STEP_ICMP_ERROR);
		return finish(note->hook, strand(ctx, is_for_vip(ctx, note->l3)), bytes);
	}
	if (may_solicit(pkt, parsed, note)) {
		note->reason = parsed;
		next_step(ctx, STEP_NEIGHBOUR);
	}
	return finish(note->hook, pass(parsed), bytes);
}

/* Go on with a packet that the short way has not dealt with; found: SLOW, OURS, FIRST or ENCAPSULATED. First
 * packets skip the long way and go straight to STEP_CONNECT, unless a watcher wants their original bytes.
 * Comes back only if a step is missing. */
static __always_inline void take_long_way(ctx_t *ctx, int found, struct note *note)
{
	note->watch = watched();
	if (unlikely(note->watch & WATCH_BYTES)) {
		take_step(ctx, STEP_CAPTURE, note);
		note->watch &= ~WATCH_BYTES;
	}
	if (found == FIRST)
		take_step(ctx, STEP_CONNECT, note);
	if (found == ENCAPSULATED)
		take_step(ctx, STEP_DIRECT_IN, note);
	take_step(ctx, long_step(note), note);
}

/* What every hook does: it hands IPv6 packets to its twin, takes common packets the short way, and all others
 * the long way, which is a step. */
static __always_inline int run(ctx_t *ctx, struct note *note)
{
	u32 bytes = ctx_len(ctx);
	int found = SLOW;

	if (likely(!hand_over(ctx, note))) {
		found = note->egress ? fast_egress(ctx, note) : fast_ingress(ctx, note);
		if (likely(found > SLOW))
			return found;
		take_long_way(ctx, found, note);
	}
	return finish(note->hook, strand(ctx, found != SLOW || is_for_vip(ctx, note->l3)), bytes);
}

static __always_inline int long_way(ctx_t *ctx, bool egress)
{
	u32 bytes = ctx_len(ctx), parsed;
	struct work *work = get_work();
	struct note *note = get_note();

	if (!note || !work) /* never: an array has its first entry */
		return VERDICT_PASS;
	work->pkt.l3 = note->l3;
	parsed = parse_all(ctx, &work->pkt);
	if (unlikely(parsed != PARSED))
		return not_parsed(ctx, &work->pkt, parsed, note, bytes);
	if (!egress && is_encapsulated(&work->pkt.tuple, note->side)) {
		next_step(ctx, STEP_DIRECT_IN);
		return finish(note->hook, strand(ctx, false), bytes);
	}
	if (egress)
		decide_egress(ctx, work);
	else
		decide_ingress(ctx, note->side, work);
	return finish_and_report(ctx, note, conclude(ctx, &work->pkt, &work->d, note), bytes);
}

/* The entry of hooks by which packets come in; l3: offset of the IP header. A frame from outside that is not
 * addressed to this host is left alone, unless it asks for an announced address. Pods behind a bridge address
 * their frames to the bridge, so these are looked at. The IPv6 twin is entered from here, and need not look.
 */
static __always_inline int ingress(ctx_t *ctx, u32 hook, u8 side, u16 l3)
{
	struct note note = {.hook = hook, .side = side, .l3 = l3};

	if (FAMILY == 4 && side == OUTSIDE && unlikely(!ctx_for_us(ctx))) {
		take_neighbour_step(ctx, &note);
		return finish(hook, pass(REASON_NOT_FOR_US), ctx_len(ctx));
	}
	return run(ctx, &note);
}

/* The entry of the hook at lo. What the node sends to one of its own addresses leaves by lo and enters there,
 * so packets for a VIP at such an address are seen nowhere else. Packets that other hooks of ours have sent
 * to lo are passed: they are translated already. */
static __always_inline int loopback(ctx_t *ctx)
{
	struct note note = {.hook = HOOK_TC_LOOPBACK, .side = HOST, .l3 = ETH_HLEN};

	if (FAMILY == 4 && !ctx_from_host(ctx))
		return finish(note.hook, pass(REASON_NOT_VIP), ctx_len(ctx));
	return run(ctx, &note);
}

static __always_inline int egress(ctx_t *ctx, u32 hook, u16 l3)
{
	struct note note = {.hook = hook, .side = HOST, .egress = true, .l3 = l3};

	return run(ctx, &note);
}
