/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The packet primitives, for tc (tcx, or clsact with direct action). Same names as ctx_xdp.h.
 *
 * All writes go through helpers: a direct store would make the kernel unshare every packet at the hook's
 * door, also those that are not ours. The L4 checksum goes through bpf_l4_csum_replace, which knows the
 * packets whose checksum the device will complete. */
#pragma once
#include "csum.h"
#include "maps.h"

typedef struct __sk_buff ctx_t;

/* bcc's own declaration of this helper lacks the length of params. */
static long (*redirect_neigh)(u32 ifindex, struct bpf_redir_neigh *params, int params_len,
			      u64 flags) = (void *)BPF_FUNC_redirect_neigh;

enum verdict {
	VERDICT_PASS = TC_ACT_UNSPEC, /* on to the next filter: others' filters stay in effect */
	VERDICT_DROP = TC_ACT_SHOT,
	VERDICT_TAKEN = TC_ACT_STOLEN, /* the packet goes no further, and is not lost */
};

static __always_inline void *ctx_data(const ctx_t *ctx)
{
	return (void *)CTX_LOAD(ctx, data);
}

static __always_inline void *ctx_data_end(const ctx_t *ctx)
{
	return (void *)CTX_LOAD(ctx, data_end);
}

static __always_inline u32 ctx_len(const ctx_t *ctx)
{
	return ctx->len;
}

static __always_inline u32 ctx_ifindex(const ctx_t *ctx)
{
	return ctx->ifindex;
}

static __always_inline void *ctx_at(ctx_t *ctx, u32 off, u32 len)
{
	void *at = ctx_data(ctx) + off;

	if (likely(at + len <= ctx_data_end(ctx)))
		return at;
	if (ctx->len < off + len || bpf_skb_pull_data(ctx, off + len))
		return NULL;
	at = ctx_data(ctx) + off;
	return at + len > ctx_data_end(ctx) ? NULL : at;
}

/* The kernel knows it also where there is no link header. */
static __always_inline __be16 ctx_ethertype(const ctx_t *ctx)
{
	return ctx->protocol;
}

static __always_inline bool ctx_vlan(const ctx_t *ctx)
{
	return ctx->vlan_present;
}

static __always_inline bool ctx_load(ctx_t *ctx, u32 off, void *to, u32 len)
{
	void *at = ctx_data(ctx) + off;

	if (likely(at + len <= ctx_data_end(ctx))) {
		__builtin_memcpy(to, at, len);
		return true;
	}
	return bpf_skb_load_bytes(ctx, off, to, len) == 0;
}

static __always_inline bool ctx_store(ctx_t *ctx, u32 off, const void *from, u32 len)
{
	void *at = ctx_data(ctx) + off;

	if (likely(at + len <= ctx_data_end(ctx))) {
		__builtin_memcpy(at, from, len);
		return true;
	}
	return bpf_skb_store_bytes(ctx, off, (void *)from, len, 0) == 0;
}

/* Copy the packet's first EVENT_BYTES, or what there is, out of it; return how many. */
static __always_inline u32 ctx_copy_head(ctx_t *ctx, u8 *to)
{
	u64 len = ctx->len;

	AT_MOST(len, EVENT_BYTES);
	AT_LEAST(len, 1);
	return bpf_skb_load_bytes(ctx, 0, to, len) ? 0 : len;
}

static __always_inline bool ctx_resize(ctx_t *ctx, u32 len)
{
	return bpf_skb_change_tail(ctx, len, 0) == 0;
}

/* Put an empty link header before a packet that came without one: bpf_redirect_neigh drops what has none. */
static __always_inline bool ctx_add_link(ctx_t *ctx)
{
	return bpf_skb_change_head(ctx, ETH_HLEN, 0) == 0;
}

/* Cut len bytes off behind the IP header of 20 or 40 bytes. */
static __always_inline bool ctx_cut_options(ctx_t *ctx, u32 len)
{
	return bpf_skb_adjust_room(ctx, -(s32)len, BPF_ADJ_ROOM_NET, 0) == 0;
}

static __always_inline bool ctx_insert_l3(ctx_t *ctx, u32 len)
{
	return bpf_skb_adjust_room(ctx, len, BPF_ADJ_ROOM_MAC, 0) == 0;
}

