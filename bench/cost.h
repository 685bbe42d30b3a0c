/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Bench-only programs around the data plane's: BPF_PROG_TEST_RUN repeats a program on one packet, but a
 * translated packet is another one. So each run begins in feed(), which makes the packet what it was (or the
 * same of another client) and enters the program under test by tail call. What feed() itself costs is
 * measured with empty() in that program's place. */
#pragma once
#include "service.h"

#define HEAD	   (FAMILY == 6 ? 80 : 56) /* bytes that the data plane may change, and a few more */
#define SRC_WORD   (FAMILY == 6 ? 34 : 26) /* the last word of an address */
#define DST_WORD   (FAMILY == 6 ? 50 : 30)
#define UNDER_TEST 0 /* place in the array of programs */

/* What to feed. The Python side is bench/packet_cost.py. */
struct feed {
	u32 state; /* of the generator that says whose packet is next */
	u32 mask;  /* clients - 1, a power of two less one */
	u32 vary_src;
	u32 vary_dst; /* which of them is the client: all bits set, or none */
	u8 head[80];
};

/* The bench's own maps, in the place of two of the data plane's that these programs do not use. */
#define feeds MAP(FD_scratch)

/* bcc's own declaration of this helper takes a map of its dialect. */
static long (*tail_call)(void *ctx, void *map, u32 index) = (void *)BPF_FUNC_tail_call;

static __always_inline int feed(ctx_t *ctx)
{
	void *data = ctx_data(ctx);
	struct feed *feed;
	u32 zero = 0, client;

	feed = bpf_map_lookup_elem(feeds, &zero);
	if (!feed || data + HEAD > ctx_data_end(ctx))
		return VERDICT_DROP;
	/* A linear congruential generator (Knuth) comes by every client before it repeats one, and leaps. */
	feed->state = feed->state * 1664525 + 1013904223;
	client = bpf_htonl(feed->state & feed->mask);
	__builtin_memcpy(data, feed->head, HEAD);
	*(u32 *)(data + SRC_WORD) |= client & feed->vary_src;
	*(u32 *)(data + DST_WORD) |= client & feed->vary_dst;
	tail_call(ctx, MAP(FD_programs), UNDER_TEST);
	return VERDICT_DROP;
}

static __always_inline int empty(ctx_t *ctx)
{
	return VERDICT_SEND;
}

/* The least that a balancer could do: parse, one lookup, send. */
static __always_inline int floor(ctx_t *ctx)
{
	struct vip_key key = {.protocol = IPPROTO_TCP};
	struct {
		struct ethhdr eth;
		struct iphdr ip;
		struct tcphdr tcp;
	} __attribute__((packed)) *head = ctx_data(ctx);

	if ((void *)(head + 1) > ctx_data_end(ctx))
		return VERDICT_DROP;
	if (head->eth.h_proto != bpf_htons(ETH_P_IP) || head->ip.version != 4 || head->ip.ihl != 5 ||
	    head->ip.protocol != IPPROTO_TCP)
		return VERDICT_PASS;
	key.address.word[0] = head->ip.daddr;
	key.port = head->tcp.dest;
	return bpf_map_lookup_elem(vips, &key) ? VERDICT_SEND : VERDICT_PASS;
}
