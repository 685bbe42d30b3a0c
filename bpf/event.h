/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which events `lbctl monitor` receives. */
#pragma once
#include "backend.h"
#include "count.h"

/* The flags of enum watch_flags that ask for the event of a packet or a call; 0: none, it is left alone. */
static __always_inline u32 events_for(u32 reason, bool dropped, bool closes)
{
	switch (reason) {
	case REASON_NEW_LOCAL:
	case REASON_NEW_REMOTE:
	case REASON_NEW_HAIRPIN:
	case REASON_NEW_DIRECT:
		return WATCH_FLOWS | WATCH_PACKETS;
	case REASON_FLOW_HIT:
	case REASON_REPLY:
		return closes ? WATCH_FLOWS | WATCH_PACKETS : WATCH_PACKETS;
	case REASON_ICMP_ERROR:
	case REASON_PING:
		return WATCH_PACKETS;
	case REASON_REJECT_NO_ENDPOINT:
	case REASON_REJECT_UNKNOWN_PORT:
	case REASON_REJECT_NO_LISTENER:
	case REASON_TTL_EXPIRED:
	case REASON_TOO_BIG:
		return WATCH_DROPS | WATCH_PACKETS;
	default:
		return dropped ? WATCH_DROPS | WATCH_PACKETS : 0;
	}
}

/* Does the watcher want events of this Service port? There are no branches here: each one would double the
 * ways that the verifier follows. */
static __always_inline bool watches_service(const struct watch *watch, u32 service)
{
	u64 found = 0;

	if (!watch->services[0] || !service)
		return !watch->services[0];
#pragma unroll
	for (int i = 0; i < WATCHED_SERVICES; i++)
		found |= ((u64)(watch->services[i] ^ service) - 1) >> 63;
	return found;
}

/* Does somebody still watch? A watcher extends until_ns again and again. After that time has passed, the
 * first event clears what was wanted. */
static __always_inline bool lease_runs(struct watch *watch, u64 now)
{
	if (now <= watch->until_ns)
		return true;
	watch->what = 0;
	return false;
}

/* Does a connection belong to the sample of one in watch->one_in? hash is the one that chooses backends; it
 * is mixed once more here, or the sample would contain connections of few backends only. */
static __always_inline bool in_sample(const struct watch *watch, u32 hash)
{
	return watch->one_in < 2 || hash_words(hash, 0, 0) % watch->one_in == 0;
}

static __always_inline void put_address(__be32 *to, const struct addr *address)
{
#pragma unroll
	for (int i = 0; i < 4; i++)
		to[i] = i < ADDR_WORDS ? address->word[i % ADDR_WORDS] : 0;
}
