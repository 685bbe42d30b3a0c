/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every struct that a map holds. lb/datapath/maps/layouts.py reads this file; what it has read, and the enums
 * and constants that it has itself, are compiled with the programs as static assertions.
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

/* A Service address: clusterIP, node address + nodePort, load-balancer or external address. Port and protocol
 * 0 stand for the address as a whole: it is asked about pings, unknown ports and stray fragments. */
struct vip_key {
	struct addr address;
	__be16 port;
	u8 protocol;
	u8 pad;
};

/* A region of `tables`; size 0: no backend to offer, the connection is rejected or, with VIP_USABLE, dropped.
 * Up to SMALL_SET it is the number of backends; from LINE_ROWS + 1 to WEIGHTED_SET it is LINE_ROWS and the
 * number of backends, of unequal weights; above that the number of rows of their Maglev table. */
struct backend_set {
	u32 offset; /* first row, at the beginning of a line */
	u32 size;
};

#define SMALL_SET    16
#define LINE_ROWS    (2 * SMALL_SET)
#define WEIGHTED_SET (LINE_ROWS + SMALL_SET)

/* The sets that a Service port's outside has had before, for packets in mid-connection: former.h. */
#define FORMER_SETS 4

struct former {
	struct backend_set sets[FORMER_SETS]; /* the newest first; size 0: none, and none behind it */
};

/* What an array map has to give in one look. A small set is one line: its backends' ids and, SMALL_SET rows
 * behind each, its seed for rendezvous hashing. With unequal weights there is a second line: FULL_WEIGHT
 * divided by each weight. A Maglev table is as many lines as it takes, of ids. */
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

/* Without a VIP_..._LOCAL, that side's set is the one of traffic policy Cluster. */
enum vip_flags {
	VIP_INSIDE_LOCAL = 1,  /* the set for the inside is that of traffic policy Local */
	VIP_OUTSIDE_LOCAL = 2, /* the set for the outside is that of traffic policy Local */
	VIP_USABLE = 4,	       /* some node has an endpoint: an empty set is one of policy Local */
	VIP_SOURCE_RANGES = 8, /* only clients in `source_ranges` may open connections */
	VIP_GONE = 32,	       /* no Service has it any more: open connections go on, none begins */
	VIP_DIRECT = 64, /* to a backend on another node: encapsulated, which answers by itself: direct.h */
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
	u32 prefix;  /* bits that count of what follows: 32 and the network's prefix length */
	u32 service; /* id of the Service port */
	struct addr address;
};

enum backend_state {
	BACKEND_FREE = 0,	 /* the slot is unused */
	BACKEND_ACTIVE = 1,	 /* takes new connections */
	BACKEND_TERMINATING = 2, /* keeps its connections; takes new ones only when a table lists it */
};

enum backend_flags {
	BACKEND_LOCAL = 1, /* on this node: reached through the stack, never SNATed but for hairpin */
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

/* A backend of this node, as another node names it: see direct.h. */
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

/* What the packets of a connection have shown so far. */
enum flow_signs {
	FIN_CLIENT = 1,
	FIN_BACKEND = 2,
	RST_CLIENT = 4, /* until the client sends something else */
	RST_BACKEND = 8,
	SYN_AGAIN = 16, /* the client had to repeat itself; until the backend answers */
	HALF_OPEN = 32, /* nothing shows yet that the client gets what the backend sends: flow_state.h */
	ANSWERED = 64,	/* HALF_OPEN, and the backend has answered; until the flow is established */
	MET_LATE = 128, /* HALF_OPEN, and its first packet here was none that begins a connection */
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
		u32 secret;  /* ANSWERED: what the client has to show, see struct packet */
	};
	u64 last_seen; /* ns, CLOCK_MONOTONIC; see FLOW_REFRESH_TICKS */
};

/* How a table that forgets (cache.h) is filled: it names the entries of a bucket by their slot. */
#define SLOTS 7