/* Put head, of len bytes, before the IP header at offset at. The kernel is told that it is an encapsulation
 * in UDP, so that what awaits segmentation gets it before each segment. */
static __always_inline bool ctx_wrap(ctx_t *ctx, u32 at, const void *head, u32 len)
{
	u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
		    (FAMILY == 6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4);

	return !bpf_skb_adjust_room(ctx, len, BPF_ADJ_ROOM_MAC, flags) &&
	       !bpf_skb_store_bytes(ctx, at, (void *)head, len, BPF_F_RECOMPUTE_CSUM);
}

/* Take off len bytes behind the link header. Segments that the packet is yet to be made of keep their size.
 */
static __always_inline bool ctx_unwrap(ctx_t *ctx, u32 len)
{
	return !bpf_skb_adjust_room(ctx, -(s32)len, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO);
}

/* A function of the kernel, which the verifier replaces by nothing: see HAS(). */
static const u8 *(*cast_to_kern_ctx)(const void *ctx) = (void *)KFUNC_bpf_cast_to_kern_ctx;

#define CHECKSUM_COMPLETE 2 /* in skb->ip_summed: the device has summed the packet. 3: it is yet to do so */

/* Is the packet's checksum a field like any other, of which the kernel knows nothing? In doubt it is not.
 * Where programs may read the kernel's own sk_buff it costs nothing to know. IP_SUMMED: 1 + the number of the
 * bit at which `ip_summed` is there. */
static __always_inline bool ctx_sum_is_plain(const ctx_t *ctx)
{
	u64 at = HAS(IP_SUMMED);

	if (!at--)
		return false;
	return (cast_to_kern_ctx(ctx)[at >> 3] >> (at & 7) & 3) < CHECKSUM_COMPLETE;
}

/* Where the device has summed the whole packet (CHECKSUM_COMPLETE), the kernel takes the pseudo header's
 * delta out of that sum, since IPv4 compensates it in the header's own checksum. IPv6 has none: put it back.
 * On any other packet bpf_csum_update does nothing. */
static __always_inline bool ctx_update_l4_csum(ctx_t *ctx, u32 csum_off, bool udp, u64 pseudo, u64 rest)
{
	u64 flags = udp ? BPF_F_MARK_MANGLED_0 : 0;
	u32 shift = fold32(pseudo);
	u16 before, after, unequal = fold16(pseudo);

	if (likely(ctx_sum_is_plain(ctx))) {
		if (!ctx_load(ctx, csum_off, &before, sizeof(before)))
			return false;
		update_l4_field(&before, udp, pseudo + rest);
		return ctx_store(ctx, csum_off, &before, sizeof(before));
	}
	if (!ctx_load(ctx, csum_off, &before, sizeof(before)) ||
	    bpf_l4_csum_replace(ctx, csum_off, 0, shift, flags | BPF_F_PSEUDO_HDR))
		return false;
	if (FAMILY == 6)
		bpf_csum_update(ctx, shift);
	if (!ctx_load(ctx, csum_off, &after, sizeof(after)))
		return false;
	/* Where the device completes the checksum, the field is a plain sum: it has grown by what any other
	 * one has become less by. */
	if (likely(unequal && unequal != 0xffff && before)) {
		if (after == fold16((u64)before + shift))
			return true;
		if (after == csum_update(before, shift)) {
			after = csum_update(after, rest);
			if (udp && !after)
				after = 0xffff;
			return ctx_store(ctx, csum_off, &after, sizeof(after));
		}
	}
	return bpf_l4_csum_replace(ctx, csum_off, 0, fold32(rest), flags) == 0;
}

/* The kernel does not show CHECKSUM_PARTIAL. But bpf_l4_csum_replace leaves such a packet's checksum alone
 * when a byte outside the pseudo header changes: try it. The field at csum_off is garbage afterwards. */
static __always_inline bool ctx_csum_partial(ctx_t *ctx, u32 csum_off)
{
	__sum16 before, after;

	if (bpf_skb_load_bytes(ctx, csum_off, &before, sizeof(before)) ||
	    bpf_l4_csum_replace(ctx, csum_off, 0, 1, sizeof(__u16)) ||
	    bpf_skb_load_bytes(ctx, csum_off, &after, sizeof(after)))
		return false;
	return before == after;
}

