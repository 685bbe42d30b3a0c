/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The first packet of a connection, or the first after its flow was lost: affinity or consistent hash, the
 * way, the flow. */
#pragma once
#include "affinity.h"
#include "announced.h"
#include "flow_state.h"
#include "former.h"
#include "forward.h"
#include "owner.h"
#include "snat.h"

/* Is the connection of this reply half perhaps still in TIME-WAIT at its backend? The backend would then
 * refuse another connection with the same tuple. */
static __always_inline bool in_time_wait(const struct flow_entry *holder, u8 protocol, u64 now)
{
	return protocol == IPPROTO_TCP && holder->fins == (FIN_CLIENT | FIN_BACKEND) &&
	       (s64)(now - holder->last_seen) < TIME_WAIT_NS;
}

/* For how long has the flow of this reply half been half open, in ns? 0: it is not half open. The port of a
 * half-open flow can be given to another client: if its handshake was still under way, it begins anew. */
static __always_inline u64 half_open_for(const struct flow_entry *holder, u64 now)
{
	return holder->fins & HALF_OPEN && (s64)(now - holder->last_seen) > 0 ? now - holder->last_seen : 0;
}

/* Does the flow of the reply half `holder` keep a new flow of the tuple `from` from its port, at this try? A
 * leftover of the new flow itself does not. A dead flow does not, unless its backend may be in TIME-WAIT and
 * this is one of the first tries. If the port is the node's and not the client's own (kept), a flow that has
 * been half open for long does not either, after a few tries. */
static __always_inline bool in_the_way(const struct flow_entry *holder, const struct tuple *from, u64 now,
				       const struct settings *settings, bool kept, u32 tries)
{
	if (!holder || leads_back(holder, from))
		return false;
	if (expired(from->protocol, holder->state, holder->last_seen, now, settings))
		return tries < PARTICULAR_TRIES && in_time_wait(holder, from->protocol, now);
	return kept || tries < FREE_TRIES || half_open_for(holder, now) < HANDSHAKE_NS;
}

/* Delete the other half of a dead flow, whose reply half is about to be replaced. */
static __always_inline void forget_forward_half(const struct flow_entry *reply, const struct tuple *to)
{
	const struct flow_entry *other;
	struct flow_key key;

	forward_key(&key, reply, to->protocol);
	other = get_flow(&key);
	if (other && SAME_ENDS(other, to))
		forget_flow(&key);
}

/* The port that a client's connection through a VIP comes from, where the client keeps its address. The
 * client may open another connection from the same port to the backend itself: its kernel sees two
 * destinations, but the backend would see one tuple twice. So the port is exchanged for one that the client's
 * kernel does not pick by itself: ports that Linux picks (32768 to 60999) become lower ones, lower ones
 * become higher. A privileged port stays privileged.
 *
 * Each port is exchanged with one other, so two connections of a client never meet, no state is needed, and
 * all nodes choose alike. */
static __always_inline u16 moved_port(u16 port)
{
	if (port < PORT_PRIVILEGED) {
		if (!port || port == PORT_PRIVILEGED - 1)
			return port;
		return port < PORT_PRIVILEGED / 2 ? port + (PORT_PRIVILEGED / 2 - 1)
						  : port - (PORT_PRIVILEGED / 2 - 1);
	}
	if (port >= PORT_HIGH)
		return port ^ (PORT_PRIVILEGED / 2);
	return port <= CLIENT_PORT_MAX ? port + (PORT_HIGH - CLIENT_PORT_MAX - 1)
				       : port - (PORT_HIGH - CLIENT_PORT_MAX - 1);
}

static __always_inline __be16 client_port(u32 hash)
{
	u32 ports = CLIENT_PORT_MAX - CLIENT_PORT_MIN + 1;

	return bpf_htons(CLIENT_PORT_MIN + (u32)(((u64)hash * ports) >> 32));
}

/* Give flow->to.sport a value that makes the translated tuple unique, and store both halves. A client that
 * keeps its address gets its moved port, unless another flow of its own has taken that: then one of
 * CLIENT_PORT_MIN on. SCTP keeps its port, whose change would cost it packets in fragments: see
 * breaks_sctp(). hash: where to begin. */
static __always_inline u32 create_flow(ctx_t *ctx, const struct packet *pkt, struct flow *flow, u32 hash,
				       u64 now, const struct settings *settings, const struct note *note,
				       struct entries *entries)
{
	struct entry *made = &entries->made;
	bool kept = keeps_client(flow->path);
	const struct flow_entry *holder;
	bool dead;
	u64 idle;
	u32 i;

