/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The life of a flow: which state a packet leaves it in, when its time is over, which way its packets go.
 *
 * A flow is HALF_OPEN until a packet shows that its client gets what the backend sends: anybody can send
 * first packets in the name of addresses that are not his, and backends answer them. Until then its time is
 * short, its entries are provisional (cache.h), and others may take its SNAT port (connect.h). */
#pragma once
#include "account.h"
#include "flow_table.h"

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

/* Does a flow towards another node say nothing any more of where a packet in mid-connection belongs? The
 * backend was only supposed to be the connection's and is gone, or the connection is over and this is another
 * one from the same port, that has begun elsewhere. */
static __always_inline bool is_past(const struct flow *flow, u64 now, const struct settings *settings)
{
	if (likely(flow->path != PATH_DIRECT))
		return false;
	if (flow->fins & MET_LATE && !backend_alive(flow->backend, flow->generation, flow->service))
		return true;
	return flow->state >= FLOW_CLOSING &&
	       expired(flow->to.protocol, flow->state, flow->last_seen, now, settings);
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
			return !is_past(flow, now, settings);
		if (flow->state == FLOW_CLOSED)
			return false;
	}
	return !expired(flow->to.protocol, flow->state, flow->last_seen, now, settings) &&
	       backend_alive(flow->backend, flow->generation, flow->service);
}

/* Does this packet of a half-open flow show that both sides get what the other one sends?
 *
 * TCP, SCTP: the client shows what was in the backend's SYN-ACK (RFC 9293, section 3.5) or INIT ACK (RFC
 * 9260, section 5.1), which a client that lies about its address never sees. Or the backend sends what it
 * would not send before it has seen that itself: data. To a flow that was met late, its flow having been lost
 * or its packets having gone through another node, it answers with a reset if it has no such connection.
 *
 * UDP: the client sends again once it was answered, or the answers go on for more than UDP_STREAM_NS: as for
 * netfilter's conntrack a question and its answer are not a conversation. */
static __always_inline bool completes_handshake(const struct packet *pkt, u8 direction,
						const struct flow *flow, u64 now)
{
	bool answered = flow->fins & ANSWERED;

	if (pkt->tuple.protocol == IPPROTO_UDP)
		return answered && (direction == DIR_FORWARD || (s64)(now - flow->last_seen) > UDP_STREAM_NS);
	if (pkt->tcp_flags & (TCP_SYN | TCP_RST))
		return false;
	if (direction == DIR_FORWARD)
		return answered && pkt->tcp_flags & TCP_ACK && pkt->shown == flow->secret;
	return flow->fins & MET_LATE || pkt->tuple.protocol == IPPROTO_SCTP || pkt->payload_len;
}

/* What a packet of a half-open flow changes of that. */
static __always_inline void advance_handshake(const struct packet *pkt, u8 direction, struct flow *flow,
					      u64 now)
{
	bool udp = pkt->tuple.protocol == IPPROTO_UDP;

	if (completes_handshake(pkt, direction, flow, now)) {
		flow->fins &= ~(HALF_OPEN | ANSWERED | MET_LATE | SYN_AGAIN);
		return;
	}
	if (direction == DIR_FORWARD || (flow->fins & ANSWERED && udp))
		return;
	if (!udp && (pkt->tcp_flags & (TCP_SYN | TCP_ACK)) != (TCP_SYN | TCP_ACK))
		return;
	flow->fins = (flow->fins | ANSWERED) & ~SYN_AGAIN;
	flow->secret = pkt->secret;
}

/* The state after this packet. A reset ends the flow, but whoever goes on sending after his own reset has not
 * sent it: it was a stranger's guess, or out of the window, and the connection lives. */
