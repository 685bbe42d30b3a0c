/* Is the packet for a VIP? One lookup answers for every packet that is not. */
#pragma once
#include "maps.h"
#include "parse.h"

static __always_inline const struct vip *lookup_vip(const struct packet *pkt)
{
	struct vip4_key key = {
	    .address = pkt->tuple.dst.word[0],
	    .port = pkt->tuple.dport,
	    .protocol = pkt->tuple.protocol,
	};

	return bpf_map_lookup_elem(vips4, &key);
}

/* May the client open a connection to the VIP? */
static __always_inline bool source_allowed(const struct packet *pkt, const struct vip *vip)
{
	struct source_range4 key = {
	    .prefix = 8 * (sizeof(key.service) + sizeof(key.address)),
	    .service = vip->service,
	    .address = pkt->tuple.src.word[0],
	};

	return !(vip->flags & VIP_SOURCE_RANGES) || bpf_map_lookup_elem(source_ranges4, &key);
}

/* Could the packet answer a flow whose source we changed? Only then is a reply looked for at an ingress hook.
 */
static __always_inline bool to_snat_port(const struct packet *pkt, const struct settings *settings)
{
	u16 port = bpf_ntohs(pkt->tuple.dport);

	return port >= bpf_ntohs(settings->snat_port_min) && port <= bpf_ntohs(settings->snat_port_max);
}
