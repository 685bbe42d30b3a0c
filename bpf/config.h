/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Constants of the data plane and the few C idioms that bcc's prelude lacks. What an operator sets is not
 * here but in struct settings.
 *
 * Everything is compiled twice, with FAMILY 4 and 6: one shape, two instances. What the families do not share
 * is the width of an address (types.h) and the headers on the wire (ip4.h, ip6.h). */
#pragma once

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <linux/icmp.h>
#include <linux/icmpv6.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>

#if FAMILY != 4 && FAMILY != 6
#error "FAMILY is the IP version: 4 or 6"
#endif

#undef __always_inline /* linux/stddef.h has a weaker one */
#define __always_inline inline __attribute__((always_inline))
#define likely(x)	__builtin_expect(!!(x), 1)
#define unlikely(x)	__builtin_expect(!!(x), 0)

/* Keep a struct in memory. Taken apart into registers its words are spilled to 8 bytes each, and with
 * addresses of four words the stack of 512 bytes would not do. */
#define KEEP_WHOLE(object) asm volatile("" : : "r"(&(object)) : "memory")
#define IN_MEMORY(object)  asm("" : "+m"(object))

/* Give a number an upper or a lower bound that every verifier understands: the register that is used next is
 * itself compared. The verifiers of Linux 5.10 and 6.1 learn nothing from "not equal", and nothing about a
 * copy of the number on the stack. */
#define AT_MOST(number, limit) asm volatile("if %0 <= %1 goto +1; %0 = %1" : "+r"(number) : "i"(limit))

#define AT_LEAST(number, limit) asm volatile("if %0 >= %1 goto +1; %0 = %1" : "+r"(number) : "i"(limit))

/* Is a number below a limit, which is a constant? The comparison is made once, with the number on its left.
 * The compiler may put the limit into a register and compare that with the number ("7 > slot"). The verifier
 * of Linux 5.10 then does not see that a second comparison has the same answer: it follows the case in which
 * the number is above and below the limit at once, and refuses the pointers of that case. */
#define IS_BELOW(number, limit)                                                                              \
	({                                                                                                   \
		u64 is_below = true;                                                                         \
		asm volatile("if %1 < %2 goto +1; %0 = 0" : "+r"(is_below) : "r"(number), "i"(limit));       \
		is_below;                                                                                    \
	})

/* Fields of 32 bits of a program's context, by instructions of our own. The compiler likes to keep the sum of
 * the context and an offset, which the verifier refuses. And what it reads of `data` and `data_end` it
 * compares once: clang 19 leaves out a check of bounds that another one implies, which the verifier does not
 * see. */
#define CTX_LOAD(ctx, field)                                                                                 \
	({                                                                                                   \
		u64 loaded;                                                                                  \
		asm volatile("%0 = *(u32 *)(%1 + %2)"                                                        \
			     : "=r"(loaded)                                                                  \
			     : "r"(ctx), "i"(__builtin_offsetof(ctx_t, field)));                             \
		loaded;                                                                                      \
	})

#define CTX_STORE(ctx, field, value)                                                                         \
	asm volatile("*(u32 *)(%0 + %1) = %2"                                                                \
		     :                                                                                       \
		     : "r"(ctx), "i"(__builtin_offsetof(ctx_t, field)), "r"((u64)(value))                    \
		     : "memory")

#ifndef NULL
#define NULL ((void *)0)
#endif

/* Has this kernel the feature? 1 or 0, or a number that tells more, put in by the loader: see
 * lb/datapath/programs/features.py. So what is compiled is the same for every kernel; the verifier leaves out
 * what is never reached. */
#define HAS(feature) ((u64)bpf_pseudo_fd(0, HAS_##feature))

#define NSEC_PER_SEC 1000000000ULL

/* A flow's last_seen is written, and its other half touched, at most this often: every second where the
 * kernel ticks 250 times a second, every 0.25 s where 1000 times. To read the ticks costs nothing, to read
 * the clock as much as two lookups. */
#define FLOW_REFRESH_TICKS 250

/* Two fields as they lie in memory, first and second, in one word: bits is the size of each. A key written in
 * small pieces and then read in large ones by the map waits for the pieces to arrive. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define JOIN(type, bits, first, second) ((type)(first) | (type)(second) << (bits))
#else
#define JOIN(type, bits, first, second) ((type)(second) | (type)(first) << (bits))
#endif

/* How many ports towards a backend are tried before SNAT counts as exhausted: SNAT_TRIES by a program, which
 * is then entered again, SNAT_RUNS times in all. For the verifier each try costs as much as all that follows.
 * The first PARTICULAR_TRIES of all pass over ports that may be in TIME-WAIT at the backend. The first
 * FREE_TRIES take a free port only; later ones also take the port of a flow that has been half open for
 * HANDSHAKE_NS. */
#define SNAT_TRIES	 4
#define SNAT_RUNS	 5
#define PARTICULAR_TRIES 16
#define FREE_TRIES	 4
#define HANDSHAKE_NS	 NSEC_PER_SEC

/* How many times another backend is tried when there is no port towards the one before. With SNAT_RUNS and a
 * step that weighs for each, that is 24 of the 32 tail calls that kernels allow. */
#define SNAT_ATTEMPTS 3

/* How many times a node leads one packet on, from Service to Service, before it takes that for a loop. */
#define MAX_TURNS 4

/* Answers to a datagram that go on for so long are a stream: as in netfilter's conntrack. */
#define UDP_STREAM_NS ((s64)(2 * NSEC_PER_SEC))

/* How long Linux keeps the tuple of a connection that it has closed first: RFC 9293, section 3.6.1. */
#define TIME_WAIT_NS ((s64)(60 * NSEC_PER_SEC))

/* The ports that are tried at random for a client that keeps its address: below those that Linux takes for
 * its connections, of which one may lead to the backend itself. */
#define CLIENT_PORT_MIN 1024
#define CLIENT_PORT_MAX 32767

/* The port of such a client is moved, see moved_port() in connect.h: within 1 to 1022 (1023 is left over),
 * within 1024 to 64511, and within 64512 to 65535. The middle part is twice CLIENT_PORT_MAX less its start.
 */
#define PORT_PRIVILEGED 1024
#define PORT_HIGH	64512

/* How long the pieces of a datagram wait for each other. IPv4 has 16 bits for a datagram's number, which a
 * fast sender has used up in seconds. */
#define FRAGMENT_NS (5 * NSEC_PER_SEC)

/* The consistent hash must give the same backend on every node: one seed for all. */
#define HASH_SEED 0x4c426374U

#define REPLY_TTL 64

/* How much of a packet behind its IP header an ICMP error quotes: RFC 792. */
#define QUOTED_L4 8
