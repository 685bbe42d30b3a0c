/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The flow table: how the two entries of a translated connection, one for each direction, are found, written
 * and deleted. What their states mean is in flow_state.h. */
#pragma once
#include "cache.h"
#include "packet.h"

/* bcc has no declaration of this helper, which the kernel replaces by a load. */
static u64 (*jiffies64)(void) = (void *)BPF_FUNC_jiffies64;

static __always_inline u32 ticks(void)
{
	return (u32)jiffies64();
}

/* A flow entry read into registers. */
struct flow {
	struct tuple to; /* what the packet becomes */
	u32 service;
	u32 backend;
	u32 generation;
	u8 state;
	u8 fins;
	u8 path;
	union {
		u32 touched;
		u32 secret;
	};
	u64 last_seen;
};

/* Keys and values are written field by field where they stand: a struct returned would be a second one on the
 * stack. Of a key, the fields smaller than a word are written as one: it is read in words. */
static __always_inline void write_key(struct flow_key *key, const struct addr *src, const struct addr *dst,
				      __be16 sport, __be16 dport, u8 protocol, u8 direction)
{
	word_t *ports = (word_t *)&key->sport;

	key->src = *src;
	key->dst = *dst;
	ports[0] = JOIN(u32, 16, sport, dport);
	ports[1] = JOIN(u32, 16, JOIN(u16, 8, protocol, direction), 0);
	if (FAMILY == 6)
		IN_MEMORY(*key);
}

static __always_inline void flow_key(struct flow_key *key, const struct tuple *t, u8 direction)
{
	write_key(key, &t->src, &t->dst, t->sport, t->dport, t->protocol, direction);
}

static __always_inline void flow_value(struct flow_entry *value, const struct flow *flow)
{
	value->src = flow->to.src;
	value->dst = flow->to.dst;
	value->sport = flow->to.sport;
	value->dport = flow->to.dport;
	value->service = flow->service;
	value->backend = flow->backend;
	value->generation = flow->generation;
	value->state = flow->state;
	value->fins = flow->fins;
	value->path = flow->path;
	value->pad = 0;
	value->touched = flow->fins & ANSWERED ? flow->secret : ticks();
	value->last_seen = flow->last_seen;
}

static __always_inline void flow_from(const struct flow_entry *value, u8 protocol, struct flow *out)
{
	out->to.src = value->src;
	out->to.dst = value->dst;
	out->to.sport = value->sport;
	out->to.dport = value->dport;
	out->to.protocol = protocol;
	out->service = value->service;
	out->backend = value->backend;
	out->generation = value->generation;
	out->state = value->state;
	out->fins = value->fins;
	out->path = value->path;
	out->last_seen = value->last_seen;
	out->touched = value->touched;
}

static __always_inline struct flow_bucket *flow_bucket(const struct flow_key *key, struct cache_place *place)
{
	const struct hashing *hashing = get_hashing();
	u32 hash;

	if (!hashing)
		return NULL;
	hash = hash_key(hashing, (const word_t *)key, KEY_WORDS(*key));
	*place = place_of(hash, hashing->flow_buckets);
	return bpf_map_lookup_elem(flows, &place->bucket);
}

static __always_inline u64 flow_slot(const struct flow_bucket *bucket, u16 tag, const struct flow_key *key)
{
	return find_slot(&bucket->head, tag, (const word_t *)key, KEY_WORDS(*key), sizeof(struct flow_slot));
}

static __always_inline const struct flow_entry *get_flow(const struct flow_key *key)
{
	const struct flow_bucket *bucket;
	const struct flow_slot *found;
	struct cache_place place;
	u64 slot;

	bucket = flow_bucket(key, &place);
	if (!bucket)
		return NULL;
	slot = flow_slot(bucket, place.tag, key);
	if (slot >= SLOTS)
		return NULL;
	found = slot_at(bucket, slot, sizeof(*found));
	return &found->value;
}

static __always_inline void forget_flow(const struct flow_key *key)
{
	struct flow_bucket *bucket;
	struct cache_place place;
	u64 slot;

	bucket = flow_bucket(key, &place);
	if (!bucket)
		return;
	bpf_spin_lock(&bucket->head.lock);
	slot = flow_slot(bucket, place.tag, key);
	if (slot < SLOTS)
		set_tag(&bucket->head, slot, 0);
	bpf_spin_unlock(&bucket->head.lock);
}

/* A flow entry being made, and one that had to make room for it. */
struct entry {
	struct flow_key key;
	struct flow_entry value;
};

struct entries {
	struct entry made;
	struct entry gone;
	struct cache_place half; /* of the half made before: where it is, nobody makes room for the other */
	u16 yields;		 /* an SNAT port, of a flow that is half open; 0: none */
	u64 longest;		 /* for how long that has been, in ns */
};

