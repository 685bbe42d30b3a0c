/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a cgroup hook sees of a socket's call: the address that the process gives (connect, sendmsg) or gets
 * (recvmsg, getpeername), which may be replaced, and the socket.
 *
 * A socket of IPv6 may speak IPv4, with addresses such as ::ffff:192.0.2.1 (RFC 4291, 2.5.5.2), and the
 * kernel then runs the hooks of IPv6. These addresses are a place of their own: IPv4's programs serve them.
 */
#pragma once
#include <linux/errno.h>
#include "maps.h"

typedef struct bpf_sock_addr ctx_t;

enum verdict {
	VERDICT_PASS = 1,
	VERDICT_DROP = 0, /* the call fails: with EPERM, unless ctx_refuse said otherwise */
};

enum place {
	PLACE_OWN,    /* the address of FAMILY */
	PLACE_MAPPED, /* FAMILY 4: the end of an IPv6 address */
};

static __always_inline bool ctx_mapped(const ctx_t *ctx)
{
	return !CTX_LOAD(ctx, user_ip6[0]) && !CTX_LOAD(ctx, user_ip6[1]) &&
	       CTX_LOAD(ctx, user_ip6[2]) == bpf_htonl(0xffff);
}

/* False: another family's program serves it. */
static __always_inline bool ctx_address(const ctx_t *ctx, u8 place, struct addr *address, __be16 *port)
{
	*port = CTX_LOAD(ctx, user_port);
	if (place == PLACE_MAPPED) {
		address->word[0] = CTX_LOAD(ctx, user_ip6[3]);
		return ctx_mapped(ctx);
	}
	if (FAMILY == 4) {
		address->word[0] = CTX_LOAD(ctx, user_ip4);
		return true;
	}
	address->word[0] = CTX_LOAD(ctx, user_ip6[0]);
	address->word[1 % ADDR_WORDS] = CTX_LOAD(ctx, user_ip6[1]);
	address->word[2 % ADDR_WORDS] = CTX_LOAD(ctx, user_ip6[2]);
	address->word[3 % ADDR_WORDS] = CTX_LOAD(ctx, user_ip6[3]);
	return !ctx_mapped(ctx);
}

static __always_inline void ctx_set_address(ctx_t *ctx, u8 place, const struct addr *address, __be16 port)
{
	CTX_STORE(ctx, user_port, port);
	if (place == PLACE_MAPPED) {
		CTX_STORE(ctx, user_ip6[3], address->word[0]);
	} else if (FAMILY == 4) {
		CTX_STORE(ctx, user_ip4, address->word[0]);
	} else {
		CTX_STORE(ctx, user_ip6[0], address->word[0]);
		CTX_STORE(ctx, user_ip6[1], address->word[1 % ADDR_WORDS]);
		CTX_STORE(ctx, user_ip6[2], address->word[2 % ADDR_WORDS]);
		CTX_STORE(ctx, user_ip6[3], address->word[3 % ADDR_WORDS]);
	}
}

/* Has the socket one peer? IPv4's sendmsg hook runs for a connected socket of IPv6, too. */
static __always_inline bool ctx_connected(const ctx_t *ctx)
{
	return ctx->sk->state == BPF_TCP_ESTABLISHED;
}

/* Has the process, or bind(), chosen the socket's port? Else the kernel picks one once the peer is known. */
static __always_inline bool ctx_is_bound(const ctx_t *ctx)
{
	return ctx->sk->src_port;
}

/* Never the same for two sockets, as long as the machine runs. */
static __always_inline u64 ctx_cookie(ctx_t *ctx)
{
	return bpf_get_socket_cookie(ctx);
}

static __always_inline u64 ctx_netns(ctx_t *ctx)
{
	return bpf_get_netns_cookie(ctx);
}

/* The call that is about to be dropped fails as if a peer had refused it. */
static __always_inline void ctx_refuse(void)
{
	if (HAS(SET_RETVAL))
		bpf_set_retval(-ECONNREFUSED);
}
