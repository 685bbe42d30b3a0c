/* Where to, for what does not go to the stack: along the kernel's FIB, or back. */
#pragma once
#include "ip.h"
#include "maps.h"
#include "step.h"

/* Where a packet that we forward ourselves leaves the node. */
struct route {
	u32 ifindex;
	u32 mtu;	      /* of the way on, when the packet is too big for it */
	bool neighbour_known; /* else smac and dmac are unset and the kernel must resolve them */
	u8 dmac[ETH_ALEN];
	u8 smac[ETH_ALEN];
};

enum route_result {
	ROUTE_FOUND,
	ROUTE_STACK, /* the kernel would not forward it: an address of this node */
	ROUTE_NONE,
	ROUTE_TOO_BIG,
};

static __always_inline u32 find_route(ctx_t *ctx, const struct packet *pkt, const struct addr *src,
				      const struct addr *dst, struct route *out)
{
	struct bpf_fib_lookup fib = {
	    .family = IP_AF,
	    .l4_protocol = pkt->tuple.protocol,
	    .tot_len = ctx_wire_len(ctx, pkt->ip_len - pkt->payload_len, pkt->payload_len),
	    .ifindex = ctx_ifindex(ctx),
	};
	int result;

	fib_addresses(&fib, pkt, src, dst);
	result = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	out->ifindex = fib.ifindex;
	out->mtu = fib.tot_len; /* where the result says so, the kernel has put the MTU there */
	out->neighbour_known = result == BPF_FIB_LKUP_RET_SUCCESS;
	__builtin_memcpy(out->dmac, fib.dmac, ETH_ALEN);
	__builtin_memcpy(out->smac, fib.smac, ETH_ALEN);
	switch (result) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		return ROUTE_FOUND;
	case BPF_FIB_LKUP_RET_NOT_FWDED:
		return ROUTE_STACK;
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		return ROUTE_TOO_BIG;
	default:
		return ROUTE_NONE;
	}
}

/* The node's own address on an interface, 0 for the primary one; false when we do not SNAT there. */
static __always_inline bool own_address(u32 ifindex, struct addr *out)
{
	const struct iface *iface = bpf_map_lookup_elem(ifaces, &ifindex);
	struct addr none = {};

	if (!iface || same_addr(&iface->source, &none))
		return false;
	*out = iface->source;
	return true;
}

/* The link header of what goes back where it came from. A device without one has nothing to turn round. */
static __always_inline bool load_link_back(ctx_t *ctx, const struct packet *pkt, struct ethhdr *eth)
{
	u8 mac[ETH_ALEN];

	if (!pkt->l3)
		return true;
	if (!ctx_load(ctx, 0, eth, sizeof(*eth)))
		return false;
	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
	return true;
}

static __always_inline bool store_link(ctx_t *ctx, const struct packet *pkt, const struct ethhdr *eth)
{
	return !pkt->l3 || ctx_store(ctx, 0, eth, sizeof(*eth));
}

static __always_inline struct outcome send_along(ctx_t *ctx, const struct packet *pkt,
						 const struct route *route, u32 reason)
{
	__be16 ethertype = bpf_htons(FAMILY == 4 ? ETH_P_IP : ETH_P_IPV6);

	if (!pkt->l3 && (!ctx_add_link(ctx) || !ctx_store(ctx, 2 * ETH_ALEN, &ethertype, sizeof(ethertype))))
		return drop(REASON_REWRITE_FAILED);
	if (route->neighbour_known &&
	    (!ctx_store(ctx, 0, route->dmac, ETH_ALEN) || !ctx_store(ctx, ETH_ALEN, route->smac, ETH_ALEN)))
		return drop(REASON_REWRITE_FAILED);
	return outcome(ctx_send(ctx, route->ifindex, route->neighbour_known), reason);
}

static __always_inline struct outcome send_hairpin(ctx_t *ctx, const struct packet *pkt, u32 reason)
{
	struct ethhdr eth = {};

	if (!load_link_back(ctx, pkt, &eth) || !store_link(ctx, pkt, &eth))
		return drop(REASON_REWRITE_FAILED);
	return outcome(ctx_send_back(ctx, false), reason);
}
