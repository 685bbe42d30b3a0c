/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The tc entries: uplinks and tunnels, with a link header and without, the host side of every pod's
 * interface, and lo. */
#include "ctx_tc.h"
#include "lb.h"
#include "connect.h"
#include "owner.h"
#include "answer.h"
#include "icmp_error.h"
#include "pieces.h"
#include "neighbour.h"
#include "direct.h"
#include "report.h"

int lb_tc_uplink_in(struct __sk_buff *ctx)
{
	return ingress(ctx, HOOK_TC_UPLINK_IN, OUTSIDE, ETH_HLEN);
}

int lb_tc_uplink_out(struct __sk_buff *ctx)
{
	return egress(ctx, HOOK_TC_UPLINK_OUT, ETH_HLEN);
}

int lb_tc_pod_in(struct __sk_buff *ctx)
{
	return ingress(ctx, HOOK_TC_POD_IN, INSIDE, ETH_HLEN);
}

int lb_tc_pod_out(struct __sk_buff *ctx)
{
	return egress(ctx, HOOK_TC_POD_OUT, ETH_HLEN);
}

int lb_tc_l3_in(struct __sk_buff *ctx)
{
	return ingress(ctx, HOOK_TC_L3_IN, OUTSIDE, 0);
}

int lb_tc_l3_out(struct __sk_buff *ctx)
{
	return egress(ctx, HOOK_TC_L3_OUT, 0);
}

int lb_tc_loopback(struct __sk_buff *ctx)
{
	return loopback(ctx);
}

int lb_tc_ingress(struct __sk_buff *ctx)
{
	return long_way(ctx, false);
}

int lb_tc_egress(struct __sk_buff *ctx)
{
	return long_way(ctx, true);
}

int lb_tc_connect(struct __sk_buff *ctx)
{
	return connect(ctx);
}

int lb_tc_answer(struct __sk_buff *ctx)
{
	return answer(ctx);
}

int lb_tc_icmp_error(struct __sk_buff *ctx)
{
	return icmp_error(ctx);
}

int lb_tc_owner(struct __sk_buff *ctx)
{
	return owner(ctx);
}

int lb_tc_pieces(struct __sk_buff *ctx)
{
	return take_pieces(ctx);
}

int lb_tc_capture(struct __sk_buff *ctx)
{
	return capture(ctx);
}

int lb_tc_report(struct __sk_buff *ctx)
{
	return report(ctx);
}

int lb_tc_neighbour(struct __sk_buff *ctx)
{
	return neighbour(ctx);
}

int lb_tc_weigh(struct __sk_buff *ctx)
{
	return weigh_backends(ctx);
}

int lb_tc_direct_out(struct __sk_buff *ctx)
{
	return direct_out(ctx);
}

int lb_tc_direct_in(struct __sk_buff *ctx)
{
	return direct_in(ctx);
}

int lb_tc_former(struct __sk_buff *ctx)
{
	return former(ctx);
}
