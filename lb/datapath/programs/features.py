# SPDX-License-Identifier: Apache-2.0
"""What the programs need of a kernel, and what they do without: found out by trying, not from its version.

Distributions take features back into older kernels, and leave others out of newer ones. So each is asked for
as the loader would: by creating a map of a kind, or by loading a program of few instructions.

The floor is Linux 5.10, which is Debian 11's. It is where the programs have been seen to run, on all that
:data:`REQUIRED` lists; ``docs/kernels.md`` tells what each newer one adds.
"""

from __future__ import annotations

import errno
import mmap
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lb.datapath.kernel import bpf, btf
from lb.datapath.kernel.bpf import ProgType
from lb.datapath.maps import map_table
from lb.datapath.maps.map_pins import create_map
from lb.errors import BpfError

FLOOR = (5, 10)
"""The oldest kernel that is tested: major and minor number."""

OPTIONAL = ("SET_RETVAL", "CONNTRACK", "IP_SUMMED", "FIB_MTU")
"""What C asks for by ``HAS(NAME)``."""

CONNTRACK_FUNCTIONS = ("bpf_skb_ct_lookup", "bpf_xdp_ct_lookup", "bpf_ct_release")
CAST = "bpf_cast_to_kern_ctx"
KERNEL_FUNCTIONS = (*CONNTRACK_FUNCTIONS, CAST)
"""The functions of the kernel that C calls, where it has CONNTRACK and IP_SUMMED: as ``KFUNC_name``."""

_MODULE = "nf_conntrack"
_LOOKUPS = ((ProgType.SCHED_CLS, "bpf_skb_ct_lookup"), (ProgType.XDP, "bpf_xdp_ct_lookup"))

_CONNECT4 = 10  # enum bpf_attach_type
_LOG_SIZE = 4096
_SET_RETVAL = 187
_CHECK_MTU = 163  # it came with the MTU that bpf_fib_lookup tells

HELPERS: Mapping[ProgType, Mapping[int, tuple[str, str]]] = {
    ProgType.XDP: {44: ("xdp_adjust_head", "4.10"), 65: ("xdp_adjust_tail", "4.18")},
    ProgType.SCHED_CLS: {
        9: ("skb_store_bytes", "4.1"),
        11: ("l4_csum_replace", "4.1"),
        13: ("clone_redirect", "4.2"),
        23: ("redirect", "4.4"),
        26: ("skb_load_bytes", "4.5"),
        38: ("skb_change_tail", "4.9"),
        39: ("skb_pull_data", "4.9"),
        40: ("csum_update", "4.9"),
        43: ("skb_change_head", "4.10"),
        46: ("get_socket_cookie", "4.12"),
        50: ("skb_adjust_room", "4.13"),
        152: ("redirect_neigh", "5.10"),
        155: ("redirect_peer", "5.10"),
    },
    ProgType.CGROUP_SOCK_ADDR: {
        46: ("get_socket_cookie", "4.12"),
        122: ("get_netns_cookie", "5.7"),
        131: ("ringbuf_reserve", "5.8"),
        132: ("ringbuf_submit", "5.8"),
        _SET_RETVAL: ("set_retval", "5.18"),
    },
}
"""The helpers that only some programs may call, by number in enum bpf_func_id: name, and the first kernel."""

