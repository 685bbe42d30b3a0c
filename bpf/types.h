/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The structs of the maps by which programs decide about packets; those of counters, names and events are in
 * records.h. lb/datapath/maps/layouts.py reads both files. What it has read, and the enums and constants that
 * Python declares itself, are compiled with the programs as static assertions.
 *
 * Addresses and ports are in network byte order everywhere. Everything else is in the CPU's order.
 * Padding is explicit and always zero: hash maps compare keys by their bytes.
 *
 * The names of fields are part of what a pinned map is recognised by (lb/datapath/maps/map_pins.py): to
 * rename a field of flows or affinity is to lose them at an upgrade. */
#pragma once
#include "config.h"

/* An address of the family that is being compiled. */
#define ADDR_WORDS (FAMILY == 6 ? 4 : 1)

struct addr {
	__be32 word[ADDR_WORDS];
};

enum direction {
	DIR_FORWARD = 0, /* as the client sends it: client -> VIP */
	DIR_REPLY = 1,	 /* as the backend answers: backend -> client, or -> the address that we SNATed to */
};

/* A Service address: clusterIP, node address + nodePort, load-balancer or external address. The entry with
 * port and protocol 0 stands for the address as a whole: it decides about pings, ports of no Service, and
 * fragments whose first one is unknown. */
struct vip_key {
	struct addr address;
	__be16 port;
	u8 protocol;
	u8 pad;
};

/* The backends that a VIP offers to clients of one side, as a region of `tables`. What `size` means:
 *   0                               no backend: the connection is rejected or, with VIP_USABLE, dropped
 *   1 to SMALL_SET                  so many backends, of equal weight
 *   LINE_ROWS + 1 to WEIGHTED_SET   LINE_ROWS and the number of backends, of unequal weights
 *   above WEIGHTED_SET              so many rows of a Maglev table */
struct backend_set {
	u32 offset; /* first row, at the beginning of a line */
	u32 size;
};

#define SMALL_SET    16
#define LINE_ROWS    (2 * SMALL_SET)
#define WEIGHTED_SET (LINE_ROWS + SMALL_SET)

/* What a Service port offered to the outside before its present set. A packet in mid-connection may be for a
 * backend of that: former.h. */
#define FORMER_SETS 4

struct former {
	/* The line of a small set, of backends that were ever offered: the oldest first. */
	struct backend_set ages;
	u32 unordered; /* of so many at the beginning of that line nobody knows which came first */
	u32 pad;
	/* Tables: the newest first, and the first of size 0 ends the list. */
	struct backend_set sets[FORMER_SETS];
};

/* An entry of `tables`: so many rows are found by one lookup. A small set is one line. It has the ids of the
 * backends and, SMALL_SET rows behind each id, the seed of that backend for rendezvous hashing. With unequal
 * weights there is a second line: FULL_WEIGHT divided by the weight of each backend. A Maglev table is as
 * many lines of ids as it needs. */
#define FULL_WEIGHT (1 << 26)

struct table_line {
	u32 rows[LINE_ROWS];
};

enum vip_kind {
	VIP_CLUSTER_IP = 1,
	VIP_NODE_PORT = 2,
	VIP_LOAD_BALANCER = 3,
	VIP_EXTERNAL_IP = 4,
};

/* Without the flag VIP_..._LOCAL of a side, the set of that side is the one of traffic policy Cluster. */
enum vip_flags {
	VIP_INSIDE_LOCAL = 1,  /* the set for the inside is that of traffic policy Local */
	VIP_OUTSIDE_LOCAL = 2, /* the set for the outside is that of traffic policy Local */
	VIP_USABLE = 4,	       /* some node has an endpoint, so an empty set follows from policy Local */
	VIP_SOURCE_RANGES = 8, /* only clients in `source_ranges` may open connections */
	VIP_GONE = 32,	       /* no Service has it any more: open connections go on, none begins */
	VIP_DIRECT =
	    64, /* packets for another node's backend are encapsulated; that node answers: direct.h */
	VIP_UDP_STAYS = 128, /* a datagram without a flow may be of a conversation that another node knows */
};

