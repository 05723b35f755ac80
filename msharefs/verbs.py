"""The checks of the verbs on a region, as in the series and in its order.

The order matters: with two things wrong, a program sees the errno of the first. Numbers are
unsigned 64 bit, and sums wrap as they do in the kernel (a size near 2**64 passes the range check
and is refused later, with ENOMEM). Sources: observed.md "CREATE_MAPPING" and "UNMAP", mmap(2).
"""

from __future__ import annotations

import errno
import mmap
from dataclasses import dataclass

from .native import ffi, lib

PAGE = mmap.PAGESIZE
_WRAP = (1 << 64) - 1
_TASK_SIZE = lib.HOST_END

PROT_WRITE = lib.VMA_WRITE
PROT_EXEC = lib.VMA_EXEC
PROT_ALL = lib.VMA_PROT

MAP_TYPE = 0x0F
MAP_SHARED = mmap.MAP_SHARED
MAP_SHARED_VALIDATE = 0x03
MAP_FIXED = 0x10
MAP_ANONYMOUS = mmap.MAP_ANONYMOUS
MAP_32BIT = 0x40
MAP_GROWSDOWN = 0x0100
MAP_LOCKED = 0x2000
MAP_NORESERVE = 0x4000
MAP_POPULATE = 0x8000
MAP_NONBLOCK = 0x10000
MAP_HUGETLB = 0x40000
MAP_MUST_FIT = 0x20000
"""MAP_STACK, which means nothing to Linux: adopted memory asks so (preload/adopt.c)."""
MAP_FIXED_NOREPLACE = 0x100000

EXPLAINED = frozenset(
    (
        errno.EBUSY,
        errno.EINVAL,
        errno.ENOSPC,
        errno.EPERM,
        errno.EOPNOTSUPP,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ENOMEM,
        errno.EFAULT,
    )
)
"""The errors whose reason the server remembers for who asks."""

# Of madvise(2):
MADV_NORMAL = 0
MADV_RANDOM = 1
MADV_SEQUENTIAL = 2
MADV_WILLNEED = 3
MADV_DONTNEED = 4
MADV_FREE = 8
MADV_REMOVE = 9
MADV_HUGEPAGE = 14
MADV_NOHUGEPAGE = 15
MADV_WIPEONFORK = 18
MADV_COLD = 20
MADV_PAGEOUT = 21
MADV_POPULATE_READ = 22
MADV_POPULATE_WRITE = 23
MADV_DONTNEED_LOCKED = 24
MADV_COLLAPSE = 25
MADV_GUARD_INSTALL = 102
MADV_GUARD_REMOVE = 103
ADVICE = frozenset(
    (MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_DONTNEED, MADV_FREE,
     MADV_REMOVE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_WIPEONFORK, MADV_COLD, MADV_PAGEOUT,
     MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_DONTNEED_LOCKED, MADV_COLLAPSE,
     MADV_GUARD_INSTALL, MADV_GUARD_REMOVE)
)  # fmt: skip
"""What madvise(2) may do to the memory of a region; the rest is about a process alone.

FREE and WIPEONFORK are for private memory: as in Linux, they are refused where anything is mapped.
"""

# Of msync(2), mlock2(2) and mbind(2):
MS_ASYNC, MS_INVALIDATE, MS_SYNC = 1, 2, 4
MLOCK_ONFAULT = 1
MPOL_MODES = range(7)  # MPOL_DEFAULT to MPOL_WEIGHTED_INTERLEAVE
MPOL_MODE_FLAGS = 7 << 13
MPOL_MF_STRICT, MPOL_MF_MOVE, MPOL_MF_MOVE_ALL = 1, 2, 4


@dataclass(frozen=True)
class Create:
    """struct mshare_create: map an object at `region_offset`; bytes throughout."""

    region_offset: int
    size: int
    offset: int
    prot: int
    flags: int
    fd: int = -1

    @classmethod
    def from_bytes(cls, data: bytes) -> Create:
        """Decodes the ioctl's argument."""
        raw = ffi.from_buffer("struct mshare_create *", data)
        return cls(raw.region_offset, raw.size, raw.offset, raw.prot, raw.flags, raw.fd)

    @property
    def end(self) -> int:
        """Region offset of the end, rounded up to a page."""
        return self.region_offset + page_up(self.size)

    @property
    def file_offset(self) -> int:
        """The offset in a file at which it begins: the low bits of `offset` are dropped."""
        return self.offset & ~(PAGE - 1)


def round_up(size: int, page: int) -> int:
    """`size` rounded up to pages of that size, modulo 2**64."""
    return (size + page - 1) & ~(page - 1) & _WRAP


def page_up(size: int) -> int:
    """`size` rounded up to pages, modulo 2**64."""
    return round_up(size, PAGE)


def check_create(create: Create, region_size: int) -> None:
    """Raises OSError if the series would refuse `create` before it looks at the object."""
    if create.region_offset >= region_size:
        _refuse(
            errno.EINVAL, f"region_offset {create.region_offset:#x} is not below {region_size:#x}"
        )
    kind = create.flags & MAP_TYPE
    if kind not in (MAP_SHARED, MAP_SHARED_VALIDATE) or not create.flags & MAP_FIXED:
        _refuse(errno.EINVAL, f"flags {create.flags:#x}: MAP_SHARED and MAP_FIXED are required")


