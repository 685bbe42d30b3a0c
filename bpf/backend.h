/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Backend selection: consistent hashing, by rendezvous among few backends, by a Maglev table among many.
 * lb/plan/rendezvous.py and lb/plan/maglev.py are its halves in Python. */
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
	u32 node;
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
	out->node = slot->node;
	if (FAMILY == 6)
		IN_MEMORY(*out);
	return true;
}

/* Is the slot that a flow or an affinity entry names still used by the same backend? */
static __always_inline bool backend_alive(u32 id, u32 generation, u32 service)
{
	const struct backend_slot *slot = bpf_map_lookup_elem(backends, &id);

	return slot && slot->state != BACKEND_FREE && slot->generation == generation &&
	       slot->service == service;
}

/* The number that a connection has for a backend; the backend with the greatest number is selected. The upper
 * 32 bits are as good as random. */
static __always_inline u64 mix(u32 seed, u32 hash)
{
	u64 mixed = (u64)(seed ^ hash) * 0x9e3779b97f4a7c15ULL;

	return (mixed ^ mixed >> 32) * 0xd6e8feb86659fd93ULL;
}

/* The row of the backend with the greatest number; size is not above SMALL_SET. */
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
		mixed = mix(line->rows[SMALL_SET + row], hash);
		mixed = (mixed & ~(u64)(SMALL_SET - 1)) | row;
		if (mixed > best)
			best = mixed;
	}
	return best & (SMALL_SET - 1);
}

/* Return bits if the word is below a power of two, which is at most 2^32, else 0. There is no branch here,
 * nor in anything else that is done for each backend: each branch in a loop is more ways for the verifier to
 * follow. The asm keeps the compiler from making a branch of the sign. */
static __always_inline u32 shift_below(u64 word, u32 power, u32 bits)
{
	u64 sign = word - (1ULL << power);

	asm("" : "+r"(sign));
	sign >>= 63;
	asm("" : "+r"(sign));
	return sign * bits;
}

/* -log2(word / 2^32), in units of 2^-32, to less than a part in 2,000 of it; the word is not 0. What is left
 * of the word behind its leading zeros is 1 - x with x up to a half: then it is x times a cubic of x, fitted
 * for the least relative error, and 1 at a half, so that the pieces meet. */
static __always_inline u64 minus_log2(u32 word)
{
	u64 left = word, x, cubic;
	u32 zeros = 0, bits;

#define HALVE(power, count)                                                                                  \
	bits = shift_below(left, power, count);                                                              \
	left <<= bits;                                                                                       \
	zeros += bits;
	HALVE(16, 16)
	HALVE(24, 8)
	HALVE(28, 4)
	HALVE(30, 2)
	HALVE(31, 1)
#undef HALVE
	x = (1ULL << 32) - left;
	cubic = 220704563 + (1115207865 * x >> 32);
	cubic = 808837336 + (cubic * x >> 32);
	cubic = 1548487856 + (cubic * x >> 32);
	return ((u64)zeros << 32) + (cubic * x >> 30);
}

/* The same with unequal weights (Schindelhauer, Schomaker, "Weighted Distributed Hash Tables", 2005): the
 * backend with the least -log(number) / weight is selected. Where weights are equal, that is the greatest
 * number; and a connection changes hands only from a backend that has become lighter, or to one that has
 * become heavier. */
static __always_inline u32 weighted_rendezvous(const struct table_line *line,
					       const struct table_line *divisors, u32 size, u32 hash)
{
	u64 best = 0;

#pragma clang loop unroll(disable)
	for (u32 row = 0; row < SMALL_SET; row++) {
		u64 near;

		asm volatile("" : "+r"(row));
		if (row >= size)
			break;
		near = ~(minus_log2(mix(line->rows[SMALL_SET + row], hash) >> 32 | 1) * divisors->rows[row]);
		near = (near & ~(u64)(SMALL_SET - 1)) | row;
		if (near > best)
			best = near;
	}
	return best & (SMALL_SET - 1);
}

static __always_inline bool is_weighted(const struct backend_set *set)
{
	return set->size > LINE_ROWS && set->size <= WEIGHTED_SET;
}

/* The row of a backend of a list of unequal weights, for select_backend(). */
static __always_inline u32 weigh(const struct backend_set *set, u32 hash)
{
	u32 first = set->offset / LINE_ROWS, second = first + 1;
	const struct table_line *line = bpf_map_lookup_elem(tables, &first);
	const struct table_line *divisors = bpf_map_lookup_elem(tables, &second);

	return line && divisors ? weighted_rendezvous(line, divisors, set->size - LINE_ROWS, hash) : 0;
}

/* Select a backend of a set that is not empty. weighed: see weigh(), where the set is_weighted(). */
static __always_inline bool select_backend(const struct backend_set *set, u32 service, u32 hash, u32 weighed,
					   struct backend *out)
{
	bool small = set->size <= WEIGHTED_SET;
	u32 row = set->offset + (small ? 0 : (u32)(((u64)hash * set->size) >> 32));
	u32 at = row / LINE_ROWS;
	const struct table_line *line = bpf_map_lookup_elem(tables, &at);

	if (!line)
		return false;
	if (small)
		row = is_weighted(set) ? weighed : rendezvous(line, set->size, hash);
	return read_backend(line->rows[row & (LINE_ROWS - 1)], service, out);
}
