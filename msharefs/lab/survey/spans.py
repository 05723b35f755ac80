"""Arithmetic on ranges of pages, for all ranges of a process at once (numpy).

Pages are numbered by their address; a table of level 0 (PTE) spans 2**9 of them, one of level 1
(PMD) 2**18, one of level 2 (PUD) 2**27.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]

BITS = 9
LEVELS = (0, 1, 2)
NAMES = ("PTE", "PMD", "PUD")
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def shift(level: int) -> int:
    """The binary logarithm of the pages that a table of a level spans."""
    return BITS * (level + 1)


def repeat(counts: Ints) -> tuple[Ints, Ints]:
    """Row i, `counts[i]` times: the rows, and the place of each among those of its row."""
    rows = np.repeat(np.arange(len(counts)), counts)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows, places


class Parts(NamedTuple):
    """Ranges of pages [first, last), each a part of a row of what was cut."""

    row: Ints
    first: Ints
    last: Ints


def cut(first: Ints, last: Ints, bits: int) -> Parts:
    """Cut ranges at the multiples of 2**bits pages."""
    low = first >> bits
    row, place = repeat(((last - 1) >> bits) - low + 1)
    span = low[row] + place
    return Parts(
        row, np.maximum(first[row], span << bits), np.minimum(last[row], (span + 1) << bits)
    )


def meet(first: Ints, last: Ints, start: Ints, end: Ints) -> tuple[Parts, Ints]:
    """Parts of ranges that lie in windows [start, end); and in which window each of them does.

    Ranges and windows are in order and do not overlap.
    """
    low = np.searchsorted(end, first, "right")
    row, place = repeat(np.maximum(np.searchsorted(start, last, "left") - low, 0))
    window = low[row] + place
    found = Parts(row, np.maximum(first[row], start[window]), np.minimum(last[row], end[window]))
    return found, window


def mix(*columns: Ints | Hashes | int) -> Hashes:
    """A hash of 64 bits of each line of these columns (splitmix64)."""
    found = np.zeros(1, np.uint64)
    for column in columns:
        value = np.asarray(column).astype(np.uint64)
        found = (found ^ value) + np.uint64(_GOLDEN)
        found = (found ^ (found >> np.uint64(30))) * np.uint64(_FIRST)
        found = (found ^ (found >> np.uint64(27))) * np.uint64(_SECOND)
        found ^= found >> np.uint64(31)
    return found
