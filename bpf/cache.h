/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Tables that forget: what flows and affinity are kept in. Python's side is lb/datapath/maps/cache.py.
 *
 * A table is an array of buckets of SLOTS entries. A key's hash names its one bucket, and a tag; the bucket's
 * head has the tags of all its entries. So an entry that is there is found in two cache lines that lie side
 * by side, one that is not is missed in the first of them, and a new one is written where it was missed. The
 * kernel's LRU maps, which are of the same use, wait for memory many times as often.
 *
 * An entry is provisional until its owner has shown that he is there. In a full bucket those make room first
 * whose time is over, then provisional ones, then the entry whose time is over first. One slot of a bucket is
 * kept for provisional entries: an entry that others become is given up for it. So a flood of addresses that
 * nobody has displaces its own entries, and never one that is not provisional.
 *
 * Writers hold the bucket's lock. Readers do not: like a reader of the kernel's LRU maps, they may hold an
 * entry while its slot becomes another key's. */
#pragma once
#include "maps.h"

#define NO_SLOT SLOTS

/* How many entries of a bucket may share a tag: so many keys are compared at most. */
#define SAME_TAG 2

/* Tables count time in units of 17 ms, around the clock in two years: nanoseconds of CLOCK_MONOTONIC,
 * shifted. */
#define CACHE_TIME_SHIFT 24

typedef u32 __attribute__((may_alias)) word_t;

#define KEY_WORDS(key) (sizeof(key) / sizeof(word_t))

/* Multiply-shift hashing of a vector (Dietzfelbinger): with seeds that nobody knows, nobody can choose keys
 * that meet in a bucket. It maps neighbours, such as the clients of one network, to even steps, which may
 * come together in few buckets: the second multiplication is for them. */
static __always_inline u32 hash_key(const struct hashing *hashing, const word_t *key, u32 words)
{
	u64 sum = 0;

#pragma unroll
	for (u32 i = 0; i < words; i++)
		sum += hashing->seeds[i] * key[i];
	sum ^= sum >> 32;
	return sum * 0x9e3779b97f4a7c15ULL >> 32;
}

/* Where the entry of a key is, if it is there. */
struct cache_place {
	u32 bucket;
	u16 tag; /* never 0, which is the tag of a free slot */
};

static __always_inline struct cache_place place_of(u32 hash, u32 buckets)
{
	struct cache_place place = {.bucket = (u64)hash * buckets >> 32, .tag = hash | 1};

	return place;
}

static __always_inline u32 cache_time(u64 ns)
{
	return ns >> CACHE_TIME_SHIFT;
}

/* `until` of a provisional entry is half the clock away from when its time is over. */
#define PROVISIONAL (1U << 31)

static __always_inline u32 until_time(u64 ns, bool provisional)
{
	return cache_time(ns) ^ (provisional ? PROVISIONAL : 0);
}

/* What the top bits of standing() say. */
#define LASTING (1U << 31) /* not provisional */
#define ALIVE	(1U << 30) /* its time is not over */

/* An entry's `until` as a number that does not wrap around: more is longer, LASTING longer than provisional.
 * What is over is mistaken for something else after 208 days, and is the first to make room then as well. */
static __always_inline u32 standing(u32 until, u64 now)
{
	return until - cache_time(now) - 1 - ALIVE;
}

/* Does the entry of a slot make room for no provisional one? It is established, and its time is not over. */
static __always_inline bool holds(const struct bucket_head *head, u64 slot, u64 now)
{
	return standing(head->until[slot], now) >= (LASTING | ALIVE);
}

/* The top bit of each 16 bits that are 0. */
static __always_inline u64 zero_lanes(u64 word)
{
	const u64 low = 0x7fff7fff7fff7fffULL;

	return ~(((word & low) + low) | word | low);
}

/* The slots that have a tag, a bit for each: 0, 16, 32, 48, 8, 24, 40 for slots 0 to 6. */
static __always_inline u64 tagged(const struct bucket_head *head, u16 tag)
{
	u64 each = 0x0001000100010001ULL * tag;

	return (zero_lanes(head->tags[0] ^ each) >> 15 | zero_lanes(head->tags[1] ^ each) >> 7) &
	       ~(1ULL << 56);
}

/* The number of the slot of the lowest bit: the product has it in its top three bits. */
static __always_inline u64 first_slot(u64 slots)
{
	const u64 numbers = 1ULL << 45 | 2ULL << 29 | 3ULL << 13 | 4ULL << 53 | 5ULL << 37 | 6ULL << 21;

	return (slots & -slots) * numbers >> 61;
}

