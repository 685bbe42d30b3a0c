/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Shadow mode: programs beside whoever serves Services now. They decide about each connection that begins, by
 * the same functions as the programs that serve, write down in `events` what they would have done, and let
 * every packet go as it came. There is nothing here that could change a packet, send it elsewhere or drop it:
 * each exit is leave().
 *
 * Their flows, affinity and counters are of decisions alone. Nobody serves by them: an agent that is to
 * serve begins with new maps. Flows are followed as far as the client's own packets tell, since netfilter
 * gives the backend's answers addresses that no flow here has. */
#pragma once
#include "connect.h"
#include "event.h"
#include "icmp_error.h"
#include "lb.h"

/* The end of every program. */
static __always_inline int leave(ctx_t *ctx, const struct note *note, u32 reason)
{
	finish(note->hook, pass(reason), ctx_len(ctx));
	return VERDICT_PASS;
}

/* Does the packet begin a connection, by what it says itself? */
static __always_inline bool begins(const struct packet *pkt)
{
	return pkt->tuple.protocol == IPPROTO_UDP || (pkt->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

static __always_inline struct shadowed *new_record(u32 kind, const struct tuple *t)
{
	struct shadowed *record = bpf_ringbuf_reserve(events, sizeof(*record), 0);
	struct watch *watch;
	u32 zero = 0;

	if (!record) {
		watch = bpf_map_lookup_elem(watch_map, &zero);
		if (watch)
			__sync_fetch_and_add(&watch->lost, 1);
		return NULL;
	}
	__builtin_memset(record, 0, sizeof(*record));
	record->time_ns = bpf_ktime_get_ns();
	record->kind = kind;
	put_address(record->src, &t->src);
	put_address(record->dst, &t->dst);
	record->sport = t->sport;
	record->dport = t->dport;
	record->family = FAMILY;
	record->protocol = t->protocol;
	return record;
}

static __always_inline u32 shadow_outcome(const struct decision *d)
{
	if (translates(d))
		return SHADOW_SERVED;
	if (d->action == ACTION_ANSWER)
		return SHADOW_REFUSED;
	return d->action == ACTION_DROP ? SHADOW_DROPPED : SHADOW_UNTOUCHED;
}

/* Write down what would have become of a packet. */
static __always_inline void record_decision(const struct work *work, const struct note *note)
{
	const struct decision *d = &work->d;
	struct shadowed *record = new_record(SHADOW_DECIDED, &work->pkt.tuple);

	if (!record)
		return;
	record->outcome = shadow_outcome(d);
	record->reason = d->reason;
	record->service = d->flow.service;
	record->side = note->side;
	if (record->outcome == SHADOW_SERVED) {
		record->backend = d->flow.backend;
		put_address(record->to_dst, &d->flow.to.dst);
		record->to_dport = d->flow.to.dport;
	}
	bpf_ringbuf_submit(record, 0);
}

/* May a packet that comes in begin a connection, or end one? */
static __always_inline bool concerns_ingress(ctx_t *ctx, const struct note *note)
{
	const struct settings *settings = get_settings();
	const struct flow_entry *e;
	struct tuple t;
	u8 later = 0;

	if (!settings || !fast_parse(ctx, note->l3, &t, &later))
		return settings;
	if (!lookup_vip(&t))
		return in_cluster_net(&t.dst, settings);
	if (t.protocol == IPPROTO_TCP)
		return later;
	e = fast_lookup(&t, DIR_FORWARD);
	return !e || !settled(e, DIR_FORWARD);
}

/* Has a process of this node just called for a VIP by the socket that the packet is from? */
static __always_inline bool is_awaited_packet(ctx_t *ctx, bool forget)
{
	const struct tuple nowhere = {};
	struct socket_key key;

	if (!ctx_from_host(ctx))
		return false;
	socket_key(&key, ctx_cookie(ctx), &nowhere, DIR_REPLY);
	if (!bpf_map_lookup_elem(sockets, &key))
		return false;
	if (forget)
		bpf_map_delete_elem(sockets, &key);
	return true;
}

/* May a packet that goes out be a refusal in a VIP's name, or what a process of this node has sent to a VIP?
 */
static __always_inline bool concerns_egress(ctx_t *ctx, const struct note *note)
{
	struct tuple t, request;
	u8 later = 0;

	if (!fast_parse(ctx, note->l3, &t, &later))
		return true;
	if (later & TCP_RST) {
		request = reverse(&t);
		return lookup_vip(&request);
	}
	return (t.protocol == IPPROTO_UDP || later & TCP_SYN) && is_awaited_packet(ctx, false);
}

/* What every hook does: a packet that may matter goes on in a step. If the step is missing it passes. */
static __always_inline int shadow(ctx_t *ctx, struct note *note, bool egress)
{
	if (hand_over(ctx, note))
		return leave(ctx, note, REASON_STEP_MISSING);
	if (egress ? concerns_egress(ctx, note) : concerns_ingress(ctx, note))
		take_step(ctx, egress ? STEP_EGRESS : STEP_INGRESS, note);
	return leave(ctx, note, REASON_NOT_VIP);
}

static __always_inline int shadow_ingress(ctx_t *ctx, u32 hook, u8 side, u16 l3)
{
	struct note note = {.hook = hook, .side = side, .l3 = l3};

	if (FAMILY == 4 && side == OUTSIDE && unlikely(!ctx_for_us(ctx)))
		return leave(ctx, &note, REASON_NOT_FOR_US);
	return shadow(ctx, &note, false);
}

static __always_inline int shadow_egress(ctx_t *ctx, u32 hook, u16 l3)
{
	struct note note = {.hook = hook, .side = HOST, .egress = true, .l3 = l3};

	return shadow(ctx, &note, true);
}

/* Note a packet of a known flow. True: it is a SYN on a connection that the client has closed, so it begins
 * another one. */
static __always_inline bool follow_flow(struct work *work, u64 now, const struct settings *settings)
{
	struct decision *d = &work->d;

	if (work->pkt.tuple.protocol != IPPROTO_UDP && begins(&work->pkt) && d->flow.state >= FLOW_CLOSING) {
		d->stale = true;
		return true;
	}
	touch_flow(&work->pkt, DIR_FORWARD, &d->flow, now, settings, &work->entries);
	return false;
}

/* The step of what comes in. */
static __always_inline int shadow_request(ctx_t *ctx)
{
	const struct settings *settings = get_settings();
	struct work *work = get_work();
	struct note *note = get_note();
	struct decision *d;
	u64 now = 0;

	if (!note || !settings || !work)
		return VERDICT_PASS;
	d = &work->d;
	work->pkt.l3 = note->l3;
	if (parse_all(ctx, &work->pkt) != PARSED || work->pkt.kind != KIND_FLOW ||
	    work->pkt.piece == PIECE_LATER)
		return leave(ctx, note, REASON_NOT_VIP);
	decide(d, ACTION_PASS, REASON_NOT_VIP);
	if (decide_request(ctx, &work->pkt, note->side, settings, &now, d) ? !follow_flow(work, now, settings)
									   : !begins(&work->pkt))
		return leave(ctx, note, REASON_NOT_VIP);
	if (d->action == ACTION_CONNECT || d->stale) {
		note->stale = d->stale;
		next_step(ctx, STEP_CONNECT);
	} else if (d->action != ACTION_PASS) {
		record_decision(work, note);
	}
	return leave(ctx, note, d->reason);
}

/* The step of what begins a connection. */
static __always_inline int shadow_connect(ctx_t *ctx)
{
	const struct settings *settings = get_settings();
	struct work *work = get_work();
	struct note *note = get_note();
	struct packet *pkt;

	if (!note || !settings || !work)
		return VERDICT_PASS;
	pkt = &work->pkt;
	pkt->l3 = note->l3;
	if (parse(ctx, pkt) != PARSED)
		return leave(ctx, note, REASON_NOT_VIP);
	if (!note->asked && may_be_owned(pkt, &note->vip, note, settings)) {
		next_step(ctx, STEP_OWNER);
		return leave(ctx, note, REASON_STEP_MISSING);
	}
	if (!decide_first(ctx, work, &note->vip, settings, note))
		return leave(ctx, note, REASON_STEP_MISSING);
	record_decision(work, note);
	return leave(ctx, note, work->d.reason);
}

/* The step that chooses among backends of unequal weights: see weigh_for(). */
static __always_inline int shadow_weigh(ctx_t *ctx)
{
	struct work *work = get_work();
	struct note *note = get_note();

	if (!note || !work)
		return VERDICT_PASS;
	if (!weigh_for(ctx, &work->pkt, note))
		return leave(ctx, note, REASON_NOT_VIP);
	next_step(ctx, STEP_CONNECT);
	return leave(ctx, note, REASON_STEP_MISSING);
}

/* The step that asks whose a packet is: see owner.h. */
static __always_inline int shadow_owner(ctx_t *ctx)
{
	struct work *work = get_work();
	struct note *note = get_note();

	if (!note || !work)
		return VERDICT_PASS;
	work->pkt.l3 = note->l3;
	if (parse(ctx, &work->pkt) != PARSED)
		return leave(ctx, note, REASON_NOT_VIP);
	if (is_owned(ctx, &work->pkt, note))
		return leave(ctx, note, REASON_OWN_CONNECTION);
	note->asked = true;
	next_step(ctx, STEP_CONNECT);
	return leave(ctx, note, REASON_STEP_MISSING);
}

/* Write down that somebody has answered the packets of a tuple with a refusal, if they are for a VIP. */
static __always_inline void record_refusal(const struct tuple *request)
{
	struct shadowed *record;

	if (!lookup_vip(request) && !lookup_address(&request->dst))
		return;
	record = new_record(SHADOW_ANSWERED, request);
	if (record)
		bpf_ringbuf_submit(record, 0);
}

static __always_inline bool is_unreachable(ctx_t *ctx, const struct packet *pkt)
{
	u8 type;

	return ctx_load(ctx, pkt->l4, &type, sizeof(type)) &&
	       type == (FAMILY == 4 ? ICMP_DEST_UNREACH : 1 /* RFC 4443, section 3.1 */);
}

/* The step of what goes out. */
static __always_inline int shadow_reply(ctx_t *ctx)
{
	struct work *work = get_work();
	struct note *note = get_note();
	struct shadowed *record;
	struct icmp_error *e;
	struct tuple request;
	struct packet *pkt;
	u32 parsed;

	if (!note || !work)
		return VERDICT_PASS;
	pkt = &work->pkt;
	pkt->l3 = note->l3;
	parsed = parse_all(ctx, pkt);
	if (parsed == ICMP_ERROR) {
		e = get_icmp_error(work);
		if (is_unreachable(ctx, pkt) && parse_quoted(ctx, pkt, e) == PARSED) {
			request = reverse(&e->tuple);
			record_refusal(&request);
		}
	} else if (parsed == PARSED && pkt->kind == KIND_FLOW && pkt->piece != PIECE_LATER) {
		if (pkt->tuple.protocol != IPPROTO_UDP && pkt->tcp_flags & TCP_RST) {
			request = reverse(&pkt->tuple);
			record_refusal(&request);
		} else if (begins(pkt) && is_awaited_packet(ctx, true)) {
			record = new_record(SHADOW_SENT, &pkt->tuple);
			if (record) {
				record->cookie = ctx_cookie(ctx);
				bpf_ringbuf_submit(record, 0);
			}
		}
	}
	return leave(ctx, note, REASON_NOT_VIP);
}
