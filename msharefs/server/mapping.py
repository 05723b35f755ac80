"""Mappings in the server's own address space: to hear what Linux says, and to keep a file busy.

Sources: mmap(2), mprotect(2).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os

from msharefs import proc
from msharefs.native import check_errno, ffi, lib

_FAILED = ffi.cast("void *", -1)
# linux/magic.h: file systems that a process serves, or another machine; overlayfs may be on one.
_MAY_WAIT = {
    0x65735546,  # FUSE
    0x794C7630,  # overlayfs
    0x6969,  # NFS
    0xFF534D42,  # CIFS
    0xFE534D42,  # SMB2
    0x01021997,  # 9p
    0x00C36400,  # Ceph
}
_PUNCH_HOLE = 1 | 2  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


class Mapping:
    """Bytes of a file that are mapped here, until `close`."""

    def __init__(self, fd: int, size: int, prot: int, flags: int, offset: int) -> None:
        """mmap(2); OSError with its errno. `offset` may be anything below 2**64."""
        # Of a request these are unsigned words.
        self._address = lib.mmap(
            ffi.NULL, size, prot, ffi.cast("int", flags), fd, ffi.cast("int64_t", offset)
        )
        check_errno(self._address == _FAILED, f"mmap of {size} bytes at {offset:#x}")
        self._size = size

    def shrink(self, size: int) -> None:
        """Keeps the first `size` bytes."""
        if size < self._size:
            rest = ffi.cast("char *", self._address) + size
            check_errno(lib.munmap(rest, self._size - size) < 0, "munmap")
            self._size = size

    def protect(self, prot: int) -> None:
        """mprotect(2): EACCES if the file was not opened for that."""
        failed = lib.mprotect(self._address, self._size, prot) < 0
        check_errno(failed, f"mprotect to {prot:#x}")

    def close(self) -> None:
        """munmap(2)."""
        lib.munmap(self._address, self._size)


def map_file(fd: int, size: int, prot: int, flags: int, offset: int) -> Mapping:
    """Maps a file, or memory in its place that is open with the same rights, where that may wait.

    Linux writes back a file of FUSE when it is mapped or unmapped, and holds the lock of our
    memory meanwhile: whoever serves that file could stop all our threads. For a thread, since the
    file system is asked what it is.
    """
    if not may_wait(fd):
        return Mapping(fd, size, prot, flags, offset)
    if prot & mmap.PROT_EXEC and os.fstatvfs(fd).f_flag & os.ST_NOEXEC:
        raise PermissionError(errno.EPERM, "its file system is mounted noexec")
    mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    memory = os.memfd_create("msharefs-stand-in", os.MFD_CLOEXEC)
    try:
        same = os.open(proc.fd_path(memory), mode | os.O_CLOEXEC)
        try:
            return Mapping(same, size, prot, flags, offset)
        finally:
            os.close(same)
    finally:
        os.close(memory)


def punch(fd: int, offset: int, size: int) -> None:
    """Gives memory of a file back, or OSError."""
    failed = lib.fallocate(fd, _PUNCH_HOLE, offset, size) < 0
    check_errno(failed, f"punching {size} bytes at {offset:#x}")


def may_wait(fd: int) -> bool:
    """Whether a file is served by a process, or by another machine. For a thread."""
    return file_system(fd)[0] in _MAY_WAIT


def file_system(fd: int) -> tuple[int, int]:
    """Magic number and block size of the file system of a file: fstatfs(2)."""
    found = ffi.new("struct statfs *")
    check_errno(lib.fstatfs(fd, found) < 0, "fstatfs")
    return found.f_type, found.f_bsize
