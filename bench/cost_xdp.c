/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* See cost.h. */
#include "ctx_xdp.h"
#define VERDICT_SEND XDP_TX
#include "cost.h"

int xdp_feed(struct xdp_md *ctx)
{
	return feed(ctx);
}

int xdp_empty(struct xdp_md *ctx)
{
	return empty(ctx);
}

int xdp_floor(struct xdp_md *ctx)
{
	return floor(ctx);
}
