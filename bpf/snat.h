/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which ports may stand for a client that does not keep its address (SNAT)? One of the range of the settings
 * that no other flow to the same backend has, no socket of the node, and no Service. */
#pragma once
#include "owner.h"

/* Is the source port of `to` in use at the node: by a socket that would get the backend's answers, one that
 * listens or one that is connected to that very backend, or by a Service? About SCTP the kernel cannot be
 * asked. */
static __always_inline bool is_nodes_port(ctx_t *ctx, const struct tuple *to, const struct settings *settings)
{
	struct tuple answers = reverse(to);

	return is_direct_port(&answers, OUTSIDE, settings) || lookup_vip(&answers) ||
	       find_socket(ctx, &answers) != SOCKET_NONE;
}

/* While connections of netfilter's go on beside ours: has one of them the source port of `to`, towards that
 * very backend? To the backend both would be one connection. */
static __always_inline bool is_netfilters_port(ctx_t *ctx, const struct tuple *to)
{
	struct tuple answers = reverse(to);

	return unlikely(get_cutover() == CUTOVER_TAKE) && is_answer(ctx, &answers, true);
}

/* The port of that hash. */
static __always_inline __be16 snat_port(const struct settings *settings, u32 hash)
{
	u32 first = bpf_ntohs(settings->snat_port_min);
	u32 ports = bpf_ntohs(settings->snat_port_max) - first + 1;

	return bpf_htons(first + (u32)(((u64)hash * ports) >> 32));
}

/* A packet that a process of this node sends, for no VIP: has its socket come to a port that already stands
 * for a client of ours, towards that very backend? The kernel gives ports away without asking us. To the
 * backend both are one connection, and its answers would go to our client: so our flow ends. The client's
 * next packet gets another port; a TCP connection does not survive that. What a hook of ours has sent in the
 * node's name (PATH_HOST) passes here as well, from another port than its socket's; where the packet has lost
 * its socket, of UDP a socket without a peer tells nothing about it. */
static __always_inline void take_port_back(ctx_t *ctx, const struct packet *pkt,
					   const struct settings *settings, struct decision *d)
{
	struct tuple answers = reverse(&pkt->tuple);
	u32 found;

	if (likely(!to_snat_port(&answers, settings)) || ctx_has_changed_port(ctx, pkt->tuple.sport) ||
	    !lookup_flow(&answers, DIR_REPLY, &d->flow))
		return;
	found = find_socket(ctx, &answers);
	if (found == SOCKET_CONNECTED ||
	    (found == SOCKET_LISTENS && pkt->tuple.protocol == IPPROTO_UDP && d->flow.path != PATH_HOST)) {
		delete_pair(&answers, &d->flow.to, DIR_REPLY);
		decide(d, ACTION_PASS, REASON_OWN_CONNECTION);
	}
	__builtin_memset(&d->flow, 0, sizeof(d->flow));
}
