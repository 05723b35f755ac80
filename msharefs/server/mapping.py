"""Mappings in the server's own address space: to hear what Linux says, and to keep a file busy.

Sources: mmap(2), mprotect(2), fallocate(2).
"""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_size_t
_libc.mmap.argtypes = [ctypes.c_size_t, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]

_FAILED = (1 << 64) - 1
_PUNCH_HOLE = 1 | 2  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


class Mapping:
    """Bytes of a file that are mapped here, until `close`."""

    def __init__(self, fd: int, size: int, prot: int, flags: int, offset: int) -> None:
        """mmap(2); OSError with its errno. `offset` may be anything below 2**64."""
        signed = ctypes.c_long(offset).value
        address = _libc.mmap(0, size, prot, ctypes.c_int(flags).value, fd, signed)
        if address == _FAILED:
            raise _error(f"mmap of {size} bytes at {offset:#x}")
        self._address = address
        self._size = size

    def shrink(self, size: int) -> None:
        """Keeps the first `size` bytes."""
        if size < self._size:
            if _libc.munmap(self._address + size, self._size - size) < 0:
                raise _error("munmap")
            self._size = size

    def protect(self, prot: int) -> None:
        """mprotect(2): EACCES if the file was not opened for that."""
        if _libc.mprotect(self._address, self._size, prot) < 0:
            raise _error(f"mprotect to {prot:#x}")

    def close(self) -> None:
        """munmap(2)."""
        _libc.munmap(self._address, self._size)


def punch(fd: int, offset: int, size: int) -> None:
    """Gives memory of a file back, or OSError."""
    if _libc.fallocate(fd, _PUNCH_HOLE, offset, size) < 0:
        raise _error(f"punching {size} bytes at {offset:#x}")


def file_system(fd: int) -> tuple[int, int]:
    """Magic number and block size of the file system of a file: fstatfs(2)."""
    words = (ctypes.c_long * 32)()  # struct statfs has 15
    if _libc.fstatfs(fd, words) < 0:
        raise _error("fstatfs")
    return words[0], words[1]


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")
