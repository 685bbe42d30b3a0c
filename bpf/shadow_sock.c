/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Shadow mode at the socket: what would become of a call of a process of this node, whose packets netfilter
 * has translated before a hook sees them. No address is replaced and no call fails. See shadow.h. */
#include "sock.h"

/* What is offered to the call: enum shadow_outcome. */
static __always_inline u32 decide_call(u64 cookie, const struct tuple *t, const struct vip *vip, u32 *reason,
				       struct backend *to)
{
	const struct backend_set set = offered_set(vip, HOST);
	u32 hash = hash_socket(cookie, t), weighed = 0;
	u64 now = bpf_ktime_get_ns();

	if (is_gone(vip)) {
		*reason = is_left_alone(vip) ? REASON_NOT_VIP : REASON_REJECT_UNKNOWN_PORT;
		return is_left_alone(vip) ? SHADOW_UNTOUCHED : SHADOW_REFUSED;
	}
	*reason = REASON_SOURCE_NOT_ALLOWED;
	if (!source_allowed(&t->src, vip))
		return SHADOW_DROPPED;
	*reason = vip->flags & VIP_USABLE ? REASON_NO_LOCAL_ENDPOINT : REASON_REJECT_NO_ENDPOINT;
	if (!set.size)
		return vip->flags & VIP_USABLE ? SHADOW_DROPPED : SHADOW_REFUSED;
	*reason = REASON_NO_BACKEND;
	if (unlikely(is_weighted(&set)))
		weighed = weigh(&set, hash_choice(vip, &t->src, hash, now));
	if (!pick_backend(vip, HOST, &set, &t->src, hash, weighed, now, true, to))
		return SHADOW_DROPPED;
	*reason = to->local ? REASON_NEW_LOCAL : REASON_NEW_REMOTE;
	return SHADOW_SERVED;
}

/* Is the call to be compared? For a socket that stays unconnected, only the first call for each VIP is. From
 * then on the next packet of the socket is awaited: see is_awaited_packet(). */
static __always_inline bool takes_note(u64 cookie, const struct tuple *t)
{
	const struct tuple nowhere = {};
	struct socket_entry entry = {};
	struct socket_key key;

	socket_key(&key, cookie, t, DIR_FORWARD);
	if (bpf_map_update_elem(sockets, &key, &entry, BPF_NOEXIST))
		return false;
	socket_key(&key, cookie, &nowhere, DIR_REPLY);
	return !bpf_map_update_elem(sockets, &key, &entry, BPF_ANY);
}

static __always_inline void record_call(u64 cookie, const struct tuple *t, const struct vip *vip,
					bool connects, bool unknown_port)
{
	u32 zero = 0, reason = REASON_REJECT_UNKNOWN_PORT, outcome = SHADOW_REFUSED;
	struct shadowed *record;
	struct backend to = {};
	struct watch *watch;

	if (!unknown_port)
		outcome = decide_call(cookie, t, vip, &reason, &to);
	record = bpf_ringbuf_reserve(events, sizeof(*record), 0);
	if (!record) {
		watch = bpf_map_lookup_elem(watch_map, &zero);
		if (watch)
			__sync_fetch_and_add(&watch->lost, 1);
		return;
	}
	__builtin_memset(record, 0, sizeof(*record));
	record->time_ns = bpf_ktime_get_ns();
	record->cookie = cookie;
	put_address(record->src, &t->src);
	put_address(record->dst, &t->dst);
	record->dport = t->dport;
	record->family = FAMILY;
	record->protocol = t->protocol;
	record->kind = SHADOW_CALLED;
	record->outcome = outcome;
	record->reason = reason;
	record->service = vip->service;
	record->side = HOST;
	record->connects = connects;
	if (outcome == SHADOW_SERVED) {
		record->backend = to.id;
		put_address(record->to_dst, &to.address);
		record->to_dport = to.port;
	}
	bpf_ringbuf_submit(record, 0);
}

static __always_inline int shadow_call(ctx_t *ctx, bool connects, u8 place)
{
	const struct settings *settings = get_settings();
	struct tuple t = {.protocol = ctx->protocol};
	const struct iface *node;
	const struct vip *vip;
	u64 cookie;
	u32 zero = 0;
	bool unknown_port = false;

	if (!settings || (t.protocol != IPPROTO_TCP && t.protocol != IPPROTO_UDP) ||
	    ctx_netns(ctx) != settings->netns || !ctx_address(ctx, place, &t.dst, &t.dport))
		return VERDICT_PASS;
	if (FAMILY == 6)
		IN_MEMORY(t);
	vip = lookup_vip(&t);
	if (!vip) {
		if (!in_cluster_net(&t.dst, settings))
			return VERDICT_PASS;
		vip = lookup_address(&t.dst);
		if (!vip || vip->kind != VIP_CLUSTER_IP)
			return VERDICT_PASS;
		unknown_port = true;
	}
	node = bpf_map_lookup_elem(ifaces, &zero);
	if (node)
		t.src = node->source;
	cookie = ctx_cookie(ctx);
	if (takes_note(cookie, &t))
		record_call(cookie, &t, vip, connects, unknown_port);
	return VERDICT_PASS;
}

int lb_sock_connect(struct bpf_sock_addr *ctx)
{
	return shadow_call(ctx, true, PLACE_OWN);
}

int lb_sock_sendmsg(struct bpf_sock_addr *ctx)
{
	return shadow_call(ctx, ctx_connected(ctx), PLACE_OWN);
}

int lb_sock_connect_mapped(struct bpf_sock_addr *ctx)
{
	return shadow_call(ctx, true, PLACE_MAPPED);
}
