/* From bytes to a struct packet. Reads only: no map, no write. */
#pragma once
#include "reasons.h"
#include "types.h"

/* An IP address of either family; IPv4 uses the first word. Network byte order. */
struct addr {
	__be32 word[1];
};

/* What names a connection, and what NAT changes of it. */
struct tuple {
	struct addr src;
	struct addr dst;
	__be16 sport;
	__be16 dport;
	u8 protocol;
};

struct packet {
	struct tuple tuple;
	u32 payload_len; /* bytes behind the TCP header; TCP only */
	u16 ip_len;	 /* bytes from the IP header on */
	__sum16 ip_check;
	u8 ttl;
	u8 tos;
	u8 tcp_flags; /* enum tcp_flag; 0 for UDP */
};

enum tcp_flag {
	TCP_FIN = 0x01,
	TCP_SYN = 0x02,
	TCP_RST = 0x04,
	TCP_ACK = 0x10,
};

#define PARSED REASON_COUNT /* parse()'s word for "go on" */

static __always_inline bool same_addr(const struct addr *a, const struct addr *b)
{
	return a->word[0] == b->word[0];
}

static __always_inline u32 parse_tcp(ctx_t *ctx, struct packet *pkt)
{
	struct tcphdr *tcp;
	u32 header;

	if (pkt->ip_len < sizeof(struct iphdr) + sizeof(*tcp) || !ctx_pull(ctx, L4_OFFSET + sizeof(*tcp)))
		return REASON_MALFORMED;
	tcp = ctx_data(ctx) + L4_OFFSET;
	if ((void *)(tcp + 1) > ctx_data_end(ctx))
		return REASON_MALFORMED;
	header = tcp->doff * 4;
	if (header < sizeof(*tcp) || sizeof(struct iphdr) + header > pkt->ip_len)
		return REASON_MALFORMED;
	pkt->tuple.sport = tcp->source;
	pkt->tuple.dport = tcp->dest;
	pkt->tcp_flags = ((u8 *)tcp)[13];
	pkt->payload_len = pkt->ip_len - sizeof(struct iphdr) - header;
	return PARSED;
}

static __always_inline u32 parse_udp(ctx_t *ctx, struct packet *pkt)
{
	struct udphdr *udp;

	if (pkt->ip_len < sizeof(struct iphdr) + sizeof(*udp) || !ctx_pull(ctx, L4_OFFSET + sizeof(*udp)))
		return REASON_MALFORMED;
	udp = ctx_data(ctx) + L4_OFFSET;
	if ((void *)(udp + 1) > ctx_data_end(ctx))
		return REASON_MALFORMED;
	/* A length above what IP carries is a lie; a segmented skb has one that is below. */
	if (bpf_ntohs(udp->len) < sizeof(*udp) || bpf_ntohs(udp->len) > pkt->ip_len - sizeof(struct iphdr))
		return REASON_MALFORMED;
	pkt->tuple.sport = udp->source;
	pkt->tuple.dport = udp->dest;
	pkt->tcp_flags = 0;
	pkt->payload_len = 0;
	return PARSED;
}

/* RFC 1122, section 3.2.1.3: "this" network, loopback, multicast and broadcast are no host's addresses. The
 * stack drops what comes from them, and nothing must be sent there. 240.0.0.0/4 is in use: Linux takes it. */
static __always_inline bool is_martian(__be32 source)
{
	u8 first = bpf_ntohl(source) >> 24;

	return first == 0 || first == 127 || (first & 0xf0) == 224 || source == 0xffffffff;
}

/* Fill *pkt; returns PARSED, or the reason why the packet is not for us. */
static __always_inline u32 parse(ctx_t *ctx, struct packet *pkt)
{
	struct ethhdr *eth;
	struct iphdr *ip;

	if (ctx_vlan(ctx))
		return REASON_VLAN;
	if (!ctx_pull(ctx, sizeof(*eth)))
		return REASON_MALFORMED;
	eth = ctx_data(ctx);
	if ((void *)(eth + 1) > ctx_data_end(ctx))
		return REASON_MALFORMED;
	if (eth->h_proto == bpf_htons(ETH_P_8021Q) || eth->h_proto == bpf_htons(ETH_P_8021AD))
		return REASON_VLAN;
	if (eth->h_proto != bpf_htons(ETH_P_IP))
		return REASON_NOT_IPV4;
	if (!ctx_pull(ctx, L4_OFFSET))
		return REASON_MALFORMED;
	ip = ctx_data(ctx) + L3_OFFSET;
	if ((void *)(ip + 1) > ctx_data_end(ctx))
		return REASON_MALFORMED;
	pkt->ip_len = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || ip->ihl < 5 || ip->ihl * 4 > pkt->ip_len ||
	    L3_OFFSET + (u32)pkt->ip_len > ctx_len(ctx))
		return REASON_MALFORMED;
	if (ip->ihl != 5)
		return REASON_IP_OPTIONS;
	if (ip->frag_off & bpf_htons(IP_MF | IP_OFFSET))
		return REASON_FRAGMENT;
	if (unlikely(is_martian(ip->saddr)))
		return REASON_MARTIAN;
	pkt->tuple.src.word[0] = ip->saddr;
	pkt->tuple.dst.word[0] = ip->daddr;
	pkt->tuple.protocol = ip->protocol;
	pkt->ttl = ip->ttl;
	pkt->tos = ip->tos;
	pkt->ip_check = ip->check;
	if (ip->protocol == IPPROTO_TCP)
		return parse_tcp(ctx, pkt);
	if (ip->protocol == IPPROTO_UDP)
		return parse_udp(ctx, pkt);
	return REASON_OTHER_PROTOCOL;
}
