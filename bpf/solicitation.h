/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a frame of ARP or of neighbour discovery asks or says: filled by arp.h or ndp.h. */
#pragma once
#include "tuple.h"

struct solicitation {
	struct addr sender; /* whose link address it tells */
	struct addr target; /* whose link address is wanted */
	u8 mac[ETH_ALEN];   /* the sender's */
	u8 asks;	    /* it is a question, no answer or announcement */
	u8 claims;	    /* the sender says that it has an address */
};