static __always_inline int ctx_send_back(ctx_t *ctx, bool to_host)
{
	return bpf_redirect(ctx->ifindex, to_host ? BPF_F_INGRESS : 0);
}

/* Did a process of this node send it? What is forwarded has come in by some interface. */
static __always_inline bool ctx_from_host(const ctx_t *ctx)
{
	return !ctx->ingress_ifindex;
}

/* Does the sender's socket have another port than the packet leaves from? Then netfilter or a hook of ours
 * has translated the source on the way here. */
static __always_inline bool ctx_has_changed_port(const ctx_t *ctx, __be16 port)
{
	struct bpf_sock *sender = ctx->sk;

	return sender && sender->src_port && sender->src_port != bpf_ntohs(port);
}

#define CT_LOOKUP KFUNC_bpf_skb_ct_lookup

/* The sender's socket, which has no other's number as long as the machine runs; 0: the packet has none. */
static __always_inline u64 ctx_cookie(ctx_t *ctx)
{
	return bpf_get_socket_cookie(ctx);
}

static __always_inline bool ctx_for_us(const ctx_t *ctx)
{
	return ctx->pkt_type == 0; /* PACKET_HOST */
}

static __always_inline bool ctx_can_send(const ctx_t *ctx, u32 ifindex, bool link_known)
{
	return true;
}

/* Out of an interface, with the link header that it has. */
static __always_inline int ctx_send(ctx_t *ctx, u32 ifindex)
{
	return bpf_redirect(ifindex, 0);
}

/* Can this hook send a packet past the stack, to wherever? */
static __always_inline bool ctx_can_redirect(void)
{
	return true;
}

/* Does no other hook of ours see the packet after this one? */
static __always_inline bool ctx_decides(void)
{
	return true;
}

/* Has somebody marked the packet? Routing rules may go by that, which bpf_fib_lookup does not. */
static __always_inline bool ctx_marked(const ctx_t *ctx)
{
	return ctx->mark;
}

/* The loopback interface's number in every network namespace. */
#define LOOPBACK_IFINDEX 1

/* Is this hook at the loopback interface? */
static __always_inline bool ctx_at_loopback(const ctx_t *ctx)
{
	return ctx->ifindex == LOOPBACK_IFINDEX;
}

/* Into this node's own stack as what the node sends to itself: out of lo, along the route that it has for the
 * packet's destination, which is an address of the node. With that route the packet enters again, and nobody
 * asks whether the source is one from which packets may come in: it may be an address of the node as well. */
static __always_inline int ctx_send_inward(ctx_t *ctx)
{
	return (int)redirect_neigh(LOOPBACK_IFINDEX, NULL, 0, 0);
}

/* To the other end of a veth, in whose network namespace the packet then has arrived. Ingress alone. */
static __always_inline int ctx_send_peer(ctx_t *ctx, u32 ifindex)
{
	return bpf_redirect_peer(ifindex, 0);
}

/* Out of an interface, to the next hop, which the kernel resolves. A packet of this node's own still has the
 * route that it was sent by. While it waits for its neighbour's address the kernel would go by that route
 * again, so the kernel is let find the way anew: then the packet gets another route. */
static __always_inline int ctx_send_neigh(ctx_t *ctx, u32 ifindex, struct bpf_redir_neigh *next_hop)
{
	if (ctx_from_host(ctx))
		return (int)redirect_neigh(ifindex, NULL, 0, 0);
	return (int)redirect_neigh(ifindex, next_hop, sizeof(*next_hop), 0);
}

/* How many bytes behind off a packet has whose IP header says `told`. What awaits segmentation may have more
 * than an IP header can say, which then says 0: on lo, or with BIG TCP. */
static __always_inline u32 ctx_told_len(const ctx_t *ctx, u32 off, u32 told)
{
	return likely(told) || !ctx->gso_size ? told : ctx->len - off;
}

/* A packet that awaits segmentation leaves in pieces of gso_size bytes of payload. */
static __always_inline u32 ctx_wire_len(const ctx_t *ctx, u32 headers, u32 payload)
{
	u32 segment = ctx->gso_size;

	return headers + (segment && segment < payload ? segment : payload);
}
