"""Looking up who has a region's pages in the processes' own page tables."""

from __future__ import annotations

import os

from msharefs.lab import ptmap
from msharefs.native import lib


def test_a_window_may_reach_past_the_address_space() -> None:
    """Like a few MiB of adopted memory near the top, in a region with a quantum of 512 GiB."""
    last = lib.HOST_END - ptmap.CELL_BYTES
    assert set(ptmap.held_cells(os.getpid(), last, 512 << 30)) <= {0}
