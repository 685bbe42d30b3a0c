# SPDX-License-Identifier: Apache-2.0
"""The thin functions over bpf(): elements, batches, pins, information, test runs. Needs root."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lb.datapath.kernel import batch, bpf
from lb.datapath.kernel.bpf import ProgType
from lb.datapath.kernel.pins import Pins, ensure_bpffs
from lb.datapath.maps.map_table import MapType
from lb.datapath.programs.loops import INSN
from lb.errors import BpfError
from tests.unit.pins_bench import own_pins

U4, U8 = np.dtype("u4"), np.dtype("u8")


def key(number: int) -> bpf.Rows:
    return np.array([number], dtype=U4)


def value(number: int) -> bpf.Rows:
    return np.array([number], dtype=U8)


@pytest.fixture(params=["batch", "each"])
def batched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with the kernel's batch commands, and as on a kernel without them."""
    if request.param == "each":
        monkeypatch.setattr(batch, "_batch", lambda *_: (0, errno.EINVAL))
    return str(request.param)


@pytest.fixture
def numbers() -> Iterator[bpf.FD]:
    """A hash map of u4 to u8 with room for 10,000."""
    with bpf.map_create(MapType.HASH, 4, 8, 10_000, name="numbers") as fd:
        yield fd


def is_map(number: int) -> bool:
    """Tell whether a descriptor of this process is a BPF map. Other threads open and close their own."""
    try:
        return "bpf-map" in os.readlink(f"/proc/self/fd/{number}")
    except FileNotFoundError:
        return False


def test_descriptor_is_closed_once() -> None:
    fd = bpf.map_create(MapType.ARRAY, 4, 8, 1, name="one")
    number = fd.fileno()
    assert is_map(number)
    fd.close()
    assert not is_map(number)
    taken = os.dup(0)  # the number may be somebody else's by now: a second close must leave it alone
    fd.close()
    os.fstat(taken)
    os.close(taken)
    with pytest.raises(ValueError, match="map one: file descriptor is closed"):
        fd.fileno()


def test_descriptor_is_closed_with_its_last_reference() -> None:
    fd = bpf.map_create(MapType.ARRAY, 4, 8, 1)
    number = fd.fileno()
    assert is_map(number)
    del fd
    assert not is_map(number)


def test_elements(numbers: bpf.FD) -> None:
    found = value(0)
    assert not bpf.map_lookup(numbers, key(1), found)
    bpf.map_update(numbers, key(1), value(10))
    bpf.map_update(numbers, key(1), value(11))
    assert bpf.map_lookup(numbers, key(1), found)
    assert found == 11
    next_key = key(0)
    assert bpf.map_next_key(numbers, None, next_key)
    assert next_key == 1
    assert not bpf.map_next_key(numbers, key(1), next_key)
    assert bpf.map_delete(numbers, key(1))
    assert not bpf.map_delete(numbers, key(1))


def test_flags_of_an_update(numbers: bpf.FD) -> None:
    with pytest.raises(BpfError) as caught:
        bpf.map_update(numbers, key(1), value(1), flags=2)
    assert (caught.value.command, caught.value.errno) == ("MAP_UPDATE_ELEM", errno.ENOENT)
    assert str(caught.value) == "bpf(MAP_UPDATE_ELEM) on map numbers: No such file or directory"


def test_information(numbers: bpf.FD) -> None:
    info = bpf.map_info(numbers)
    assert info.id > 0
    assert (info.type, info.name, info.key_size, info.value_size, info.max_entries, info.flags) == (
        MapType.HASH, "numbers", 4, 8, 10_000, 0,
    )  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 10_000])
@pytest.mark.parametrize("kind", [MapType.HASH, MapType.LRU_HASH])
def test_many_entries(batched: str, count: int, kind: MapType) -> None:
    room = 10_000 if kind is MapType.HASH else 40_000  # an LRU map evicts before it is full
    keys, values = np.arange(count, dtype=U4), np.arange(count, dtype=U8) * 3
    with bpf.map_create(kind, 4, 8, room) as fd:
        info = bpf.map_info(fd)
        batch.update_all(fd, keys, values)
        found, rows = batch.read_all(fd, info, U4, 8)
        assert batch.count_all(fd, info, 8) == count
        order = np.argsort(found)
        assert found[order].tolist() == keys.tolist()
        assert rows.reshape(-1).view(U8)[order].tolist() == values.tolist()
        batch.delete_all(fd, np.arange(0, count + 7, 2, dtype=U4))  # some are not there
        assert sorted(batch.read_all(fd, info, U4, 8)[0]) == list(range(1, count, 2))