COMMON_HELPERS: Mapping[int, tuple[str, str]] = {
    1: ("map_lookup_elem", "3.19"),
    2: ("map_update_elem", "3.19"),
    3: ("map_delete_elem", "3.19"),
    5: ("ktime_get_ns", "4.1"),
    12: ("tail_call", "4.2"),
    28: ("csum_diff", "4.6"),
    69: ("fib_lookup", "4.18"),
    85: ("sk_lookup_udp", "4.20"),
    86: ("sk_release", "4.20"),
    93: ("spin_lock", "5.1"),
    94: ("spin_unlock", "5.1"),
    99: ("skc_lookup_tcp", "5.2"),
    118: ("jiffies64", "5.6"),
    130: ("ringbuf_output", "5.8"),
}
"""Those that XDP and tc programs both call."""


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that was tried.

    what: for people. since: the first kernel that has it. error: errno of the refusal, 0 when there is none.
    """

    what: str
    since: str
    error: int

    @property
    def met(self) -> bool:
        """Whether the kernel has it."""
        return self.error == 0


def _instruction(opcode: int, registers: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", opcode, registers, offset, value)


_RETURN_1 = _instruction(0xB7, value=1) + _instruction(0x95)
_LOOP = b"".join(
    (
        _instruction(0xB7),  # r0 = 0
        _instruction(0x07, value=1),  # r0 += 1
        _instruction(0xA5, offset=-2, value=9),  # if r0 < 9 goto there
        _instruction(0x95),
    )
)


def _load(kind: ProgType, code: bytes, fds: Sequence[int] = ()) -> int:
    """Load a program, and let it go; return the errno of a refusal, or 0."""
    attach_type = _CONNECT4 if kind is ProgType.CGROUP_SOCK_ADDR else 0
    fd, _, error = bpf.prog_load(kind, code, "lb_probe", attach_type=attach_type, fds=fds)
    if fd is not None:
        fd.close()
    return error


def has_helper(kind: ProgType, number: int) -> int:
    """Return 0 when programs of a kind may call a helper, else an errno.

    The call has no arguments, which the verifier refuses in words other than those for a helper that it does
    not know or does not allow here.
    """
    attach_type = _CONNECT4 if kind is ProgType.CGROUP_SOCK_ADDR else 0
    code = _instruction(0x85, value=number) + _RETURN_1
    fd, log, error = bpf.prog_load(kind, code, "lb_probe", attach_type=attach_type, log_size=_LOG_SIZE)
    if fd is not None:
        fd.close()
        return 0
    if error == errno.EPERM or not log:
        return error
    words = ("invalid func ", "unknown func ", "cannot use helper", "program of this type cannot use")
    return error if any(each in log for each in words) else 0


def _map_needs() -> Iterator[Need]:
    """Try each kind of map that the data plane has, with its flags."""
    kinds = {(spec.type, spec.flags): spec for spec in map_table.MAPS}
    for (kind, flags), spec in kinds.items():
        what = f"{spec.kernel_type.name.lower().replace('_', ' ')} map"
        since = "4.11"
        if flags & map_table.BPF_F_MMAPABLE:
            what, since = f"{what}, mapped into memory", "5.5"
        if kind is map_table.MapType.CACHE:
            what = f"{what}, with locks"
        elif kind is map_table.MapType.RINGBUF:
            what, since = "ring buffer", "5.8"
        error = 0
        try:
            create_map(spec, mmap.PAGESIZE if kind is map_table.MapType.RINGBUF else 1).close()
        except BpfError as refused:
            error = refused.errno
        yield Need(what, since, error)


def required() -> list[Need]:
    """Try all without which no packet is translated."""
    needs = list(_map_needs())
    for kind, name in ((ProgType.XDP, "XDP"), (ProgType.SCHED_CLS, "tc")):
        error = _load(kind, _RETURN_1)
        needs.append(Need(f"{name} programs", "4.8", error))
        if error:
            continue
        needs.append(Need(f"loops in {name} programs", "5.3", _load(kind, _LOOP)))
        needs += [
            Need(f"{name} helper {helper}", since, has_helper(kind, number))
            for number, (helper, since) in sorted({**COMMON_HELPERS, **HELPERS[kind]}.items())
        ]
    return needs


def at_sockets() -> list[Need]:
    """Try all without which the node's own processes are served by tc, packet by packet."""
    kind = ProgType.CGROUP_SOCK_ADDR
    error = _load(kind, _RETURN_1)
    needs = [Need("programs at connect()", "4.17", error)]
    if not error:
        needs += [
            Need(f"socket helper {helper}", since, has_helper(kind, number))
            for number, (helper, since) in sorted(HELPERS[kind].items())
            if number != _SET_RETVAL
        ]
    return needs


def optional(functions: KernelFunctions | None = None) -> dict[str, int]:
    """Tell for each of :data:`OPTIONAL` whether this kernel has it, 1 or 0; of IP_SUMMED what C asks for.

    functions: those that programs may call; None: find out.
    """
    if functions is None:
        with kernel_functions() as found:
            return optional(found)
    return {
        "SET_RETVAL": has_helper(ProgType.CGROUP_SOCK_ADDR, _SET_RETVAL) == 0,
        "CONNTRACK": functions.may_ask,
        "IP_SUMMED": functions.ip_summed,
        "FIB_MTU": has_helper(ProgType.SCHED_CLS, _CHECK_MTU) == 0,
    }


