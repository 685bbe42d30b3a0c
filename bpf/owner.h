/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whose is a packet that is for a VIP, but is of no flow and begins no connection? Its address and port may
 * be a Service's by chance: the node, or a pod that the node masquerades, may have opened a connection from
 * that very port. The order of belief is a flow of ours, a socket of the node, netfilter's conntrack, and
 * only then the Service. A step asks, since such packets are rare. */
#pragma once
#include "flow_state.h"
#include "forward.h"
#include "peer.h"

/* Is the address one of the node's own? Then a Service has it port by port, never as a whole. */
static __always_inline bool is_nodes_own(const struct vip *vip, const struct addr *address)
{
	return vip->kind == VIP_NODE_PORT || (vip->kind != VIP_CLUSTER_IP && !lookup_address(address));
}

/* May the node itself have put its address and port into the packet, in a client's place? */
static __always_inline bool from_snat_port(const struct tuple *t, const struct settings *settings)
{
	struct tuple answers = reverse(t);

	return to_snat_port(&answers, settings);
}

/* Might somebody else own the packet, or has it been here before? It is asked before a flow is made for it.
 *
 * A packet of a process of this node may be of a connection that was led to a backend at its socket, where
 * the backend's address and port are a VIP as well; or it may answer a client whose port is a VIP's. */
static __always_inline bool may_be_owned(const struct packet *pkt, const struct vip *vip,
					 const struct note *note, const struct settings *settings)
{
	u8 begins = pkt->tcp_flags & (TCP_SYN | TCP_ACK);

	if (note->side == HOST || from_snat_port(&pkt->tuple, settings) || get_cutover() == CUTOVER_TAKE)
		return true;
	return begins != TCP_SYN && is_nodes_own(vip, &pkt->tuple.dst);
}

/* struct bpf_ct_opts of the kernel, in the size that all kernels take. */
struct conntrack_options {
	s32 netns; /* -1: that of the hook */
	s32 error;
	u8 protocol;
	u8 direction; /* out: in which direction of a connection the packet goes */
	u8 reserved[2];
};
_Static_assert(sizeof(struct conntrack_options) == 12, "as Linux 5.18 has it");

#define CONNTRACK_REPLY 1

/* Functions of the kernel, no helpers: the loader puts in their numbers. */
static void *(*ct_lookup)(ctx_t *ctx, struct bpf_sock_tuple *tuple, u32 tuple_len,
			  struct conntrack_options *options, u32 options_len) = (void *)CT_LOOKUP;
static void (*ct_release)(void *connection) = (void *)KFUNC_bpf_ct_release;

/* Does netfilter know the packet for an answer? Then the other end was asked: by the node, or by a pod that
 * it masquerades. either: does it know the packet at all? A packet to a VIP that it has seen before is one of
 * a connection that began when something else served the Service: see CUTOVER_TAKE. */
static __always_inline bool is_answer(ctx_t *ctx, const struct tuple *t, bool either)
{
	struct conntrack_options options = {.netns = -1, .protocol = t->protocol};
	struct bpf_sock_tuple tuple = {};
	u32 size = socket_tuple(&tuple, t);
	void *found;

	if (!HAS(CONNTRACK) || (t->protocol != IPPROTO_TCP && t->protocol != IPPROTO_UDP))
		return false;
	found = ct_lookup(ctx, &tuple, size, &options, sizeof(options));
	if (!found)
		return false;
	ct_release(found);
	return either || options.direction == CONNTRACK_REPLY;
}

/* Has a socket hook led the sender to where the packet goes? */
static __always_inline bool led_at_socket(ctx_t *ctx, const struct tuple *t)
{
	struct socket_key key;

	socket_key(&key, ctx_cookie(ctx), t, DIR_REPLY);
	return bpf_map_lookup_elem(sockets, &key);
}

/* Has a hook of ours led the packet to where it goes? What leaves by the hook of a VIP's backend passes that
 * hook again. Where the backend is a VIP as well, it is for the node that gets the packet to lead it on: two
 * Services that are each other's endpoint would go on here until the kernel sees too deep a recursion. */
