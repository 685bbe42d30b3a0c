/* SPDX-License-Identifier: Apache-2.0 */
/* Load and servers for bench/lab_traffic.py.
 *
 *   traffic serve PORT
 *   traffic WORKLOAD MILLISECONDS PROCESSES ADDRESS:PORT...
 *
 * One server takes everything on a TCP and a UDP port; the first byte of a message says what is wanted: 'k'
 * is answered, 'c' is answered and the connection closed, anything else is swallowed. A client process talks
 * to one of the addresses, in turn. It prints "OPERATIONS NANOSECONDS", and for `connect` then each
 * connection's time until it was established, in ns, a line each. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MESSAGE	  64	/* bytes of a request, of its answer, and of a datagram */
#define KEPT	  8	/* connections or sockets of a client process that has several */
#define CHUNK	  65536 /* bytes of a write of the bulk stream */
#define LATENCIES 65536

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Servers */

static int bound(int type, int port)
{
	struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons(port)};
	int fd = socket(AF_INET, type | SOCK_NONBLOCK, 0), one = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *)&own, sizeof(own)) < 0)
		die("bind");
	if (type == SOCK_STREAM && listen(fd, 4096) < 0)
		die("listen");
	return fd;
}

static void serve_datagrams(int fd)
{
	struct sockaddr_in peer;
	char data[MESSAGE];
	ssize_t len;

	for (int i = 0; i < 64; i++) {
		socklen_t size = sizeof(peer);

		len = recvfrom(fd, data, sizeof(data), 0, (struct sockaddr *)&peer, &size);
		if (len < 0)
			return;
		if (len && data[0] == 'k')
			sendto(fd, data, len, 0, (struct sockaddr *)&peer, size);
	}
}

/* False: the connection is over. */
static int serve_stream(int fd)
{
	static char data[CHUNK];
	ssize_t len = recv(fd, data, sizeof(data), 0);

	if (len <= 0)
		return len < 0 && errno == EAGAIN;
	if (data[0] == 'k' || data[0] == 'c')
		send(fd, data, len, MSG_NOSIGNAL);
	return data[0] != 'c';
}

