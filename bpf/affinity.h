/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ClientIP affinity: a client keeps its backend until affinity_seconds after its last new connection. */
#pragma once
#include "backend.h"
#include "cache.h"

static __always_inline struct affinity_bucket *affinity_bucket(struct affinity_key *key,
							       struct cache_place *place)
{
	const struct hashing *hashing = get_hashing();
	u32 hash;

	if (!hashing)
		return NULL;
	if (FAMILY == 6)
		IN_MEMORY(*key);
	hash = hash_key(hashing, (const word_t *)key, KEY_WORDS(*key));
	*place = place_of(hash, hashing->affinity_buckets);
	return bpf_map_lookup_elem(affinities, &place->bucket);
}

static __always_inline u64 affinity_slot(const struct affinity_bucket *bucket, u16 tag,
					 const struct affinity_key *key)
{
	return find_slot(&bucket->head, tag, (const word_t *)key, KEY_WORDS(*key),
			 sizeof(struct affinity_slot));
}

/* The client's backend, if it has one that is still in the set that the client is offered: set is the
 * enum backend_flags of that set. */
static __always_inline bool lookup_affinity(const struct vip *vip, const struct addr *client, u8 set, u64 now,
					    struct backend *out)
{
	struct affinity_key key = {.client = *client, .service = vip->service};
	u64 lasts = vip->affinity_seconds * NSEC_PER_SEC, slot;
	struct affinity_bucket *bucket;
	struct affinity_slot *found;
	struct affinity *entry;
	struct cache_place place;
	bool provisional;

	bucket = affinity_bucket(&key, &place);
	if (!bucket)
		return false;
	slot = affinity_slot(bucket, place.tag, &key);
	if (slot >= SLOTS)
		return false;
	found = slot_at(bucket, slot, sizeof(*found));
	entry = &found->value;
	if ((s64)(now - entry->last_used) >= (s64)lasts)
		return false;
	if (!read_backend(entry->backend, vip->service, out) || out->generation != entry->generation ||
	    !(out->flags & set))
		return false;
	provisional = !(standing(bucket->head.until[slot], now) & LASTING);
	entry->last_used = now;
	bucket->head.until[slot] = until_time(now + lasts, provisional);
	return true;
}

/* Remember the client's backend, for as long as it may be from now on. provisional: nothing shows yet that
 * the client is where it says; else a backend that is remembered already stays, for it is that of a later
 * connection. */
static __always_inline void remember_affinity(const struct vip *vip, const struct addr *client, u64 now,
					      u32 backend, u32 generation, bool provisional)
{
	struct affinity_key key = {.client = *client, .service = vip->service};
	u64 until = now + vip->affinity_seconds * NSEC_PER_SEC;
	struct affinity_bucket *bucket;
	struct affinity_slot *at;
	struct cache_place place;
	struct seat seat;

	bucket = affinity_bucket(&key, &place);
	if (!bucket)
		return;
	bpf_spin_lock(&bucket->head.lock);
	take_seat(&bucket->head, affinity_slot(bucket, place.tag, &key), place.tag, 0, provisional, now,
		  &seat);
	if (seat.displaces)
		set_tag(&bucket->head, seat.gone, 0);
	at = slot_at(bucket, seat.slot, sizeof(*at));
	set_tag(&bucket->head, seat.slot, 0);
	at->key = key;
	at->value.last_used = now;
	if (!seat.known || provisional) {
		at->value.backend = backend;
		at->value.generation = generation;
	}
	bucket->head.until[seat.slot] = until_time(until, provisional);
	set_tag(&bucket->head, seat.slot, place.tag);
	bpf_spin_unlock(&bucket->head.lock);
}

/* What a client that is not remembered is given a backend by: its address, and the period of affinity_seconds
 * that the present time of day is in. Every VIP of the Service and every node choose alike; and a client
 * whose time is over is chosen for anew, as the next period has another hash. The periods of clients begin at
 * different times: no moment moves all clients of a Service. With direct return it is the address alone, so
 * that a node finds who else may remember the client: former.h. */
static __always_inline u32 hash_client(const struct vip *vip, const struct addr *client, u64 now)
{
	const struct settings *settings = get_settings();
	u64 length = vip->affinity_seconds * NSEC_PER_SEC;
	u32 hash = hash_words(hash_addr(client), 0, 0);
	u64 begins = (length >> 16) * (hash >> 16);

	if (!settings || !length || vip->flags & VIP_DIRECT)
		return hash;
	return hash_words(hash, (now + settings->wall_ns + begins) / length, 0);
}

/* What a new connection's backend is chosen by; hash: of what tells it from the client's others. */
static __always_inline u32 hash_choice(const struct vip *vip, const struct addr *client, u32 hash, u64 now)
{
	return vip->affinity_seconds ? hash_client(vip, client, now) : hash;
}

/* The client's backend, if this node remembers it and offers it still; else the present choice, and *chosen
 * is true. hash: of what tells the connection from the client's others. weighed: as for select_backend(), by
 * hash_choice(). set->size is not 0. */
static __always_inline bool find_backend(const struct vip *vip, u8 side, const struct backend_set *set,
					 const struct addr *client, u32 hash, u32 weighed, u64 now,
					 bool *chosen, struct backend *out)
{
	u8 local = side == OUTSIDE ? VIP_OUTSIDE_LOCAL : VIP_INSIDE_LOCAL;
	u8 member = vip->flags & local ? BACKEND_IN_LOCAL_SET : BACKEND_IN_CLUSTER_SET;

	if (vip->affinity_seconds && lookup_affinity(vip, client, member, now, out))
		return true;
	*chosen = vip->affinity_seconds;
	return select_backend(set, vip->service, hash_choice(vip, client, hash, now), weighed, out);
}

/* The backend of a new connection, which is remembered. provisional: of the client's affinity, as in
 * remember_affinity(). */
static __always_inline bool pick_backend(const struct vip *vip, u8 side, const struct backend_set *set,
					 const struct addr *client, u32 hash, u32 weighed, u64 now,
					 bool provisional, struct backend *out)
{
	bool chosen = false;

	if (!find_backend(vip, side, set, client, hash, weighed, now, &chosen, out))
		return false;
	if (chosen)
		remember_affinity(vip, client, now, out->id, out->generation, provisional);
	return true;
}
