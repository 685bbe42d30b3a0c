# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.soak.fuzz [SECONDS [SEED]]``: mutated frames through the real programs.

Frames of both families, every protocol and every hook, whole and broken, run on live maps while Services
change; :mod:`tests.soak.judge` says of each whether what became of it is allowed. Ends with 1 at the first
fault, and prints the seed, the program, and the frame before and after in hexadecimal.
"""

from __future__ import annotations

import errno
import itertools
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from lb.errors import BpfError
from lb.model import Protocol, TrafficPolicy
from lb.plan.types import ServicePlan
from tests import options
from tests import packets as p
from tests.packet.harness import TC_POD_IN, TC_POD_OUT, TC_UPLINK_IN, TC_UPLINK_OUT, XDP, Datapath
from tests.packet.plans import NODE_PORT, PORT, TARGET_PORT, service
from tests.soak.judge import Judge

PROGRAMS = (XDP, TC_UPLINK_IN, TC_UPLINK_OUT, TC_POD_IN, TC_POD_OUT)
VIPS = (p.CLUSTER_VIP, p.LOAD_BALANCER_VIP, p.EXTERNAL_VIP, p.NODE1)
BACKENDS = (p.BACKEND_LOCAL, p.BACKEND_LOCAL_2, p.BACKEND_REMOTE, p.BACKEND_REMOTE_2, p.BACKEND_NARROW)
CLIENTS = (p.CLIENT, p.CLIENT_2, p.POD_CLIENT, p.BACKEND_LOCAL, "198.18.0.7")
OTHERS = (p.NOT_A_VIP, "198.18.0.9", p.ROUTER)
OWN = (p.NODE1, p.UPLINK_2_ADDRESS, p.POD_GATEWAY)
PORTS = (PORT, NODE_PORT, TARGET_PORT, 40_000, 40_001, 61_000, 65_535)
LINKS = (p.FROM_CLIENT, p.FROM_NODE2, p.TO_CLIENT, p.FROM_POD, p.TO_POD)
WAYS = (
    (CLIENTS, VIPS),
    (CLIENTS, VIPS),
    (BACKENDS, (*CLIENTS, *OWN)),
    (OTHERS, CLIENTS),
    (CLIENTS, OTHERS),
)
"""Who sends to whom."""
SHAPES = (options.TRANSLATED, options.LEFT_ALONE, options.MALFORMED)
SHORTEST = 15
"""Bytes: the kernel tries no frame without anything behind its Ethernet header."""
SERVICES_LAST = 2000
"""Frames between two changes of Services."""


def frames(chance: random.Random) -> list[bytes]:
    """Return well-formed frames of the family at hand, from everybody to everybody."""
    made: list[bytes] = []
    flags = ("S", "SA", "A", "PA", "FA", "R", "RA", "", "SFRA")
    for _ in range(60):
        sources, targets = chance.choice(WAYS)
        src = (chance.choice(sources), chance.choice(PORTS))
        dst = (chance.choice(targets), chance.choice(PORTS))
        link = chance.choice(LINKS)
        made += [
            p.tcp(link, src, dst, chance.choice(flags), chance.randbytes(chance.choice((0, 1, 33)))),
            p.udp(
                link, src, dst, chance.randbytes(chance.choice((0, 5, 200))), checksum=chance.random() < 0.8
            ),
            p.sctp(link, src, dst, chance.choice(("INIT", "INIT ACK", "DATA", "ABORT"))),
            p.echo(link, src[0], dst[0], ttl=chance.choice((1, 2, 64))),
        ]
    whole = made[1::4]
    made += [piece for frame in whole[:8] for piece in p.pieces(frame + bytes(64), 16, 40)]
    for frame in made[:40]:
        error = chance.choice(list(p.ICMP_ERRORS))
        about = p.icmp_error_for(frame, chance.choice((p.ROUTER, p.NODE2)), error, chance.choice((0, 1280)))
        extra = chance.choice(list(options.TRANSLATED[p.version()].values()))
        made += [about, options.into_quote(about, extra)]
    shapes = [extra for of in SHAPES for extra in of[p.version()].values()]
    return made + [options.into(frame, chance.choice(shapes)) for frame in chance.sample(made, 150)]


def mutate(frame: bytes, chance: random.Random) -> bytes:
    """Return the frame, one time in three as it is, else broken in one or two ways."""
    if chance.random() < 0.35:
        return frame
    data = bytearray(frame)
    for _ in range(chance.choice((1, 1, 2))):
        MUTATIONS[chance.randrange(len(MUTATIONS))](data, chance)
    return bytes(data) + bytes(max(0, SHORTEST - len(data)))


def _flip(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(min(len(data), 90))] ^= 1 << chance.randrange(8)


def _set(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(min(len(data), 90))] = chance.choice(
        (0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256))
    )


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(14, len(data) + 1) if len(data) > 14 else len(data) :]


def _pad(data: bytearray, chance: random.Random) -> None:
    data += chance.randbytes(chance.choice((1, 4, 40)))


def _first_byte(data: bytearray, chance: random.Random) -> None:
    if len(data) > 14:
        data[14] = chance.choice((0x40, 0x44, 0x46, 0x4F, 0x54, 0x60, 0x65, 0x00))


def _next_header(data: bytearray, chance: random.Random) -> None:
    at = 14 + (9 if data[12:14] == b"\x08\x00" else 6)
    if len(data) > at:
        data[at] = chance.choice((0, 1, 6, 17, 43, 44, 50, 58, 60, 132, 255))


def _insert(data: bytearray, chance: random.Random) -> None:
    at = chance.choice((12, 34, 54))
    if len(data) >= at:
        data[at:at] = chance.choice((b"\x81\x00\x00\x05", bytes(4), bytes([6, 0, 0, 0, 0, 0, 0, 0])))


def _fragment(data: bytearray, chance: random.Random) -> None:
    if len(data) > 22:
        data[20:22] = chance.choice((b"\x20\x00", b"\x00\x01", b"\x3f\xff", b"\x40\x00"))


def _lie(data: bytearray, chance: random.Random) -> None:
    """Let an option, or an extension header, say another length or type."""
    six = data[12:14] == b"\x86\xdd"
    at = (54 if six else 34) + chance.choice((0, 1, 8, 9, 16, 17) if six else range(12))
    if len(data) > at:
        data[at] = chance.choice((0, 1, 2, 4, 7, 24, 31, 40, 43, 44, 51, 60, 131, 137, 255))


Mutation = Callable[[bytearray, random.Random], None]
MUTATIONS: tuple[Mutation, ...] = (
    _flip,
    _set,
    _cut,
    _pad,
    _first_byte,
    _next_header,
    _insert,
    _fragment,
    _lie,
)


def services(chance: random.Random) -> Iterator[ServicePlan]:
    """Yield Services of one VIP set, with as many endpoints as chance has it."""
    for protocol in Protocol:
        yield service(
            *chance.sample(BACKENDS, chance.randrange(len(BACKENDS) + 1)),
            name=f"of-{protocol.name.lower()}",
            protocol=protocol,
            affinity_seconds=chance.choice((0, 0, 100)),
            external=chance.choice(list(TrafficPolicy)),
            source_ranges=chance.choice(((), (), ("192.0.2.0/24",))),
            whole=protocol is Protocol.TCP,
        )


@dataclass(slots=True)
class Campaign:
    """What was tried.

    untried: frames that the kernel gives to no tc program, such as an IP packet shorter than its header.
    ended: the others by IP version and verdict. changed: how many of them came out otherwise than they went
    in. fault: the first one that met what is forbidden, in words; empty where none did.
    """

    seed: int
    frames: int = 0
    untried: int = 0
    ended: Counter[tuple[int, str]] = field(default_factory=Counter)
    changed: int = 0
    fault: str = ""


def fuzz(datapath: Datapath, seed: int, enough: Callable[[Campaign], bool]) -> Campaign:
    """Run frames until enough() says so, or until one met what is forbidden."""
    chance, done = random.Random(seed), Campaign(seed)
    for version in itertools.cycle((4, 6)):
        if enough(done) or done.fault:
            break
        with p.family(version):
            ours = {p.here(each) for each in (*VIPS, *BACKENDS, *OWN, p.POD_CLIENT)}
            judge = Judge.of(ours)
            datapath.apply(*services(chance))
            stock = frames(chance)
            with datapath.namespace.entered():
                for _ in range(SERVICES_LAST):
                    frame, program = mutate(chance.choice(stock), chance), chance.choice(PROGRAMS)
                    try:
                        verdict, after = datapath.try_frame(program, frame)
                    except BpfError as error:
                        if error.errno != errno.EINVAL:
                            raise
                        done.untried += 1
                        continue
                    done.frames += 1
                    done.ended[p.version(), verdict] += 1
                    done.changed += after != frame
                    if fault := judge.fault(frame, verdict, after):
                        done.fault = f"{fault}: {program}, {verdict}\n{frame.hex()}\n{after.hex()}"
                        break
                    if enough(done):
                        break
    return done


def main(seconds: float = 60.0, seed: int | None = None) -> int:
    """Fuzz for so long; return the exit code."""
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    print(f"fuzz: seed {seed}", flush=True)
    datapath = Datapath()
    try:
        began = time.monotonic()
        done = fuzz(datapath, seed, lambda _: time.monotonic() - began > seconds)
    finally:
        datapath.close()
    counts = ", ".join(
        f"IPv{version} {verdict} {count}" for (version, verdict), count in sorted(done.ended.items())
    )
    print(
        f"fuzz: seed {seed}: {done.frames} frames in {seconds:.0f} s, {done.changed} changed,"
        f" {done.untried} not tried; {counts}"
    )
    if done.fault:
        print(f"fuzz: FAULT: {done.fault}")
    return bool(done.fault)


if __name__ == "__main__":
    sys.exit(main(*(kind(text) for kind, text in zip((float, int), sys.argv[1:], strict=False))))