static __always_inline bool led_here(const struct packet *pkt)
{
	struct tuple back = reverse(&pkt->tuple);
	struct flow_key key;

	flow_key(&key, &back, DIR_REPLY);
	return get_flow(&key);
}

/* A packet that a process of this node sends. TCP's socket is connected to the VIP in either case; but who
 * answers from a port where the node listens has not opened the connection. */
static __always_inline bool host_owns(ctx_t *ctx, const struct packet *pkt)
{
	struct tuple to_sender = {
	    .dst = pkt->tuple.src,
	    .dport = pkt->tuple.sport,
	    .protocol = pkt->tuple.protocol,
	};
	u8 begins = pkt->tcp_flags & (TCP_SYN | TCP_ACK);

	if (led_at_socket(ctx, &pkt->tuple) || led_here(pkt))
		return true;
	if (pkt->tuple.protocol != IPPROTO_TCP || begins == TCP_SYN)
		return false;
	return begins == (TCP_SYN | TCP_ACK) || find_socket(ctx, &to_sender) == SOCKET_LISTENS;
}

/* A packet that enters the node, for an address of its own. */
static __always_inline bool node_owns(ctx_t *ctx, const struct packet *pkt)
{
	return (pkt->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK) ||
	       find_socket(ctx, &pkt->tuple) == SOCKET_CONNECTED;
}

/* Does the socket that has sent the packet ask its own address and port? They are a VIP's by chance. */
static __always_inline bool asks_itself(const struct tuple *t)
{
	return same_addr(&t->src, &t->dst) && t->sport == t->dport;
}

/* Is the packet of a connection that no Service has a part in? At lo both ends are the node's. */
static __always_inline bool is_owned(ctx_t *ctx, const struct packet *pkt, const struct note *note)
{
	if (note->side == HOST && host_owns(ctx, pkt))
		return true;
	if (asks_itself(&pkt->tuple))
		return false;
	if ((note->side != HOST || ctx_at_loopback(ctx)) && node_owns(ctx, pkt))
		return true;
	if (get_cutover() != CUTOVER_TAKE)
		return is_answer(ctx, &pkt->tuple, false);
	/* Conntrack tells programs nothing about SCTP: what begins no association has begun there. */
	if (pkt->tuple.protocol == IPPROTO_SCTP)
		return pkt->tcp_flags != TCP_SYN;
	return is_answer(ctx, &pkt->tuple, true);
}

/* Has the node led the packet on MAX_TURNS times already? A Service's endpoint may be another one's external
 * address, which a router leads back to this node; and where that one's endpoint is the first one's address,
 * the packet would come back until its TTL is over, and make a flow each time. Whose packet it was before is
 * in the flow that has changed it. */
static __always_inline bool goes_round(const struct packet *pkt)
{
	struct tuple answers = reverse(&pkt->tuple);
	const struct flow_entry *e;
	struct flow_key key;

#pragma clang loop unroll(disable)
	for (int turns = 0; turns < MAX_TURNS; turns++) {
		flow_key(&key, &answers, DIR_REPLY);
		e = get_flow(&key);
		if (!e)
			return false;
		answers.src = e->src;
		answers.dst = e->dst;
		answers.sport = e->sport;
		answers.dport = e->dport;
	}
	return true;
}

/* The step. What is nobody's goes on in the step that it came from. */
static __always_inline int owner(ctx_t *ctx)
{
	u32 bytes = ctx_len(ctx);
	struct work *work = get_work();
	struct note *note = get_note();
	struct packet *pkt;

	if (!note || !work)
		return VERDICT_DROP;
	pkt = &work->pkt;
	pkt->l3 = note->l3;
	if (parse(ctx, pkt) != PARSED)
		return finish(note->hook, drop(REASON_REWRITE_FAILED), bytes);
	if (is_owned(ctx, pkt, note))
		return finish_and_report(ctx, note, pass(REASON_OWN_CONNECTION), bytes);
	if (note->side == OUTSIDE && goes_round(pkt))
		return finish_and_report(ctx, note, drop(REASON_SERVICE_LOOP), bytes);
	note->asked = true;
	next_step(ctx, STEP_CONNECT);
	return finish(note->hook, strand(ctx, true), bytes);
}
