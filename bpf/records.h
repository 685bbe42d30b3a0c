/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What programs leave for people and for the agent: counters, names, events. Nothing here decides about a
 * packet. As types.h, this file is read by lb/datapath/maps/layouts.py. */
#pragma once
#include "types.h"

/* Names, so that a dump needs nothing but the maps. They end with NUL, and are padded with it. */
struct service_name {
	char namespace[64];
	char name[64];
	char port_name[64];
};

struct node_name {
	char name[256];
};

struct counter {
	u64 packets;
	u64 bytes;
};

/* What was translated to a backend and back from it, on one CPU. */
struct traffic {
	u64 packets;
	u64 bytes;
	u64 reply_packets;
	u64 reply_bytes;
	u32 generation; /* of the backend slot: a later one begins at 0, packets of earlier ones do not count
			 */
	u32 pad;
};

/* Backends that share one entry of the map: the kernel allocates each entry of a per-CPU array for each CPU.
 */
#define TRAFFIC_LINE 16

struct traffic_line {
	struct traffic cells[TRAFFIC_LINE];
};

/* What became of the connections to a backend; all CPUs add to it. */
struct connections {
	u64 opened;	/* flows made for a first packet, sockets led to it */
	u64 refused;	/* it answered the first packet with a reset */
	u64 unanswered; /* the first packet was sent again before it answered */
};

/* How long handshakes take, from SYN to SYN-ACK: the first bucket ends at 2^HANDSHAKE_FIRST microseconds,
 * each further one at twice as many as the one before, and the last one has all that took longer. */
#define HANDSHAKE_FIRST	  4
#define HANDSHAKE_BUCKETS 21

#define DROP_REASONS 64 /* at least as many as enum reason has */

/* What is counted of a Service port, whose entry Python makes and deletes; all CPUs add to it. */
struct service_counters {
	u64 handshakes[HANDSHAKE_BUCKETS]; /* how many took so long; not cumulative */
	u64 handshake_ns;		   /* the sum of their times */
	u64 dropped[DROP_REASONS];	   /* by enum reason: packets dropped, or answered with an error */
};

/* Counters of the former backends of a Service port, whose slots other backends have by now. */
struct ended {
	u64 packets;
	u64 bytes;
	u64 reply_packets;
	u64 reply_bytes;
	u64 opened;
	u64 refused;
	u64 unanswered;
};

/* Which events `lbctl monitor` asks for. */
enum watch_flags {
	WATCH_FLOWS = 1,   /* a connection begins, or both sides have ended it */
	WATCH_DROPS = 2,   /* a packet is dropped, or refused by an answer of ours */
	WATCH_PACKETS = 4, /* a packet is translated or answered: none takes the short way then */
	WATCH_BYTES = 8,   /* with each event the first bytes of the packet, before and after */
};

#define WATCHED_SERVICES 16

struct watch {
	u64 until_ns; /* CLOCK_MONOTONIC: the first program after this moment sets `what` to 0 */
	u64 lost;     /* events that the ring had no room for, since the map was made */
	u32 what;     /* enum watch_flags; 0: nobody watches */
	u32 one_in;   /* one of so many connections is reported, with all its packets; 0 and 1: every one */
	u32 services[WATCHED_SERVICES]; /* ids of the Service ports wanted, then 0; none: all are wanted */
};

/* Bytes of a packet in an event, at most. */
#define EVENT_BYTES 256

/* What became of one packet. Addresses of IPv4 are in the first word, the others 0. */
struct event {
	u64 time_ns;   /* CLOCK_MONOTONIC */
	u32 hook;      /* enum hook */
	u32 reason;    /* enum reason */
	s32 verdict;   /* of the program, as the kernel reads it: XDP_... or TC_ACT_... */
	u32 ifindex;   /* of the hook */
	u32 service;   /* id of the Service port; 0: none is known */
	u32 backend;   /* id; it counts only if to_dst is not 0 */
	u32 len;       /* bytes of the frame as it came */
	u32 sent_len;  /* bytes of the frame as it goes; 0: it is dropped */
	__be32 src[4]; /* src..dport: as it came; ports are 0 where there are none */
	__be32 dst[4];
	__be32 to_src[4]; /* to_src..to_dport: as translated, or as it would have been; 0: it was not */
	__be32 to_dst[4];
	__be16 sport;
	__be16 dport;
	__be16 to_sport;
	__be16 to_dport;
	u16 captured;	   /* bytes in `before` */
	u16 sent_captured; /* bytes in `after` */
	u8 family;	   /* 4 or 6 */
	u8 protocol;
	u8 direction; /* enum direction */
	u8 tcp_flags;
	u8 closes; /* with this packet both sides have ended the connection */
	u8 l3;	   /* bytes before the IP header as it came: 0 where there is no link header */
	u8 pad[6];
	u8 before[EVENT_BYTES]; /* before, after: filled with WATCH_BYTES only */
	u8 after[EVENT_BYTES];
};

/* What a record of shadow mode is about, see shadow.h. */
enum shadow_kind {
	SHADOW_DECIDED = 1,  /* the first packet of a connection, and what would have become of it */
	SHADOW_CALLED = 2,   /* a call of a process of this node, likewise: its port is not known yet */
	SHADOW_SENT = 3,     /* the first packet after such a call, as netfilter has translated it */
	SHADOW_ANSWERED = 4, /* a packet in a VIP's name that refuses the connection of this tuple */
};

enum shadow_outcome {
	SHADOW_UNTOUCHED = 0,
	SHADOW_SERVED = 1, /* led to a backend */
	SHADOW_REFUSED = 2,
	SHADOW_DROPPED = 3,
};

/* A record of shadow mode, in `events`. Addresses of IPv4 are in the first word, the others 0. */
struct shadowed {
	u64 time_ns;   /* CLOCK_MONOTONIC */
	u64 cookie;    /* of the sender's socket; set for CALLED and SENT */
	__be32 src[4]; /* src..dport: as it came */
	__be32 dst[4];
	__be32 to_dst[4]; /* to_dst, to_dport: the backend; set for SERVED */
	__be16 sport;
	__be16 dport;
	__be16 to_dport;
	u8 family; /* 4 or 6 */
	u8 protocol;
	u32 kind;    /* enum shadow_kind */
	u32 outcome; /* enum shadow_outcome; set for DECIDED and CALLED */
	u32 reason;  /* enum reason */
	u32 service; /* id of the Service port; 0: none is known */
	u32 backend; /* id; set for SERVED */
	u8 side;     /* enum side */
	u8 connects; /* CALLED: by connect(), after which a UDP socket may send nothing */
	u8 pad[2];
};
