/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* linux/icmp.h asks for linux/if.h, whose real text needs the C library; this is all that it uses. */
#pragma once
#define IFNAMSIZ 16
