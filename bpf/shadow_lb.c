/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The tc entries of shadow mode, under the names of those that serve, in whose place they are attached. An
 * uplink has them whatever its mode: XDP would see nothing else. */
#include "ctx_tc.h"
#include "lb.h"
#include "shadow.h"

int lb_tc_uplink_in(struct __sk_buff *ctx)
{
	return shadow_ingress(ctx, HOOK_TC_UPLINK_IN, OUTSIDE, ETH_HLEN);
}

int lb_tc_uplink_out(struct __sk_buff *ctx)
{
	return shadow_egress(ctx, HOOK_TC_UPLINK_OUT, ETH_HLEN);
}

int lb_tc_pod_in(struct __sk_buff *ctx)
{
	return shadow_ingress(ctx, HOOK_TC_POD_IN, INSIDE, ETH_HLEN);
}

int lb_tc_pod_out(struct __sk_buff *ctx)
{
	return shadow_egress(ctx, HOOK_TC_POD_OUT, ETH_HLEN);
}

int lb_tc_l3_in(struct __sk_buff *ctx)
{
	return shadow_ingress(ctx, HOOK_TC_L3_IN, OUTSIDE, 0);
}

int lb_tc_l3_out(struct __sk_buff *ctx)
{
	return shadow_egress(ctx, HOOK_TC_L3_OUT, 0);
}

int lb_tc_loopback(struct __sk_buff *ctx)
{
	return shadow_egress(ctx, HOOK_TC_LOOPBACK, ETH_HLEN);
}

int lb_tc_ingress(struct __sk_buff *ctx)
{
	return shadow_request(ctx);
}

int lb_tc_egress(struct __sk_buff *ctx)
{
	return shadow_reply(ctx);
}

int lb_tc_connect(struct __sk_buff *ctx)
{
	return shadow_connect(ctx);
}

int lb_tc_owner(struct __sk_buff *ctx)
{
	return shadow_owner(ctx);
}

int lb_tc_weigh(struct __sk_buff *ctx)
{
	return shadow_weigh(ctx);
}
