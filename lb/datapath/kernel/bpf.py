# SPDX-License-Identifier: Apache-2.0
"""What the bpf() system call does, as thin typed functions; nothing here knows what the maps mean.

Keys and values are C-contiguous numpy arrays whose rows are the kernel's bytes. A per-CPU value is one row of
``value size rounded up to 8`` bytes for each possible CPU (see :func:`possible_cpus`).

Attribute layouts are those of ``linux/bpf.h``, which the kernel keeps stable.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import resource
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lb.datapath.kernel.closing import Closing
from lb.datapath.kernel.syscall import Command, syscall
from lb.errors import BpfError

Rows = NDArray[Any]

_NAME_LENGTH = 16  # BPF_OBJ_NAME_LEN, with the NUL
_MODULE_NAME = 64  # MODULE_NAME_LEN, rounded up


class ProgType(IntEnum):
    """enum bpf_prog_type, as far as it is used here."""

    SCHED_CLS = 3
    XDP = 6
    CGROUP_SOCK_ADDR = 18


class FD(Closing):
    """A file descriptor that is closed with this object.

    subject names the map or the program in error messages.
    """

    __slots__ = ("_fd", "subject")

    def __init__(self, fd: int, subject: str) -> None:
        self._fd = fd
        self.subject = subject

    def fileno(self) -> int:
        """Return the number; ValueError once closed."""
        if self._fd < 0:
            raise ValueError(f"{self.subject}: file descriptor is closed")
        return self._fd

    def close(self) -> None:
        """Close; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class MapInfo:
    """struct bpf_map_info: the shape of a map; sizes in bytes."""

    id: int
    type: int
    name: str
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class ProgInfo:
    """struct bpf_prog_info. tag is the hash of the instructions; load_time is ns since boot."""

    id: int
    type: int
    name: str
    tag: str
    load_time: int
    map_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """struct bpf_link_info of a program at a cgroup; cgroup is the id of the group, 0 once that is gone."""

    program_id: int
    cgroup: int
    attach_type: int


@dataclass(frozen=True, slots=True)
class TestRun:
    """What one run of a program gave: verdict, packet and context after it."""

    __test__ = False  # a result, not a pytest class

    retval: int
    data: bytes
    ctx: bytes


def address(rows: Rows | None) -> int:
    """Return the address of an array's bytes; 0 for None."""
    if rows is None:
        return 0
    if not rows.flags.c_contiguous:
        raise ValueError("bpf() needs a C-contiguous array")
    return int(rows.ctypes.data)


def _text(path: Path) -> Rows:
    return np.frombuffer(os.fsencode(path) + b"\0", dtype="u1")


@functools.cache
def possible_cpus(text: str | None = None) -> int:
    """Return how many values a per-CPU map holds for each key: the possible, not the online CPUs.

    text is a CPU list such as ``"0-3,8"``; default: what the kernel says.
    """
    if text is None:
        text = Path("/sys/devices/system/cpu/possible").read_text()
    last = text.strip().rsplit(",", 1)[-1].rsplit("-", 1)[-1]
    return int(last) + 1


def unlimit_memory() -> None:
    """Let this process have maps and programs of any size.

    Before Linux 5.11 they count as memory that it has locked, of which it may have 64 kB or so. Without the
    right to raise the limit (CAP_SYS_RESOURCE) it stays, and the kernel refuses what is too large with EPERM.
    """
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def map_create(
    map_type: int,
    key_size: int,
    value_size: int,
    max_entries: int,
    *,
    flags: int = 0,
    name: str = "",
    locked: bool = False,
) -> FD:
    """Create a map; sizes in bytes, flags are BPF_F_*.

    locked: an array whose values begin with a struct bpf_spin_lock.
    """
    with contextlib.ExitStack() as stack:
        described = stack.enter_context(_describe_lock(value_size)).fileno() if locked else 0
        attr = bytearray(
            struct.pack(
                "=IIIIIII16sIIII",
                map_type,
                key_size,
                value_size,
                max_entries,
                flags,
                0,
                0,
                name.encode()[: _NAME_LENGTH - 1],
                0,
                described,
                _BTF_U32 if locked else 0,
                _BTF_VALUE if locked else 0,
            )
        )
        return FD(syscall(Command.MAP_CREATE, attr, f"map {name}"), f"map {name}")


