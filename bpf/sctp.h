/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* SCTP's checksum, kept right when the ports change: without reading the packet again.
 *
 * A CRC is linear. Two messages of equal length whose first word alone differs have checksums that differ by
 * that word's difference times x^(8 * length), modulo the polynomial of CRC32c (RFC 9260, appendix A). So the
 * length is all that is needed: one table has the power for its low byte, one for its high byte. */
#pragma once
#include "maps.h"

#define CRC32C_POLYNOMIAL 0x82f63b78 /* bits reversed, as everywhere here: the highest bit is x^0 */
#define CRC32C_PAGES	  256	     /* the second table in crc32c_shifts */

static __always_inline u32 crc32c_multiply(u32 a, u32 b)
{
	u32 product = 0;
	int bit;

#pragma clang loop unroll(disable)
	for (bit = 0; bit < 32; bit++) {
		product ^= a & -(b >> 31);
		b <<= 1;
		a = (a >> 1) ^ (CRC32C_POLYNOMIAL & -(a & 1));
	}
	return product;
}

/* Update the checksum, as it is in the packet, of a packet of len bytes whose port pair, its first word, was
 * `old` and becomes `new`: words as a little-endian CPU reads them. False: the table is not there. */
static __always_inline bool crc32c_update(__le32 *checksum, u32 old, u32 new, u16 len)
{
	u32 bytes = len & 0xff, pages = CRC32C_PAGES + (len >> 8);
	const u32 *low = bpf_map_lookup_elem(crc32c_shifts, &bytes);
	const u32 *high = bpf_map_lookup_elem(crc32c_shifts, &pages);

	if (!low || !high)
		return false;
	*checksum ^= crc32c_multiply(crc32c_multiply(old ^ new, *low), *high);
	return true;
}
