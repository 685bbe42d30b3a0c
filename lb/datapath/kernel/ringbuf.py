# SPDX-License-Identifier: Apache-2.0
"""Reading a ring buffer of the kernel: records that programs write, in their order, read from shared memory.

The layout is that of the kernel's documentation, "BPF ring buffer". Mapped one behind the other there are

- a page with the reader's position, which the reader alone writes,
- a page with the writers' position,
- the data, twice, so that no record is cut in two by the end.

Positions count bytes from the ring's beginning and never go back. A record is a header of 8 bytes, of which
the first 4 hold its length and, in the two highest bits, whether it is still being written and whether it is
to be skipped; then its bytes, filled up to a multiple of 8.
"""

from __future__ import annotations

import errno
import mmap
import select
from collections.abc import Iterator

import numpy as np

from lb.datapath.kernel import bpf
from lb.datapath.kernel.bpf import FD
from lb.errors import BpfError

_BUSY = 1 << 31
_DISCARDED = 1 << 30
_HEADER = 8


class Records:
    """A ring in memory: what there is to read.

    reader: its first page. writers: the rest, writers' page and data, of which there are size bytes twice.
    """

    def __init__(self, reader: mmap.mmap, writers: mmap.mmap, size: int) -> None:
        self._reader, self._writers = reader, writers
        self._position = np.frombuffer(reader, "u8", 1)
        self._end = np.frombuffer(writers, "u8", 1)
        self._headers = np.frombuffer(writers, "u4", 2 * size // 4, mmap.PAGESIZE)
        self._mask = size - 1

    def close(self) -> None:
        """Let the memory go."""
        del self._position, self._end, self._headers
        self._reader.close()
        self._writers.close()

    def skip(self) -> None:
        """Take what there is for read."""
        self._position[0] = self._end[0]

    def read(self) -> Iterator[bytes]:
        """Yield the records that there are; each one's room is free for others when the next is asked for.

        Of two loads from memory a CPU may do the later one first, but not over as many instructions as lie
        between two of Python's.
        """
        position = int(self._position[0])
        while position < int(self._end[0]):
            at = position & self._mask
            header = int(self._headers[at // 4])
            if header & _BUSY:
                return  # and with it what comes behind
            length = header & ~_DISCARDED
            if not header & _DISCARDED:
                start = mmap.PAGESIZE + at + _HEADER
                yield self._writers[start : start + length]
            position += (_HEADER + length + 7) & ~7
            self._position[0] = position


class RingBuffer:
    """The reading end of a map that is a ring buffer; there is one at a time. Close it.

    What was written before and nobody has read is skipped.

    Raises BpfError: the kernel refused to map the ring into memory.
    """

    def __init__(self, ring: FD) -> None:
        size, page = bpf.map_info(ring).max_entries, mmap.PAGESIZE
        try:
            reader = mmap.mmap(ring.fileno(), page)
            writers = mmap.mmap(ring.fileno(), page + 2 * size, prot=mmap.PROT_READ, offset=page)
        except OSError as error:
            raise BpfError("mmap", ring.subject, error.errno or errno.EINVAL) from error
        self._records = Records(reader, writers, size)
        self._epoll = select.epoll()
        self._epoll.register(ring.fileno(), select.EPOLLIN)
        self._records.skip()

    def close(self) -> None:
        """Let the memory go; the map stays."""
        self._epoll.close()
        self._records.close()

    def wait(self, seconds: float) -> None:
        """Return when there is something to read, at the latest after so many seconds."""
        self._epoll.poll(seconds)

    def read(self) -> Iterator[bytes]:
        """Yield the records that there are; each one's room is free for others when the next is asked for."""
        return self._records.read()