struct bucket_head {
	struct bpf_spin_lock lock; /* of writers */
	u32 until[SLOTS];	   /* when the entry's time is over: see CACHE_TIME_SHIFT, until_time() */
	u64 tags[2]; /* 16 bits for each slot, from the lowest on; 0: the slot is free. The last 16 stay 0 */
	u32 evicted; /* entries, not provisional, that made room before their time was over */
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

/* Where the entries of a family's tables are. */
#define SEEDS 10 /* one for each word of the longest key */

struct hashing {
	u64 seeds[SEEDS]; /* by chance; they stay for as long as one of the tables does */
	u32 flow_buckets;
	u32 affinity_buckets;
};

/* A datagram in pieces. */
struct fragment_key {
	struct addr src;
	struct addr dst;
	u32 id;	     /* as in the packet: 16 bits in IPv4, 32 in IPv6 */
	u8 protocol; /* as all pieces name it: in IPv6 perhaps that of an extension header */
	u8 pad[3];
};

/* What its later pieces lack. */
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
	u32 place; /* below HELD_PIECES */
};

#define HELD_PIECES 48
#define HELD_BYTES  2032

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

/* What a socket means by an address, where a socket hook has replaced one. */
struct socket_key {
	u32 cookie[2]; /* names the socket, low half first: as one word it would make holes */
	struct addr address;
	__be16 port;
	u8 direction; /* enum direction. FORWARD: address is the VIP; REPLY: the backend */
	u8 pad;
};

struct socket_entry {
	struct addr address; /* FORWARD: the backend; REPLY: the VIP */
	__be16 port;
	u8 pad[2];
	u32 service; /* the backend's, when it was chosen */
	u32 backend;
	u32 generation;
};

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

/* What the node's own address is on an interface: the source address of what we SNAT out of it. With
 * `redirect` also the interfaces of pods, whose address is 0. */
struct iface {
	struct addr source;
	u32 flags; /* enum iface_flags */
};

