/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ARP on the wire (RFC 826, RFC 5227). Same names as ndp.h. */
#pragma once
#include "ip.h"
#include "solicitation.h"

#define ARP_ETHER   1
#define ARP_REQUEST 1
#define ARP_REPLY   2

/* Behind the link header, for Ethernet and IPv4. */
struct arp_packet {
	__be16 hardware;
	__be16 protocol;
	u8 hardware_len;
	u8 protocol_len;
	__be16 operation;
	u8 sender_mac[ETH_ALEN];
	__be32 sender;
	u8 target_mac[ETH_ALEN];
	__be32 target;
} __attribute__((packed));

typedef struct arp_packet solicitation_packet_t;

/* Read a request or a reply; false: it is neither, or contradicts itself. A request without a sender address
 * is a probe: its sender is about to take the address (RFC 5227, section 2.1.1). */
static __always_inline bool read_solicitation(ctx_t *ctx, const struct ethhdr *eth, struct arp_packet *arp,
					      struct solicitation *s)
{
	bool request;

	if (eth->h_proto != bpf_htons(ETH_P_ARP) || !ctx_load(ctx, ETH_HLEN, arp, sizeof(*arp)) ||
	    arp->hardware != bpf_htons(ARP_ETHER) || arp->protocol != bpf_htons(ETH_P_IP) ||
	    arp->hardware_len != ETH_ALEN || arp->protocol_len != sizeof(arp->sender))
		return false;
	request = arp->operation == bpf_htons(ARP_REQUEST);
	s->sender.word[0] = arp->sender;
	s->target.word[0] = arp->target;
	__builtin_memcpy(s->mac, arp->sender_mac, ETH_ALEN);
	s->asks = request && arp->sender != arp->target;
	s->claims = arp->sender != 0;
	return request || arp->operation == bpf_htons(ARP_REPLY);
}

/* Make the answer of the request, as RFC 826 says: sender and target change places. */
static __always_inline bool write_advertisement(ctx_t *ctx, struct ethhdr *eth, struct arp_packet *arp,
						const struct solicitation *s, const u8 *mac)
{
	__builtin_memcpy(eth->h_dest, s->mac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
	arp->operation = bpf_htons(ARP_REPLY);
	__builtin_memcpy(arp->sender_mac, mac, ETH_ALEN);
	arp->sender = s->target.word[0];
	__builtin_memcpy(arp->target_mac, s->mac, ETH_ALEN);
	arp->target = s->sender.word[0];
	return ctx_store(ctx, 0, eth, sizeof(*eth)) && ctx_store(ctx, ETH_HLEN, arp, sizeof(*arp));
}
