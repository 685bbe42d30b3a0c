/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What becomes of a packet, and doing it: a decision is taken without touching the packet (lb.h), then
 * carried out here, once, by the last step of every program. */
#pragma once
#include "flow_state.h"
#include "fragment.h"
#include "nat.h"
#include "route.h"
#include "service.h"
#include "stranded.h"
#include "watch.h"

enum action {
	ACTION_PASS,	 /* as it came */
	ACTION_DROP,	 /* not at all */
	ACTION_ANSWER,	 /* by us */
	ACTION_CONNECT,	 /* as its first packet says: to be decided in another program */
	ACTION_PIECES,	 /* with the other pieces of its datagram, or in pieces: in another program, too */
	ACTION_STACK,	 /* translate, on to the kernel's stack */
	ACTION_INWARD,	 /* translate, to the kernel's stack by lo: a process of this node gets it */
	ACTION_HAIRPIN,	 /* translate, back out of the interface it came from */
	ACTION_FORWARD,	 /* translate, out along the route */
	ACTION_REDIRECT, /* the same past the stack: to a pod of this node, or from it */
};

struct decision {
	u32 action;
	u32 reason;
	u8 answer;	    /* enum answer; ANSWER */
	u8 stale;	    /* as in struct note; CONNECT */
	u8 direction;	    /* enum direction, of a packet of `flow` */
	u8 closes;	    /* the packet is the one that closes `flow` */
	struct flow flow;   /* flow.to: the translated packet; all that translate */
	struct route route; /* FORWARD, REDIRECT, and what is too big */
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

/* How a process of this node gets what this hook has. What is at lo is on its way there already. */
static __always_inline u32 inward(ctx_t *ctx)
{
	return ctx_at_loopback(ctx) ? ACTION_STACK : ACTION_INWARD;
}

/* Find the way to d->flow.to.dst for a packet that we forward, or that goes past the stack. True when there
 * is one that this hook can take, or the stack must; else the decision is taken. */
static __always_inline bool decide_route(ctx_t *ctx, const struct packet *pkt, const struct addr *src,
					 bool past, struct decision *d)
{
	u32 result = find_route(ctx, pkt, src, &d->flow.to.dst, past, &d->route);

	if (past)
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
	return translates(d);
}

/* What begins no connection through a VIP that is gone meets what it would without an entry: at a clusterIP a
 * refusal, at other addresses whoever has them, or nobody. */
static __always_inline void decide_gone(const struct vip *vip, struct decision *d)
{
	if (vip->kind == VIP_CLUSTER_IP)
		decide_answer(d, ANSWER_REJECT, REASON_REJECT_UNKNOWN_PORT);
	else
		decide(d, ACTION_PASS, REASON_NOT_VIP);
}

/* Is there nobody to offer to this client? Then the decision is taken. */
static __always_inline bool decide_refusal(const struct packet *pkt, const struct vip *vip,
					   const struct backend_set *set, struct decision *d)
{
	if (unlikely(vip->flags & VIP_GONE))
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

/* at: get_note(), to which what the next program has to know is added. ours: the packet is for a VIP or of a
 * flow, so it must not pass where that program is missing. */
static __always_inline struct outcome go_on(ctx_t *ctx, u32 step, const struct decision *d, bool ours,
					    struct note *at)
{
	at->reason = d->reason;
	at->answer = d->answer;
	at->mtu = d->answer == ANSWER_TOO_BIG || d->reason == REASON_FRAGMENTED ? d->route.mtu : 0;
	at->stale = d->stale;
	next_step(ctx, step);
	return strand(ctx, ours);
}

/* Is a piece for a VIP, or of a flow? Of an early one only the address is known. */
static __always_inline bool is_our_piece(const struct packet *pkt, const struct decision *d)
{
	return d->reason == REASON_FRAGMENT ? lookup_address(&pkt->tuple.dst) != NULL
					    : d->reason != REASON_NOT_VIP;
}

/* A piece that we have cut enters with what follows it behind: see cut.h. */
static __always_inline bool trim_piece(ctx_t *ctx, const struct packet *pkt)
{
	u32 len = pkt->l3 + pkt->ip_len;

	return ctx_len(ctx) <= len || ctx_resize(ctx, len);
}

static __always_inline struct outcome carry_out(ctx_t *ctx, const struct packet *pkt, struct decision *d,
						struct note *at)
{
	bool by_us = d->action >= ACTION_HAIRPIN;

	if (d->action == ACTION_PASS)
		return pass(d->reason);
	if (d->action == ACTION_DROP) {
		count_dropped(d->flow.service, d->reason);
		return drop(d->reason);
	}
	if (by_us && pkt->ttl <= 1) {
		d->action = ACTION_ANSWER;
		d->answer = ANSWER_TTL_EXPIRED;
		d->reason = REASON_TTL_EXPIRED;
	}
	if (d->action == ACTION_ANSWER) {
		if (d->answer != ANSWER_ECHO)
			count_dropped(d->flow.service, d->reason);
		return go_on(ctx, STEP_ANSWER, d, true, at);
	}
	if (d->action == ACTION_CONNECT)
		return go_on(ctx, STEP_CONNECT, d, true, at);
	if (d->action == ACTION_PIECES)
		return go_on(ctx, STEP_PIECES, d, is_our_piece(pkt, d), at);
	if (FAMILY == 4 && unlikely(pkt->piece) && !trim_piece(ctx, pkt))
		return drop(REASON_REWRITE_FAILED);
	if (FAMILY == 6)
		KEEP_WHOLE(*d); /* what was read of it before is better read again than kept */
	if (!translate(ctx, pkt, &d->flow.to, pkt->ttl - by_us))
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

/* An SCTP packet's checksum covers all of its fragments, and says nothing without their whole length. */
static __always_inline bool breaks_sctp(const struct packet *pkt, const struct tuple *to)
{
	return pkt->tuple.protocol == IPPROTO_SCTP && pkt->piece == PIECE_FIRST &&
	       (pkt->tuple.sport != to->sport || pkt->tuple.dport != to->dport);
}

/* The first piece of a datagram: the later ones go where it goes. What came before it is held at ingress, by
 * tc alone: so is what is left alone there, for it may have been held for a VIP's sake. Its ports are noted
 * before others are looked for, as others are held before its ports are looked for: no piece is missed. */
static __always_inline void decide_first_piece(const struct packet *pkt, struct decision *d,
					       const struct note *at)
{
	if (d->action == ACTION_CONNECT || (pkt->kind == KIND_ECHO && !is_extension(pkt->piece_next)))
		return;
	if (translates(d) && breaks_sctp(pkt, &d->flow.to)) {
		decide(d, ACTION_DROP, REASON_SCTP_FRAGMENT);
		return;
	}
	if (d->action != ACTION_PASS)
		remember_fragment(pkt, at->hook);
	if (at->side == HOST) /* what the node sends */
		return;
	if (d->action == ACTION_PASS ? ctx_decides()
				     : (translates(d) || d->reason == REASON_PING) && is_awaited(pkt)) {
		if (ctx_decides())
			d->action = ACTION_PIECES;
		else
			decide(d, ACTION_PASS, REASON_TO_TC);
	}
}

/* What is common to all, behind the decision. */
static __always_inline struct outcome conclude(ctx_t *ctx, const struct packet *pkt, struct decision *d,
					       struct note *at)
{
	if (unlikely(d->action == ACTION_FORWARD && d->route.mtu))
		decide(d, ACTION_PIECES, REASON_FRAGMENTED);
	if (unlikely(pkt->piece == PIECE_FIRST))
		decide_first_piece(pkt, d, at);
	else if (unlikely(pkt->piece == PIECE_LATER) && (translates(d) || d->reason == REASON_NOT_VIP))
		count_piece(pkt, at->hook);
	return carry_out(ctx, pkt, d, at);
}

/* What the long way and the steps work on. It is not on the stack, which is too small for it, and of whose
 * contents the verifier would follow every combination. */
struct work {
	struct packet pkt;
	struct decision d;
	struct entries entries;
};
_Static_assert(sizeof(struct work) <= sizeof(struct scratch), "struct work has room in the scratch map");

/* As the program before has left it. */
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
