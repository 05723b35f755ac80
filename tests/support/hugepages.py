"""The machine's pool of 2 MiB pages: as large as a test needs, and afterwards as before.

Who changes it has it alone.
"""

from __future__ import annotations

import contextlib
import fcntl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from . import proc
from .alone import locked

if TYPE_CHECKING:
    from collections.abc import Iterator

BYTES = 2 << 20
_POOL = Path("/proc/sys/vm/nr_hugepages")


def free() -> int:
    """Pages that are free and not promised to anybody."""
    return proc.meminfo("HugePages_Free") - proc.meminfo("HugePages_Rsvd")


@contextlib.contextmanager
def at_least(pages: int) -> Iterator[None]:
    """So many are free; skips the test where that is impossible."""
    with _changing():
        if free() < pages:
            _POOL.write_text(str(int(_POOL.read_text()) + pages))
        if free() < pages:
            pytest.skip("memory is too fragmented for huge pages")
        yield


@contextlib.contextmanager
def exactly(pages: int) -> Iterator[None]:
    """Exactly so many are free."""
    with _changing():
        _POOL.write_text(str(int(_POOL.read_text()) - free() + pages))
        yield


@contextlib.contextmanager
def _changing() -> Iterator[None]:
    """Whoever else needs huge pages waits until the pool is as before."""
    with locked(Path(__file__), fcntl.LOCK_EX):
        before = _POOL.read_text()
        try:
            yield
        finally:
            if _POOL.read_text() != before:
                _POOL.write_text(before)
