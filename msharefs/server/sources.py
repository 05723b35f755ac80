"""The source of a CREATE_MAPPING: memory, or a file, and whether Linux would map it so.

The errors of mapping a file are Linux's own: the server maps it once itself, as asked, and passes
on the answer of mmap(2). Sources: observed.md A "CREATE_MAPPING" and C "fds", mmap(2).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from msharefs import mountpoint, proc, verbs

from .descriptors import elsewhere
from .files import SEALS
from .identity import Identity
from .identity import look as identify
from .mapping import Mapping, file_system, map_file
from .tree import INFO_INO

if TYPE_CHECKING:
    from msharefs.verbs import Create

HUGE_PAGE = 2 << 20
"""Bytes of the one kind of huge page that the tables have leaves for."""
HUGE_NAME = "anon_hugepage"
"""Linux's name for huge pages without a file, and ours."""
_EXECUTABLE_NAME = "anon"

_HUGETLBFS_MAGIC = 0x958458F6  # linux/magic.h
_ZERO = os.makedev(1, 5)
_HUGE_SHIFT = 26  # of the size code in flags: log2 of the bytes
_HUGE_CODES = 0x3F << _HUGE_SHIFT
_MFD_HUGETLB = 4  # memfd_create(2)
# The flags that say where and when. The server's own mapping may lie anywhere, and has no pages.
_NOT_OURS = (
    verbs.MAP_FIXED
    | verbs.MAP_FIXED_NOREPLACE
    | verbs.MAP_ANONYMOUS
    | verbs.MAP_LOCKED
    | verbs.MAP_POPULATE
    | verbs.MAP_NONBLOCK
    | verbs.MAP_32BIT
)


@dataclass(frozen=True)
class Source:
    """A file to be mapped. `anonymous`: it has no other use, and its memory goes when it goes."""

    fd: int
    path: str
    identity: Identity
    user: int
    """Who gave it: a later server opens it for that user only."""
    writable: bool
    """The descriptor is open for writing."""
    page: int
    """Bytes of its pages."""
    kind: int
    """S_IFMT of its mode."""
    mount: int = 0
    """The mount it is on, as the limits of threads have it."""
    info: bool = False
    """It is the mshare_info of a mount."""
    zero: bool = False
    """/dev/zero: mapping it gives anonymous memory."""
    anonymous: bool = False

    @property
    def huge(self) -> bool:
        """Its pages are huge."""
        return self.page != verbs.PAGE

    def rounded(self, create: Create) -> Create:
        """`create` with its size in whole pages of the file, as the kernel rounds it first."""
        offset = 0 if self.anonymous else create.offset
        return replace(create, size=verbs.round_up(create.size, self.page), offset=offset)

    async def map(self, create: Create) -> Mapping:
        """Maps as `create` says and keeps one page, which keeps the file from being sealed.

        OSError as of mmap(2), and for files that Linux can map but a region cannot.
        """
        return await elsewhere(
            lambda: self._map(create),
            f"mapping {self.path}",
            Mapping.close,
            user=self.user,
            mount=self.mount,
        )

    def _map(self, create: Create) -> Mapping:
        if create.flags & verbs.MAP_FIXED_NOREPLACE and (
            create.flags & verbs.MAP_TYPE != verbs.MAP_SHARED
        ):
            raise OSError(errno.EOPNOTSUPP, "MAP_SHARED_VALIDATE knows no MAP_FIXED_NOREPLACE")
        if self.info or (self.kind == stat.S_IFCHR and not self.zero):
            # Mapping a device has side effects, and a region cannot be made of one anyway.
            self._check_mode(create.prot)
            raise OSError(errno.ENODEV, f"{self.path}: a device is no object of a region")
        mapping = map_file(
            self.fd,
            create.size,
            create.prot & verbs.PROT_ALL,
            create.flags & ~_NOT_OURS,
            create.file_offset,
        )
        try:
            if self.kind not in (stat.S_IFREG, stat.S_IFBLK) and not self.zero:
                raise OSError(errno.ENODEV, f"{self.path}: only files are objects of a region")
            if self.page not in (verbs.PAGE, HUGE_PAGE):
                raise OSError(
                    errno.EINVAL, f"{self.path}: huge pages of {self.page} bytes: 2 MiB it must be"
                )
            mapping.shrink(self.page)
        except BaseException:
            mapping.close()
            raise
        return mapping

    def _check_mode(self, prot: int) -> None:
        mode = fcntl.fcntl(self.fd, fcntl.F_GETFL) & os.O_ACCMODE
        if mode == os.O_WRONLY or (prot & verbs.PROT_WRITE and not self.writable):
            raise OSError(errno.EACCES, f"{self.path} is not open for that")