static void serve(int port)
{
	int tcp = bound(SOCK_STREAM, port), udp = bound(SOCK_DGRAM, port), poll = epoll_create1(0), one = 1;
	struct epoll_event event = {.events = EPOLLIN}, ready[64];

	event.data.fd = tcp;
	epoll_ctl(poll, EPOLL_CTL_ADD, tcp, &event);
	event.data.fd = udp;
	epoll_ctl(poll, EPOLL_CTL_ADD, udp, &event);
	puts("ready");
	fflush(stdout);
	for (;;) {
		int count = epoll_wait(poll, ready, 64, -1);

		for (int i = 0; i < count; i++) {
			int fd = ready[i].data.fd;

			if (fd == udp) {
				serve_datagrams(udp);
			} else if (fd != tcp) {
				if (!serve_stream(fd))
					close(fd);
			} else if ((event.data.fd = accept4(tcp, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
				setsockopt(event.data.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
				if (!serve_stream(event.data.fd))
					close(event.data.fd);
				else
					epoll_ctl(poll, EPOLL_CTL_ADD, event.data.fd, &event);
			}
		}
	}
}

/* Clients. Each does everything at least once: a round may be so short that to connect takes all of it. */

static struct sockaddr_in servers[64];
static int server_count;

static int64_t latencies[LATENCIES];
static int latency_count;

static int connected(int type)
{
	const struct sockaddr_in *to = &servers[random() % server_count];
	struct timeval patience = {.tv_usec = 200000};
	int fd = socket(AF_INET, type, 0), one = 1;

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	if (connect(fd, (const struct sockaddr *)to, sizeof(*to)) < 0)
		die("connect");
	if (type == SOCK_STREAM)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return fd;
}

static int64_t new_connections(int64_t end)
{
	char data[MESSAGE] = "c";
	int64_t done = 0, begun = now();

	do {
		int fd = connected(SOCK_STREAM);

		if (latency_count < LATENCIES)
			latencies[latency_count++] = now() - begun;
		if (send(fd, data, sizeof(data), MSG_NOSIGNAL) != sizeof(data))
			die("send");
		while (recv(fd, data + 1, sizeof(data) - 1, 0) > 0)
			;
		close(fd);
		done++;
	} while ((begun = now()) < end);
	return done;
}

/* Of UDP what is lost is not counted. */
static int64_t requests(int64_t end, int type)
{
	char data[MESSAGE] = "k";
	int fds[KEPT];
	int64_t done = 0;

	for (int i = 0; i < KEPT; i++)
		fds[i] = connected(type);
	do {
		for (int i = 0; i < KEPT; i++)
			if (send(fds[i], data, sizeof(data), MSG_NOSIGNAL) < 0)
				die("send");
		for (int i = 0; i < KEPT; i++)
			done += recv(fds[i], data, sizeof(data), type == SOCK_STREAM ? MSG_WAITALL : 0) > 0;
	} while (now() < end);
	return done;
}

static int64_t datagrams(int64_t end)
{
	char data[MESSAGE] = "s";
	int fd = connected(SOCK_DGRAM);
	int64_t done = 0;

	do
		for (int i = 0; i < 32; i++)
			done += send(fd, data, sizeof(data), 0) > 0;
	while (now() < end);
	return done;
}

static int64_t bulk(int64_t end)
{
	static char data[CHUNK] = "b";
	int fd = connected(SOCK_STREAM);
	int64_t done = 0;

	memset(data, 'b', sizeof(data));
	do {
		ssize_t sent = send(fd, data, sizeof(data), MSG_NOSIGNAL);

		if (sent < 0)
			die("send");
		done += sent;
	} while (now() < end);
	return done;
}

static int64_t work(const char *workload, int64_t end)
{
	if (!strcmp(workload, "connect"))
		return new_connections(end);
	if (!strcmp(workload, "requests"))
		return requests(end, SOCK_STREAM);
	if (!strcmp(workload, "echo"))
		return requests(end, SOCK_DGRAM);
	if (!strcmp(workload, "datagrams"))
		return datagrams(end);
	if (!strcmp(workload, "bulk"))
		return bulk(end);
	fprintf(stderr, "no workload %s\n", workload);
	exit(2);
}

static struct sockaddr_in parsed(char *text)
{
	struct sockaddr_in to = {.sin_family = AF_INET};
	char *colon = strrchr(text, ':');

	if (!colon)
		die(text);
	*colon = 0;
	to.sin_port = htons(atoi(colon + 1));
	if (inet_pton(AF_INET, text, &to.sin_addr) != 1)
		die(text);
	return to;
}

int main(int argc, char **argv)
{
	int64_t begun = now(), end, *total;
	int processes, status, failed = 0;

	if (argc == 3 && !strcmp(argv[1], "serve"))
		serve(atoi(argv[2]));
	if (argc < 5)
		return 2;
	end = begun + atoll(argv[2]) * 1000000;
	processes = atoi(argv[3]);
	total = mmap(NULL, sizeof(*total), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int i = 4; i < argc && server_count < 64; i++)
		servers[server_count++] = parsed(argv[i]);
	for (int i = 1; i < processes; i++) {
		srandom(begun + i);
		if (!fork()) {
			__atomic_add_fetch(total, work(argv[1], end), __ATOMIC_RELAXED);
			_exit(0);
		}
	}
	srandom(begun);
	__atomic_add_fetch(total, work(argv[1], end), __ATOMIC_RELAXED);
	end = now();
	while (wait(&status) > 0)
		failed |= status;
	printf("%lld %lld\n", (long long)*total, (long long)(end - begun));
	for (int i = 0; i < latency_count; i++)
		printf("%lld\n", (long long)latencies[i]);
	return failed ? 1 : 0;
}
