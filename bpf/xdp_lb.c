/* The XDP entry: uplink ingress. What XDP cannot send itself it leaves, untouched, to tc_lb.c's uplink hook.
 */
#include "ctx_xdp.h"
#include "lb.h"

int lb_xdp_uplink(struct xdp_md *ctx)
{
	return ingress(ctx, HOOK_XDP_UPLINK, OUTSIDE);
}
