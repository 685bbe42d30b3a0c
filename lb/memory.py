# SPDX-License-Identifier: Apache-2.0
"""What keeps the process small: settings of the C library's allocator and of Python's collector."""

from __future__ import annotations

import ctypes
import gc

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h of glibc
_LARGE = 256 * 1024


def rare_collections() -> None:
    """Call it first: imports and the first listing make objects that stay, by the hundred thousand."""
    gc.set_threshold(200_000, 20, 20)


def few_arenas() -> None:
    """Call it at the start, before there are threads: one heap for all, and large blocks apart from it.

    What a listing takes for a moment then goes back to the system, instead of leaving holes in the heap of
    each thread. A C library that is not glibc does as it does.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGE)


def spare() -> None:
    """Call it when what stays is there: the collector leaves it alone from now on, what is free goes back."""
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
