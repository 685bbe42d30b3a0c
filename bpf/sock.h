/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Services at the socket. The address that a process gives is replaced before there is a packet, and put back
 * where it asks who is at the other end: no NAT, no flow, no route to the VIP.
 *
 * Three kinds of calls are left to tc, which sees the socket's packets, and are passed on as they came.
 *
 * - Calls whose packets are to be dropped. Here a call can only fail, and a failure is an answer: the process
 *   would know at once what a client elsewhere does not get to know.
 * - UDP. A connected socket has named its peer once: if that were the backend, and the backend went, the
 * socket would have no peer. An unconnected one may ask several VIPs of one backend, or a VIP and the backend
 * itself, and all answers would come from one address and port. tc leads every datagram, from a port of its
 * own for each VIP.
 * - TCP sockets that were bound to a port before they connect. Another socket may be bound to the same port,
 * for another VIP of the same backend or for the backend itself: both would be one connection.
 *
 * tc sees the packets of pods at their interfaces, and those of the node's processes where they leave the
 * node, or at lo where they are for an address of the node itself. */
#pragma once
#include "ctx_sock.h"
#include "account.h"
#include "affinity.h"
#include "event.h"
#include "peer.h"

/* The size of an event of a call: it ends where the packets begin. */
#define EVENT_HEAD __builtin_offsetof(struct event, before)

/* Note that to this socket the backend is the VIP: show_vip() tells the process so. False: the map is full.
 */
static __always_inline bool remember_peer(u64 cookie, const struct tuple *vip, const struct backend *backend)
{
	struct tuple from = {.dst = backend->address, .dport = backend->port};
	struct socket_entry entry = {
	    .address = vip->dst,
	    .port = vip->dport,
	    .service = backend->service,
	    .backend = backend->id,
	    .generation = backend->generation,
	};
	struct socket_key key;

	socket_key(&key, cookie, &from, DIR_REPLY);
	return bpf_map_update_elem(sockets, &key, &entry, BPF_ANY) == 0;
}

/* Is it one of the sockets that tc serves better (UDP, bound TCP: see the top of this file)? */
static __always_inline bool better_at_tc(ctx_t *ctx, const struct tuple *t)
{
	return t->protocol == IPPROTO_UDP || ctx_is_bound(ctx);
}

/* Does tc decide, whatever the Service has to offer? It does for two reasons.
 *
 * - Affinity and source ranges are about the client's address. A pod's is not known before there is a packet;
 *   that of a process of the node is the node's.
 * - A connected UDP socket hears of a refusal by ICMP, which tc sends. An unconnected one hears of it only if
 * the call fails, here. */
static __always_inline bool left_to_tc(const struct tuple *t, const struct vip *vip, bool host, bool connects)
{
	if (!host && (vip->affinity_seconds || vip->flags & VIP_SOURCE_RANGES))
		return true;
	return connects && t->protocol == IPPROTO_UDP;
}

/* The hash that selects a backend. It is of the socket and the VIP, so a socket that connects again gets the
 * same backend. The port that its packets will come from, which tells connections apart elsewhere, is not
 * known yet. */
static __always_inline u32 hash_socket(u64 cookie, const struct tuple *t)
{
	return hash_words((u32)cookie, (u32)(cookie >> 32) + hash_addr(&t->dst),
			  ((u32)t->protocol << 16) | bpf_ntohs(t->dport));
}

/* Let the call fail, and count it as dropped. to->service: for the event. */
static __always_inline struct outcome refuse(struct backend *to, u32 service, u32 reason)
{
	to->service = service;
	count_dropped(service, reason);
	ctx_refuse();
	return drop(reason);
}

/* A call to an address and port that are no VIP. It is left alone, unless the address is a clusterIP, which
 * leads nowhere else: what decide_not_vip() is for packets. */
static __always_inline struct outcome not_vip(const struct tuple *t, const struct settings *settings,
					      bool connects, struct backend *to)
{
	const struct vip *vip;

	if (likely(!in_cluster_net(&t->dst, settings)))
		return pass(REASON_NOT_VIP);
	vip = lookup_address(&t->dst);
	if (!vip || vip->kind != VIP_CLUSTER_IP)
		return pass(REASON_NOT_VIP);
	if (connects && t->protocol == IPPROTO_UDP)
		return pass(REASON_TO_TC);
	return refuse(to, vip->service, REASON_REJECT_UNKNOWN_PORT);
}

/* A call to a VIP that no Service has any more: what decide_gone() is for packets. */
static __always_inline struct outcome gone(const struct tuple *t, const struct vip *vip, struct backend *to)
{
	if (is_left_alone(vip))
		return pass(REASON_NOT_VIP);
	if (t->protocol == IPPROTO_UDP) /* tc knows whether this goes on */
		return pass(REASON_TO_TC);
	return refuse(to, vip->service, REASON_REJECT_UNKNOWN_PORT);
}

/* No backend could be selected. to may hold one that was looked at: the event must not name it. */
static __always_inline struct outcome no_backend(struct backend *to, u32 service)
{
	__builtin_memset(to, 0, sizeof(*to));
	return refuse(to, service, REASON_NO_BACKEND);
}

/* Select a backend, and put its address in the VIP's place. */
static __always_inline struct outcome lead_to(ctx_t *ctx, u8 place, const struct tuple *t,
					      const struct vip *vip, const struct backend_set *set,
					      struct backend *to)
{
	u64 cookie = ctx_cookie(ctx), now = bpf_ktime_get_ns();
	u32 hash = hash_socket(cookie, t), weighed = 0;