def test_keys_keep_their_bytes(batched: str) -> None:
    """Big-endian fields are not turned into the CPU's order on the way."""
    dtype = np.dtype([("address", ">u4"), ("port", ">u2"), ("pad", "u2")])
    keys = np.array([(0x0A000001, 80, 0), (0x0A000002, 443, 0)], dtype=dtype)
    with bpf.map_create(MapType.HASH, 8, 8, 8) as fd:
        batch.update_all(fd, keys, np.zeros(2, dtype=U8))
        found, _ = batch.read_all(fd, bpf.map_info(fd), dtype, 8)
    assert found.dtype == dtype
    assert {one.tobytes() for one in found} == {one.tobytes() for one in keys}


def test_full_map_keeps_what_came_before(batched: str) -> None:
    with bpf.map_create(MapType.HASH, 4, 8, 100, flags=1) as fd:
        with pytest.raises(BpfError) as caught:
            batch.update_all(fd, np.arange(150, dtype=U4), np.zeros(150, dtype=U8))
        assert caught.value.errno == errno.E2BIG
        assert sorted(batch.read_all(fd, bpf.map_info(fd), U4, 8)[0]) == list(range(100))


def test_many_entries_in_one_bucket() -> None:
    """A bucket that does not fit into the buffer makes the kernel ask for a larger one."""
    with bpf.map_create(MapType.HASH, 4, 8, 1 << 16) as fd:
        keys = np.arange(1 << 16, dtype=U4)
        batch.update_all(fd, keys, np.zeros(len(keys), dtype=U8))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batch, "_MAX_BATCH", 1)
            found, _ = batch.read_all(fd, bpf.map_info(fd), U4, 8)
    assert sorted(found) == keys.tolist()


def test_array_and_per_cpu_array() -> None:
    cpus = bpf.possible_cpus()
    with bpf.map_create(MapType.PERCPU_ARRAY, 4, 8, 3) as fd:
        rows = np.arange(3 * cpus, dtype=U8).reshape(3, cpus)
        batch.update_all(fd, np.arange(3, dtype=U4), rows)
        keys, found = batch.read_all(fd, bpf.map_info(fd), U4, 8 * cpus)
    assert keys.tolist() == [0, 1, 2]
    assert found.view(U8).tolist() == rows.tolist()


@pytest.mark.parametrize(
    ("text", "count"), [("0\n", 1), ("0-3\n", 4), ("0-3,8\n", 9), ("0,2-5\n", 6), ("0-127", 128)]
)
def test_possible_cpus(text: str, count: int) -> None:
    assert bpf.possible_cpus(text) == count


def test_pins(numbers: bpf.FD) -> None:
    ensure_bpffs()
    with own_pins() as pins:
        pins.maps.mkdir(parents=True)
        bpf.obj_pin(numbers, pins.maps / "numbers")
        with bpf.obj_get(pins.maps / "numbers") as again:
            assert bpf.map_info(again).id == bpf.map_info(numbers).id
        with pytest.raises(BpfError, match=r"bpf\(OBJ_PIN\) on .*/numbers: File exists"):
            bpf.obj_pin(numbers, pins.maps / "numbers")
        with pytest.raises(BpfError, match=r"bpf\(OBJ_GET\) on .*/absent: No such file"):
            bpf.obj_get(pins.maps / "absent")
    assert not Path(Pins(pins.instance).base).exists()


def test_unknown_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    with pytest.raises(BpfError, match="pdp11"):
        bpf.map_create(MapType.ARRAY, 4, 8, 1)


def test_program_that_is_gone() -> None:
    with pytest.raises(BpfError) as caught:
        bpf.prog_by_id(0x7FFFFFFF)
    assert caught.value.errno == errno.ENOENT


def test_array_that_is_not_contiguous(numbers: bpf.FD) -> None:
    with pytest.raises(ValueError, match="contiguous"):
        batch.update_all(numbers, np.arange(8, dtype=U4)[::2], np.zeros(4, dtype=U8))


def test_a_refusal_ends_with_its_reason() -> None:
    """What the verifier has said of a good way it takes back, and leaves it behind what it says then."""
    load, leave = (0x61, 0x12, 0, 0), (0x95, 0, 0, 0)
    good = [(0xB7, 0, 0, number) for number in range(100)]
    to_bad = (0x15, 0x02, len(good) + 1, 0)
    bad = (0xBF, 0x90, 0, 0)  # r0 = r9, which nobody has set
    code = np.array([load, to_bad, *good, leave, bad, leave], INSN).tobytes()
    program, log, error = bpf.prog_load(ProgType.SCHED_CLS, code, "refused", log_size=1 << 16)
    assert program is None
    assert error == errno.EACCES
    assert log.splitlines()[-2] == "R9 !read_ok"
