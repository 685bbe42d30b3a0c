/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Internet checksums, updated incrementally (RFC 1624, equation 3). A delta is the 64-bit sum of ~old + new
 * over the words that change; words of 16 or 32 bits mix freely, in network byte order. */
#pragma once
#include "config.h"

static __always_inline u64 delta32(u64 delta, __be32 old, __be32 new)
{
	return delta + (u32)~old + new;
}

static __always_inline u64 delta16(u64 delta, __be16 old, __be16 new)
{
	return delta + (u16)~old + new;
}

/* To 32 bits, still a one's complement sum. */
static __always_inline u32 fold32(u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (u32)((sum & 0xffffffff) + (sum >> 32));
}

static __always_inline u16 fold16(u64 sum)
{
	u32 s = fold32(sum);

	s = (s & 0xffff) + (s >> 16);
	return (u16)((s & 0xffff) + (s >> 16));
}

static __always_inline __sum16 csum_update(__sum16 check, u64 delta)
{
	return (__sum16)~fold16((u16)~check + delta);
}

/* Update the checksum of TCP or UDP, whose 0 is none: RFC 768. */
static __always_inline void update_l4_field(__sum16 *check, bool udp, u64 delta)
{
	if (udp && !*check)
		return;
	*check = csum_update(*check, delta);
	if (udp && !*check)
		*check = 0xffff;
}

/* Sum of len bytes, a constant multiple of 4. */
static __always_inline u64 sum_bytes(const void *data, u32 len)
{
	return (u32)bpf_csum_diff(NULL, 0, (void *)data, len, 0);
}