	if (!note->run) {
		entries->yields = 0;
		entries->longest = 0;
	} else {
		hash = hash_words(hash, note->run * SNAT_TRIES, 0);
	}
	if (!kept)
		flow->to.sport = snat_port(settings, hash);
	else if (note->run)
		flow->to.sport = client_port(hash);
	else if (flow->to.protocol != IPPROTO_SCTP)
		flow->to.sport = bpf_htons(moved_port(bpf_ntohs(flow->to.sport)));
#pragma clang loop unroll(disable)
	for (i = 0; i < SNAT_TRIES; i++) {
		const u32 tries = note->run * SNAT_TRIES + i;

		other_key(&made->key, &flow->to, DIR_FORWARD);
		holder = get_flow(&made->key);
		if (!in_the_way(holder, &pkt->tuple, now, settings, kept, tries) &&
		    !is_netfilters_port(ctx, &flow->to) && (kept || !is_nodes_port(ctx, &flow->to, settings)))
			break;
		if (!kept && holder && half_open_for(holder, now) > entries->longest) {
			entries->longest = half_open_for(holder, now);
			entries->yields = flow->to.sport;
		}
		if (!kept && tries == PARTICULAR_TRIES && entries->yields) { /* they are all taken: a flood */
			flow->to.sport = entries->yields;
			other_key(&made->key, &flow->to, DIR_FORWARD);
			holder = get_flow(&made->key);
			break;
		}
		hash = hash_words(hash, tries, 0);
		flow->to.sport = kept ? client_port(hash) : snat_port(settings, hash);
	}
	if (i == SNAT_TRIES)
		return REASON_SNAT_EXHAUSTED;
	dead = holder && !leads_back(holder, &pkt->tuple);
	if (dead)
		forget_forward_half(holder, &flow->to);
	idle = idle_limit(pkt->tuple.protocol, flow->state, settings);
	entries->half.tag = 0;
	flow_value(&made->value, flow);
	turn_round(&made->value, &pkt->tuple);
	if (!put_flow(entries, idle, dead)) /* taken in this moment */
		return REASON_SNAT_EXHAUSTED;
	flow_key(&made->key, &pkt->tuple, DIR_FORWARD);
	flow_value(&made->value, flow);
	put_flow(entries, idle, true);
	return PARSED;
}

/* The way to a backend of this node, for clients elsewhere and in other pods. Either both directions go past
 * the stack or neither does. False: the decision is taken. */
static __always_inline bool decide_redirect(ctx_t *ctx, const struct packet *pkt,
					    const struct settings *settings, struct decision *d)
{
	if (likely(!settings->redirect))
		return true;
	if (!ctx_can_redirect()) {
		decide(d, ACTION_PASS, REASON_TO_TC);
		return false;
	}
	if (may_go_past(ctx, pkt) && decide_route(ctx, pkt, &pkt->tuple.src, WAY_PAST_STACK, d)) {
		if (d->route.peer)
			d->flow.path = PATH_REDIRECT;
		else
			d->action = ACTION_STACK;
	}
	return true;
}

/* The same for what a process of this node sends. Its source is an address of the node already; but where the
 * VIP is one as well, the source may be one that the backend cannot answer. And the process may have another
 * address than those that SNAT uses, whose answers alone are looked at. */
static __always_inline bool decide_host_path(ctx_t *ctx, const struct packet *pkt,
					     const struct settings *settings, struct decision *d)
{
	bool to_itself = ctx_at_loopback(ctx);
	bool keeps = !to_itself && is_snat_source(&pkt->tuple.src, settings);

	d->flow.path = to_itself ? PATH_LOOPBACK : PATH_HOST;
	if (!decide_route(ctx, pkt, &pkt->tuple.src, WAY_OF_PATH, d))
		return false;
	if (d->action == ACTION_FORWARD && (keeps || own_address(d->route.ifindex, &d->flow.to.src)))
		return true;
	if (!own_address(0, &d->flow.to.src))
		decide(d, ACTION_DROP, REASON_NO_ROUTE);
	return translates(d);
}

/* Does a packet from outside go encapsulated to the backend's node? Not if nobody knows that node's address,
 * or the VIP is an address of this node by which other nodes do not know it: then by SNAT. */
static __always_inline bool goes_direct(const struct packet *pkt, const struct vip *vip,
					const struct backend *backend, const struct settings *settings,
					struct flow *flow)
{
	const struct addr *host;
	u32 node = backend->node;
	struct addr own;

