# SPDX-License-Identifier: Apache-2.0
"""Frames that are traced: built from words, told in a line, read from captures."""

from __future__ import annotations

import contextlib
import gzip
import random
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet
from scapy.utils import wrpcap, wrpcapng

from lb.cli import main
from lb.diagnose import frames
from lb.errors import ConfigError
from lb.model import FiveTuple
from tests.sctp import with_checksum

MAC = "02:00:00:00:00:aa"
FOUR = ip_address("192.0.2.7"), ip_address("203.0.113.10")
SIX = ip_address("2001:db8::7"), ip_address("2001:db8::10")
LINES = {
    (4, 6): "TCP 192.0.2.7:1000 > 203.0.113.10:80 [S], ttl 64, 54 bytes",
    (4, 17): "UDP 192.0.2.7:1000 > 203.0.113.10:80, ttl 64, 42 bytes",
    (4, 132): "SCTP 192.0.2.7:1000 > 203.0.113.10:80, ttl 64, 66 bytes",
    (6, 6): "TCP [2001:db8::7]:1000 > [2001:db8::10]:80 [S], ttl 64, 74 bytes",
    (6, 17): "UDP [2001:db8::7]:1000 > [2001:db8::10]:80, ttl 64, 62 bytes",
    (6, 132): "SCTP [2001:db8::7]:1000 > [2001:db8::10]:80, ttl 64, 86 bytes",
}


@pytest.mark.parametrize(("version", "protocol"), LINES)
def test_what_is_built_is_what_is_read(version: int, protocol: int) -> None:
    src, dst = FOUR if version == 4 else SIX
    packet = FiveTuple(src, 1000, dst, 80, protocol)
    frame = frames.build(packet, mac=MAC)
    assert frames.read(frame) == packet
    assert frames.summary(frame) == LINES[version, protocol]
    assert Ether(frame).dst == MAC
    answer = frames.answer(frame, MAC)
    assert answer is not None
    assert frames.read(answer) == packet.reverse
    if protocol == 132:
        body = frame[34 if version == 4 else 54 :]
        assert with_checksum(body) == body


@pytest.mark.parametrize("version", [4, 6])
def test_a_ping(version: int) -> None:
    src, dst = FOUR if version == 4 else SIX
    packet = FiveTuple(src, 0, dst, 0, frames.ECHO[version])
    frame = frames.build(packet, mac=MAC)
    assert frames.read(frame) == packet
    assert f"{src} > {dst} echo request" in frames.summary(frame)
    assert frames.answer(frame, MAC) is None


def test_changes_name_fields_and_do_not_compare_different_packets() -> None:
    one = frames.build(_to(80, 17), mac=MAC)
    other = frames.build(_to(81, 17), mac=MAC)
    assert ("UDP.dport", "80", "81") in frames.changes(one, other)
    assert frames.changes(one, frames.build(_to(80), mac=MAC)) == []


def _to(port: int, protocol: int = 6) -> FiveTuple:
    return FiveTuple(FOUR[0], 1000, FOUR[1], port, protocol)


@pytest.mark.parametrize("write", [wrpcap, wrpcapng])
def test_captures_of_both_kinds(tmp_path: Path, write: Callable[[str, list[Packet]], None]) -> None:
    arp = Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / ARP()
    frame = frames.build(_to(80), mac=MAC)
    file = tmp_path / "capture"
    write(str(file), [arp, Ether(frame)])
    assert list(frames.read_capture(file, MAC)) == [bytes(arp), frame]
    assert frames.read(bytes(arp)) is None
    assert "ARP" in frames.summary(bytes(arp))


def test_a_capture_without_link_header_gets_one(tmp_path: Path) -> None:
    file = tmp_path / "capture"
    wrpcap(str(file), [IP(src="192.0.2.7", dst="192.0.2.8") / ICMP()], linktype=101)
    (frame,) = frames.read_capture(file, MAC)
    assert Ether(frame).dst == MAC
    assert frames.read(frame) == FiveTuple(FOUR[0], 0, ip_address("192.0.2.8"), 0, 1)


