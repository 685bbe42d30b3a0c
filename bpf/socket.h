/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The sockets of this node: the kernel is asked which one a packet would be given to. */
#pragma once
#include "tuple.h"

/* Fill in how the kernel names a connection by the packets that it gets of it; return the size. */
static __always_inline u32 socket_tuple(struct bpf_sock_tuple *out, const struct tuple *t)
{
	if (FAMILY == 4) {
		out->ipv4.saddr = t->src.word[0];
		out->ipv4.daddr = t->dst.word[0];
		out->ipv4.sport = t->sport;
		out->ipv4.dport = t->dport;
		return sizeof(out->ipv4);
	}
	__builtin_memcpy(out->ipv6.saddr, &t->src, sizeof(t->src));
	__builtin_memcpy(out->ipv6.daddr, &t->dst, sizeof(t->dst));
	out->ipv6.sport = t->sport;
	out->ipv6.dport = t->dport;
	return sizeof(out->ipv6);
}

enum socket_found {
	SOCKET_NONE,
	SOCKET_LISTENS,	  /* for whoever comes: of TCP a listener, of UDP a socket without a peer */
	SOCKET_CONNECTED, /* to the packet's sender: TCP's also while it begins, and in TIME-WAIT */
};

/* The node's socket that the kernel would give the packet to. To the verifier TCP's socket is of another type
 * than UDP's, and no instruction may read from both: so they are told by different fields. */
static __always_inline u32 find_socket(ctx_t *ctx, const struct tuple *t)
{
	struct bpf_sock_tuple tuple = {};
	u32 size = socket_tuple(&tuple, t);
	struct bpf_sock *found;
	bool listens;

	if (t->protocol == IPPROTO_TCP) {
		found = bpf_skc_lookup_tcp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
		if (!found)
			return SOCKET_NONE;
		listens = found->state == BPF_TCP_LISTEN;
	} else if (t->protocol == IPPROTO_UDP) {
		found = bpf_sk_lookup_udp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
		if (!found)
			return SOCKET_NONE;
		listens = !*(const u16 *)&found->dst_port;
	} else {
		return SOCKET_NONE;
	}
	bpf_sk_release(found);
	return listens ? SOCKET_LISTENS : SOCKET_CONNECTED;
}