_BTF_U32, _BTF_LOCK, _BTF_VALUE = 1, 2, 3  # the types that _describe_lock() gives, as they are numbered


def _describe_lock(value_size: int) -> FD:
    """Tell the kernel of values of so many bytes that begin with a struct bpf_spin_lock.

    It finds the lock by BTF (the kernel's documentation, "BPF Type Format"), of which this is the least that
    it accepts: the key's type, the lock's, and the value's with the lock as its one member.
    """
    names = b"\0u32\0bpf_spin_lock\0val\0value\0lock\0"
    integer, structure = 1 << 24, 4 << 24 | 1  # kinds; a structure of one member

    def name(text: bytes) -> int:
        return names.index(b"\0" + text + b"\0") + 1

    types = struct.pack("=IIII", name(b"u32"), integer, 4, 32)
    types += struct.pack("=IIIIII", name(b"bpf_spin_lock"), structure, 4, name(b"val"), _BTF_U32, 0)
    types += struct.pack("=IIIIII", name(b"value"), structure, value_size, name(b"lock"), _BTF_LOCK, 0)
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names))
    blob = np.frombuffer(header + types + names, dtype="u1")
    attr = bytearray(struct.pack("=QQIII4x", address(blob), 0, blob.nbytes, 0, 0))
    return FD(syscall(Command.BTF_LOAD, attr, "BTF of a lock"), "BTF of a lock")


def _element(command: Command, fd: FD, key: Rows | None, value: Rows | None, flags: int = 0) -> None:
    attr = bytearray(struct.pack("=I4xQQQ", fd.fileno(), address(key), address(value), flags))
    syscall(command, attr, fd.subject)


def map_lookup(fd: FD, key: Rows, value: Rows) -> bool:
    """Read one value into value; return False when the key is not there."""
    return _unless_missing(lambda: _element(Command.MAP_LOOKUP_ELEM, fd, key, value))


def map_update(fd: FD, key: Rows, value: Rows, flags: int = 0) -> None:
    """Write one entry; flags are BPF_ANY (0), BPF_NOEXIST (1), BPF_EXIST (2)."""
    _element(Command.MAP_UPDATE_ELEM, fd, key, value, flags)


def map_delete(fd: FD, key: Rows) -> bool:
    """Delete one entry; return False when the key was not there."""
    return _unless_missing(lambda: _element(Command.MAP_DELETE_ELEM, fd, key, None))


def map_next_key(fd: FD, key: Rows | None, next_key: Rows) -> bool:
    """Write the key after key (None: the first) into next_key; return False at the end."""
    return _unless_missing(lambda: _element(Command.MAP_GET_NEXT_KEY, fd, key, next_key))


