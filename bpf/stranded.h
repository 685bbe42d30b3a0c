/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What becomes of a packet when a program that it should go on in is missing. The kernel empties the array of
 * programs with its last pin: `rm -r` of the pins is enough. Nothing was done to the packet by then. */
#pragma once
#include "count.h"
#include "ip.h"
#include "service.h"
#include "step.h"

/* An IPv6 packet's entry in the table of VIPs, for the IPv4 program that stands in for its missing twin. */
struct other_vip_key {
	__be32 address[4];
	__be16 port;
	u8 protocol;
	u8 pad;
};

static __always_inline bool is_for_other_vip(ctx_t *ctx, u32 l3)
{
	struct other_vip_key key = {};
	struct ipv6hdr ip;

	if (!ctx_load(ctx, l3, &ip, sizeof(ip)))
		return false;
	__builtin_memcpy(key.address, &ip.daddr, sizeof(key.address));
	if (bpf_map_lookup_elem(other_vips, &key))
		return true;
	key.protocol = ip.nexthdr;
	return ctx_load(ctx, l3 + sizeof(ip) + sizeof(key.port), &key.port, sizeof(key.port)) &&
	       bpf_map_lookup_elem(other_vips, &key);
}

/* Is the packet for a VIP, by its addresses and ports? Asked where nothing can be done for it: it need not be
 * a good packet, nor one that is understood. l3: offset of the IP header. */
static __always_inline bool is_for_vip(ctx_t *ctx, u32 l3)
{
	__be16 ethertype = ctx_vlan(ctx) ? 0 : ctx_ethertype(ctx), port;
	struct tuple t = {};
	ip_header_t ip;

	if (FAMILY == 4 && ethertype == bpf_htons(ETH_P_IPV6))
		return is_for_other_vip(ctx, l3);
	if (ethertype != bpf_htons(IP_ETHERTYPE) || !ctx_load(ctx, l3, &ip, sizeof(ip)))
		return false;
	ip_target(&ip, &t);
	if (lookup_address(&t.dst))
		return true;
	if (!ctx_load(ctx, l3 + ip_header_len(&ip) + sizeof(port), &port, sizeof(port)))
		return false;
	t.dport = port;
	return lookup_vip(&t);
}

/* Untranslated nothing that is for a VIP goes on; all else does. tc decides behind XDP.
 *
 * But for one case: another version of ours, which attaches by other means (an older one in a filter of
 * clsact, behind this hook), has taken over and removed our programs. It removes no other pins: then
 * `handover` still has its one program, which passes the packet on to that version's hook. */
static __always_inline struct outcome strand(ctx_t *ctx, bool ours)
{
	if (!ours || !ctx_decides())
		return pass(REASON_STEP_MISSING);
	tail_call(ctx, MAP(FD_handover), 0);
	return drop(REASON_STEP_MISSING_VIP);
}
