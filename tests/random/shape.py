"""The region of the random programs, and what hypothesis chooses of it."""

from __future__ import annotations

from hypothesis import strategies as st

from support.actor import PAGE
from support.core import GIB1, MIB2

LONGEST = 5  # cells that a change takes
BYTE = 123  # of a page: si_addr must tell it
SIZE = GIB1 + 2 * MIB2
# Pages in a row, over the ends of a PTE page and of a PMD page: on either side enough that they
# are left to Linux when all are there.
SIDE = 20 * PAGE
ROWS = tuple(range(edge - SIDE, edge + SIDE, PAGE) for edge in (SIDE, MIB2, GIB1))
CUTS = tuple(sorted({page for row in ROWS for page in row} | {row.stop for row in ROWS} | {SIZE}))
CELLS = len(CUTS) - 1
# In the file: each page has a byte of its own.
CONTENT = {cut + BYTE: 128 + number for number, cut in enumerate(CUTS[:-1])}

Span = tuple[int, int]
"""Some cells: the first, and the one after the last."""

picks = st.integers(0, 1 << 12)
"""Chooses one of what there is when the step runs."""
spans = st.tuples(st.integers(0, CELLS - 1), st.integers(1, LONGEST)).map(
    lambda span: (span[0], min(sum(span), CELLS))
)
parts = st.sampled_from([None, None, (0, MIB2), (MIB2, GIB1), (GIB1 - MIB2, SIZE)])
"""What of the region a window has; the whole most often."""


def bytes_of(span: Span) -> tuple[int, int]:
    """Region offset and size."""
    return CUTS[span[0]], CUTS[span[1]] - CUTS[span[0]]


def single_pages(span: Span) -> Span:
    """As much of it as is of single pages: a few pages, not a gigabyte."""
    end = span[0]
    while end < span[1] and CUTS[end + 1] - CUTS[end] == PAGE:
        end += 1
    return (span[0], end) if end > span[0] else (0, 1)
