"""The machine's pool of 2 MiB pages: as large as a test needs, and afterwards as before."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from . import proc

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
    before = _POOL.read_text()
    if free() < pages:
        _POOL.write_text(str(int(before) + pages))
    try:
        if free() < pages:
            pytest.skip("memory is too fragmented for huge pages")
        yield
    finally:
        if _POOL.read_text() != before:
            _POOL.write_text(before)


@contextlib.contextmanager
def exactly(pages: int) -> Iterator[None]:
    """Exactly so many are free."""
    before = _POOL.read_text()
    _POOL.write_text(str(int(before) - free() + pages))
    try:
        yield
    finally:
        _POOL.write_text(before)
