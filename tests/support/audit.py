"""Nothing may be lost: the invariants of a region, asked of its server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .actor import PAGE

if TYPE_CHECKING:
    import msharefs


def assert_whole(region: msharefs.Region) -> dict[str, Any]:
    """The audit finds nothing wrong, and the figures of page tables agree, while nobody faults.

    Returns the region's figures.
    """
    audit = region.describe("audit")
    frames = sum(audit["tables"].values())
    problems = {name: audit[name] for name in ("held", "lost", "stray", "bad", "vmas")}
    assert not any(problems.values()), problems
    assert audit["frame_bytes"] == PAGE * frames
    stat = region.stat()
    assert stat["page_table_bytes"] == PAGE * frames
    assert stat["table_frames"] == audit["tables"]
    return stat