/* An uplink with link headers. XDP, which the kernel does not tell whom a frame is for, compares with it. */
struct link {
	u32 ifindex; /* 0: none, and none behind it */
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

/* The agent puts until_ns off for as long as it owns the address. So a node whose agent was killed or hangs
 * is silent by the time that another node may take the address. */
struct announced {
	u64 until_ns;	  /* CLOCK_MONOTONIC: from then on it is not answered for */
	u64 former_ns;	  /* CLOCK_MONOTONIC: until then the former owner gets what is of its connections */
	u8 mac[ETH_ALEN]; /* the interface's own link address, which the answer tells */
	u8 former[ETH_ALEN]; /* that of the node which has handed the address over */
	u8 pad[4];
};

/* Who else claims an address that is answered for here. */
struct rival {
	u64 seen_ns; /* CLOCK_MONOTONIC: the last time */
	u64 frames;  /* so many in all */
	u8 mac[ETH_ALEN];
	u8 pad[2];
};

enum iface_flags {
	IFACE_UPLINK = 1,
	IFACE_TUNNEL = 2,
	IFACE_PEER = 4, /* a veth to a pod: what is redirected there comes out of its other end */
};

/* Who serves what this node's programs have no flow of, while Services change hands: see lb/cutover. */
enum cutover {
	CUTOVER_NONE = 0,   /* the programs serve all */
	CUTOVER_TAKE = 1,   /* connections that netfilter's conntrack knows are netfilter's */
	CUTOVER_LEAVE = 2,  /* what has no flow is netfilter's: no connection begins here */
	CUTOVER_SHADOW = 3, /* the programs are those of shadow mode (shadow.h), which serve nobody */
};

#define SNAT_SOURCES 4 /* a node with more of them is served all the same, at some cost */

/* Operator's settings; written by Python, read for flows that change state. */
struct settings {
	u64 tcp_syn_ns;		/* a TCP flow whose handshake is not complete */
	u64 tcp_established_ns; /* idle */
	u64 tcp_closing_ns;	/* after the first FIN, and before a port of a closed flow is reused */
	u64 udp_new_ns;		/* a UDP flow of one datagram, answered or not */
	u64 udp_ns;		/* idle, once both sides have sent and the client goes on */
	u64 sctp_ns;		/* idle; an association's start and end are timed as TCP's */
	u64 answer_interval_ns; /* one answer of each kind for each CPU, on average; 0: no limit */
	u64 answer_burst_ns;	/* how much of that may be taken at once */
	u64 netns;		/* the cookie of the node's own network namespace */
	u64 wall_ns; /* CLOCK_REALTIME less CLOCK_MONOTONIC, for what nodes agree on by the time of day */
	__be16 snat_port_min; /* the range that SNAT takes ports of, inclusive */
	__be16 snat_port_max;
	__be16 former_port_min; /* the range before: flows that have a port of it go on */
	__be16 former_port_max;
	struct addr snat_sources[SNAT_SOURCES]; /* the node's addresses that SNAT uses, or has used */
	struct addr cluster_net;		/* every clusterIP is in this network */
	struct addr cluster_mask;
	u8 all_sockets; /* the socket hooks serve those of other network namespaces, too */
	u8 redirect;	/* past the stack, where the backend is a pod of this node */
	u8 sources;	/* how many of snat_sources there are; 0, or more than fit: any address may be one */
	u8 pad;
	__be16 direct_port; /* UDP: where nodes of the cluster send what is encapsulated; 0: nowhere */
	u16 direct_mss;	    /* TCP: the most that a segment to a backend behind another node may hold */
};

/* Names, so that a dump needs nothing but the maps. NUL-terminated, NUL-padded. */
struct service_name {
	char namespace[64];
	char name[64];
	char port_name[64];
};

struct node_name {
	char name[256];
};

/* What a program tells the one that it goes on in. */
struct note {
	u32 hook;   /* enum hook: where the packet is */
	u32 reason; /* enum reason, for the counter */
	u32 mtu;    /* bytes, for what is too big: ANSWER_TOO_BIG, REASON_FRAGMENTED */
	u8 l3;	    /* offset of the IP header */
	u8 side;    /* enum side */
	u8 answer;  /* enum answer */
	u8 egress;  /* the packet leaves this node: an answer goes to a process of it */
	u8 stale;   /* the packet's tuple has a flow that is over */
	u8 watch;   /* enum watch_flags, as they were when the packet came */
	u8 asked;   /* nobody else owns the packet: see owner.h */
	u8 attempt; /* so many times there was no SNAT port towards the backend selected */
	u8 weighed; /* row is set: see weigh() */
	u8 row;
	u8 direct; /* another node has sent the packet, encapsulated */
	u8 looked; /* `former` was looked for */
	u8 after;  /* enum step: where to go on when it was */
	u8 pad[3];
	u32 former; /* id of the backend that an older set names; 0: none other than today's */
};

/* What the data plane says itself. */
enum answer {
	ANSWER_NONE = 0,	/* in `rates`: a TCP reset */
	ANSWER_REJECT = 1,	/* for the VIP: nobody is there */
	ANSWER_ECHO = 2,	/* for the VIP: a ping */
	ANSWER_TOO_BIG = 3,	/* as a router */
	ANSWER_TTL_EXPIRED = 4, /* as a router */
	ANSWER_NEIGHBOUR = 5,	/* for an address of `announced`: its link address */
	ANSWER_KINDS,
};

/* On which side of the node the client is. */
enum side {
	INSIDE = 0,  /* a pod of this node: its interface sees both directions */
	OUTSIDE = 1, /* behind an uplink or a tunnel */
	HOST = 2,    /* a process of this node: its packets are first seen where they leave */
};

/* How many answers of a kind a CPU may still give: a token bucket, told by the time when it is full again. */
struct rate {
	u64 full_ns; /* CLOCK_MONOTONIC */
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
	u32 generation; /* of the backend slot: a later use begins at 0, an earlier one counts no more */
	u32 pad;
};

/* Of so many backends in one entry of an array: to the kernel each entry is an allocation for each CPU. */
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

/* From SYN to SYN-ACK, in powers of two of a microsecond: up to 2^HANDSHAKE_FIRST, up to twice that, ...,
 * and the rest. */
#define HANDSHAKE_FIRST	  4
#define HANDSHAKE_BUCKETS 21

#define DROP_REASONS 64 /* not less than there are */

/* What is counted of a Service port, whose entry Python makes and deletes; all CPUs add to it. */
struct service_counters {
	u64 handshakes[HANDSHAKE_BUCKETS]; /* not cumulative */
	u64 handshake_ns;		   /* the sum of all */
	u64 dropped[DROP_REASONS];	   /* by enum reason: packets that went nowhere, answered or not */
};

/* What backends that have ended, and whose slots others have now, counted for their Service port. */
struct ended {
	u64 packets;
	u64 bytes;
	u64 reply_packets;
	u64 reply_bytes;
	u64 opened;
	u64 refused;
	u64 unanswered;
};

/* What somebody who watches wants to be told. */
enum watch_flags {
	WATCH_FLOWS = 1,   /* connections that begin, and that both sides have ended */
	WATCH_DROPS = 2,   /* packets that are dropped, or refused by an answer of ours */
	WATCH_PACKETS = 4, /* every packet that is translated or answered: none takes the short way */
	WATCH_BYTES = 8,   /* with its first bytes, as it came and as it goes */
};

#define WATCHED_SERVICES 16

struct watch {
	u64 until_ns; /* CLOCK_MONOTONIC: then nobody watches any more, and `what` becomes 0 */
	u64 lost;     /* events that the ring had no room for, since the map was made */
	u32 what;     /* enum watch_flags; 0: nobody watches */
	u32 one_in;   /* of so many connections one is told of, with all its packets; 0 and 1: of each */
	u32 services[WATCHED_SERVICES]; /* ids of Service ports, then 0; the first 0: all of them */
};

/* How much of a packet an event has. */
#define EVENT_BYTES 256

/* What became of one packet. Addresses of IPv4 are in the first word, the others 0. */
struct event {
	u64 time_ns;   /* CLOCK_MONOTONIC */
	u32 hook;      /* enum hook */
	u32 reason;    /* enum reason */
	s32 verdict;   /* as the kernel understands it, of the hook's kind of program */
	u32 ifindex;   /* of the hook */
	u32 service;   /* id of the Service port; 0: none is known */
	u32 backend;   /* id; of meaning where `to` has an address */
	u32 len;       /* bytes of the frame as it came */
	u32 sent_len;  /* of the frame that goes; 0: it is dropped */
	__be32 src[4]; /* src..dport: as it came; ports are 0 where there are none */
	__be32 dst[4];
	__be32 to_src[4]; /* to_src..to_dport: what that became, or would have; 0: nothing */
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
	u8 before[EVENT_BYTES]; /* before and after: with WATCH_BYTES alone */
	u8 after[EVENT_BYTES];
};

/* What a record of shadow mode is about: see shadow.h. */
enum shadow_kind {
	SHADOW_DECIDED = 1,  /* the first packet of a connection, and what would have become of it */
	SHADOW_CALLED = 2,   /* the same of a call of a process of this node: its port is not known yet */
	SHADOW_SENT = 3,     /* the first packet after such a call, as netfilter made it */
	SHADOW_ANSWERED = 4, /* somebody refuses a packet of this tuple, in a VIP's name */
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
	u64 cookie;    /* of the sender's socket; CALLED, SENT */
	__be32 src[4]; /* src..dport: as it came */
	__be32 dst[4];
	__be32 to_dst[4]; /* to_dst, to_dport: the backend, of SERVED */
	__be16 sport;
	__be16 dport;
	__be16 to_dport;
	u8 family; /* 4 or 6 */
	u8 protocol;
	u32 kind;    /* enum shadow_kind */
	u32 outcome; /* enum shadow_outcome; DECIDED, CALLED */
	u32 reason;  /* enum reason */
	u32 service; /* id of the Service port; 0: none is known */
	u32 backend; /* id, of SERVED */
	u8 side;     /* enum side */
	u8 connects; /* CALLED: the call connects; with UDP nothing need be sent then */
	u8 pad[2];
};
