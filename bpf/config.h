/* Constants of the data plane and the few C idioms that bcc's prelude lacks. What an operator sets is not
 * here but in struct settings. */
#pragma once

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <linux/icmp.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#ifndef NULL
#define NULL ((void *)0)
#endif

#define NSEC_PER_SEC 1000000000ULL

/* A flow's last_seen is written, and its other half touched, at most this often. */
#define FLOW_REFRESH_NS NSEC_PER_SEC

/* How many ports are tried before SNAT counts as exhausted. */
#define SNAT_TRIES 24

/* The consistent hash must give the same backend on every node: one seed for all. */
#define HASH_SEED 0x4c426374U

#define REPLY_TTL 64

/* ETH_HLEN + an IPv4 header without options; packets with options are passed on untouched. */
#define L3_OFFSET ETH_HLEN
#define L4_OFFSET (ETH_HLEN + (int)sizeof(struct iphdr))

#define IP_DF	  0x4000
#define IP_MF	  0x2000
#define IP_OFFSET 0x1fff
