/* What the data plane answers itself, on behalf of a VIP without endpoints: a TCP reset or an ICMP error. */
#pragma once
#include "nat.h"

struct outcome {
	int verdict;
	u32 reason;
};

static __always_inline struct outcome outcome(int verdict, u32 reason)
{
	struct outcome o = {.verdict = verdict, .reason = reason};

	return o;
}

static __always_inline struct outcome pass(u32 reason)
{
	return outcome(VERDICT_PASS, reason);
}

static __always_inline struct outcome drop(u32 reason)
{
	return outcome(VERDICT_DROP, reason);
}

/* An IPv4 header from the packet's destination to its source; len counts from the IP header on. */
static __always_inline struct iphdr answer_header(const struct packet *pkt, u8 protocol, u16 len)
{
	struct iphdr ip = {
	    .version = 4,
	    .ihl = 5,
	    .tot_len = bpf_htons(len),
	    .frag_off = bpf_htons(IP_DF),
	    .ttl = REPLY_TTL,
	    .protocol = protocol,
	    .saddr = pkt->tuple.dst.word[0],
	    .daddr = pkt->tuple.src.word[0],
	};

	ip.check = (__sum16)~fold16(sum_bytes(&ip, sizeof(ip)));
	return ip;
}

static __always_inline bool load_swapped_ethernet(ctx_t *ctx, struct ethhdr *eth)
{
	u8 mac[ETH_ALEN];

	if (!ctx_load(ctx, 0, eth, sizeof(*eth)))
		return false;
	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
	return true;
}

/* Was the frame whose swapped header this is a broadcast or multicast? RFC 1122, section 3.2.2: such get no
 * answer. */
static __always_inline bool sent_to_many(const struct ethhdr *swapped)
{
	return swapped->h_source[0] & 1;
}

struct reset {
	struct iphdr ip;
	struct tcphdr tcp;
};

/* RFC 9293, section 3.10.7.1: the answer of a closed port. */
static __always_inline struct outcome reject_tcp(ctx_t *ctx, const struct packet *pkt)
{
	struct reset frame = {};
	struct ethhdr eth;
	struct tcphdr segment;
	bool partial;
	u64 sum;

	if (!ctx_load(ctx, L4_OFFSET, &segment, sizeof(segment)) || !load_swapped_ethernet(ctx, &eth))
		return drop(REASON_REWRITE_FAILED);
	if (pkt->tcp_flags & TCP_RST || sent_to_many(&eth))
		return drop(REASON_REJECT_UNANSWERED);
	partial = ctx_csum_partial(ctx, TCP_CSUM_OFFSET);

	frame.ip = answer_header(pkt, IPPROTO_TCP, sizeof(frame.ip) + sizeof(frame.tcp));
	frame.tcp.source = pkt->tuple.dport;
	frame.tcp.dest = pkt->tuple.sport;
	frame.tcp.doff = sizeof(frame.tcp) / 4;
	frame.tcp.rst = 1;
	if (segment.ack) {
		frame.tcp.seq = segment.ack_seq;
	} else {
		frame.tcp.ack = 1;
		frame.tcp.ack_seq =
		    bpf_htonl(bpf_ntohl(segment.seq) + pkt->payload_len + segment.syn + segment.fin);
	}
	sum = sum_pseudo_header(frame.ip.saddr, frame.ip.daddr, IPPROTO_TCP, sizeof(frame.tcp));
	if (partial)
		frame.tcp.check = fold16(sum); /* the device adds the rest and the complement */
	else
		frame.tcp.check = (__sum16)~fold16(sum + sum_bytes(&frame.tcp, sizeof(frame.tcp)));

	if (!ctx_resize(ctx, sizeof(eth) + sizeof(frame)) || !ctx_store(ctx, 0, &eth, sizeof(eth)) ||
	    !ctx_store(ctx, L3_OFFSET, &frame, sizeof(frame)))
		return drop(REASON_REWRITE_FAILED);
	return outcome(ctx_send_back(ctx), REASON_REJECT_NO_ENDPOINT);
}

struct unreachable {
	struct iphdr ip;
	struct icmphdr icmp;
};

#define QUOTED_L4 8 /* RFC 792: the first 8 bytes behind the IP header */

/* RFC 1122, section 4.1.3.1: no one listens on the port. The datagram's head stays where it is and the new
 * headers go in front, so that a checksum which the device has yet to complete stays in the device's sight.
 */
static __always_inline struct outcome reject_udp(ctx_t *ctx, const struct packet *pkt)
{
	const u32 inserted = sizeof(struct iphdr) + sizeof(struct icmphdr);
	struct unreachable frame = {};
	struct {
		struct iphdr ip;
		struct udphdr udp;
	} quoted;
	struct ethhdr eth;
	u64 sum;

	if (!load_swapped_ethernet(ctx, &eth))
		return drop(REASON_REWRITE_FAILED);
	if (sent_to_many(&eth))
		return drop(REASON_REJECT_UNANSWERED);
	if (!ctx_resize(ctx, L4_OFFSET + QUOTED_L4) || !ctx_load(ctx, L3_OFFSET, &quoted, sizeof(quoted)))
		return drop(REASON_REWRITE_FAILED);

	/* The device makes the quoted L4 bytes add up to the complement of what the field holds now. */
	if (quoted.udp.check && ctx_csum_partial(ctx, UDP_CSUM_OFFSET))
		sum = sum_bytes(&quoted.ip, sizeof(quoted.ip)) + (u16)~quoted.udp.check;
	else
		sum = sum_bytes(&quoted, sizeof(quoted));
	if (!ctx_store(ctx, UDP_CSUM_OFFSET, &quoted.udp.check, sizeof(quoted.udp.check)))
		return drop(REASON_REWRITE_FAILED);

	frame.ip = answer_header(pkt, IPPROTO_ICMP, inserted + sizeof(quoted));
	frame.icmp.type = ICMP_DEST_UNREACH;
	frame.icmp.code = ICMP_PORT_UNREACH;
	frame.icmp.checksum = (__sum16)~fold16(sum + sum_bytes(&frame.icmp, sizeof(frame.icmp)));

	if (!ctx_insert_l3(ctx, inserted) || !ctx_store(ctx, 0, &eth, sizeof(eth)) ||
	    !ctx_store(ctx, L3_OFFSET, &frame, sizeof(frame)))
		return drop(REASON_REWRITE_FAILED);
	return outcome(ctx_send_back(ctx), REASON_REJECT_NO_ENDPOINT);
}

static __always_inline struct outcome reject(ctx_t *ctx, const struct packet *pkt)
{
	return pkt->tuple.protocol == IPPROTO_TCP ? reject_tcp(ctx, pkt) : reject_udp(ctx, pkt);
}
