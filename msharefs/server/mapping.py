"""Mappings in the server's own address space: to hear what Linux says, and to keep a file busy.

Sources: mmap(2), mprotect(2), fallocate(2).
"""

from __future__ import annotations

from msharefs.native import check_errno, ffi, lib

_FAILED = ffi.cast("void *", -1)
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


def punch(fd: int, offset: int, size: int) -> None:
    """Gives memory of a file back, or OSError."""
    failed = lib.fallocate(fd, _PUNCH_HOLE, offset, size) < 0
    check_errno(failed, f"punching {size} bytes at {offset:#x}")


def file_system(fd: int) -> tuple[int, int]:
    """Magic number and block size of the file system of a file: fstatfs(2)."""
    found = ffi.new("struct statfs *")
    check_errno(lib.fstatfs(fd, found) < 0, "fstatfs")
    return found.f_type, found.f_bsize