struct vip {
	u32 service;		    /* id of the Service port; names in `services` */
	u32 affinity_seconds;	    /* 0: no ClientIP affinity */
	struct backend_set inside;  /* for clients on this node: pods and host processes */
	struct backend_set outside; /* for packets that arrive at an uplink */
	u8 kind;		    /* enum vip_kind */
	u8 flags;		    /* enum vip_flags */
	u8 pad[2];
};

/* A network whose clients may use a Service port: key of a longest-prefix-match trie. */
struct source_range {
	u32 prefix;  /* how many bits of `service` and `address` count: 32 + the network's prefix length */
	u32 service; /* id of the Service port */
	struct addr address;
};

enum backend_state {
	BACKEND_FREE = 0,	 /* the slot is unused */
	BACKEND_ACTIVE = 1,	 /* takes new connections */
	BACKEND_TERMINATING = 2, /* keeps its connections; takes new ones only when a table lists it */
};

enum backend_flags {
	BACKEND_LOCAL =
	    1, /* on this node: reached through the stack, and SNATed only where PATH_HAIRPIN is */
	BACKEND_IN_CLUSTER_SET = 2, /* takes new connections under traffic policy Cluster */
	BACKEND_IN_LOCAL_SET = 4,   /* takes new connections under traffic policy Local */
};

/* One endpoint of one Service port; two Services that share a pod have a backend each. */
struct backend_slot {
	struct addr address;
	__be16 port;
	u8 state;	/* enum backend_state */
	u8 flags;	/* enum backend_flags */
	u32 service;	/* the Service port that owns the slot */
	u32 generation; /* counts the uses of the slot: a flow of an earlier use does not match */
	u32 node;	/* name in `nodes` */
};

struct flow_key {
	struct addr src;
	struct addr dst;
	__be16 sport;
	__be16 dport;
	u8 protocol;
	u8 direction; /* enum direction */
	u8 pad[2];
};

/* A backend of this node, as other nodes name it in packets that they encapsulate: see direct.h. */
struct socket_address {
	struct addr address;
	u32 service; /* id of the Service port */
	__be16 port;
	u8 pad[2];
};

enum flow_state {
	FLOW_NEW = 0,	      /* the client has sent; nothing shows that it gets what the backend answers */
	FLOW_ESTABLISHED = 1, /* both sides get what the other one sends */
	FLOW_CLOSING = 2,     /* one side has sent FIN */
	FLOW_CLOSED = 3,      /* both sides have sent FIN, or one RST: a new SYN selects afresh */
};

enum flow_path {
	PATH_STACK = 0,	  /* hand the packet to the kernel's stack */
	PATH_FORWARD = 1, /* forwarded by us: the far end is another node, or the client behind the uplink */
	PATH_HAIRPIN = 2, /* back out of the interface it came from: the pod is its own backend */
	PATH_HOST = 3, /* forwarded by us: the client is a process of this node, which no interface faces */
	PATH_REDIRECT = 4, /* past the stack to a pod of this node, and back; without the option PATH_STACK */
	PATH_LOOPBACK = 5, /* as PATH_HOST, of a VIP at an address of the node: replies enter by lo */
	PATH_DIRECT = 6,   /* encapsulated to the backend's node, which answers. The flow has a forward half
			    * alone, whose `src` is that node's address */
};

/* What the packets of a connection have shown so far: flow_entry's field `fins`. */
enum flow_signs {
	FIN_CLIENT = 1,
	FIN_BACKEND = 2,
	RST_CLIENT = 4, /* cleared when the client sends something else */
	RST_BACKEND = 8,
	SYN_AGAIN = 16, /* the client had to send its SYN again; cleared when the backend answers */
	HALF_OPEN = 32, /* nothing shows yet that the client gets what the backend sends: flow_state.h */
	ANSWERED = 64,	/* with HALF_OPEN: the backend has answered; cleared when the flow is established */
	MET_LATE = 128, /* with HALF_OPEN: the first packet seen here did not begin a connection */
};

