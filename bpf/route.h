/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Where to, for what does not go to the stack: along the kernel's FIB, or back. */
#pragma once
#include "gue.h"
#include "ip.h"
#include "maps.h"
#include "service.h"
#include "step.h"

/* Which way a translated packet takes. */
enum way {
	WAY_OF_PATH, /* as its flow's path says: through the stack, or along the FIB in place of a router */
	WAY_PAST_STACK, /* along the FIB in place of this node's stack */
};

/* Where a packet leaves that we send on. */
struct route {
	u32 ifindex;
	u32 mtu;	 /* of the way on, when the packet is too big for it; else 0 */
	bool peer;	 /* past the stack: the interface is a veth to a pod */
	bool link_known; /* the addresses of the link header; else the kernel finds those of next_hop */
	union {
		struct {
			u8 dmac[ETH_ALEN];
			u8 smac[ETH_ALEN];
		};
		struct bpf_redir_neigh next_hop;
	};
};

enum route_result {
	ROUTE_FOUND,
	ROUTE_STACK, /* the kernel would not forward it: an address of this node */
	ROUTE_NONE,
	ROUTE_TOO_BIG,
};

/* Does what is redirected to the interface come out of its other end? Python says so of veths to pods; the
 * kernel drops what is redirected so to any other device. */
static __always_inline bool has_peer(u32 ifindex)
{
	const struct iface *iface = bpf_map_lookup_elem(ifaces, &ifindex);

	return iface && iface->flags & IFACE_PEER;
}

/* The MTU of the way on, for which a packet of len bytes is too big. told is what bpf_fib_lookup() has left
 * in tot_len: the MTU, if the kernel tells it there (FIB_MTU). If not, it is that of the interface; and where
 * that is unknown or large enough, as the route has one of its own, an MTU that every way has (IPv6: RFC
 * 8200, section 5) or many have (IPv4). A sender who is told too much would send the same again. */
static __always_inline u32 mtu_below(u32 len, u32 told, u32 ifindex)
{
	const struct iface *iface;

	if (HAS(FIB_MTU))
		return told;
	iface = bpf_map_lookup_elem(ifaces, &ifindex);
	if (iface && iface->mtu && iface->mtu < len)
		return iface->mtu;
	if (FAMILY == 6 || len > 1280)
		return 1280;
	return len > 576 ? 576 : 68;
}

/* May a packet that is too big for the way on be cut in pieces? Where its sender has not forbidden it (RFC
 * 791, section 2.3), and tc has it. */
static __always_inline bool may_cut(const struct packet *pkt)
{
	return FAMILY == 4 && pkt->may_cut && ctx_decides();
}

/* Ask the kernel's FIB for the way from src to dst, for a packet that will be longer by `extra` bytes.
 *
 * A packet that goes past the stack to a pod, and whose frame is for this host, goes straight to the other
 * end of the veth: the link header is written here. All others are sent by the kernel, which also asks
 * neighbours from time to time whether they are still there. A packet that is too big and may be cut gets the
 * way of its pieces: the FIB is asked again, for a packet of one byte. It is asked, too, where the kernel
 * tells neither the MTU nor the interface. */
static __always_inline u32 find_longer_route(ctx_t *ctx, const struct packet *pkt, const struct addr *src,
					     const struct addr *dst, enum way way, u32 extra,
					     struct route *out)
{
	const bool past = way == WAY_PAST_STACK;
	u32 len = ctx_wire_len(ctx, pkt->ip_len - pkt->payload_len + extra, pkt->payload_len);
	struct bpf_fib_lookup fib = {
	    .family = IP_AF,
	    .l4_protocol = pkt->tuple.protocol,
	    .tot_len = len < 0xffff ? len : 0xffff,
	    .ifindex = ctx_ifindex(ctx),
	};
	int result, of_piece;
	u32 told;

