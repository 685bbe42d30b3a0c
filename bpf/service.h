/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Is the packet for a VIP? One lookup answers for every packet that is not. */
#pragma once
#include "maps.h"

static __always_inline const struct vip *lookup_vip(const struct tuple *t)
{
	struct vip_key key = {
	    .address = t->dst,
	    .port = t->dport,
	    .protocol = t->protocol,
	};
	u64 word = JOIN(u64, 32, t->dst.word[0], JOIN(u32, 16, t->dport, JOIN(u16, 8, t->protocol, 0)));

	return bpf_map_lookup_elem(vips, FAMILY == 4 ? (void *)&word : (void *)&key);
}

/* The entry for an address as a whole; NULL: it has none, being no VIP's or the node's own. */
static __always_inline const struct vip *lookup_address(const struct addr *address)
{
	struct vip_key key = {.address = *address};

	return bpf_map_lookup_elem(vips, &key);
}

/* Has no Service the VIP any more? Its entry stays for the connections that are open. */
static __always_inline bool is_gone(const struct vip *vip)
{
	return vip->flags & VIP_GONE;
}

/* What begins a connection through a VIP that is gone is treated as if there were no entry. A clusterIP is
 * nobody else's: there it is refused. Is it left alone instead, for whoever has the address now? */
static __always_inline bool is_left_alone(const struct vip *vip)
{
	return is_gone(vip) && vip->kind != VIP_CLUSTER_IP;
}

/* Might the address be a clusterIP? Almost no other packet has such a destination. While the network grows
 * its mask is written first, so that this order of work misses no address. */
static __always_inline bool in_cluster_net(const struct addr *address, const struct settings *settings)
{
	u32 differs = 0;

#pragma unroll
	for (int i = 0; i < ADDR_WORDS; i++)
		differs |=
		    (address->word[i] ^ settings->cluster_net.word[i]) & settings->cluster_mask.word[i];
	return !differs;
}

/* May the client open a connection to the VIP? */
static __always_inline bool source_allowed(const struct addr *client, const struct vip *vip)
{
	struct source_range key = {
	    .prefix = 8 * (sizeof(key.service) + sizeof(key.address)),
	    .service = vip->service,
	    .address = *client,
	};

	return !(vip->flags & VIP_SOURCE_RANGES) || bpf_map_lookup_elem(source_ranges, &key);
}

/* The backends that new connections from a side are offered. */
static __always_inline struct backend_set offered_set(const struct vip *vip, u8 side)
{
	return side == OUTSIDE ? vip->outside : vip->inside;
}

/* Might it be an address of the node that SNAT puts in a client's place? Without branches: clang 19 made one
 * for each address, and the verifier, to which each is another way through all that follows, gave up. */
static __always_inline bool is_snat_source(const struct addr *address, const struct settings *settings)
{
	u64 found = 0;

	if (unlikely(!settings->sources || settings->sources > SNAT_SOURCES))
		return true;
#pragma unroll
	for (int i = 0; i < SNAT_SOURCES; i++) /* behind the last it is the first again */
		found |= ((u64)addr_difference(address, &settings->snat_sources[i]) - 1) >> 63;
	return found;
}

static __always_inline bool in_range(u16 port, __be16 first, __be16 last)
{
	return port >= bpf_ntohs(first) && port <= bpf_ntohs(last);
}

/* Could the packet answer a flow whose source we changed? Only then is a reply looked for at an ingress hook.
 * The range has ports that pods listen at; so the address counts as well. */
static __always_inline bool to_snat_port(const struct tuple *t, const struct settings *settings)
{
	u16 port = bpf_ntohs(t->dport);

	return (in_range(port, settings->snat_port_min, settings->snat_port_max) ||
		in_range(port, settings->former_port_min, settings->former_port_max)) &&
	       is_snat_source(&t->dst, settings);
}

/* Is a packet for one of the node's SNAT ports one that another node sends encapsulated? That port is one of
 * them, which no client gets, so that only such packets are looked at for it. Without the option it is 0. */
static __always_inline bool is_direct_port(const struct tuple *t, u8 side, const struct settings *settings)
{
	return side == OUTSIDE && t->protocol == IPPROTO_UDP && settings->direct_port &&
	       t->dport == settings->direct_port;
}

static __always_inline bool is_encapsulated(const struct tuple *t, u8 side)
{
	const struct settings *settings = get_settings();

	return settings && to_snat_port(t, settings) && is_direct_port(t, side, settings);
}