/* One direction of a translated connection. Both directions of a pair carry the same service, backend,
 * generation, state and fins, and each can be rebuilt from the other. */
struct flow_entry {
	struct addr src; /* src..dport: what the packet's addresses and ports become */
	struct addr dst;
	__be16 sport;
	__be16 dport;
	u32 service;
	u32 backend;
	u32 generation; /* of the backend slot when the flow was made */
	u8 state;	/* enum flow_state */
	u8 fins;	/* enum flow_signs */
	u8 path;	/* enum flow_path */
	u8 pad;
	union {
		u32 touched; /* low half of the kernel's ticks (jiffies) when last_seen was written */
		u32 secret;  /* with ANSWERED: the number that the client must show, see struct packet */
	};
	u64 last_seen; /* ns, CLOCK_MONOTONIC; see FLOW_REFRESH_TICKS */
};

/* Entries of a bucket of a table that forgets: see cache.h. */
#define SLOTS 7

struct bucket_head {
	struct bpf_spin_lock lock; /* of writers */
	u32 until[SLOTS];	   /* when the entry of the slot expires: CACHE_TIME_SHIFT, until_time() */
	u64 tags[2]; /* 16 bits for each slot, from the lowest on; 0: the slot is free. The last 16 stay 0 */
	u32 evicted; /* how many established entries made room for others before they expired */
	u32 pad[3];
};

struct flow_slot {
	struct flow_key key;
	u8 pad[FAMILY == 6 ? 24 : 8]; /* to whole cache lines */
	struct flow_entry value;
};

struct flow_bucket {
	struct bucket_head head;
	struct flow_slot slots[SLOTS];
};

/* How the keys of a family's two tables are assigned to buckets. */
#define SEEDS 10 /* one for each word of the longest key */

struct hashing {
	u64 seeds[SEEDS]; /* random; they stay the same for as long as one of the tables exists */
	u32 flow_buckets;
	u32 affinity_buckets;
};

/* Names a datagram that comes in fragments, its pieces. */
struct fragment_key {
	struct addr src;
	struct addr dst;
	u32 id;	     /* as in the packet: 16 bits in IPv4, 32 in IPv6 */
	u8 protocol; /* the one that all pieces name: in IPv6 it may be that of an extension header */
	u8 pad[3];
};

/* What later pieces do not say: the ports of the datagram, and how much of it has come. */
struct fragment {
	u64 seen_ns; /* CLOCK_MONOTONIC: when the first piece came; see FRAGMENT_NS */
	u32 passed;  /* bytes of the datagram in the pieces that have passed so far */
	u32 whole;   /* bytes of the whole datagram; 0 until its last piece has passed */
	__be16 sport;
	__be16 dport;
	u8 hook;     /* enum hook: where the first piece was noted, and where pieces are counted */
	u8 protocol; /* behind extension headers */
	u8 pad[2];
};

/* A later piece that came before the first one of its datagram: see pieces.h. */
struct piece_key {
	struct fragment_key datagram;
	u32 place; /* where the piece is kept: a number below HELD_PIECES */
};

#define HELD_PIECES 48	 /* of one datagram, at most */
#define HELD_BYTES  2032 /* of one frame, at most */

struct held_piece {
	u64 since_ns; /* CLOCK_MONOTONIC */
	u32 len;      /* of the frame, bytes */
	u32 pad;
	u8 frame[HELD_BYTES];
};

/* Room for what does not fit on a program's stack: see connect.h. */
struct scratch {
	u64 room[64];
};

/* A socket, and an address in which a socket hook has replaced a VIP by a backend for it. There are two such
 * keys for each: by the VIP, and by the backend. */
struct socket_key {
	u32 cookie[2]; /* the socket's, low half first: as one word it would need padding */
	struct addr address;
	__be16 port;
	u8 direction; /* enum direction. FORWARD: address is the VIP; REPLY: the backend */
	u8 pad;
};

