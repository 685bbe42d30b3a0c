/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Backend selection: consistent hashing, by rendezvous among few backends, by a Maglev table among many. */
#pragma once
#include "service.h"

struct backend {
	struct addr address;
	__be16 port;
	bool local;
	u8 flags; /* enum backend_flags */
	u32 id;
	u32 service;
	u32 generation;
};

static __always_inline u32 rotate_left(u32 word, u32 bits)
{
	return (word << bits) | (word >> (32 - bits));
}

/* Three words to one: the final mix of Bob Jenkins' lookup3 hash. */
static __always_inline u32 hash_words(u32 a, u32 b, u32 c)
{
	a += HASH_SEED;
	b += HASH_SEED;
	c += HASH_SEED;
	c ^= b;
	c -= rotate_left(b, 14);
	a ^= c;
	a -= rotate_left(c, 11);
	b ^= a;
	b -= rotate_left(a, 25);
	c ^= b;
	c -= rotate_left(b, 16);
	a ^= c;
	a -= rotate_left(c, 4);
	b ^= a;
	b -= rotate_left(a, 14);
	c ^= b;
	c -= rotate_left(b, 24);
	return c;
}

/* An address as one word: for IPv4 itself. */
static __always_inline u32 hash_addr(const struct addr *a)
{
	u32 last = bpf_ntohl(a->word[ADDR_WORDS - 1]);

	if (ADDR_WORDS == 1)
		return last;
	return hash_words(bpf_ntohl(a->word[0]), bpf_ntohl(a->word[1 % ADDR_WORDS]),
			  bpf_ntohl(a->word[2 % ADDR_WORDS])) +
	       last;
}

/* Hash of a connection, equal on every node: words as they are in the packet. */
static __always_inline u32 hash_tuple(const struct tuple *t)
{
	u32 ports = ((u32)bpf_ntohs(t->sport) << 16) | bpf_ntohs(t->dport);

	return hash_words(hash_addr(&t->src), hash_addr(&t->dst) + t->protocol, ports);
}

/* Read slot id; false when it is free or belongs to another Service port. */
static __always_inline bool read_backend(u32 id, u32 service, struct backend *out)
{
	const struct backend_slot *slot = bpf_map_lookup_elem(backends, &id);

	if (!slot || slot->state == BACKEND_FREE || slot->service != service)
		return false;
	out->address = slot->address;
	out->port = slot->port;
	out->local = slot->flags & BACKEND_LOCAL;
	out->flags = slot->flags;
	out->id = id;
	out->service = service;
	out->generation = slot->generation;
	if (FAMILY == 6)
		IN_MEMORY(*out);
	return true;
}

/* Is the backend of a flow or of an affinity entry still the one that it was? */
static __always_inline bool backend_alive(u32 id, u32 generation, u32 service)
{
	const struct backend_slot *slot = bpf_map_lookup_elem(backends, &id);

	return slot && slot->state != BACKEND_FREE && slot->generation == generation &&
	       slot->service == service;
}

/* The row of the backend whose weight, mixed with the hash, is the greatest; size is not above SMALL_SET. */
static __always_inline u32 rendezvous(const struct table_line *line, u32 size, u32 hash)
{
	u64 best = 0;

#pragma clang loop unroll(disable)
	for (u32 row = 0; row < SMALL_SET; row++) {
		u64 mixed;

		/* Keep row a number that the verifier can follow: 6.1's does not know that size is small. */
		asm volatile("" : "+r"(row));
		if (row >= size)
			break;
		mixed = (u64)(line->rows[SMALL_SET + row] ^ hash) * 0x9e3779b97f4a7c15ULL;
		mixed = (mixed ^ mixed >> 32) * 0xd6e8feb86659fd93ULL;
		mixed = (mixed & ~(u64)(SMALL_SET - 1)) | row;
		if (mixed > best)
			best = mixed;
	}
	return best & (SMALL_SET - 1);
}

/* Select a backend of a set that is not empty. */
static __always_inline bool select_backend(const struct backend_set *set, u32 service, u32 hash,
					   struct backend *out)
{
	bool small = set->size <= SMALL_SET;
	u32 row = set->offset + (small ? 0 : (u32)(((u64)hash * set->size) >> 32));
	u32 at = row / LINE_ROWS;
	const struct table_line *line = bpf_map_lookup_elem(tables, &at);

	if (!line)
		return false;
	row = small ? rendezvous(line, set->size, hash) : row % LINE_ROWS;
	return read_backend(line->rows[row & (LINE_ROWS - 1)], service, out);
}
