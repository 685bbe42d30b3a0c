/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The packet primitives, for XDP. Same names as ctx_tc.h; all that follows is written against them. */
#pragma once
#include "csum.h"
#include "maps.h"

typedef struct xdp_md ctx_t;

enum verdict {
	VERDICT_PASS = XDP_PASS,
	VERDICT_DROP = XDP_DROP,
	VERDICT_TAKEN = XDP_DROP, /* never: XDP leaves to tc what is to wait */
};

static __always_inline void *ctx_data(const ctx_t *ctx)
{
	return (void *)CTX_LOAD(ctx, data);
}

static __always_inline void *ctx_data_end(const ctx_t *ctx)
{
	return (void *)CTX_LOAD(ctx, data_end);
}

/* Frame length in bytes, Ethernet header included. */
static __always_inline u32 ctx_len(const ctx_t *ctx)
{
	u32 len = ctx->data_end - ctx->data;

	asm volatile("" : "+r"(len)); /* the verifier allows no other arithmetic with data_end */
	return len;
}

static __always_inline u32 ctx_ifindex(const ctx_t *ctx)
{
	return ctx->ingress_ifindex;
}

/* The len bytes (a constant) at offset off, directly readable; NULL when the packet is shorter. */
static __always_inline void *ctx_at(const ctx_t *ctx, u32 off, u32 len)
{
	void *at = ctx_data(ctx) + off;

	return at + len > ctx_data_end(ctx) ? NULL : at;
}

/* The protocol behind the link header, in network byte order; 0: the frame is truncated. */
static __always_inline __be16 ctx_ethertype(const ctx_t *ctx)
{
	const struct ethhdr *eth = ctx_data(ctx);

	return (void *)(eth + 1) > ctx_data_end(ctx) ? 0 : eth->h_proto;
}

/* True when a VLAN tag was taken off the packet and waits in its metadata. */
static __always_inline bool ctx_vlan(const ctx_t *ctx)
{
	return false;
}

/* Copy len bytes (a constant) at offset off out of the packet; false when out of bounds. */
static __always_inline bool ctx_load(const ctx_t *ctx, u32 off, void *to, u32 len)
{
	void *at = ctx_data(ctx) + off;

	if (at + len > ctx_data_end(ctx))
		return false;
	__builtin_memcpy(to, at, len);
	return true;
}

/* Copy len bytes (a constant) into the packet at offset off; false when out of bounds. */
static __always_inline bool ctx_store(const ctx_t *ctx, u32 off, const void *from, u32 len)
{
	void *at = ctx_data(ctx) + off;

	if (at + len > ctx_data_end(ctx))
		return false;
	__builtin_memcpy(at, from, len);
	return true;
}

/* Copy the packet's first EVENT_BYTES, or what there is, out of it; return how many. */
static __always_inline u32 ctx_copy_head(const ctx_t *ctx, u8 *to)
{
	const u8 *data = ctx_data(ctx);
	u32 at;

#pragma clang loop unroll(disable)
	for (at = 0; at < EVENT_BYTES; at++) {
		if ((void *)(data + at + 1) > ctx_data_end(ctx))
			break;
		to[at] = data[at];
	}
	return at;
}

/* Make the frame len bytes long. Earlier packet pointers are void. */
static __always_inline bool ctx_resize(ctx_t *ctx, u32 len)
{
	return bpf_xdp_adjust_tail(ctx, (int)len - (int)ctx_len(ctx)) == 0;
}

/* Put a link header in front of a packet that has none: XDP runs on devices with one alone. */
static __always_inline bool ctx_add_link(ctx_t *ctx)
{
	return false;
}

/* Only where the device completes the checksum options have to be cut off: never in XDP. */
static __always_inline bool ctx_cut_options(ctx_t *ctx, u32 len)
{
	return false;
}

/* Open a gap of len bytes behind the link header, whose bytes must then be stored anew. */
static __always_inline bool ctx_insert_l3(ctx_t *ctx, u32 len)
{
	return bpf_xdp_adjust_head(ctx, -(int)len) == 0;
}

/* Put head, of len bytes (a constant), before the IP header at offset at, which has a link header before it.
 */
static __always_inline bool ctx_wrap(ctx_t *ctx, u32 at, const void *head, u32 len)
{
	struct ethhdr eth;

	return ctx_load(ctx, 0, &eth, sizeof(eth)) && !bpf_xdp_adjust_head(ctx, -(int)len) &&
	       ctx_store(ctx, 0, &eth, sizeof(eth)) && ctx_store(ctx, sizeof(eth), head, len);
}

