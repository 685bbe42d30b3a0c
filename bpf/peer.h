/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Peers of sockets: what the socket hooks have noted of the addresses that they replaced. */
#pragma once
#include "maps.h"

/* Of the socket's cookie and t's destination. */
static __always_inline void socket_key(struct socket_key *key, u64 cookie, const struct tuple *t,
				       u8 direction)
{
	key->cookie[0] = cookie;
	key->cookie[1] = cookie >> 32;
	key->address = t->dst;
	key->port = t->dport;
	key->direction = direction;
	key->pad = 0;
}