	if (likely(!(vip->flags & VIP_DIRECT)) || !settings->direct_port || !own_address(0, &own) ||
	    (vip->kind == VIP_NODE_PORT && !same_addr(&pkt->tuple.dst, &own)))
		return false;
	host = bpf_map_lookup_elem(hosts, &node);
	if (!host)
		return false;
	flow->to.src = *host;
	flow->path = PATH_DIRECT;
	return true;
}

/* The way to a backend that was just selected. False: there is no way, and the decision is taken. */
static __always_inline bool decide_path(ctx_t *ctx, const struct packet *pkt, u8 side, const struct vip *vip,
					const struct backend *backend, const struct settings *settings,
					struct decision *d)
{
	decide(d, ACTION_STACK, backend->local ? REASON_NEW_LOCAL : REASON_NEW_REMOTE);
	if (side == INSIDE) {
		if (!same_addr(&backend->address, &pkt->tuple.src))
			return !backend->local || decide_redirect(ctx, pkt, settings, d);
		d->flow.path = PATH_HAIRPIN;
		if (own_address(0, &d->flow.to.src))
			decide(d, ACTION_HAIRPIN, REASON_NEW_HAIRPIN);
		else
			decide(d, ACTION_DROP, REASON_NO_ROUTE);
		return d->action == ACTION_HAIRPIN;
	}
	if (side == OUTSIDE && backend->local)
		return decide_redirect(ctx, pkt, settings, d);
	if (side == HOST)
		return decide_host_path(ctx, pkt, settings, d);
	if (goes_direct(pkt, vip, backend, settings, &d->flow)) {
		d->reason = REASON_NEW_DIRECT;
		return decide_direct(ctx, pkt, d);
	}
	if (!decide_route(ctx, pkt, &pkt->tuple.src, WAY_OF_PATH, d))
		return false;
	if (d->action == ACTION_FORWARD && own_address(d->route.ifindex, &d->flow.to.src))
		d->flow.path = PATH_FORWARD;
	else /* an endpoint on this node that does not say so */
		d->action = ACTION_STACK;
	return true;
}

/* Make both halves of the flow d->flow, of the packet that begins it or found it lost. While no port is found
 * and there are runs left, the program is entered again, as `step`. False: there was no room, and the
 * decision is to drop the packet. */
static __always_inline bool make_flow(ctx_t *ctx, const struct packet *pkt, u32 hash, u64 now,
				      const struct settings *settings, u32 step, struct note *note,
				      struct entries *entries, struct decision *d)
{
	u32 created = create_flow(ctx, pkt, &d->flow, hash, now, settings, note, entries);

	if (created == REASON_SNAT_EXHAUSTED && ++note->run < SNAT_RUNS)
		next_step(ctx, step);
	if (created != PARSED)
		decide(d, ACTION_DROP, created);
	return created == PARSED;
}

static __always_inline void decide_connect(ctx_t *ctx, const struct packet *pkt, const struct vip *vip,
					   struct note *note, u64 now, const struct settings *settings,
					   struct entries *entries, struct decision *d)
{
	u32 hash = hash_tuple(&pkt->tuple);
	u8 side = note->side;
	struct backend_set set = offered_set(vip, side);
	bool chosen = false, asks;
	struct backend backend;

	if (unlikely(note->former) && !set.size)
		set = vip->inside; /* policy Local, of a connection that may be another node's */
	d->flow.service = vip->service;
	if (decide_refusal(pkt, vip, &set, d))
		return;
	if (note->attempt)
		hash = hash_words(hash, note->attempt, 0);
	if (note->attempt
		? !select_backend(&set, vip->service, hash, note->row, &backend)
		: !find_backend(vip, side, &set, &pkt->tuple.src, hash, note->row, now, &chosen, &backend)) {
		decide(d, ACTION_DROP, REASON_NO_BACKEND);
		return;
	}
	if (unlikely(note->former) && backend.local && (chosen || !vip->affinity_seconds))
		read_backend(note->former, vip->service, &backend);
	asks = side == OUTSIDE && vip->flags & VIP_DIRECT && !backend.local;
	if (chosen && !asks)
		remember_affinity(vip, &pkt->tuple.src, now, backend.id, backend.generation, true);
	d->flow.to = pkt->tuple;
	d->flow.to.dst = backend.address;
	d->flow.to.dport = backend.port;
	d->flow.backend = backend.id;
	if (!opens(pkt) ||
	    (asks && (chosen || (pkt->tuple.protocol == IPPROTO_UDP && vip->flags & VIP_UDP_STAYS))))
		d->flow.fins = MET_LATE;
	if (!decide_path(ctx, pkt, side, vip, &backend, settings, d))
		return;
	d->flow.generation = backend.generation;
	d->flow.last_seen = now;
	advance_state(pkt, DIR_FORWARD, &d->flow, now);
	if (d->flow.path == PATH_DIRECT)
		put_direct(pkt, &d->flow, now, settings, entries);
	else if (!make_flow(ctx, pkt, hash, now, settings, STEP_CONNECT, note, entries, d))
		return;
	if (note->attempt)
		d->reason = REASON_NEW_ELSEWHERE;
	if (opens(pkt))
		count_opened(backend.id); /* else it was opened before, and its flow lost */
}

