# SPDX-License-Identifier: Apache-2.0
"""The reader of ring buffers, on memory that a test has laid out: what the kernel's programs leave there."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator

import pytest

from lb.datapath.kernel.ringbuf import Records

SIZE = 2 * mmap.PAGESIZE
BUSY, DISCARDED = 1 << 31, 1 << 30


class Ring:
    """Both ends of a ring in memory; what is written into it has its place twice, as in the kernel's."""

    def __init__(self) -> None:
        self.reader = mmap.mmap(-1, mmap.PAGESIZE)
        self.writers = mmap.mmap(-1, mmap.PAGESIZE + 2 * SIZE)
        self.records = Records(self.reader, self.writers, SIZE)
        self.end = 0

    def write(self, record: bytes, flags: int = 0) -> int:
        """Append a record; return where its header is."""
        at = self.end % SIZE
        text = struct.pack("=II", len(record) | flags, 0) + record
        for offset, byte in enumerate(text):
            self.writers[mmap.PAGESIZE + (at + offset) % SIZE] = byte
            self.writers[mmap.PAGESIZE + SIZE + (at + offset) % SIZE] = byte
        self.end += -(-len(text) // 8) * 8
        self.writers[:8] = struct.pack("=Q", self.end)
        return at

    def read_position(self) -> int:
        return int(struct.unpack("=Q", self.reader[:8])[0])


@pytest.fixture
def ring() -> Iterator[Ring]:
    found = Ring()
    yield found
    found.records.close()


def test_records_come_in_order_and_their_room_is_given_back(ring: Ring) -> None:
    assert list(ring.records.read()) == []
    for record in (b"one", b"twotwotwo", b""):
        ring.write(record)
    assert list(ring.records.read()) == [b"one", b"twotwotwo", b""]
    assert ring.read_position() == ring.end == 16 + 24 + 8
    assert list(ring.records.read()) == []


def test_a_record_stays_its_readers_until_the_next_is_asked_for(ring: Ring) -> None:
    ring.write(b"one")
    ring.write(b"two")
    reading = ring.records.read()
    assert (next(reading), ring.read_position()) == (b"one", 0)
    assert (next(reading), ring.read_position()) == (b"two", 16)


def test_nothing_behind_a_record_that_is_being_written_is_read(ring: Ring) -> None:
    ring.write(b"done")
    at = ring.write(b"half", BUSY)
    ring.write(b"later")
    assert list(ring.records.read()) == [b"done"]
    for place in (at, at + SIZE):
        ring.writers[mmap.PAGESIZE + place : mmap.PAGESIZE + place + 4] = struct.pack("=I", 4)
    assert list(ring.records.read()) == [b"half", b"later"]


def test_a_discarded_record_is_skipped(ring: Ring) -> None:
    ring.write(b"no", DISCARDED)
    ring.write(b"yes")
    assert list(ring.records.read()) == [b"yes"]


def test_records_go_on_over_the_end(ring: Ring) -> None:
    """Several times round, with a length that does not divide the ring."""
    for number in range(4 * SIZE // 1000):
        record = number.to_bytes(4, "big") * 250
        ring.write(record)
        assert list(ring.records.read()) == [record]


def test_what_was_there_before_is_skipped(ring: Ring) -> None:
    ring.write(b"old")
    ring.records.skip()
    ring.write(b"new")
    assert list(ring.records.read()) == [b"new"]