@dataclass(frozen=True, slots=True)
class KernelFunctions:
    """Those of :data:`KERNEL_FUNCTIONS` that programs may call. Use it as a context manager.

    ids: their BTF ids. module: the descriptor of the type information that has those of conntrack; None: the
    kernel's own. ip_summed: 1 + the bit of that member in struct sk_buff; 0: programs may not read it.
    """

    ids: Mapping[str, int] = field(default_factory=dict)
    module: bpf.FD | None = None
    ip_summed: int = 0

    def __enter__(self) -> KernelFunctions:
        return self

    def __exit__(self, *_: object) -> None:
        if self.module:
            self.module.close()

    @property
    def may_ask(self) -> bool:
        """Whether programs may ask netfilter's conntrack."""
        return CONNTRACK_FUNCTIONS[0] in self.ids

    def place(self, name: str) -> int:
        """Return what an instruction that calls a function has in its field `off`: a place in fds."""
        return 1 if self.module and name != CAST else 0

    def without_module(self) -> KernelFunctions:
        """Return those that programs may call who have no right to a module's."""
        kept = {name: ident for name, ident in self.ids.items() if not self.place(name)}
        return KernelFunctions(kept, None, self.ip_summed)

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors that the kernel is to be given with a program that calls them."""
        return (0, self.module.fileno()) if self.module else ()


NO_FUNCTIONS = KernelFunctions()


def may_ask_module() -> bool:
    """Tell whether netfilter's conntrack is a module that is loaded now."""
    return (btf.FOLDER / _MODULE).exists()


def kernel_functions() -> KernelFunctions:
    """Return the functions of the kernel that C calls; of those of conntrack none unless it may call all.

    A kernel whose netfilter is a module (Debian's) has them in the module's type information. To be given
    that takes CAP_SYS_ADMIN; a module that is not loaded has none.
    """
    cast, ip_summed = _reading_sk_buff()
    for module in (None, _MODULE):
        path = btf.FOLDER / module if module else btf.VMLINUX
        if module and not path.exists():
            continue
        ids = btf.function_ids(CONNTRACK_FUNCTIONS, path, btf.VMLINUX if module else None)
        if len(ids) < len(CONNTRACK_FUNCTIONS):
            continue
        try:
            fd = bpf.module_btf(module) if module else None
        except BpfError:
            continue
        found = KernelFunctions(ids | cast, fd, ip_summed)
        if not any(_load(kind, _ct_lookup(found, name), found.fds) for kind, name in _LOOKUPS):
            return found
        found.__exit__()
    return KernelFunctions(cast, None, ip_summed)


def _reading_sk_buff() -> tuple[dict[str, int], int]:
    """Return by which function programs may read the kernel's own sk_buff, and 1 + the bit of `ip_summed`."""
    cast = btf.function_ids([CAST])
    bit = btf.bit_of("sk_buff", "ip_summed") if cast and sys.byteorder == "little" else None
    if bit is None:
        return {}, 0
    code = call_kernel(cast[CAST]) + _instruction(0x71, offset=bit // 8) + _RETURN_1  # r0 = a byte of r0
    return (cast, bit + 1) if not _load(ProgType.SCHED_CLS, code) else ({}, 0)


def call_kernel(ident: int, place: int = 0) -> bytes:
    """Return the instruction that calls a function of the kernel (BPF_PSEUDO_KFUNC_CALL).

    place: of the module's type information among the descriptors given with the program; 0: the kernel's own.
    """
    return _instruction(0x85, registers=2 << 4, offset=place, value=ident)


def _ct_lookup(functions: KernelFunctions, name: str) -> bytes:
    """Return a program that asks for an IPv4 tuple of zeros, and lets go of what it gets."""
    return b"".join(
        (
            *(_instruction(0x7A, 10, at) for at in (-8, -16, -24)),  # the stack: 0
            _instruction(0xBF, 2 | 10 << 4),  # r2 = the tuple
            _instruction(0x07, 2, value=-12),
            _instruction(0xB7, 3, value=12),
            _instruction(0xBF, 4 | 10 << 4),  # r4 = the options
            _instruction(0x07, 4, value=-24),
            _instruction(0xB7, 5, value=12),
            call_kernel(functions.ids[name], functions.place(name)),
            _instruction(0x15, 0, 2),  # if r0 == 0 goto the end
            _instruction(0xBF, 1),  # r1 = r0
            call_kernel(functions.ids["bpf_ct_release"], functions.place("bpf_ct_release")),
            _RETURN_1,
        )
    )