def check_create_range(create: Create, region_size: int, page: int = PAGE) -> None:
    """The checks that follow those of the object: the range, then the checks of mmap(2) itself.

    `page` is the size of the object's pages in bytes; they may be huge.
    """
    # v3 adds up addresses of the host mm. What wraps is small, and passes: do_mmap() refuses it.
    end = (lib.HOST_BASE + create.region_offset + create.size) & _WRAP
    if end > lib.HOST_BASE + region_size:
        end = create.region_offset + create.size
        _refuse(errno.EINVAL, f"the mapping ends at {end:#x}, the region at {region_size:#x}")
    if not create.size:
        _refuse(errno.EINVAL, "size 0: map at least a byte")
    length = page_up(create.size)
    host_start = lib.HOST_BASE + create.region_offset
    if not length or length > _TASK_SIZE or host_start > _TASK_SIZE - length:
        _refuse(errno.ENOMEM, f"size {create.size:#x} does not fit a host mm")
    if create.region_offset % page:
        _refuse(
            errno.EINVAL, f"region_offset {create.region_offset:#x} is not a multiple of {page}"
        )
    if create.flags & (MAP_ANONYMOUS | MAP_HUGETLB) == MAP_ANONYMOUS and (
        create.flags & MAP_TYPE != MAP_SHARED or create.flags & MAP_GROWSDOWN
    ):
        _refuse(errno.EINVAL, f"flags {create.flags:#x}: anonymous memory is plain MAP_SHARED")


def check_unmap(offset: int, size: int, region_size: int) -> int:
    """OSError if the series would refuse; otherwise the end of the range, in whole pages."""
    if size > region_size or offset >= region_size or offset + size > region_size:
        _refuse(errno.EINVAL, f"[{offset:#x}, +{size:#x}) is not inside {region_size:#x}")
    if offset % PAGE or not size:
        _refuse(
            errno.EINVAL, f"[{offset:#x}, +{size:#x}): a page-aligned offset and a size are needed"
        )
    end = offset + page_up(size)
    if lib.HOST_BASE + end > _TASK_SIZE:
        _refuse(errno.EINVAL, f"[{offset:#x}, +{size:#x}) passes the end of the host mm")
    return end


def check_protect(offset: int, size: int, prot: int, flags: int, region_size: int) -> int:
    """OSError if `MSHAREFS_PROTECT` is refused; otherwise the page-aligned end of the range.

    The range is checked as for UNMAP, the rest as for mprotect(2): size 0 does nothing, whatever
    `prot` is.
    """
    end = check_range(offset, size, region_size)
    check_flags(flags, 0)
    if size and prot & ~lib.VMA_PROT:
        _refuse(errno.EINVAL, f"prot {prot:#x}: PROT_READ, PROT_WRITE and PROT_EXEC are known")
    return end


def check_range(offset: int, size: int, region_size: int) -> int:
    """EINVAL: no range of a region of that size; otherwise the page-aligned end of the range."""
    if size > region_size or offset >= region_size or offset + size > region_size:
        _refuse(errno.EINVAL, f"[{offset:#x}, +{size:#x}) is not inside {region_size:#x}")
    if offset % PAGE:
        _refuse(errno.EINVAL, f"region_offset {offset:#x} is not a multiple of {PAGE}")
    return offset + page_up(size)


def check_flags(flags: int, known: int) -> None:
    """EINVAL: there are other bits in `flags` than those in `known`."""
    if flags & ~known:
        _refuse(errno.EINVAL, f"flags {flags:#x}: only {known:#x} have a meaning here")


def check_advise(offset: int, size: int, advice: int, flags: int, region_size: int) -> int:
    """OSError if mshare_advise() is refused whatever is mapped; otherwise the end of the range."""
    if advice not in ADVICE:
        _refuse(errno.EINVAL, f"advice {advice}: it is unknown, or none for a region")
    check_flags(flags, 0)
    return check_range(offset, size, region_size)


def check_lock(offset: int, size: int, flags: int, region_size: int) -> int:
    """As `check_advise`, for mshare_lock()."""
    check_flags(flags, MLOCK_ONFAULT)
    if flags:
        _refuse(
            errno.EOPNOTSUPP, "MLOCK_ONFAULT: pages are locked by the server, which touches none"
        )
    return check_range(offset, size, region_size)


def check_sync(offset: int, size: int, flags: int, region_size: int) -> int:
    """As `check_advise`, for mshare_sync()."""
    check_flags(flags, MS_ASYNC | MS_INVALIDATE | MS_SYNC)
    end = check_range(offset, size, region_size)
    if flags & MS_ASYNC and flags & MS_SYNC:
        _refuse(errno.EINVAL, "MS_ASYNC and MS_SYNC exclude each other")
    return end


def check_query(offset: int, size: int, region_size: int) -> int:
    """As `check_advise`, for mshare_query()."""
    end = check_range(offset, size, region_size)
    if end - offset > lib.MSHARE_QUERY_PAGES * PAGE:
        _refuse(errno.EINVAL, f"{size} bytes: {lib.MSHARE_QUERY_PAGES} pages are the most")
    return end


def check_mbind(
    offset: int, size: int, mode: int, flags: int, region_size: int, maxnode: int = 0
) -> int:
    """As `check_advise`, for mshare_mbind(); the nodes are for the kernel to check."""
    if maxnode > lib.MSHARE_NODES + 1:
        _refuse(errno.EINVAL, f"maxnode {maxnode}: {lib.MSHARE_NODES} nodes are the most")
    if mode & ~MPOL_MODE_FLAGS not in MPOL_MODES:
        _refuse(errno.EINVAL, f"mode {mode:#x} is no memory policy")
    check_flags(flags, MPOL_MF_STRICT | MPOL_MF_MOVE | MPOL_MF_MOVE_ALL)
    return check_range(offset, size, region_size)


def _refuse(code: int, sentence: str) -> None:
    raise OSError(code, sentence)
