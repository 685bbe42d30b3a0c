/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Later fragments have no ports: they get those of the first, which the hook that translated it has noted. */
#pragma once
#include "service.h"
#include "packet.h"

static __always_inline struct fragment_key fragment_key(const struct packet *pkt)
{
	struct fragment_key key = {
	    .src = pkt->tuple.src,
	    .dst = pkt->tuple.dst,
	    .id = pkt->fragment_id,
	    .protocol = pkt->tuple.protocol,
	};

	return key;
}

static __always_inline void remember_fragment(const struct packet *pkt)
{
	struct fragment_key key = fragment_key(pkt);
	struct fragment ports = {.sport = pkt->tuple.sport, .dport = pkt->tuple.dport};

	bpf_map_update_elem(fragments, &key, &ports, BPF_ANY);
}

/* Give a later fragment its ports; false when its first has not been seen here. */
static __always_inline bool lookup_fragment(struct packet *pkt)
{
	struct fragment_key key = fragment_key(pkt);
	const struct fragment *ports = bpf_map_lookup_elem(fragments, &key);

	if (!ports)
		return false;
	pkt->tuple.sport = ports->sport;
	pkt->tuple.dport = ports->dport;
	return true;
}