/* Take off len bytes behind the link header. */
static __always_inline bool ctx_unwrap(ctx_t *ctx, u32 len)
{
	struct ethhdr eth;

	return ctx_load(ctx, 0, &eth, sizeof(eth)) && !bpf_xdp_adjust_head(ctx, len) &&
	       ctx_store(ctx, 0, &eth, sizeof(eth));
}

/* Update the L4 checksum at csum_off by the deltas of the pseudo header and of the rest. */
static __always_inline bool ctx_update_l4_csum(ctx_t *ctx, u32 csum_off, bool udp, u64 pseudo, u64 rest)
{
	__sum16 check;

	if (!ctx_load(ctx, csum_off, &check, sizeof(check)))
		return false;
	update_l4_field(&check, udp, pseudo + rest);
	return ctx_store(ctx, csum_off, &check, sizeof(check));
}

/* True when the L4 checksum still awaits completion by the device: never seen by XDP. */
static __always_inline bool ctx_csum_partial(ctx_t *ctx, u32 csum_off)
{
	return false;
}

/* XDP is at no egress: a packet never goes back to this host. */
static __always_inline int ctx_send_back(ctx_t *ctx, bool to_host)
{
	return XDP_TX;
}

static __always_inline bool ctx_from_host(const ctx_t *ctx)
{
	return false;
}

static __always_inline bool ctx_has_changed_port(const ctx_t *ctx, __be16 port)
{
	return false;
}

#define CT_LOOKUP KFUNC_bpf_xdp_ct_lookup

/* XDP sees no packet of this node's own sockets. */
static __always_inline u64 ctx_cookie(ctx_t *ctx)
{
	return 0;
}

/* Is the frame addressed to this host, not flooded or broadcast past it? What tc is told by the kernel is
 * found out here: to the address of the interface that it came in by, which Python keeps in `links`. What
 * Python has not told of is tc's. */
static __always_inline bool ctx_for_us(const ctx_t *ctx)
{
	const u16 *to = ctx_data(ctx), *own;
	const struct links *links;
	u32 zero = 0, ifindex = ctx->ingress_ifindex;

	links = bpf_map_lookup_elem(links_map, &zero);
	if (!links || (void *)(to + ETH_ALEN / 2) > ctx_data_end(ctx))
		return false;
#pragma unroll
	for (int i = 0; i < LINKS; i++) {
		if (likely(links->links[i].ifindex == ifindex)) {
			own = (const u16 *)links->links[i].mac;
			return !((to[0] ^ own[0]) | (to[1] ^ own[1]) | (to[2] ^ own[2]));
		}
	}
	return false;
}

/* XDP can send only out of the interface that the packet came from; everything else is tc's. */
static __always_inline bool ctx_can_send(const ctx_t *ctx, u32 ifindex, bool link_known)
{
	return link_known && ifindex == ctx->ingress_ifindex;
}

static __always_inline int ctx_send(ctx_t *ctx, u32 ifindex)
{
	return XDP_TX;
}

/* XDP leaves to tc what is to go past the stack: it could send neither to a pod nor out of a veth. */
static __always_inline bool ctx_can_redirect(void)
{
	return false;
}

/* What XDP leaves alone the tc hook behind it decides. */
static __always_inline bool ctx_decides(void)
{
	return false;
}

static __always_inline bool ctx_marked(const ctx_t *ctx)
{
	return false;
}

static __always_inline bool ctx_at_loopback(const ctx_t *ctx)
{
	return false;
}

static __always_inline int ctx_send_inward(ctx_t *ctx)
{
	return XDP_PASS;
}

static __always_inline int ctx_send_peer(ctx_t *ctx, u32 ifindex)
{
	return XDP_PASS;
}

static __always_inline int ctx_send_neigh(ctx_t *ctx, u32 ifindex, struct bpf_redir_neigh *next_hop)
{
	return XDP_PASS;
}

/* How many bytes behind off a packet has whose IP header says `told`: what it says. */
static __always_inline u32 ctx_told_len(const ctx_t *ctx, u32 off, u32 told)
{
	return told;
}

/* How long an IP packet of headers and payload is on the wire: XDP frames have no segmentation offload. */
static __always_inline u32 ctx_wire_len(const ctx_t *ctx, u32 headers, u32 payload)
{
	return headers + payload;
}