/* Where 16 bits of a word lie, from the lowest on. */
#define LANE_ORDER (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? 0 : 3)

static __always_inline u16 tag_in(const struct bucket_head *head, u64 slot)
{
	return ((const u16 *)head->tags)[slot ^ LANE_ORDER];
}

static __always_inline void set_tag(struct bucket_head *head, u64 slot, u16 tag)
{
	((u16 *)head->tags)[slot ^ LANE_ORDER] = tag;
}

static __always_inline void *slot_at(const void *bucket, u64 slot, u32 bytes)
{
	AT_MOST(slot, SLOTS - 1);
	return (void *)bucket + sizeof(struct bucket_head) + slot * bytes;
}

static __always_inline bool same_words(const word_t *a, const word_t *b, u32 words)
{
	u32 differs = 0;

#pragma unroll
	for (u32 i = 0; i < words; i++)
		differs |= a[i] ^ b[i];
	return !differs;
}

/* The slot that an entry takes when it is free. It is known before anything of the bucket is, so that the CPU
 * fetches it and the head at the same time. */
static __always_inline u64 first_choice(u16 tag)
{
	return (u32)tag * SLOTS >> 16;
}

/* The slot of a key, which is the first thing in it; or NO_SLOT. */
static __always_inline u64 find_slot(const struct bucket_head *head, u16 tag, const word_t *key, u32 words,
				     u32 bytes)
{
	u64 choice = first_choice(tag), slots;

	if (likely(tag_in(head, choice) == tag && same_words(slot_at(head, choice, bytes), key, words)))
		return choice;
	slots = tagged(head, tag);
#pragma unroll
	for (int tries = 0; tries < SAME_TAG; tries++) {
		u64 slot = first_slot(slots);

		if (!slots || slot >= SLOTS)
			break;
		if (same_words(slot_at(head, slot, bytes), key, words))
			return slot;
		slots &= slots - 1;
	}
	return NO_SLOT;
}

/* The slot for a new key with this tag: a free one, else that of the entry which makes room first. If
 * SAME_TAG entries have the tag already, it is the slot of one of them. The entry with the tag `spared` does
 * not make room; 0 spares none. The search for the least has no branches, since the verifier would follow
 * what comes after each of them separately. */
static __always_inline u64 find_room(const struct bucket_head *head, u16 tag, u16 spared, u64 now)
{
	u64 same = tagged(head, tag), free = tagged(head, 0);
	u64 least = ~0ULL >> 1;

	same &= same - 1;
	if (!same && !tag_in(head, first_choice(tag)))
		return first_choice(tag);
	if (!same && free)
		return first_slot(free);
#pragma unroll
	for (u32 i = 0; i < SLOTS; i++) {
		u64 next = standing(head->until[i], now);
		u64 differs = tag_in(head, i) ^ tag, tells = tag_in(head, i) ^ spared;

		next |= (next & ALIVE) << 2 | (-differs & -same) >> 63 << 33 | (tells - 1) >> 63 << 34;
		next = next << 3 | i;
		least ^= (least ^ next) & (u64)((s64)(next - least) >> 63);
	}
	return least & 7;
}

/* Where a key is in its bucket, or is to be. */
struct seat {
	u64 slot;
	u64 gone;	/* the slot of the entry that makes room: `slot`, or one that is given up */
	bool known;	/* the key is there already */
	bool displaces; /* `gone` holds an entry whose time is not over */
};

/* Find the slot in which a key is to be written. slot: where the key is now, or NO_SLOT. An entry that is
 * there and becomes established (it was provisional, or its time was over) may take the last slot that is
 * left to provisional entries: then another entry makes room for these. */
static __always_inline void take_seat(struct bucket_head *head, u64 slot, u16 tag, u16 spared,
				      bool provisional, u64 now, struct seat *seat)
{
	bool known = IS_BELOW(slot, SLOTS);
	u64 gone = find_room(head, known ? 0 : tag, known ? tag : spared, now);
	u64 stands, own;

	AT_MOST(gone, SLOTS - 1);
	slot = known ? slot : gone;
	AT_MOST(slot, SLOTS - 1);
	stands = standing(head->until[gone], now);
	own = standing(head->until[slot], now);
	seat->slot = slot;
	seat->gone = gone;
	seat->known = known;
	seat->displaces = !!tag_in(head, gone) && stands & ALIVE &&
			  (!known || (!provisional && own < (LASTING | ALIVE) && stands & LASTING));
	if (seat->displaces && stands & LASTING)
		head->evicted++;
}
