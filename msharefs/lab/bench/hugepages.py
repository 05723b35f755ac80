"""Huge pages for a benchmark: a pool of 2 MiB pages, and shared memory that takes them if advised.

Neither changes anything for good: the pool is put back, and the tmpfs is not mounted anywhere.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Self

import psutil

from msharefs.native import check_errno, ffi, lib

HUGE_BYTES = 1 << 21
_POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")

# linux/mount.h, fcntl.h
_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6


class Pool:
    """The kernel's pool of 2 MiB pages, grown while this context lives and restored at its end."""

    def __enter__(self) -> Self:
        self._before: int | None = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            _write("nr_hugepages", self._before)

    def provide(self, size: int) -> None:
        """Make sure that `size` bytes of huge pages are free. ENOMEM: the kernel has too few.

        OSError: there is no pool, or we may not change it.
        """
        wanted = -(-size // HUGE_BYTES)
        total, free = _read("nr_hugepages"), _read("free_hugepages") - _read("resv_hugepages")
        if free >= wanted:
            return
        short = (wanted - free) * HUGE_BYTES
        available = psutil.virtual_memory().available
        if short > available:
            raise OSError(
                errno.ENOMEM,
                f"the pool of huge pages would need {short} bytes more and {available} are there",
            )
        try:
            _write("nr_hugepages", total + wanted - free)
        except PermissionError as error:
            raise PermissionError(
                error.errno,
                f"the pool has {free} free huge pages of 2 MiB and {wanted} are needed, and only "
                f"root may make it larger: sysctl vm.nr_hugepages={total + wanted - free}",
            ) from None
        if self._before is None:
            self._before = total
        got = _read("free_hugepages") - _read("resv_hugepages")
        if got < wanted:
            raise OSError(
                errno.ENOMEM,
                f"the kernel found {got} free huge pages of 2 MiB and {wanted} are needed: memory "
                "is short or in pieces",
            )


def _read(name: str) -> int:
    return int((_POOL / name).read_text())


def _write(name: str, value: int) -> None:
    (_POOL / name).write_text(str(value))


def advised_tmpfs() -> int:
    """Descriptor of a new tmpfs that gives huge pages where madvise(2) asks, mounted nowhere.

    It goes away with its last open file. OSError: EPERM without CAP_SYS_ADMIN, EINVAL if the kernel
    does not know huge=advise.
    """
    context = _call("fsopen", b"tmpfs", _FSOPEN_CLOEXEC)
    try:
        for key, value in ((b"huge", b"advise"), (b"mode", b"0700")):
            _call("fsconfig", context, _FSCONFIG_SET_STRING, key, value, 0)
        _call("fsconfig", context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return _call("fsmount", context, _FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)


def _call(name: str, *arguments: int | bytes | None) -> int:
    """One of the calls for mounts, by its number: only glibc 2.36 has functions for them."""
    words = [
        ffi.cast("long", given) if isinstance(given, int)
        else ffi.NULL if given is None
        else ffi.new("char[]", given)
        for given in arguments
    ]  # fmt: skip
    result: int = lib.syscall(getattr(lib, f"SYS_{name}"), *words)
    check_errno(result < 0, f"{name} of a tmpfs with huge=advise")
    return result
