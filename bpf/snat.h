/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which ports may stand for a client that does not keep its address (SNAT)? One of the range of the settings
 * that no other flow to the same backend has, no socket of the node, and no Service. */
#pragma once
#include "owner.h"

/* Is the source port of `to` in use at the node: by a socket that would get the backend's answers, one that
 * listens or one that is connected to that very backend, or by a Service? About SCTP the kernel cannot be
 * asked. */
static __always_inline bool is_nodes_port(ctx_t *ctx, const struct tuple *to)
{
	struct tuple answers = reverse(to);

	return lookup_vip(&answers) || find_socket(ctx, &answers) != SOCKET_NONE;
}

/* The port of that hash. */
static __always_inline __be16 snat_port(const struct settings *settings, u32 hash)
{
	u32 first = bpf_ntohs(settings->snat_port_min);
	u32 ports = bpf_ntohs(settings->snat_port_max) - first + 1;

	return bpf_htons(first + (u32)(((u64)hash * ports) >> 32));
}
