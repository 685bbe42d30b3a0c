/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Of what whoever watches (`lbctl monitor`) is told. */
#pragma once
#include "backend.h"
#include "count.h"

/* What of enum watch_flags a packet or a call is told for; 0: it was none of our business. */
static __always_inline u32 told_for(u32 reason, bool dropped, bool closes)
{
	switch (reason) {
	case REASON_NEW_LOCAL:
	case REASON_NEW_REMOTE:
	case REASON_NEW_HAIRPIN:
		return WATCH_FLOWS | WATCH_PACKETS;
	case REASON_FLOW_HIT:
	case REASON_REPLY:
		return closes ? WATCH_FLOWS | WATCH_PACKETS : WATCH_PACKETS;
	case REASON_ICMP_ERROR:
	case REASON_PING:
		return WATCH_PACKETS;
	case REASON_REJECT_NO_ENDPOINT:
	case REASON_REJECT_UNKNOWN_PORT:
	case REASON_TTL_EXPIRED:
	case REASON_TOO_BIG:
		return WATCH_DROPS | WATCH_PACKETS;
	default:
		return dropped ? WATCH_DROPS | WATCH_PACKETS : 0;
	}
}

/* Without branches: for the verifier each one doubles the number of ways through. */
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

/* Whoever watches says so again and again; once nobody has for a while, here it ends. */
static __always_inline bool lease_runs(struct watch *watch, u64 now)
{
	if (now <= watch->until_ns)
		return true;
	watch->what = 0;
	return false;
}

/* Is this one of so many? hash is one that chooses backends: mixed once more, or the sample would be of few
 * of them. */
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
