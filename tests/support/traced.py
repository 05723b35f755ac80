"""One thread of another process, stopped between two of its system calls (ptrace(2))."""

from __future__ import annotations

import ctypes
import os
from typing import Self

_SEIZE, _INTERRUPT, _SYSCALL, _DETACH, _SYSCALL_INFO = 0x4206, 0x4207, 24, 17, 0x420E
_SYSGOOD = 1  # PTRACE_O_TRACESYSGOOD
_WALL = 0x40000000  # threads too
_ENTRY, _EXIT = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _Info(ctypes.Structure):
    """struct ptrace_syscall_info, as far as it is wanted here."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("arch", ctypes.c_uint32),
        ("pointers", ctypes.c_uint64 * 2),
        ("number", ctypes.c_uint64),
    )


class TracedThread:
    """A thread that goes on as far as `stop_at` says, and for good at the end of the context."""

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self._inside: int | None = None
        self._ask(_SEIZE, data=_SYSGOOD)
        self._ask(_INTERRUPT)
        self._wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._ask(_DETACH)

    def stop_at(self, *, before: int | None = None, after: int | None = None) -> None:
        """Lets it run until it is about to make one system call, or comes out of another."""
        while True:
            self._ask(_SYSCALL)
            self._wait()
            info = _Info()
            self._ask(_SYSCALL_INFO, ctypes.sizeof(info), ctypes.addressof(info))
            if info.op == _EXIT and self._inside == after is not None:
                return
            self._inside = info.number if info.op == _ENTRY else None
            if self._inside == before is not None:
                return

    def _ask(self, request: int, address: int = 0, data: int = 0) -> None:
        if _libc.ptrace(request, self.tid, address, data) < 0:
            raise OSError(ctypes.get_errno(), f"ptrace: {os.strerror(ctypes.get_errno())}")

    def _wait(self) -> None:
        _, status = os.waitpid(self.tid, _WALL)
        assert os.WIFSTOPPED(status), f"the thread ended with status {status:#x}"
