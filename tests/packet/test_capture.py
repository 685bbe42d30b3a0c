# SPDX-License-Identifier: Apache-2.0
"""What `lbctl monitor` writes to a file, and which bytes of a packet it has."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from scapy.utils import RawPcapReader

from lb.datapath.maps.layouts import EVENT_BYTES
from lb.errors import ConfigError
from lb.live.capture import Capture
from lb.live.events import describe
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.harness import (
    HOOK_OF,
    TC_POD_IN,
    XDP,
    Datapath,
    Result,
)
from tests.packet.plans import VIPS, service
from tests.packet.watching import ALL, BYTES, CLIENT, DROPS, POD, VIP, WEB, both_uplinks, watching


@both_uplinks
@pytest.mark.parametrize("size", [0, 1, 200, 1200])
def test_the_bytes_before_and_after(datapath: Datapath, uplink_program: str, size: int) -> None:
    datapath.apply(service(p.BACKEND_LOCAL))
    frames = [
        p.tcp(p.FROM_CLIENT, CLIENT, VIP, flags, (bytes(range(256)) * 5)[:size]) for flags in ("S", "A")
    ]
    with watching(datapath, ALL | BYTES) as told:
        for frame in frames:  # by the program for first packets, and by the other
            result = datapath.run(uplink_program, frame)
            (record,) = told.records()
            before, after = frame[:EVENT_BYTES], result.packet[:EVENT_BYTES]
            assert record["before"][: record["captured"]].tobytes() == before
            assert record["after"][: record["sent_captured"]].tobytes() == after
            assert (record["len"], record["sent_len"]) == (len(frame), len(result.packet))


@both_uplinks
def test_of_an_answer_and_of_a_drop_there_are_bytes_as_well(datapath: Datapath, uplink_program: str) -> None:
    datapath.apply(service(source_ranges=["203.0.113.0/24"]))
    refused = p.tcp(p.FROM_CLIENT, CLIENT, VIP)
    dropped = p.tcp(p.FROM_CLIENT, CLIENT, VIPS[VipKind.LOAD_BALANCER])
    with watching(datapath, DROPS | BYTES) as told:
        for frame, out in ((refused, p.reset_for(refused)), (dropped, b"")):
            datapath.run(uplink_program, frame)
            (record,) = told.records()
            assert record["before"][: record["captured"]].tobytes() == frame
            assert record["after"][: record["sent_captured"]].tobytes() == out
            assert record["sent_len"] == len(out)


def test_without_bytes_none_of_an_earlier_packet_are_told(datapath: Datapath) -> None:
    datapath.apply(service(p.BACKEND_LOCAL))
    with watching(datapath, ALL | BYTES) as told:
        datapath.run(XDP, p.tcp(p.FROM_CLIENT, CLIENT, VIP))
        assert told.records()[0]["captured"]
    with watching(datapath, ALL) as told:
        datapath.run(XDP, p.tcp(p.FROM_CLIENT, CLIENT, VIP, "A"))
        (record,) = told.records()
        assert (record["captured"], record["sent_captured"]) == (0, 0)
        assert not record["before"].any()


def test_a_capture_has_both_packets_and_the_reason(datapath: Datapath, tmp_path: Path) -> None:
    """Read back by Scapy, block by block; Wireshark shows the comments."""
    datapath.apply(service(p.BACKEND_LOCAL))
    path = tmp_path / "nat.pcapng"
    capture = Capture(path)
    first, refused = p.tcp(p.FROM_CLIENT, CLIENT, VIP), p.udp(p.FROM_POD, POD, (p.CLUSTER_VIP, 81))
    expected, results = [], list[Result]()
    with watching(datapath, ALL | BYTES) as told:
        for program, frame in ((XDP, first), (TC_POD_IN, refused)):
            results.append(datapath.run(program, frame))
            (record,) = told.records()
            with datapath.namespace.entered():
                told_of = describe(record, told.names, 1_700_000_000_000_000_000 - int(record["time_ns"]))
            capture.write(record, told_of)
            for when, packet in (("before", frame), ("after", results[-1].packet)):
                words = " ".join(told_of.words().split())
                expected.append((HOOK_OF[program], packet, f"{when}: {words}: {told_of.meaning}"))
    capture.close()
    with RawPcapReader(str(path)) as reader:
        read = list(reader)
    found = [(meta.ifname.decode(), data, meta.comments[0].decode()) for data, meta in read]
    assert found == expected
    assert {(meta.tshigh << 32) | meta.tslow for _, meta in read} == {1_700_000_000_000_000}
    assert [meta.wirelen for _, meta in read] == [len(packet) for _, packet, _ in expected]
    assert "NEW_LOCAL" in expected[0][2]
    assert WEB in expected[0][2]


def test_a_packet_without_link_header_gets_one_in_the_capture(datapath: Datapath, tmp_path: Path) -> None:
    """As of a tunnel; and where it was sent on, it has got its own."""
    datapath.apply(service(p.BACKEND_LOCAL))
    capture, path = Capture(tmp_path / "bare.pcapng"), tmp_path / "bare.pcapng"
    frame = p.tcp(p.FROM_CLIENT, CLIENT, VIP)
    empty = bytes(12) + frame[12:14]
    with watching(datapath, ALL | BYTES) as told:
        result = datapath.run(XDP, frame)
        (record,) = told.records()
        bare = frame[14:]
        record = record.copy()
        record["l3"], record["len"], record["captured"] = 0, len(bare), len(bare)
        record["before"][: len(bare)] = list(bare)
        capture.write(record, describe(record, told.names, 0))
        record["sent_len"], record["sent_captured"] = len(bare), len(bare)
        record["after"][: len(bare)] = list(result.packet[14:])
        capture.write(record, describe(record, told.names, 0))
    capture.close()
    with RawPcapReader(str(path)) as reader:
        read = [data for data, _ in reader]
    assert read == [empty + bare, result.packet, empty + bare, empty + result.packet[14:]]


def test_a_capture_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--pcap .*/none/x.pcapng: No such file or directory"):
        Capture(tmp_path / "none" / "x.pcapng")
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=r"--pcap .*/full: No space left on device"):
        Capture(tmp_path / "full").close()


def test_a_capture_is_for_root_alone(tmp_path: Path) -> None:
    Capture(tmp_path / "x.pcapng").close()
    assert stat.S_IMODE((tmp_path / "x.pcapng").stat().st_mode) == 0o600
