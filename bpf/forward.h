/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Decisions, and how they are carried out. lb.h and connect.h decide what becomes of a packet and do not
 * change the packet; every program ends with conclude(), which carries the decision out. */
#pragma once
#include "flow_state.h"
#include "fragment.h"
#include "nat.h"
#include "route.h"
#include "service.h"
#include "socket.h"
#include "stranded.h"
#include "watch.h"

enum action {
	ACTION_PASS,	 /* leave the packet as it came */
	ACTION_DROP,	 /* drop it */
	ACTION_ANSWER,	 /* answer it ourselves, in STEP_ANSWER */
	ACTION_CONNECT,	 /* it begins a connection: STEP_CONNECT decides */
	ACTION_PIECES,	 /* hold it, release those that wait for it, or cut it in pieces, in STEP_PIECES */
	ACTION_STACK,	 /* translate it, and let the kernel's stack have it */
	ACTION_INWARD,	 /* translate it, and send it to lo, for a process of this node */
	ACTION_HAIRPIN,	 /* translate it, and send it back out of the interface that it came from */
	ACTION_FORWARD,	 /* translate it, and send it along the route, as a router does */
	ACTION_REDIRECT, /* translate it, and send it past the stack: to a pod of this node, or from one */
	ACTION_DIRECT,	 /* encapsulate it untranslated, and send it to its backend's node: STEP_DIRECT_OUT */
};

struct decision {
	u32 action;
	u32 reason;
	u8 answer;	    /* enum answer; set with ANSWER */
	u8 stale;	    /* as in struct note; set with CONNECT */
	u8 direction;	    /* enum direction, of a packet of `flow` */
	u8 closes;	    /* the packet is the one that closes `flow` */
	struct flow flow;   /* flow.to: what the packet becomes; set with all actions that translate */
	struct route route; /* set with FORWARD and REDIRECT, and for a packet that is too big */
};

static __always_inline void decide(struct decision *d, u32 action, u32 reason)
{
	d->action = action;
	d->reason = reason;
}

static __always_inline void decide_answer(struct decision *d, u8 answer, u32 reason)
{
	d->answer = answer;
	decide(d, ACTION_ANSWER, reason);
}

static __always_inline bool translates(const struct decision *d)
{
	return d->action >= ACTION_STACK;
}

/* The action that brings a packet to a process of this node. A packet at lo is on its way there already. */
static __always_inline u32 inward(ctx_t *ctx)
{
	return ctx_at_loopback(ctx) ? ACTION_STACK : ACTION_INWARD;
}

/* Must a packet for a process of this node be sent to it by lo? It must if it is for an address of the node
 * itself, or if the kernel would not accept its translated source, src, at this interface: at lo it does not
 * check. */
static __always_inline bool comes_by_lo(ctx_t *ctx, const struct packet *pkt, const struct flow *flow,
					const struct addr *src)
{
	return flow->path == PATH_LOOPBACK || (flow->path == PATH_HOST && !enters_here(ctx, pkt, src));
}

/* What becomes of a packet for which find_route() has found d->route. */
static __always_inline void take_route(ctx_t *ctx, u32 result, enum way way, struct decision *d)
{
	if (way == WAY_PAST_STACK)
		d->action = result == ROUTE_FOUND && !d->route.mtu ? ACTION_REDIRECT : ACTION_STACK;
	else if (result == ROUTE_STACK)
		decide(d, of_host(d->flow.path) ? inward(ctx) : ACTION_STACK, d->reason);
	else if (result == ROUTE_TOO_BIG && !ctx_decides())
		/* Generic XDP and virtio show packets that await segmentation whole; tc is told the segments'
		 * size. */
		decide(d, ACTION_PASS, REASON_TO_TC);
	else if (result == ROUTE_TOO_BIG)
		decide_answer(d, ANSWER_TOO_BIG, REASON_TOO_BIG);
	else if (result == ROUTE_NONE)
		decide(d, ACTION_DROP, REASON_NO_ROUTE);
	else if (!ctx_can_send(ctx, d->route.ifindex, d->route.link_known))
		decide(d, ACTION_PASS, REASON_TO_TC);
	else
		decide(d, ACTION_FORWARD, d->reason);
}

/* Find the route to d->flow.to.dst for a packet that we forward, or that goes past the stack, and note it in
 * d->route. True: the packet is translated, and sent along the route or by the stack. False: the decision is
 * another one: an answer, a drop, or to leave the packet to tc. */
static __always_inline bool decide_route(ctx_t *ctx, const struct packet *pkt, const struct addr *src,
					 enum way way, struct decision *d)
{
	take_route(ctx, find_route(ctx, pkt, src, &d->flow.to.dst, way, &d->route), way, d);
	return translates(d);
}

/* The route of a packet that goes encapsulated to its backend's node, d->flow.to.src. The sender of one that
 * is too big is told how large a packet may be inside of the encapsulation. */
