/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is known of a packet: filled by parse.h, read by all that follows. */
#pragma once
#include "reasons.h"
#include "tuple.h"

enum kind {
	KIND_FLOW = 0, /* a packet of a connection, or a piece of one */
	KIND_ECHO = 1, /* an ICMP echo request, or a later piece of what may be one */
};

enum piece {
	PIECE_WHOLE = 0,
	PIECE_FIRST = 1, /* of a fragmented packet: has the L4 header */
	PIECE_LATER = 2, /* has none */
};

/* Offsets are in bytes from the start of the frame. */
struct packet {
	struct tuple tuple;
	u32 fragment_id;  /* of a piece */
	u32 ip_len;	  /* bytes from the IP header on: more than 65,535 of what awaits segmentation */
	u32 l4_len;	  /* of these, bytes from the L4 header on */
	u32 payload_len;  /* of these, bytes behind the L4 header */
	u32 sum_len;	  /* SCTP: bytes that its checksum covers; 0: its first piece does not tell */
	u16 piece_at;	  /* of a piece: bytes of its datagram before it */
	u16 piece_len;	  /* of a piece: bytes of its datagram in it */
	u8 l3;		  /* offset of the IP header: 0 where there is no link header */
	u8 l4;		  /* offset of the L4 header, behind all options and extension headers */
	__sum16 ip_check; /* IPv4 */
	u8 ttl;
	u8 tos;	       /* IPv4 */
	u8 kind;       /* enum kind */
	u8 piece;      /* enum piece */
	u8 piece_next; /* of a piece: the protocol that it names. All pieces of a datagram name the same,
			* which in IPv6 is an extension header's if one is in front of the first piece's L4
			* header */
	u8 last;       /* the piece is its datagram's last */
	u8 may_cut;    /* IPv4: routers may cut it in pieces, DF is not set */
	u8 tcp_flags;  /* enum tcp_flag; 0 for UDP */
	u32 secret;    /* known to receivers of this packet alone. TCP: its sequence number + 1; INIT ACK: its
			  tag */
	u32 shown;     /* the secret that its sender has received. TCP: its acknowledgement; SCTP: its tag */
};

enum tcp_flag {
	TCP_FIN = 0x01,
	TCP_SYN = 0x02,
	TCP_RST = 0x04,
	TCP_ACK = 0x10,
};

/* May a packet open a connection? Of UDP nothing tells. */
static __always_inline bool opens(const struct packet *pkt)
{
	return pkt->tuple.protocol == IPPROTO_UDP || pkt->tcp_flags & TCP_SYN;
}

/* SCTP's common header and the type of the first chunk: RFC 9260, sections 3.1 and 3.2. */
struct sctp_head {
	__be16 source;
	__be16 dest;
	__be32 tag;
	__le32 checksum; /* CRC32c of everything, this field being 0 */
	u8 chunk;
	u8 flags;
	__be16 chunk_len;
};

enum sctp_chunk {
	SCTP_INIT = 1,
	SCTP_INIT_ACK = 2,
	SCTP_ABORT = 6,
	SCTP_SHUTDOWN_COMPLETE = 14,
};

/* A parser's word for "go on", beside the reasons to stop. */
#define PARSED	   REASON_COUNT
#define ICMP_ERROR (REASON_COUNT + 1) /* go on in the program for these */
