"""PAGEMAP_SCAN as the survey and the lab ask for it."""

from __future__ import annotations

import os

from msharefs.lab.pagemap import Pagemap

SPAN = 2 << 20
ADDRESSES = 1 << 47


def test_the_last_span_of_the_addresses() -> None:
    """A stack may begin there; its last page is nobody's, and Linux refuses to look at it."""
    with Pagemap(os.getpid()) as table:
        found = [tuple(run) for runs in table.runs(ADDRESSES - SPAN, ADDRESSES) for run in runs]
        assert found == [tuple(run) for run in table.span(ADDRESSES - SPAN, ADDRESSES)]
        first = table.first(ADDRESSES - SPAN, ADDRESSES)
        assert first is None if not found else tuple(first[:1]) == found[0][:1]