/* When an entry had to make room, delete the other half of its flow as well. Alone it would translate one
 * direction, and nothing would mend that before its next refresh. */
static __always_inline void forget_other_half(const struct entry *gone)
{
	const struct flow_entry *to = &gone->value, *other;
	const struct flow_key *from = &gone->key;
	struct flow_key key;

	write_key(&key, &to->dst, &to->src, to->dport, to->sport, from->protocol,
		  from->direction == DIR_REPLY ? DIR_FORWARD : DIR_REPLY);
	other = get_flow(&key);
	if (other && MIRRORED(other, from))
		forget_flow(&key);
}

/* Store e->made, whose time is over idle ns after its last_seen. False: the key is there and leads elsewhere,
 * and in_place does not allow to replace it. e is not on the stack, which has no room for it. An entry that
 * is HALF_OPEN is provisional; one that becomes established leaves a slot of its bucket to provisional
 * entries. */
static __always_inline bool put_flow(struct entries *e, u64 idle, bool in_place)
{
	const struct entry *new = &e->made;
	bool half_open = new->value.fins &HALF_OPEN, displaced = false;
	u64 now = new->value.last_seen;
	struct seat seat;
	bool same;
	struct flow_bucket *bucket;
	struct flow_slot *at;
	struct cache_place place;
	u16 spared;

	KEEP_WHOLE(*e); /* what the caller has written there is read again where it is needed */
	bucket = flow_bucket(&new->key, &place);
	if (!bucket)
		return false;
	spared = e->half.bucket == place.bucket ? e->half.tag : 0;
	bpf_spin_lock(&bucket->head.lock);
	take_seat(&bucket->head, flow_slot(bucket, place.tag, &new->key), place.tag, spared, half_open, now,
		  &seat);
	at = slot_at(bucket, seat.slot, sizeof(*at));
	same = SAME_ENDS(&at->value, &new->value);
	if (seat.known && !same && !in_place) {
		bpf_spin_unlock(&bucket->head.lock);
		return false;
	}
	displaced = seat.displaces;
	if (displaced) {
		const struct flow_slot *gone = slot_at(bucket, seat.gone, sizeof(*gone));

		e->gone.key = gone->key;
		e->gone.value = gone->value;
		set_tag(&bucket->head, seat.gone, 0);
	}
	/* A reader must not see the key of one entry with the value of another: no tag, no entry. */
	if (!same)
		set_tag(&bucket->head, seat.slot, 0);
	at->key = new->key;
	at->value = new->value;
	bucket->head.until[seat.slot] = until_time(now + idle, half_open);
	set_tag(&bucket->head, seat.slot, place.tag);
	bpf_spin_unlock(&bucket->head.lock);
	e->half = place;
	if (unlikely(displaced))
		forget_other_half(&e->gone);
	return true;
}

static __always_inline bool lookup_flow(const struct tuple *t, u8 direction, struct flow *out)
{
	const struct flow_entry *value;
	struct flow_key key;

	flow_key(&key, t, direction);
	value = get_flow(&key);
	if (!value)
		return false;
	flow_from(value, t->protocol, out);
	return true;
}

/* Does the entry turn a packet into one of the connection that `t` belongs to, the other way? */
static __always_inline bool leads_back(const struct flow_entry *entry, const struct tuple *t)
{
	return MIRRORED(entry, t);
}

/* Key of the forward half of the pair that a reply half belongs to. */
static __always_inline void forward_key(struct flow_key *key, const struct flow_entry *reply, u8 protocol)
{
	write_key(key, &reply->dst, &reply->src, reply->dport, reply->sport, protocol, DIR_FORWARD);
}

/* Key of the other half of a pair: of the packets that answer those which this half makes, `to`. */
static __always_inline void other_key(struct flow_key *key, const struct tuple *to, u8 direction)
{
	write_key(key, &to->dst, &to->src, to->dport, to->sport, to->protocol,
		  direction == DIR_REPLY ? DIR_FORWARD : DIR_REPLY);
}

/* Make of one half's value the other's: the half for the answers to `from`. */
static __always_inline void turn_round(struct flow_entry *value, const struct tuple *from)
{
	value->src = from->dst;
	value->dst = from->src;
	value->sport = from->dport;
	value->dport = from->sport;
}

/* Delete the pair of the half that turns `from` into `to`; the other half stays if it means another
 * connection. */
static __always_inline void delete_pair(const struct tuple *from, const struct tuple *to, u8 direction)
{
	const struct flow_entry *other;
	struct flow_key key;

	other_key(&key, to, direction);
	other = get_flow(&key);
	if (other && leads_back(other, from))
		forget_flow(&key);
	flow_key(&key, from, direction);
	forget_flow(&key);
}
