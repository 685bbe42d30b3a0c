/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The XDP entry: uplink ingress. What XDP cannot send itself it leaves, untouched, to tc_lb.c's uplink hook.
 */
#include "ctx_xdp.h"
#include "lb.h"
#include "connect.h"
#include "owner.h"
#include "answer.h"
#include "icmp_error.h"
#include "neighbour.h"
#include "direct.h"
#include "report.h"

int lb_xdp_uplink(struct xdp_md *ctx)
{
	return ingress(ctx, HOOK_XDP_UPLINK, OUTSIDE, ETH_HLEN);
}

int lb_xdp_ingress(struct xdp_md *ctx)
{
	return long_way(ctx, false);
}

int lb_xdp_connect(struct xdp_md *ctx)
{
	return connect(ctx);
}

int lb_xdp_answer(struct xdp_md *ctx)
{
	return answer(ctx);
}

int lb_xdp_icmp_error(struct xdp_md *ctx)
{
	return icmp_error(ctx);
}

int lb_xdp_owner(struct xdp_md *ctx)
{
	return owner(ctx);
}

int lb_xdp_capture(struct xdp_md *ctx)
{
	return capture(ctx);
}

int lb_xdp_report(struct xdp_md *ctx)
{
	return report(ctx);
}

int lb_xdp_neighbour(struct xdp_md *ctx)
{
	return neighbour(ctx);
}

int lb_xdp_weigh(struct xdp_md *ctx)
{
	return weigh_backends(ctx);
}

int lb_xdp_direct_out(struct xdp_md *ctx)
{
	return direct_out(ctx);
}

int lb_xdp_direct_in(struct xdp_md *ctx)
{
	return direct_in(ctx);
}

int lb_xdp_former(struct xdp_md *ctx)
{
	return former(ctx);
}
