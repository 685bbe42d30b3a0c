/* The packet primitives, for tc (clsact, direct action). Same names as ctx_xdp.h.
 *
 * All writes go through helpers: a direct store would make the kernel unshare every packet at the hook's
 * door, also those that are not ours. The L4 checksum goes through bpf_l4_csum_replace, which knows the
 * packets whose checksum the device will complete. */
#pragma once
#include "csum.h"

typedef struct __sk_buff ctx_t;

/* bcc's own declaration of this helper lacks the length of params. */
static long (*redirect_neigh)(u32 ifindex, struct bpf_redir_neigh *params, int params_len,
			      u64 flags) = (void *)BPF_FUNC_redirect_neigh;

enum verdict {
	VERDICT_PASS = TC_ACT_UNSPEC, /* on to the next filter: others' filters stay in effect */
	VERDICT_DROP = TC_ACT_SHOT,
};

static __always_inline void *ctx_data(const ctx_t *ctx)
{
	return (void *)(long)ctx->data;
}

static __always_inline void *ctx_data_end(const ctx_t *ctx)
{
	return (void *)(long)ctx->data_end;
}

static __always_inline u32 ctx_len(const ctx_t *ctx)
{
	return ctx->len;
}

static __always_inline u32 ctx_ifindex(const ctx_t *ctx)
{
	return ctx->ifindex;
}

static __always_inline bool ctx_pull(ctx_t *ctx, u32 len)
{
	if (likely(ctx_data(ctx) + len <= ctx_data_end(ctx)))
		return true;
	return ctx->len >= len && bpf_skb_pull_data(ctx, len) == 0;
}

static __always_inline bool ctx_vlan(const ctx_t *ctx)
{
	return ctx->vlan_present;
}

static __always_inline bool ctx_load(ctx_t *ctx, u32 off, void *to, u32 len)
{
	return bpf_skb_load_bytes(ctx, off, to, len) == 0;
}

static __always_inline bool ctx_store(ctx_t *ctx, u32 off, const void *from, u32 len)
{
	return bpf_skb_store_bytes(ctx, off, (void *)from, len, 0) == 0;
}

static __always_inline bool ctx_resize(ctx_t *ctx, u32 len)
{
	return bpf_skb_change_tail(ctx, len, 0) == 0;
}

static __always_inline bool ctx_insert_l3(ctx_t *ctx, u32 len)
{
	return bpf_skb_adjust_room(ctx, len, BPF_ADJ_ROOM_MAC, 0) == 0;
}

static __always_inline bool ctx_update_l4_csum(ctx_t *ctx, u32 csum_off, bool udp, u64 pseudo, u64 rest)
{
	u64 flags = udp ? BPF_F_MARK_MANGLED_0 : 0;

	return bpf_l4_csum_replace(ctx, csum_off, 0, fold32(pseudo), flags | BPF_F_PSEUDO_HDR) == 0 &&
	       bpf_l4_csum_replace(ctx, csum_off, 0, fold32(rest), flags) == 0;
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

static __always_inline int ctx_send_back(ctx_t *ctx)
{
	return bpf_redirect(ctx->ifindex, 0);
}

static __always_inline bool ctx_for_us(const ctx_t *ctx)
{
	return ctx->pkt_type == 0; /* PACKET_HOST */
}

static __always_inline bool ctx_can_send(const ctx_t *ctx, u32 ifindex, const u8 *smac, bool neighbour_known)
{
	return true;
}

static __always_inline int ctx_send(ctx_t *ctx, u32 ifindex, bool neighbour_known)
{
	if (neighbour_known)
		return bpf_redirect(ifindex, 0);
	return (int)redirect_neigh(ifindex, NULL, 0, 0);
}

/* 0: the kernel checks the MTU itself, which it does with segmentation offload in mind. */
static __always_inline u16 ctx_fib_len(u16 ip_len)
{
	return 0;
}
