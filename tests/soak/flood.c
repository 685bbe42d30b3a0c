/* SPDX-License-Identifier: Apache-2.0 */
/* Packets of strangers, as many as a CPU can send or fewer, for tests/soak/floods.py, out of one interface.
 *
 *   flood IFACE MAC KIND SECONDS SHARE ADDRESS:PORT...
 *
 * MAC: the next hop's. SHARE: of a CPU, which the process takes at most, the handling of its packets included
 * as far as it is done in its name: 1 for all that there is. The destinations are taken in turn, and all are
 * of one family: 192.0.2.1:80 or [2001:db8::1]:80. KIND: syn, ack, rst, udp, or `one` (SYNs from a single
 * address); of IPv4 also pieces (first fragments, of which more never come), later (fragments whose first
 * never comes) and icmp (errors about random connections). Sources are random, of 198.18.0.0/15 and
 * 2001:2::/48, which are for such tests (RFC 2544, RFC 5180). It stops by itself and prints
 * "PACKETS NANOSECONDS CPU_NANOSECONDS". */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
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

static int64_t clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t now(void)
{
	return clock_ns(CLOCK_MONOTONIC);
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

struct target {
	int family;
	struct in_addr v4;
	struct in6_addr v6;
	uint16_t port; /* in network byte order */
};

/* addresses: source and destination, as they lie in the header */
static void set_tcp(struct tcphdr *tcp, const char *kind, uint16_t from, uint16_t to, const void *addresses,
		    int bytes)
{
	memset(tcp, 0, sizeof(*tcp));
	tcp->source = from;
	tcp->dest = to;
	tcp->seq = any();
	tcp->ack_seq = any();
	tcp->doff = 5;
	tcp->window = htons(65535);
	tcp->syn = !strcmp(kind, "syn") || !strcmp(kind, "one");
	tcp->ack = !strcmp(kind, "ack");
	tcp->rst = !strcmp(kind, "rst");
	tcp->check =
	    folded(sum(sum(htons(IPPROTO_TCP) + htons(sizeof(*tcp)), addresses, bytes), tcp, sizeof(*tcp)));
}

/* The same as packet(), of IPv6. */
static int packet6(char *at, const char *kind, const struct target *to)
{
	uint16_t port = htons(1024 + any() % 64512);
	struct ip6_hdr *ip = (void *)at;
	int bytes;

	memset(ip, 0, sizeof(*ip));
	ip->ip6_vfc = 6 << 4;
	ip->ip6_hlim = 64;
	inet_pton(AF_INET6, "2001:2::1", &ip->ip6_src);
	if (strcmp(kind, "one"))
		ip->ip6_src.s6_addr32[3] = any();
	ip->ip6_dst = to->v6;
	if (!strcmp(kind, "udp")) {
		struct udphdr *udp = (void *)(ip + 1);

		bytes = sizeof(*udp) + 24;
		ip->ip6_nxt = IPPROTO_UDP;
		memset(udp, 0, bytes);
		udp->source = port;
		udp->dest = to->port;
		udp->len = htons(bytes);
		udp->check =
		    folded(sum(sum(htons(IPPROTO_UDP) + htons(bytes), &ip->ip6_src, 32), udp, bytes));
	} else {
		bytes = sizeof(struct tcphdr);
		ip->ip6_nxt = IPPROTO_TCP;
		set_tcp((void *)(ip + 1), kind, port, to->port, &ip->ip6_src, 32);
	}
	ip->ip6_plen = htons(bytes);
	return bytes + sizeof(*ip);
}

/* Write a packet behind the Ethernet header; return its bytes. */
static int packet(char *at, const char *kind, const struct target *to)
{
	uint32_t source = htonl(0xc6120000 | (strcmp(kind, "one") ? any() & 0x1ffff : 1));
	uint16_t port = htons(1024 + any() % 64512);
	struct iphdr *ip = (void *)at;
	int bytes;

	if (!strcmp(kind, "udp") || !strcmp(kind, "pieces") || !strcmp(kind, "later")) {
		struct udphdr *udp = (void *)(ip + 1);

		bytes = sizeof(*udp) + 24;
		set_ip(ip, IPPROTO_UDP, source, to->v4.s_addr);
		if (!strcmp(kind, "pieces"))
			ip->frag_off = htons(IP_MF);
		if (!strcmp(kind, "later"))
			ip->frag_off = htons(8);
		udp->source = port;
		udp->dest = to->port;
		udp->len = htons(bytes);
		udp->check = 0;
	} else if (!strcmp(kind, "icmp")) {
		struct icmphdr *icmp = (void *)(ip + 1);
		struct iphdr *inner = (void *)(icmp + 1);
		uint16_t *ports = (void *)(inner + 1);

		bytes = sizeof(*icmp) + sizeof(*inner) + 8;
		set_ip(ip, IPPROTO_ICMP, source, to->v4.s_addr);
		memset(icmp, 0, bytes);
		icmp->type = ICMP_DEST_UNREACH;
		icmp->code = ICMP_PORT_UNREACH;
		set_ip(inner, IPPROTO_TCP, to->v4.s_addr, source);
		finish_ip(inner, 40);
		ports[0] = to->port;
		ports[1] = port;
		icmp->checksum = folded(sum(0, icmp, bytes));
	} else {
		bytes = sizeof(struct tcphdr);
		set_ip(ip, IPPROTO_TCP, source, to->v4.s_addr);
		set_tcp((void *)(ip + 1), kind, port, to->port, &ip->saddr, 8);
	}
	bytes += sizeof(*ip);
	finish_ip(ip, bytes);
	return bytes;
}

static struct target parsed(char *text)
{
	struct target found = {.family = *text == '[' ? AF_INET6 : AF_INET};
	char *port = strrchr(text, ':');

	if (!port)
		die(text);
	found.port = htons(atoi(port + 1));
	if (found.family == AF_INET6) {
		text++;
		port--;
	}
	*port = 0;
	if (!inet_pton(found.family, text, found.family == AF_INET ? (void *)&found.v4 : (void *)&found.v6))
		die(text);
	return found;
}

int main(int argc, char **argv)
{
	static struct target to[DESTINATIONS];
	static struct mmsghdr messages[BATCH];
	static struct iovec vectors[BATCH];
	static char frames[BATCH][FRAME];
	struct sockaddr_ll out = {.sll_family = AF_PACKET};
	struct ether_header link = {.ether_shost = {2, 0, 0, 0, 0, 99}};
	int count = argc - 6, bypass = 1, s, next = 0;
	int64_t begin, end, packets = 0;
	double share;

	if (count < 1 || count > DESTINATIONS ||
	    sscanf(argv[2], "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", &link.ether_dhost[0], &link.ether_dhost[1],
		   &link.ether_dhost[2], &link.ether_dhost[3], &link.ether_dhost[4],
		   &link.ether_dhost[5]) != 6) {
		fprintf(stderr, "usage: flood IFACE MAC KIND SECONDS SHARE ADDRESS:PORT...\n");
		return 2;
	}
	share = atof(argv[5]);
	for (int i = 0; i < count; i++)
		to[i] = parsed(argv[6 + i]);
	link.ether_type = out.sll_protocol = htons(to[0].family == AF_INET ? ETH_P_IP : ETH_P_IPV6);
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

		if (share < 1 && clock_ns(CLOCK_PROCESS_CPUTIME_ID) > share * (now() - begin)) {
			usleep(1000);
			continue;
		}
		for (int i = 0; i < BATCH; i++) {
			char *at = frames[i] + sizeof(link);
			int bytes = to[0].family == AF_INET ? packet(at, argv[3], &to[next])
							    : packet6(at, argv[3], &to[next]);

			vectors[i].iov_len = sizeof(link) + bytes;
			next = (next + 1) % count;
		}
		sent = sendmmsg(s, messages, BATCH, 0);
		if (sent < 0 && errno != ENOBUFS && errno != EAGAIN)
			die("sendmmsg");
		packets += sent > 0 ? sent : 0;
	}
	printf("%lld %lld %lld\n", (long long)packets, (long long)(now() - begin),
	       (long long)clock_ns(CLOCK_PROCESS_CPUTIME_ID));
	return 0;
}