static __always_inline bool decide_direct(ctx_t *ctx, const struct packet *pkt, struct decision *d)
{
	const struct settings *settings = get_settings();
	struct addr from;
	u32 result;

	if (!settings || !settings->direct_port || !own_address(0, &from)) {
		decide(d, ACTION_DROP, REASON_NO_ROUTE);
		return false;
	}
	result = find_longer_route(ctx, pkt, &from, &d->flow.to.src, WAY_OF_PATH,
				   d->flow.fins & MET_LATE ? GUE_MOST_OVERHEAD : GUE_OVERHEAD, &d->route);
	take_route(ctx, result == ROUTE_STACK ? ROUTE_NONE : result, WAY_OF_PATH, d);
	if (d->action == ACTION_FORWARD)
		d->action = ACTION_DIRECT;
	return translates(d);
}

/* The first packet of a connection to a VIP that is gone. */
static __always_inline void decide_gone(const struct vip *vip, struct decision *d)
{
	if (is_left_alone(vip))
		decide(d, ACTION_PASS, REASON_NOT_VIP);
	else
		decide_answer(d, ANSWER_REJECT, REASON_REJECT_UNKNOWN_PORT);
}

/* Decide about a new connection that gets no backend: the VIP is gone, the client is outside the source
 * ranges, or there is no endpoint to offer. False: there is one. */
static __always_inline bool decide_refusal(const struct packet *pkt, const struct vip *vip,
					   const struct backend_set *set, struct decision *d)
{
	if (unlikely(is_gone(vip)))
		decide_gone(vip, d);
	else if (!source_allowed(&pkt->tuple.src, vip))
		decide(d, ACTION_DROP, REASON_SOURCE_NOT_ALLOWED);
	else if (set->size)
		return false;
	else if (vip->flags & VIP_USABLE)
		decide(d, ACTION_DROP, REASON_NO_LOCAL_ENDPOINT);
	else
		decide_answer(d, ANSWER_REJECT, REASON_REJECT_NO_ENDPOINT);
	return true;
}

/* Go on in another program, with what it has to know in the note (which is get_note()). ours: the packet is
 * for a VIP or of a flow, so it must not pass untranslated where that program is missing. */
static __always_inline struct outcome go_on(ctx_t *ctx, u32 step, const struct decision *d, bool ours,
					    struct note *note)
{
	note->reason = d->reason;
	note->answer = d->answer;
	note->mtu = d->answer == ANSWER_TOO_BIG || d->reason == REASON_FRAGMENTED ? d->route.mtu : 0;
	note->stale = d->stale;
	next_step(ctx, step);
	return strand(ctx, ours);
}

/* Is a piece for a VIP, or of a flow? Of one that came before the first piece only the address is known: the
 * first has the ports. */
static __always_inline bool is_our_piece(const struct packet *pkt, const struct decision *d)
{
	return d->reason == REASON_FRAGMENT ? lookup_address(&pkt->tuple.dst) != NULL
					    : d->reason != REASON_NOT_VIP;
}

/* A piece that we have cut ourselves is a copy of the whole packet from where the piece begins. Take off what
 * is behind the piece; cut.h says why that is done here. False: the kernel refused. */
static __always_inline bool trim_piece(ctx_t *ctx, const struct packet *pkt)
{
	u32 len = pkt->l3 + pkt->ip_len;

	return ctx_len(ctx) <= len || ctx_resize(ctx, len);
}

static __always_inline struct outcome carry_out(ctx_t *ctx, const struct packet *pkt, struct decision *d,
						struct note *note)
{
	/* We lower the TTL where we forward, as a router does. A packet of this node's own has passed no hop.
	 */
	u8 hops = d->action >= ACTION_HAIRPIN && note->side != HOST;

	if (d->action == ACTION_PASS)
		return pass(d->reason);
	if (d->action == ACTION_DROP) {
		count_dropped(d->flow.service, d->reason);
		return drop(d->reason);
	}
	if (hops && pkt->ttl <= 1) {
		d->action = ACTION_ANSWER;
		d->answer = ANSWER_TTL_EXPIRED;
		d->reason = REASON_TTL_EXPIRED;
	}
	if (d->action == ACTION_ANSWER) {
		if (d->answer != ANSWER_ECHO)
			count_dropped(d->flow.service, d->reason);
		return go_on(ctx, STEP_ANSWER, d, true, note);
	}
	if (d->action == ACTION_CONNECT)
		return go_on(ctx, STEP_CONNECT, d, true, note);
	if (d->action == ACTION_PIECES)
		return go_on(ctx, STEP_PIECES, d, is_our_piece(pkt, d), note);
	if (d->action == ACTION_DIRECT)
		return go_on(ctx, STEP_DIRECT_OUT, d, true, note);
	if (FAMILY == 4 && unlikely(pkt->piece) && !trim_piece(ctx, pkt))
		return drop(REASON_REWRITE_FAILED);
	if (FAMILY == 6)
		KEEP_WHOLE(*d); /* have its fields read again: to keep them would fill the stack */
	if (!translate(ctx, pkt, &d->flow.to, pkt->ttl - hops))
		return drop(REASON_REWRITE_FAILED);
	count_traffic(d->flow.backend, d->flow.generation, d->reason == REASON_REPLY, ctx_len(ctx));
	if (d->action >= ACTION_FORWARD)
		return send_along(ctx, pkt, &d->route, d->reason);
	if (d->action == ACTION_HAIRPIN)
		return send_hairpin(ctx, pkt, d->reason);
	if (d->action == ACTION_INWARD)
		return send_inward(ctx, pkt, d->reason);
	return pass(d->reason);
}