def _unless_missing(call: Callable[[], None]) -> bool:
    try:
        call()
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def prog_load(
    prog_type: int,
    code: bytes,
    name: str,
    *,
    attach_type: int = 0,
    log_size: int = 0,
    fds: Sequence[int] = (),
) -> tuple[FD | None, str, int]:
    """Load a program of code, struct bpf_insn[]; attach_type is one of enum bpf_attach_type.

    fds: descriptors that instructions name by their place there. An instruction that calls a function of a
    module has the place of the module's type information in its field `off`; 0 is the kernel's own.
    Returns the program (None when the kernel refused it), the verifier's log when log_size bytes are given
    for it, and the errno.
    """
    instructions = np.frombuffer(code, dtype="u1")
    licence = np.frombuffer(b"Dual BSD/GPL\0", dtype="u1")  # the kernel's word for that of bpf/
    log = np.zeros(max(log_size, 1), dtype="u1")
    attr = bytearray(
        struct.pack(
            "=IIQQIIQII16sIIQ",
            prog_type,
            len(code) // 8,
            address(instructions),
            address(licence),
            1 if log_size else 0,
            log_size,
            address(log) if log_size else 0,
            0,
            0,
            name.encode()[: _NAME_LENGTH - 1],
            0,
            attach_type,
            0,
        )
    )
    array = np.array(fds, dtype="i4")
    if fds:
        attr += struct.pack("=QIIQIIIIQ", 0, 0, 0, 0, 0, 0, 0, 0, address(array))
    try:
        fd = FD(syscall(Command.PROG_LOAD, attr, f"program {name}"), f"program {name}")
    except BpfError as error:
        # What the verifier has said of a way that turned out well it takes back: it goes on where that began.
        # Behind the NUL that ends its words older ones are left.
        words = log.tobytes().partition(b"\0")[0]
        return None, words.decode(errors="replace"), error.errno
    return fd, "", 0


def obj_pin(fd: FD, path: Path) -> None:
    """Pin a map or a program at a path of a bpf file system."""
    text = _text(path)
    syscall(Command.OBJ_PIN, bytearray(struct.pack("=QII", address(text), fd.fileno(), 0)), str(path))


def obj_get(path: Path) -> FD:
    """Open a pinned map or program."""
    text = _text(path)
    attr = bytearray(struct.pack("=QII", address(text), 0, 0))
    return FD(syscall(Command.OBJ_GET, attr, str(path)), str(path))


def prog_by_id(ident: int) -> FD:
    """Open a loaded program by its id; BpfError with ENOENT when it is gone."""
    attr = bytearray(struct.pack("=III", ident, 0, 0))
    return FD(syscall(Command.PROG_GET_FD_BY_ID, attr, f"program {ident}"), f"program {ident}")


def _info(fd: FD, buffer: Rows) -> None:
    attr = bytearray(struct.pack("=IIQ", fd.fileno(), buffer.nbytes, address(buffer)))
    syscall(Command.OBJ_GET_INFO_BY_FD, attr, fd.subject)