struct socket_entry {
	struct addr address; /* FORWARD: the backend; REPLY: the VIP */
	__be16 port;
	u8 pad[2];
	u32 service; /* service, backend, generation: of the backend when it was chosen */
	u32 backend;
	u32 generation;
};

/* ClientIP affinity: which backend of a Service port a client keeps. */
struct affinity_key {
	struct addr client;
	u32 service;
};

struct affinity {
	u64 last_used; /* ns, CLOCK_MONOTONIC: the last new connection */
	u32 backend;
	u32 generation;
};

struct affinity_slot {
	struct affinity_key key;
	u8 pad[FAMILY == 6 ? 4 : 0];
	struct affinity value;
};

struct affinity_bucket {
	struct bucket_head head;
	struct affinity_slot slots[SLOTS];
	u8 pad[FAMILY == 6 ? 40 : 24]; /* to whole cache lines */
};

/* An uplink or a tunnel, with the node's own address there: the source of packets that are SNATed and leave
 * by it. With the setting `redirect` the interfaces of pods have an entry as well; their `source` is 0. */
struct iface {
	struct addr source;
	u32 flags; /* enum iface_flags */
	u32 mtu;   /* bytes, for kernels whose bpf_fib_lookup() does not tell it; 0: of key 0, and of veths */
};

/* An uplink whose frames have link headers. The kernel does not tell an XDP program whether a frame is for
 * this host, so the program compares the frame's destination with `mac`. */
struct link {
	u32 ifindex; /* 0: the list has ended */
	u8 mac[ETH_ALEN];
	u8 pad[2];
};

#define LINKS 8

struct links {
	struct link links[LINKS];
};

/* An address that this node answers for on the segment of an interface: ARP in IPv4, neighbour discovery in
 * IPv6. */
struct announced_key {
	struct addr address;
	u32 ifindex;
};

/* As long as this node owns the address, its agent moves until_ns on. If the agent is killed or hangs, the
 * node falls silent before another node may take the address. */
struct announced {
	u64 until_ns;	  /* CLOCK_MONOTONIC: from then on nothing is answered for the address */
	u64 former_ns;	  /* CLOCK_MONOTONIC: until then packets of the former owner's connections go to it */
	u8 mac[ETH_ALEN]; /* the link address of the interface, which the answer names */
	u8 former[ETH_ALEN]; /* the link address of the node that has handed the address over */
	u8 pad[4];
};

/* A stranger who answers for an address that is answered for here. */
struct rival {
	u64 seen_ns; /* CLOCK_MONOTONIC: when it did so last */
	u64 frames;  /* how many frames it has sent */
	u8 mac[ETH_ALEN];
	u8 pad[2];
};

enum iface_flags {
	IFACE_UPLINK = 1,
	IFACE_TUNNEL = 2,
	IFACE_PEER = 4, /* a veth to a pod: a packet can be redirected to its other end */
};

/* Who serves connections of which the programs have no flow, while Services go over from kube-proxy or back
 * to it: see lb/cutover. */
enum cutover {
	CUTOVER_NONE = 0,   /* the programs serve all */
	CUTOVER_TAKE = 1,   /* connections that netfilter's conntrack knows are netfilter's */
	CUTOVER_LEAVE = 2,  /* what has no flow is netfilter's: no connection begins here */
	CUTOVER_SHADOW = 3, /* the programs are those of shadow mode (shadow.h), which serve nobody */
};

#define SNAT_SOURCES 4 /* of a node that has more, any address counts as one: lookups, but no loss */

/* The operator's settings, and what programs must know of the node. The agent writes them. */
struct settings {
	/* Until a flow is forgotten that no packet is seen of: */
	u64 tcp_syn_ns;		/* TCP, while the handshake is not complete */
	u64 tcp_established_ns; /* TCP */
	u64 tcp_closing_ns;	/* TCP, after the first FIN; after both, until the port is given away */
	u64 udp_new_ns;		/* UDP, of one datagram, answered or not */
	u64 udp_ns;		/* UDP, once the client has gone on after an answer */
	u64 sctp_ns;		/* SCTP; the start and the end of an association are timed as TCP's */

