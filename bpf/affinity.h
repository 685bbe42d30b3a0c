/* ClientIP affinity: a client keeps its backend until affinity_seconds after its last new connection. */
#pragma once
#include "backend.h"

/* The client's backend, if it has one that is still in the set that the client is offered: set is the
 * enum backend_flags of that set. */
static __always_inline bool lookup_affinity(const struct vip *vip, const struct addr *client, u8 set, u64 now,
					    struct backend *out)
{
	struct affinity_key key = {.client = *client, .service = vip->service};
	struct affinity *entry = bpf_map_lookup_elem(affinities, &key);

	if (!entry || (s64)(now - entry->last_used) >= (s64)(vip->affinity_seconds * NSEC_PER_SEC))
		return false;
	if (!read_backend(entry->backend, vip->service, out) || out->generation != entry->generation ||
	    !(out->flags & set))
		return false;
	entry->last_used = now;
	return true;
}

static __always_inline void remember_affinity(const struct vip *vip, const struct addr *client, u64 now,
					      const struct backend *backend)
{
	struct affinity_key key = {.client = *client, .service = vip->service};
	struct affinity entry = {
	    .last_used = now,
	    .backend = backend->id,
	    .generation = backend->generation,
	};

	bpf_map_update_elem(affinities, &key, &entry, BPF_ANY);
}

/* The backend of a new connection; hash: of what tells it from the client's others. set->size is not 0. */
static __always_inline bool pick_backend(const struct vip *vip, u8 side, const struct backend_set *set,
					 const struct addr *client, u32 hash, u64 now, struct backend *out)
{
	u8 local = side == OUTSIDE ? VIP_OUTSIDE_LOCAL : VIP_INSIDE_LOCAL;
	u8 member = vip->flags & local ? BACKEND_IN_LOCAL_SET : BACKEND_IN_CLUSTER_SET;

	if (!vip->affinity_seconds)
		return select_backend(set, vip->service, hash, out);
	if (lookup_affinity(vip, client, member, now, out))
		return true;
	if (!select_backend(set, vip->service, hash_client(client), out))
		return false;
	remember_affinity(vip, client, now, out);
	return true;
}