def _name(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")


def map_info(fd: FD) -> MapInfo:
    """Return a map's shape."""
    buffer = np.zeros(40, dtype="u1")
    _info(fd, buffer)
    kind, ident, key, value, entries, flags, name = struct.unpack("=IIIIII16s", buffer.tobytes())
    return MapInfo(ident, kind, _name(name), key, value, entries, flags)


_PROG_INFO = struct.Struct("=II8sIIQQQIIQ16s")


def prog_info(fd: FD) -> ProgInfo:
    """Return a program's identity and the ids of its maps."""
    buffer = np.zeros(_PROG_INFO.size, dtype="u1")
    _info(fd, buffer)
    count = _PROG_INFO.unpack(buffer.tobytes())[9]
    ids = np.zeros(max(count, 1), dtype="u4")
    request = _PROG_INFO.pack(0, 0, b"", 0, 0, 0, 0, 0, 0, count, address(ids), b"")
    buffer = np.frombuffer(bytearray(request), dtype="u1")
    _info(fd, buffer)
    kind, ident, tag, _, _, _, _, load_time, _, count, _, name = _PROG_INFO.unpack(buffer.tobytes())
    return ProgInfo(ident, kind, _name(name), tag.hex(), load_time, tuple(int(i) for i in ids[:count]))


def module_btf(name: str) -> FD | None:
    """Open the type information of a module; None: there is none by this name.

    Raises BpfError: the kernel refused; it takes CAP_SYS_ADMIN.
    """
    ident = 0
    while True:
        attr = bytearray(struct.pack("=III", ident, 0, 0))
        try:
            syscall(Command.BTF_GET_NEXT_ID, attr, "type information")
            (ident,) = struct.unpack_from("=4xI", attr)
            attr = bytearray(struct.pack("=III", ident, 0, 0))
            fd = FD(syscall(Command.BTF_GET_FD_BY_ID, attr, f"BTF {ident}"), f"BTF {ident}")
        except BpfError as error:
            if error.errno == errno.ENOENT:  # behind the last one, or gone in this moment
                return None
            raise
        if _btf_name(fd) == (name, True):
            return fd
        fd.close()


_BTF_INFO = struct.Struct("=QIIQII")  # btf, btf_size, id, name, name_len, kernel_btf


def _btf_name(fd: FD) -> tuple[str, bool]:
    """Return the name of type information, and whether it is of the kernel or a module."""
    text = np.zeros(_MODULE_NAME, dtype="u1")
    request = _BTF_INFO.pack(0, 0, 0, address(text), len(text), 0)
    buffer = np.frombuffer(bytearray(request), dtype="u1")
    _info(fd, buffer)
    *_, of_kernel = _BTF_INFO.unpack(buffer.tobytes())
    return _name(text.tobytes()), bool(of_kernel)


def link_create(program: FD, target: int, attach_type: int, subject: str) -> FD:
    """Attach a program to a target, for a cgroup: a descriptor of its directory.

    Others' programs there stay. Ours is detached when the last descriptor and pin of the link returned go.
    """
    attr = bytearray(struct.pack("=IIII", program.fileno(), target, attach_type, 0))
    return FD(syscall(Command.LINK_CREATE, attr, subject), subject)


def link_update(link: FD, program: FD) -> None:
    """Put another program in the place of a link's, at once: at no moment there is none."""
    attr = bytearray(struct.pack("=IIII", link.fileno(), program.fileno(), 0, 0))
    syscall(Command.LINK_UPDATE, attr, link.subject)


def link_detach(link: FD) -> None:
    """Detach a link's program now; the link stays, without effect."""
    syscall(Command.LINK_DETACH, bytearray(struct.pack("=I", link.fileno())), link.subject)


def link_info(link: FD) -> LinkInfo:
    """Return what a link of a cgroup attaches, and where."""
    buffer = np.zeros(32, dtype="u1")
    _info(link, buffer)
    _, _, program, cgroup, attach_type = struct.unpack_from("=III4xQI", buffer.tobytes())
    return LinkInfo(program, cgroup, attach_type)


def prog_test_run(
    fd: FD, data: bytes, ctx: bytes = b"", *, repeat: int = 1, room: int = 2048, ctx_room: int = 0
) -> TestRun:
    """Run a loaded program on a packet, in the caller's network namespace.

    data is the packet from the Ethernet header on; ctx is the struct xdp_md or struct __sk_buff going in
    (empty: the kernel's defaults), ctx_room the bytes of it to read back. room is for the packet that comes
    out. With repeat, the program runs that many times; the result is that of the last run.

    Raises BpfError: ENOSPC when room is too small, EINVAL when the packet is shorter than 14 bytes.
    """
    data_in = np.frombuffer(data, dtype="u1")
    data_out = np.zeros(max(room, len(data)), dtype="u1")
    ctx_in = np.frombuffer(ctx, dtype="u1") if ctx else None
    ctx_out = np.zeros(ctx_room, dtype="u1") if ctx_room else None
    attr = bytearray(
        struct.pack(
            "=IIIIQQIIIIQQ",
            fd.fileno(),
            0,
            data_in.nbytes,
            data_out.nbytes,
            address(data_in),
            address(data_out),
            repeat,
            0,
            len(ctx),
            ctx_room,
            address(ctx_in),
            address(ctx_out),
        )
    )
    syscall(Command.PROG_TEST_RUN, attr, fd.subject)
    _, retval, _, size, _, _, _, _, _, ctx_size, _, _ = struct.unpack("=IIIIQQIIIIQQ", attr)
    # TC and XDP verdicts are small; the kernel returns them as u32, TC_ACT_UNSPEC (-1) included.
    return TestRun(
        ctypes.c_int32(retval).value,
        data_out[:size].tobytes(),
        ctx_out[:ctx_size].tobytes() if ctx_out is not None else b"",
    )