def test_what_is_no_capture_is_one_error(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("this is no capture, but long enough to be one" * 3)
    with pytest.raises(ConfigError, match=f"--read {file}: not a pcap or pcapng file"):
        list(frames.read_capture(file, MAC))
    with pytest.raises(ConfigError, match="No such file"):
        list(frames.read_capture(tmp_path / "none", MAC))


@pytest.mark.parametrize("write", [wrpcap, wrpcapng])
def test_a_capture_that_is_cut_is_an_error_wherever_it_ends(
    tmp_path: Path, write: Callable[[str, list[Packet]], None], capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "capture"
    sent = [frames.build(_to(port), mac=MAC) for port in (80, 81)]
    write(str(file), [Ether(frame) for frame in sent])
    whole, seen = file.read_bytes(), set()
    for end in range(len(whole)):
        file.write_bytes(whole[:end])
        with contextlib.suppress(ConfigError):
            found = list(frames.read_capture(file, MAC))
            assert found == sent[: len(found)]
            seen.add(len(found))
    assert seen == {0, 1}, "what ends between two packets is whole"
    file.write_bytes(gzip.compress(whole)[:-9])
    with pytest.raises(ConfigError, match="not a pcap"):
        list(frames.read_capture(file, MAC))
    file.write_bytes(gzip.compress(whole))
    assert list(frames.read_capture(file, MAC)) == sent


@pytest.mark.parametrize("write", [wrpcap, wrpcapng])
def test_a_damaged_capture_is_an_error_or_other_packets(
    tmp_path: Path, write: Callable[[str, list[Packet]], None]
) -> None:
    file, chance = tmp_path / "capture", random.Random(13)
    write(str(file), [Ether(frames.build(_to(80), mac=MAC))])
    whole = file.read_bytes()
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(whole))] = chance.choice((0, 1, 2, 0x7F, 0x80, 0xFF))
        file.write_bytes(damaged)
        with contextlib.suppress(ConfigError):
            list(frames.read_capture(file, MAC))


def test_too_large_a_capture_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "_MOST_CAPTURE", 1000)
    for data in (bytes(1001), gzip.compress(bytes(1001))):
        (tmp_path / "capture").write_bytes(data)
        with pytest.raises(ConfigError, match="is larger than 1000 bytes"):
            list(frames.read_capture(tmp_path / "capture", MAC))


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=r"--pcap .*/out: No space left on device"):
        frames.write_capture(tmp_path / "out", [frames.build(_to(80), mac=MAC)])


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    wanted = [frames.build(_to(port), mac=MAC) for port in (80, 81)]
    frames.write_capture(tmp_path / "out", wanted)
    assert list(frames.read_capture(tmp_path / "out", MAC)) == wanted


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "trace: give SRC and DST, or --read FILE"),
        (["192.0.2.7", "203.0.113.10"], "DST 203.0.113.10: give a port, as 203.0.113.10:80, or --proto icmp"),
        (["192.0.2.7", "[2001:db8::10]:80"], "trace: SRC 192.0.2.7 is IPv4, DST 2001:db8::10 is IPv6"),
        (["192.0.2.7:70000", "203.0.113.10:80"], "SRC 192.0.2.7:70000: must be ADDRESS or ADDRESS:PORT"),
        (["web", "203.0.113.10:80"], "SRC web: must be ADDRESS or ADDRESS:PORT"),
        (["192.0.2.7", "203.0.113.10:80", "--flags", "X"], "--flags X: some of F, S, R, P, A, U, E, C"),
        (["192.0.2.7", "203.0.113.10:80", "--proto", "icmp"], "trace: --proto icmp has no ports"),
        (
            ["192.0.2.7", "203.0.113.10:80", "--read", "x"],
            "trace: give SRC and DST, or --read FILE, not both",
        ),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"lbctl: {complaint}")
    assert said.count("\n") == 1
