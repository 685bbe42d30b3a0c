/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The headers of the family that is being compiled. */
#pragma once
#if FAMILY == 6
#include "ip6.h"
#else
#include "ip4.h"
#endif
