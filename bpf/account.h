/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counters of each backend and each Service port, for metrics and `lbctl top`. lb/datapath/sync/accounts.py
 * says to whom a counter belongs, lb/datapath/view/figures.py reads them. */
#pragma once
#include "backend.h"
#include "reasons.h"

_Static_assert(REASON_COUNT <= DROP_REASONS, "each reason has its place in struct service_counters");

/* Count a translated packet; bytes are those of the frame, as hooks count them. With the setting
 * traffic_counters off the map has one line, line 0, which belongs to no backend. */
static __always_inline void count_traffic(u32 backend, u32 generation, bool reply, u32 bytes)
{
	u32 at = backend + TRAFFIC_LINE - 1, line = at / TRAFFIC_LINE;
	struct traffic_line *found = bpf_map_lookup_elem(traffic_map, &line);
	struct traffic *t;

	if (!found)
		return;
	t = &found->cells[at % TRAFFIC_LINE];
	if (unlikely(t->generation != generation)) {
		if ((s32)(generation - t->generation) < 0)
			return;
		__builtin_memset(t, 0, sizeof(*t));
		t->generation = generation;
	}
	if (reply) {
		t->reply_packets++;
		t->reply_bytes += bytes;
	} else {
		t->packets++;
		t->bytes += bytes;
	}
}

static __always_inline void count_opened(u32 backend)
{
	struct connections *c = bpf_map_lookup_elem(connections_map, &backend);

	if (c)
		__sync_fetch_and_add(&c->opened, 1);
}

/* Count a connection as refused, or else as unanswered. */
static __always_inline void count_failed(u32 backend, bool refused)
{
	struct connections *c = bpf_map_lookup_elem(connections_map, &backend);

	if (!c)
		return;
	if (refused)
		__sync_fetch_and_add(&c->refused, 1);
	else
		__sync_fetch_and_add(&c->unanswered, 1);
}

/* The number of the bucket: of the whole microseconds below ns, how many bits are there beyond the first. */
static __always_inline u64 handshake_bucket(u64 ns)
{
	u64 over = (ns - !!ns) / 1000 >> HANDSHAKE_FIRST;
	u64 bucket = 0;

#pragma unroll
	for (u32 step = 16; step; step /= 2) {
		u64 more = !!(over >> step) * step;

		over >>= more;
		bucket += more;
	}
	bucket += over;
	AT_MOST(bucket, HANDSHAKE_BUCKETS - 1);
	return bucket;
}

static __always_inline void count_handshake(u32 service, u64 ns)
{
	struct service_counters *c = bpf_map_lookup_elem(service_counters_map, &service);

	if (!c)
		return;
	__sync_fetch_and_add(&c->handshakes[handshake_bucket(ns)], 1);
	__sync_fetch_and_add(&c->handshake_ns, ns);
}

/* Count a packet of a Service that was dropped, or answered with an error, by its reason. */
static __always_inline void count_dropped(u32 service, u32 reason)
{
	struct service_counters *c = bpf_map_lookup_elem(service_counters_map, &service);
	u64 at = reason;

	if (!c)
		return;
	AT_MOST(at, DROP_REASONS - 1);
	__sync_fetch_and_add(&c->dropped[at], 1);
}