	u64 answer_interval_ns; /* one answer of each kind for each CPU, on average; 0: no limit */
	u64 answer_burst_ns;	/* how much of that may be taken at once */
	u64 netns;		/* the cookie of the node's own network namespace */
	u64 wall_ns; /* CLOCK_REALTIME less CLOCK_MONOTONIC: nodes agree on some moments by the time of day */
	__be16 snat_port_min; /* the range of ports for SNAT, both ends included */
	__be16 snat_port_max;
	__be16 former_port_min; /* the range of an earlier setting: flows with a port of it go on */
	__be16 former_port_max;
	struct addr snat_sources[SNAT_SOURCES]; /* the node's addresses that SNAT uses, or has used */
	struct addr cluster_net;		/* every clusterIP is in this network */
	struct addr cluster_mask;
	u8 all_sockets; /* socket hooks serve sockets of other network namespaces as well */
	u8 redirect;	/* packets for pods of this node go past the host's stack */
	u8 sources;	/* how many of snat_sources there are; 0, or more than fit: any address may be one */
	u8 pad;
	__be16 direct_port; /* the UDP port of encapsulated packets between nodes; 0: there are none */
	u16 direct_mss;	    /* TCP: the largest payload of a segment that still fits when encapsulated */
};

/* What a program leaves for the one that goes on with the packet: step.h. */
struct note {
	u32 hook;   /* enum hook: where the packet is */
	u32 reason; /* enum reason: what the packet will be counted as */
	u32 mtu;    /* bytes that the way on takes, of a packet that is larger */
	u8 l3;	    /* offset of the IP header */
	u8 side;    /* enum side */
	u8 answer;  /* enum answer */
	u8 egress;  /* the packet was met where it leaves the node, so an answer goes to a process of it */
	u8 stale;   /* the packet's tuple has a flow whose time is over */
	u8 watch;   /* enum watch_flags, as they were when the packet came */
	u8 asked;   /* owner.h has found that nobody else owns the packet */
	u8 attempt; /* how many backends were selected to which no SNAT port was free */
	u8 run;	    /* how many times a program has tried ports towards this backend in vain, see SNAT_RUNS */
	u8 weighed; /* `row` is set */
	u8 row;	    /* of the backend that weigh() has chosen in a set of unequal weights */
	u8 direct;  /* another node has sent the packet, encapsulated */
	u8 looked;  /* `today` and `former` are set: former.h has looked for them */
	u8 after;   /* enum step: where former.h goes on */
	u8 hops;    /* how many nodes have sent the packet on because they do not know its connection */
	u8 pad;
	u32 today;  /* id of the backend that the present set names; 0: none */
	u32 former; /* id of a backend on another node, chosen by an older set; 0: none. Before `looked`: the
		     * backend that is to be older than which, 0: than `today` */
	struct vip vip; /* STEP_CONNECT: the VIP that the packet is for, as it was found */
};

/* The packets that programs send in answer to one. */
enum answer {
	ANSWER_NONE = 0,	/* none; in `rates`: TCP resets, which have a limit of their own */
	ANSWER_REJECT = 1,	/* from the VIP: nobody is there (TCP reset, or ICMP error) */
	ANSWER_ECHO = 2,	/* from the VIP: the reply to a ping */
	ANSWER_TOO_BIG = 3,	/* from the node, as a router: ICMP error */
	ANSWER_TTL_EXPIRED = 4, /* from the node, as a router: ICMP error */
	ANSWER_NEIGHBOUR = 5,	/* for an address of `announced`: its link address (ARP, NDP) */
	ANSWER_KINDS,
};

/* On which side of the node the client is. */
enum side {
	INSIDE = 0,  /* a pod of this node: its interface sees both directions */
	OUTSIDE = 1, /* behind an uplink or a tunnel */
	HOST = 2,    /* a process of this node: its packets are first seen where they leave */
};

/* How many answers of one kind a CPU may still send. It is a token bucket, kept as the time when it will be
 * full again. */
struct rate {
	u64 full_ns; /* CLOCK_MONOTONIC */
};
