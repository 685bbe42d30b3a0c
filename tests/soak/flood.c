/* SPDX-License-Identifier: Apache-2.0 */
/* Packets of strangers, as many as a CPU can send, for tests/soak/floods.py. IPv4, out of one interface.
 *
 *   flood IFACE MAC KIND SECONDS ADDRESS:PORT...
 *
 * MAC: the next hop's. The destinations are taken in turn. KIND: syn, ack, rst, udp, pieces (first fragments,
 * of which more never come), later (fragments whose first never comes), icmp (errors about random
 * connections), or `one` (SYNs from a single address). Sources are random, of 198.18.0.0/15, which is for
 * such tests (RFC 2544). It stops by itself and prints "PACKETS NANOSECONDS". */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BATCH	     64
#define FRAME	     128
#define DESTINATIONS 256

static uint64_t state;

static uint32_t any(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state >> 16;
}

static int64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint32_t sum(uint32_t sum, const void *data, int bytes)
{
	const uint16_t *word = data;

	for (; bytes > 1; bytes -= 2)
		sum += *word++;
	return sum;
}

static uint16_t folded(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static void finish_ip(struct iphdr *ip, int bytes)
{
	ip->tot_len = htons(bytes);
	ip->check = 0;
	ip->check = folded(sum(0, ip, sizeof(*ip)));
}

static uint16_t l4_check(const struct iphdr *ip, const void *l4, int bytes)
{
	return folded(sum(sum(htons(ip->protocol) + htons(bytes), &ip->saddr, 8), l4, bytes));
}

static void set_ip(struct iphdr *ip, uint8_t protocol, uint32_t source, uint32_t target)
{
	memset(ip, 0, sizeof(*ip));
	ip->version = 4;
	ip->ihl = 5;
	ip->ttl = 64;
	ip->id = any();
	ip->protocol = protocol;
	ip->saddr = source;
	ip->daddr = target;
}

/* Write a packet behind the Ethernet header; return its bytes. */
static int packet(char *at, const char *kind, const struct sockaddr_in *to)
{
	uint32_t source = htonl(0xc6120000 | (strcmp(kind, "one") ? any() & 0x1ffff : 1));
	uint16_t port = htons(1024 + any() % 64512);
	struct iphdr *ip = (void *)at;
	int bytes;

	if (!strcmp(kind, "udp") || !strcmp(kind, "pieces") || !strcmp(kind, "later")) {
		struct udphdr *udp = (void *)(ip + 1);

		bytes = sizeof(*udp) + 24;
		set_ip(ip, IPPROTO_UDP, source, to->sin_addr.s_addr);
		if (!strcmp(kind, "pieces"))
			ip->frag_off = htons(IP_MF);
		if (!strcmp(kind, "later"))
			ip->frag_off = htons(8);
		udp->source = port;
		udp->dest = to->sin_port;
		udp->len = htons(bytes);
		udp->check = 0;
	} else if (!strcmp(kind, "icmp")) {
		struct icmphdr *icmp = (void *)(ip + 1);
		struct iphdr *inner = (void *)(icmp + 1);
		uint16_t *ports = (void *)(inner + 1);

		bytes = sizeof(*icmp) + sizeof(*inner) + 8;
		set_ip(ip, IPPROTO_ICMP, source, to->sin_addr.s_addr);
		memset(icmp, 0, bytes);
		icmp->type = ICMP_DEST_UNREACH;
		icmp->code = ICMP_PORT_UNREACH;
		set_ip(inner, IPPROTO_TCP, to->sin_addr.s_addr, source);
		finish_ip(inner, 40);
		ports[0] = to->sin_port;
		ports[1] = port;
		icmp->checksum = folded(sum(0, icmp, bytes));
	} else {
		struct tcphdr *tcp = (void *)(ip + 1);

		bytes = sizeof(*tcp);
		set_ip(ip, IPPROTO_TCP, source, to->sin_addr.s_addr);
		memset(tcp, 0, sizeof(*tcp));
		tcp->source = port;
		tcp->dest = to->sin_port;
		tcp->seq = any();
		tcp->ack_seq = any();
		tcp->doff = 5;
		tcp->window = htons(65535);
		tcp->syn = !strcmp(kind, "syn") || !strcmp(kind, "one");
		tcp->ack = !strcmp(kind, "ack");
		tcp->rst = !strcmp(kind, "rst");
		tcp->check = l4_check(ip, tcp, bytes);
	}
	bytes += sizeof(*ip);
	finish_ip(ip, bytes);
	return bytes;
}

int main(int argc, char **argv)
{
	static struct sockaddr_in to[DESTINATIONS];
	static struct mmsghdr messages[BATCH];
	static struct iovec vectors[BATCH];
	static char frames[BATCH][FRAME];
	struct sockaddr_ll out = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP)};
	struct ether_header link = {.ether_type = htons(ETH_P_IP), .ether_shost = {2, 0, 0, 0, 0, 99}};
	int count = argc - 5, bypass = 1, s, next = 0;
	int64_t begin, end, packets = 0;

	if (count < 1 || count > DESTINATIONS ||
	    sscanf(argv[2], "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", &link.ether_dhost[0], &link.ether_dhost[1],
		   &link.ether_dhost[2], &link.ether_dhost[3], &link.ether_dhost[4],
		   &link.ether_dhost[5]) != 6) {
		fprintf(stderr, "usage: flood IFACE MAC KIND SECONDS ADDRESS:PORT...\n");
		return 2;
	}
	for (int i = 0; i < count; i++) {
		char *port = strchr(argv[5 + i], ':');

		if (!port)
			die(argv[5 + i]);
		*port = 0;
		to[i].sin_port = htons(atoi(port + 1));
		if (!inet_pton(AF_INET, argv[5 + i], &to[i].sin_addr))
			die(argv[5 + i]);
	}
	state = (now() ^ (uint64_t)getpid() << 40) | 1;
	s = socket(AF_PACKET, SOCK_RAW, 0);
	if (s < 0)
		die("socket");
	setsockopt(s, SOL_PACKET, PACKET_QDISC_BYPASS, &bypass, sizeof(bypass));
	out.sll_ifindex = if_nametoindex(argv[1]);
	if (bind(s, (void *)&out, sizeof(out)))
		die("bind");
	for (int i = 0; i < BATCH; i++) {
		memcpy(frames[i], &link, sizeof(link));
		vectors[i].iov_base = frames[i];
		messages[i].msg_hdr.msg_iov = &vectors[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	begin = now();
	end = begin + atof(argv[4]) * 1e9;
	while (now() < end) {
		int sent;

		for (int i = 0; i < BATCH; i++) {
			vectors[i].iov_len =
			    sizeof(link) + packet(frames[i] + sizeof(link), argv[3], &to[next]);
			next = (next + 1) % count;
		}
		sent = sendmmsg(s, messages, BATCH, 0);
		if (sent < 0 && errno != ENOBUFS && errno != EAGAIN)
			die("sendmmsg");
		packets += sent > 0 ? sent : 0;
	}
	printf("%lld %lld\n", (long long)packets, (long long)(now() - begin));
	return 0;
}
