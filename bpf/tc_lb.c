/* The tc entries: uplinks and tunnels, and the host side of every pod's interface. */
#include "ctx_tc.h"
#include "lb.h"

int lb_tc_uplink_in(struct __sk_buff *ctx)
{
	return ingress(ctx, HOOK_TC_UPLINK_IN, OUTSIDE);
}

int lb_tc_uplink_out(struct __sk_buff *ctx)
{
	return egress(ctx, HOOK_TC_UPLINK_OUT);
}

int lb_tc_pod_in(struct __sk_buff *ctx)
{
	return ingress(ctx, HOOK_TC_POD_IN, INSIDE);
}

int lb_tc_pod_out(struct __sk_buff *ctx)
{
	return egress(ctx, HOOK_TC_POD_OUT);
}
