# SPDX-License-Identifier: Apache-2.0
"""Powers of x modulo the polynomial of CRC32c, with which ``bpf/sctp.h`` keeps SCTP's checksum right."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78
_ONE = 0x80000000


def _times_x(word: int) -> int:
    return (word >> 1) ^ (_POLYNOMIAL if word & 1 else 0)


def multiply(a: int, b: int) -> int:
    """Return the product of two polynomials over GF(2), bits reversed: the highest bit is x^0 (RFC 9260)."""
    product = 0
    for bit in range(32):
        if b & (_ONE >> bit):
            product ^= a
        a = _times_x(a)
    return product


@functools.cache
def shifts() -> NDArray[np.uint32]:
    """Return the map ``crc32c_shifts``: row n is x^(8n), row 256 + n is x^(8 * 256n), for n below 256."""
    byte = _ONE
    for _ in range(8):
        byte = _times_x(byte)
    rows = [_ONE]
    for _ in range(256):
        rows.append(multiply(rows[-1], byte))
    page = rows.pop()  # x^(8 * 256)
    pages = [_ONE]
    for _ in range(255):
        pages.append(multiply(pages[-1], page))
    return np.array(rows + pages, np.uint32)