	if (unlikely(is_weighted(set)))
		weighed = weigh(set, hash_choice(vip, &t->src, hash, now));
	if (!pick_backend(vip, HOST, set, &t->src, hash, weighed, now, false, to))
		return no_backend(to, vip->service);
	if (!remember_peer(cookie, t, to))
		return refuse(to, vip->service, REASON_FLOWS_FULL);
	ctx_set_address(ctx, place, &to->address, to->port);
	count_opened(to->id);
	return pass(to->local ? REASON_NEW_LOCAL : REASON_NEW_REMOTE);
}

/* Decide about a call, and carry the decision out. to: set to the backend and its Service, as far as there
 * are any, for the event. */
static __always_inline struct outcome lead(ctx_t *ctx, u8 place, struct tuple *t, bool connects,
					   struct backend *to)
{
	const struct settings *settings = get_settings();
	const struct iface *node;
	struct backend_set set;
	const struct vip *vip;
	u32 zero = 0;
	bool host;

	if (unlikely(!settings) || (t->protocol != IPPROTO_TCP && t->protocol != IPPROTO_UDP))
		return pass(REASON_OTHER_PROTOCOL);
	host = ctx_netns(ctx) == settings->netns;
	if (!host && !settings->all_sockets)
		return pass(REASON_OTHER_NETNS);
	vip = lookup_vip(t);
	if (likely(!vip))
		return not_vip(t, settings, connects, to);
	if (unlikely(get_cutover() == CUTOVER_LEAVE))
		return pass(REASON_OWN_CONNECTION);
	if (unlikely(is_gone(vip)))
		return gone(t, vip, to);
	if (left_to_tc(t, vip, host, connects))
		return pass(REASON_TO_TC);
	node = bpf_map_lookup_elem(ifaces, &zero);
	if (host && node)
		t->src = node->source;
	set = offered_set(vip, HOST);
	if (!source_allowed(&t->src, vip) || (!set.size && vip->flags & VIP_USABLE))
		return pass(REASON_TO_TC);
	if (!set.size)
		return refuse(to, vip->service, REASON_REJECT_NO_ENDPOINT);
	if (better_at_tc(ctx, t))
		return pass(REASON_TO_TC);
	return lead_to(ctx, place, t, vip, &set, to);
}

/* Tell whoever watches of a call. There is no packet yet, and no port that it would come from. */
static __always_inline void report_call(ctx_t *ctx, u32 hook, const struct tuple *t, const struct backend *to,
					struct outcome o)
{
	u32 wanted = events_for(o.reason, o.verdict == VERDICT_DROP, false), zero = 0;
	struct watch *watch;
	struct event *event;
	u64 now;

	if (!wanted)
		return;
	watch = bpf_map_lookup_elem(watch_map, &zero);
	if (likely(!watch || !watch->what))
		return;
	now = bpf_ktime_get_ns();
	if (!lease_runs(watch, now) || !(wanted & watch->what) || !watches_service(watch, to->service) ||
	    !in_sample(watch, hash_socket(ctx_cookie(ctx), t)))
		return;
	event = bpf_ringbuf_reserve(events, EVENT_HEAD, 0);
	if (!event) {
		__sync_fetch_and_add(&watch->lost, 1);
		return;
	}
	__builtin_memset(event, 0, EVENT_HEAD);
	event->time_ns = now;
	event->hook = hook;
	event->reason = o.reason;
	event->verdict = o.verdict;
	event->service = to->service;
	event->backend = to->id;
	put_address(event->src, &t->src);
	put_address(event->dst, &t->dst);
	put_address(event->to_dst, &to->address);
	event->dport = t->dport;
	event->to_dport = to->port;
	event->family = FAMILY;
	event->protocol = t->protocol;
	event->direction = DIR_FORWARD;
	bpf_ringbuf_submit(event, 0);
}

/* A call towards an address: connect, or sendmsg, which gives one with each datagram. */
static __always_inline int lead_to_backend(ctx_t *ctx, u32 hook, u8 place)
{
	struct tuple t = {.protocol = ctx->protocol};
	struct backend to = {};
	bool connects = hook == HOOK_SOCK_CONNECT || ctx_connected(ctx);
	struct outcome o;
	u64 verdict;

	if (!ctx_address(ctx, place, &t.dst, &t.dport))
		return VERDICT_PASS;
	if (FAMILY == 6)
		IN_MEMORY(t);
	o = lead(ctx, place, &t, connects, &to);
	report_call(ctx, hook, &t, &to, o);
	verdict = finish(hook, o, 0);
	/* The kernel counts all 64 bits of the result, clang leaves the upper ones as they are. */
	asm volatile("%0 &= 1" : "+r"(verdict));
	return verdict;
}

/* A call that tells an address: a backend in a VIP's place is the VIP to the process. */
static __always_inline int show_vip(ctx_t *ctx, u32 hook, u8 place)
{
	const struct socket_entry *entry;
	struct socket_key key;
	struct tuple t = {};

	if (!ctx_address(ctx, place, &t.dst, &t.dport))
		return VERDICT_PASS;
	socket_key(&key, ctx_cookie(ctx), &t, DIR_REPLY);
	entry = bpf_map_lookup_elem(sockets, &key);
	if (entry)
		ctx_set_address(ctx, place, &entry->address, entry->port);
	finish(hook, pass(entry ? REASON_REPLY : REASON_NOT_VIP), 0);
	return VERDICT_PASS;
}
