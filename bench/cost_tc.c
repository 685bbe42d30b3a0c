/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* See cost.h. */
#include "ctx_tc.h"
#define VERDICT_SEND TC_ACT_REDIRECT
#include "cost.h"

int tc_feed(struct __sk_buff *ctx)
{
	return feed(ctx);
}

int tc_empty(struct __sk_buff *ctx)
{
	return empty(ctx);
}

int tc_floor(struct __sk_buff *ctx)
{
	return floor(ctx);
}