/* Decide about a packet for a VIP that no flow can be used for. A set of unequal weights takes the step that
 * weighs backends, which comes back to this step. False: that step is missing, and nothing is decided. */
static __always_inline bool decide_first(ctx_t *ctx, struct work *work, const struct vip *vip,
					 const struct settings *settings, struct note *note)
{
	const struct packet *pkt = &work->pkt;
	struct decision *d = &work->d;
	struct backend_set set;

	if (note->stale && lookup_flow(&pkt->tuple, DIR_FORWARD, &d->flow)) {
		delete_pair(&pkt->tuple, &d->flow.to, DIR_FORWARD);
		__builtin_memset(&d->flow, 0, sizeof(d->flow));
	}
	note->stale = false;
	set = offered_set(vip, note->side);
	if (unlikely(is_weighted(&set)) && !note->weighed) {
		next_step(ctx, STEP_WEIGH);
		return false;
	}
	decide_connect(ctx, pkt, vip, note, bpf_ktime_get_ns(), settings, &work->entries, d);
	if (d->reason == REASON_SNAT_EXHAUSTED && note->attempt < SNAT_ATTEMPTS) {
		note->attempt++;
		note->run = 0;
		note->weighed = false;
		next_step(ctx, STEP_CONNECT);
	}
	return true;
}

static __always_inline struct outcome connect_packet(ctx_t *ctx, struct work *work,
						     const struct settings *settings, struct note *note)
{
	const struct vip *vip = &note->vip;
	struct packet *pkt = &work->pkt;
	struct ethhdr eth;

	pkt->l3 = note->l3;
	if (parse(ctx, pkt) != PARSED)
		return drop(REASON_REWRITE_FAILED);
	if (unlikely(get_cutover() == CUTOVER_LEAVE))
		return pass(REASON_OWN_CONNECTION);
	if (!note->asked && may_be_owned(pkt, vip, note, settings)) {
		next_step(ctx, STEP_OWNER);
		return strand(ctx, true);
	}
	if (note->side == OUTSIDE && unlikely(is_former_owner_s(ctx, pkt, &eth)))
		return send_to_former_owner(ctx, pkt, &eth);
	if (note->side == OUTSIDE && may_be_known_elsewhere(pkt, vip))
		look_for_former(ctx, note, 0, STEP_CONNECT);
	if (!decide_first(ctx, work, vip, settings, note))
		return strand(ctx, true);
	return conclude(ctx, pkt, &work->d, note);
}

/* The step. */
static __always_inline int connect(ctx_t *ctx)
{
	const struct settings *settings = get_settings();
	struct work *work = get_work();
	struct note *note = get_note();
	u32 bytes = ctx_len(ctx);

	if (!note || !settings || !work)
		return VERDICT_DROP;
	return finish_and_report(ctx, note, connect_packet(ctx, work, settings, note), bytes);
}

/* Choose among backends of unequal weights: note->row, for decide_connect(). False: the packet cannot be
 * read. */
static __always_inline bool weigh_for(ctx_t *ctx, struct packet *pkt, struct note *note)
{
	const struct vip *vip = &note->vip;
	struct backend_set set;
	u32 hash;

	pkt->l3 = note->l3;
	if (parse(ctx, pkt) != PARSED)
		return false;
	note->weighed = true;
	set = offered_set(vip, note->side);
	hash = hash_tuple(&pkt->tuple);
	hash = note->attempt ? hash_words(hash, note->attempt, 0)
			     : hash_choice(vip, &pkt->tuple.src, hash, bpf_ktime_get_ns());
	note->row = weigh(&set, hash);
	return true;
}

/* The step that does so: beside all that follows, the verifier has no room for it. It goes on in the step
 * above. */
static __always_inline int weigh_backends(ctx_t *ctx)
{
	struct work *work = get_work();
	struct note *note = get_note();
	u32 bytes = ctx_len(ctx);

	if (!note || !work)
		return VERDICT_DROP;
	if (!weigh_for(ctx, &work->pkt, note))
		return finish(note->hook, drop(REASON_REWRITE_FAILED), bytes);
	next_step(ctx, STEP_CONNECT);
	return finish(note->hook, strand(ctx, true), bytes);
}