static __always_inline void advance_state(const struct packet *pkt, u8 direction, struct flow *flow, u64 now)
{
	u8 fin = direction == DIR_REPLY ? FIN_BACKEND : FIN_CLIENT;
	u8 rst = direction == DIR_REPLY ? RST_BACKEND : RST_CLIENT;

	if (flow->state == FLOW_NEW) /* also those of a version that had no such flag */
		flow->fins |= HALF_OPEN;
	if (flow->fins & HALF_OPEN)
		advance_handshake(pkt, direction, flow, now);
	if (pkt->tcp_flags & TCP_RST)
		flow->fins |= rst;
	else
		flow->fins &= ~rst;
	if (pkt->tcp_flags & TCP_FIN)
		flow->fins |= fin;
	if (flow->fins & (RST_CLIENT | RST_BACKEND) ||
	    (flow->fins & (FIN_CLIENT | FIN_BACKEND)) == (FIN_CLIENT | FIN_BACKEND))
		flow->state = FLOW_CLOSED;
	else if (flow->fins & (FIN_CLIENT | FIN_BACKEND))
		flow->state = FLOW_CLOSING;
	else
		flow->state = flow->fins & HALF_OPEN ? FLOW_NEW : FLOW_ESTABLISHED;
}

/* Count what a packet says about the backend, while that has not answered; last_seen is still the time of the
 * client's last SYN. A reset that answers a SYN acknowledges it (RFC 9293, section 3.10.7.1); one
 * without answers a segment of a connection that the backend does not know. */
static __always_inline void count_start(const struct packet *pkt, u8 direction, struct flow *flow, u64 now)
{
	u8 flags = pkt->tcp_flags & (TCP_SYN | TCP_RST | TCP_ACK);
	bool sctp = pkt->tuple.protocol == IPPROTO_SCTP;

	if (direction == DIR_FORWARD) {
		if (flags != TCP_SYN || flow->fins & SYN_AGAIN)
			return;
		flow->fins |= SYN_AGAIN;
		if (backend_alive(flow->backend, flow->generation, flow->service))
			count_failed(flow->backend, false);
	} else if (flags == (TCP_SYN | TCP_ACK)) {
		count_handshake(flow->service, now - flow->last_seen);
	} else if (flags == (TCP_RST | TCP_ACK) || (sctp && flags == TCP_RST)) {
		if (backend_alive(flow->backend, flow->generation, flow->service))
			count_failed(flow->backend, true);
	}
}

/* Is there nothing to note down for a packet? before: the flow as it was. What answers a half-open flow does
 * not keep it alive: a backend sends its SYN-ACK for a minute. */
static __always_inline bool unchanged(const struct flow *flow, const struct flow *before, u8 direction)
{
	if (flow->state != before->state || flow->fins != before->fins)
		return false;
	if (flow->fins & ANSWERED)
		return direction == DIR_REPLY && flow->secret == before->secret;
	return ticks() - flow->touched < FLOW_REFRESH_TICKS;
}

/* An association has a tag for each direction, which all packets show but INIT, and perhaps what ends it (RFC
 * 9260, section 8.5.1). Netfilter asks for both when it is given the flow: see lb/cutover. */
static __always_inline void note_tag(const struct packet *pkt, u8 direction, struct flow_key *room)
{
	u32 tag = pkt->shown;

	if (likely(pkt->tuple.protocol != IPPROTO_SCTP) || !(pkt->tcp_flags & TCP_ACK))
		return;
	flow_key(room, &pkt->tuple, direction);
	bpf_map_update_elem(tags_map, room, &tag, BPF_ANY);
}

/* Note a packet of a known flow. When the state changes, and otherwise once a second, both halves are
 * written: so both expire together, and a half that was evicted comes back. If another flow has its key
 * meanwhile, this flow is over: its next packet starts a new one. */
static __always_inline void touch_flow(const struct packet *pkt, u8 direction, struct flow *flow, u64 now,
				       const struct settings *settings, struct entries *entries)
{
	const struct flow before = {.state = flow->state, .fins = flow->fins, .secret = flow->secret};
	const struct flow_entry *other;
	struct flow_key key;
	u64 idle;

	advance_state(pkt, direction, flow, now);
	if (unlikely(before.state == FLOW_NEW && !(before.fins & ANSWERED)))
		count_start(pkt, direction, flow, now);
	if (likely(unchanged(flow, &before, direction)))
		return;
	note_tag(pkt, direction, &entries->made.key);
	flow->last_seen = now;
	other_key(&key, &flow->to, direction);
	other = get_flow(&key);
	if (other && !leads_back(other, &pkt->tuple)) {
		flow_key(&key, &pkt->tuple, direction);
		forget_flow(&key);
		return;
	}
	idle = idle_limit(pkt->tuple.protocol, flow->state, settings);
	entries->half.tag = 0;
#pragma clang loop unroll(disable)
	for (int half = 0; half < 2; half++) {
		/* Without this the compiler computes the address of each field before the loop, and keeps all
		 * of them. */
		asm volatile("" : "+r"(flow), "+r"(entries), "+r"(pkt) : : "memory");
		/* This half comes first: it is in the table, so it displaces no entry, and not the other
		 * half. */
		flow_value(&entries->made.value, flow);
		if (half == 0) {
			flow_key(&entries->made.key, &pkt->tuple, direction);
		} else {
			other_key(&entries->made.key, &flow->to, direction);
			turn_round(&entries->made.value, &pkt->tuple);
		}
		put_flow(entries, idle, true);
	}
}