	fib_addresses(&fib, pkt, src, dst);
	result = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	out->mtu = 0;
	if (unlikely(result == BPF_FIB_LKUP_RET_FRAG_NEEDED)) {
		told = fib.tot_len;
		fib.tot_len = 1;
		of_piece = result;
		if (may_cut(pkt) || !HAS(FIB_MTU))
			of_piece = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
		if (may_cut(pkt))
			result = of_piece;
		out->mtu = mtu_below(len, told, fib.ifindex) - extra;
	}
	out->ifindex = fib.ifindex;
	out->peer = past && has_peer(fib.ifindex);
	out->link_known = result == BPF_FIB_LKUP_RET_SUCCESS && (!past || (out->peer && ctx_for_us(ctx)));
	if (out->link_known) {
		__builtin_memcpy(out->dmac, fib.dmac, ETH_ALEN);
		__builtin_memcpy(out->smac, fib.smac, ETH_ALEN);
	} else {
		out->next_hop.nh_family = fib.family; /* IPv6 also for a router of IPv4: RFC 8950 */
		__builtin_memcpy(out->next_hop.ipv6_nh, fib.ipv6_dst, sizeof(fib.ipv6_dst));
	}
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

static __always_inline u32 find_route(ctx_t *ctx, const struct packet *pkt, const struct addr *src,
				      const struct addr *dst, enum way way, struct route *out)
{
	return find_longer_route(ctx, pkt, src, dst, way, 0, out);
}

/* Would the tc hook behind XDP take the translated packet for one to a VIP? It would if an external address
 * of the Service is the node's own, and the backend has the node's network and the Service's port. XDP then
 * leaves the whole packet to that hook. */
static __always_inline bool meets_vip_again(const struct tuple *to)
{
	return !ctx_decides() && lookup_vip(to);
}

/* Does the kernel accept packets from src at this interface? A strict kernel (rp_filter, or `fib saddr` in a
 * rule of netfilter) does so only if it would send packets for src out of the same interface. */
static __always_inline bool enters_here(ctx_t *ctx, const struct packet *pkt, const struct addr *src)
{
	struct bpf_fib_lookup fib = {
	    .family = IP_AF,
	    .l4_protocol = pkt->tuple.protocol,
	    .tot_len = 1,
	    .ifindex = ctx_ifindex(ctx),
	};
	int result;

	fib_addresses(&fib, pkt, &pkt->tuple.dst, src);
	result = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	return (result == BPF_FIB_LKUP_RET_SUCCESS || result == BPF_FIB_LKUP_RET_NO_NEIGH) &&
	       fib.ifindex == ctx_ifindex(ctx);
}

/* May the packet go past the stack? Not if it is marked: routing rules may go by the mark, which
 * bpf_fib_lookup does not know. Not if its TTL ends here: the stack answers it. Not if it has no link header:
 * the stack adds one. */
static __always_inline bool may_go_past(const ctx_t *ctx, const struct packet *pkt)
{
	return pkt->l3 && pkt->ttl > 1 && !ctx_marked(ctx);
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

/* The link header of a packet that goes back where it came from: source and destination exchanged. Devices
 * without link headers need none. */
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

/* Give a packet that came without a link header an empty one: without it the kernel sends it out of no device
 * that has them. */
static __always_inline bool add_link(ctx_t *ctx, const struct packet *pkt)
{
	__be16 ethertype = bpf_htons(IP_ETHERTYPE);

	return pkt->l3 || (ctx_add_link(ctx) && ctx_store(ctx, 2 * ETH_ALEN, &ethertype, sizeof(ethertype)));
}

static __always_inline struct outcome send_along(ctx_t *ctx, const struct packet *pkt, struct route *route,
						 u32 reason)
{
	if (!add_link(ctx, pkt))
		return drop(REASON_REWRITE_FAILED);
	if (!route->link_known)
		return outcome(ctx_send_neigh(ctx, route->ifindex, &route->next_hop), reason);
	if (!ctx_store(ctx, 0, route->dmac, ETH_ALEN) || !ctx_store(ctx, ETH_ALEN, route->smac, ETH_ALEN))
		return drop(REASON_REWRITE_FAILED);
	return outcome(route->peer ? ctx_send_peer(ctx, route->ifindex) : ctx_send(ctx, route->ifindex),
		       reason);
}

static __always_inline struct outcome send_inward(ctx_t *ctx, const struct packet *pkt, u32 reason)
{
	return add_link(ctx, pkt) ? outcome(ctx_send_inward(ctx), reason) : drop(REASON_REWRITE_FAILED);
}

static __always_inline struct outcome send_hairpin(ctx_t *ctx, const struct packet *pkt, u32 reason)
{
	struct ethhdr eth = {};

	if (!load_link_back(ctx, pkt, &eth) || !store_link(ctx, pkt, &eth))
		return drop(REASON_REWRITE_FAILED);
	return outcome(ctx_send_back(ctx, false), reason);
}