async def look(fd: int, caller: int, flags: int, user: int, mount: int) -> Source:
    """The file behind descriptor `fd`, which process `caller` of user `user` has open too.

    It is on mount `mount`.

    EBADF: it is open for no access (O_PATH). EINVAL: it is a region, or `flags` has MAP_HUGETLB and
    its pages are not huge. ETIMEDOUT: its file system does not answer.
    """
    return await elsewhere(
        lambda: _look(fd, caller, flags, user, mount),
        f"a file of process {caller}",
        user=user,
        mount=mount,
    )


def anonymous(create: Create, user: int, *, executes: bool) -> Source | None:
    """The file to be made for anonymous memory that is huge or executable; None: none is needed.

    `executes`: code can run in ordinary memory of the region. EINVAL: there are no such huge pages.
    """
    if create.flags & verbs.MAP_HUGETLB:
        return _memfd(HUGE_NAME, _MFD_HUGETLB | create.flags & _HUGE_CODES, create.size, user)
    if create.flags & verbs.MAP_MUST_FIT and not executes:
        raise OSError(errno.EACCES, "regions are where code may not run (noexec)")
    if create.prot & verbs.PROT_EXEC and not executes:
        return _memfd(_EXECUTABLE_NAME, 0, create.size, user)
    return None


def _look(fd: int, caller: int, flags: int, user: int, mount: int) -> Source:
    path = os.readlink(proc.fd_path(fd))
    mode = fcntl.fcntl(fd, fcntl.F_GETFL)
    if mode & os.O_PATH:
        raise OSError(errno.EBADF, f"{path} is open as a path only (O_PATH)")
    status = os.fstat(fd)
    ours = _is_ours(status, caller)
    info = ours and status.st_ino == INFO_INO
    if ours and not info:
        raise OSError(errno.EINVAL, f"{path} is a region: regions do not nest")
    magic, block = file_system(fd)
    source = Source(
        fd,
        path,
        identify(fd).identity,
        user,
        writable=mode & os.O_ACCMODE == os.O_RDWR,
        page=block if magic == _HUGETLBFS_MAGIC else verbs.PAGE,
        kind=stat.S_IFMT(status.st_mode),
        mount=mount,
        info=info,
        zero=stat.S_ISCHR(status.st_mode) and status.st_rdev == _ZERO,
    )
    if flags & verbs.MAP_HUGETLB and not source.huge:
        raise OSError(errno.EINVAL, f"{path} is not a file of huge pages")
    return source


def _is_ours(status: os.stat_result, caller: int) -> bool:
    """Whether a file that process `caller` has open is of this mount or another one of ours."""
    if not stat.S_ISREG(status.st_mode):
        return False
    types = set()
    who: proc.Process
    for who in ("self", caller):  # the caller may have mounts that we do not have
        with contextlib.suppress(OSError):
            types |= {mount.fstype for mount in proc.mounts(who) if mount.device == status.st_dev}
    return mountpoint.FSTYPE in types


def _memfd(name: str, flags: int, size: int, user: int) -> Source:
    """Anonymous memory that is a file of its own. EINVAL: there are no huge pages of that size."""
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.EINVAL, errno.ENOENT):
            code = flags >> _HUGE_SHIFT
            raise OSError(errno.EINVAL, f"there are no huge pages of 2**{code} bytes") from None
        raise
    try:
        _, block = file_system(fd)
        whole = verbs.round_up(size, block)
        known = identify(fd).identity
        # Linux makes it 0777: whoever gets it for reading could open it anew, for writing.
        os.fchmod(fd, 0o600)
        with contextlib.suppress(OSError):  # too large: the range is checked next
            os.ftruncate(fd, min(whole, (1 << 63) - block))
        # A client that gets it could otherwise make it shorter: SIGBUS for the others.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(fd)
        raise
    return Source(
        fd, name, known, user, writable=True, page=block, kind=stat.S_IFREG, anonymous=True,
    )  # fmt: skip