/* The state of a PATH_DIRECT flow after a packet of its client; the answers do not come here. Such a flow has
 * one half. It stays HALF_OPEN, since nothing shows that the client gets an answer, and so makes room before
 * established flows do. But once the client goes on, it is kept for as long as any other. */
static __always_inline void advance_direct(const struct packet *pkt, struct flow *flow)
{
	if (pkt->tcp_flags & TCP_RST)
		flow->fins |= RST_CLIENT;
	else
		flow->fins &= ~RST_CLIENT;
	if (pkt->tcp_flags & TCP_FIN)
		flow->fins |= FIN_CLIENT;
	if (flow->fins & RST_CLIENT)
		flow->state = FLOW_CLOSED;
	else if (flow->fins & FIN_CLIENT)
		flow->state = FLOW_CLOSING;
	else if (!(pkt->tcp_flags & TCP_SYN))
		flow->state = FLOW_ESTABLISHED;
}

/* Write the one half of such a flow. */
static __always_inline void put_direct(const struct packet *pkt, struct flow *flow, u64 now,
				       const struct settings *settings, struct entries *entries)
{
	flow->fins |= HALF_OPEN;
	flow->last_seen = now;
	entries->half.tag = 0;
	flow_key(&entries->made.key, &pkt->tuple, DIR_FORWARD);
	flow_value(&entries->made.value, flow);
	put_flow(entries, idle_limit(pkt->tuple.protocol, flow->state, settings), true);
}

static __always_inline void touch_direct(const struct packet *pkt, struct flow *flow, u64 now,
					 const struct settings *settings, struct entries *entries)
{
	const struct flow before = {.state = flow->state, .fins = flow->fins};

	advance_direct(pkt, flow);
	if (!unchanged(flow, &before, DIR_FORWARD))
		put_direct(pkt, flow, now, settings, entries);
}

/* A backend's SYN-ACK when the flow of its tuple is closed accepts another connection: one that the client,
 * from the same port, opened to the backend itself. Through the VIP it would have made a new flow. */
static __always_inline bool accepts_another(const struct packet *pkt, const struct flow *reply)
{
	return reply->state == FLOW_CLOSED && (pkt->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK);
}

/* Does the backend see the client's own address? Then the hook that faces the client undoes the translation,
 * unless the reply goes past the stack and is translated before. */
static __always_inline bool keeps_client(u8 path)
{
	return path == PATH_STACK || path == PATH_REDIRECT;
}

/* Is the client a process of this node? */
static __always_inline bool of_host(u8 path)
{
	return path == PATH_HOST || path == PATH_LOOPBACK;
}

/* Is a packet of the flow sent along the FIB by us, in this direction? */
static __always_inline bool forwards(const struct flow *flow, u8 direction)
{
	return flow->path == PATH_FORWARD || (of_host(flow->path) && direction == DIR_FORWARD);
}

/* Is a reply of the flow for an address and port that we put in the client's place? One to a client that kept
 * its address is the business of the hook that faces the client. A pod of this node is the backend of such a
 * flow, without being its client, only if the flow began with netfilter: see lb/cutover. */
static __always_inline bool undone_at_ingress(const struct flow *flow, u8 side)
{
	if (of_host(flow->path))
		return true;
	return side != HOST && (flow->path == PATH_FORWARD || (side == INSIDE && flow->path == PATH_HAIRPIN));
}