/* Would translation break the checksum of an SCTP packet in pieces? The checksum covers all pieces. An update
 * for new ports needs the length of the whole packet, which the first piece does not tell: it is known only
 * of packets that we have cut ourselves. */
static __always_inline bool breaks_sctp(const struct packet *pkt, const struct tuple *to)
{
	return pkt->tuple.protocol == IPPROTO_SCTP && !pkt->sum_len &&
	       (pkt->tuple.sport != to->sport || pkt->tuple.dport != to->dport);
}

/* The first piece of a datagram, which the later ones follow: note its ports for them, and have STEP_PIECES
 * release those that came earlier. Only tc holds pieces, and only at ingress. It may hold pieces of a
 * datagram that turns out to be none of ours; so where tc leaves the first piece alone, the others are
 * released as well.
 *
 * No piece is missed: here the ports are noted before waiting pieces are looked for; STEP_PIECES stores a
 * piece before it looks for the ports. */
static __always_inline void decide_first_piece(struct packet *pkt, struct decision *d,
					       const struct note *note)
{
	if (d->action == ACTION_CONNECT || (pkt->kind == KIND_ECHO && !is_extension(pkt->piece_next)))
		return;
	if (pkt->tuple.protocol == IPPROTO_SCTP)
		pkt->sum_len = whole_len(pkt);
	if (translates(d) && breaks_sctp(pkt, &d->flow.to)) {
		decide(d, ACTION_DROP, REASON_SCTP_FRAGMENT);
		return;
	}
	if (d->action != ACTION_PASS)
		remember_fragment(pkt, note->hook);
	if (note->side == HOST) /* what the node sends */
		return;
	if (d->action == ACTION_PASS ? ctx_decides()
				     : (translates(d) || d->reason == REASON_PING) && is_awaited(pkt)) {
		if (ctx_decides())
			d->action = ACTION_PIECES;
		else
			decide(d, ACTION_PASS, REASON_TO_TC);
	}
}

/* A request that is sent to lo, for a backend that is a process of this node. If no such process listens, we
 * answer with a reset in the kernel's place: IPv4's stack sends one only for a packet with a route of type
 * local (tcp_v4_send_reset()), which a packet that we send to lo does not have. */
static __always_inline void decide_absent(ctx_t *ctx, const struct packet *pkt, struct decision *d)
{
	if (d->direction == DIR_FORWARD && pkt->tuple.protocol == IPPROTO_TCP && !pkt->piece &&
	    find_socket(ctx, &d->flow.to) == SOCKET_NONE)
		decide_answer(d, ANSWER_REJECT, REASON_REJECT_NO_LISTENER);
}

/* Note or count pieces, and see whether another step or hook comes first. */
static __always_inline void arrange(ctx_t *ctx, struct packet *pkt, struct decision *d,
				    const struct note *note)
{
	if (unlikely((d->action == ACTION_FORWARD || d->action == ACTION_DIRECT) && d->route.mtu))
		decide(d, ACTION_PIECES, REASON_FRAGMENTED);
	if (d->action == ACTION_STACK && meets_vip_again(&d->flow.to))
		decide(d, ACTION_PASS, REASON_TO_TC);
	if (FAMILY == 4 && ctx_can_redirect() && unlikely(d->action == ACTION_INWARD))
		decide_absent(ctx, pkt, d);
	if (unlikely(pkt->piece == PIECE_FIRST))
		decide_first_piece(pkt, d, note);
	else if (unlikely(pkt->piece == PIECE_LATER) && (translates(d) || d->reason == REASON_NOT_VIP))
		count_piece(pkt, note->hook);
}

/* The end of every program that decides. */
static __always_inline struct outcome conclude(ctx_t *ctx, struct packet *pkt, struct decision *d,
					       struct note *note)
{
	arrange(ctx, pkt, d, note);
	return carry_out(ctx, pkt, d, note);
}

/* The working memory of the long way and of the steps, one for each CPU. The stack is too small for it, and
 * the verifier would follow every combination of values there. */
struct work {
	struct packet pkt;
	struct decision d;
	struct entries entries;
};
_Static_assert(sizeof(struct work) <= sizeof(struct scratch), "struct work has room in the scratch map");

/* The working memory as the program before has left it. */
static __always_inline struct work *peek_work(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(scratches, &zero);
}

static __always_inline struct work *get_work(void)
{
	struct work *work = peek_work();

	if (work)
		__builtin_memset(work, 0, __builtin_offsetof(struct work, entries));
	return work;
}
