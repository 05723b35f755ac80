"""What `msharefs check` looks for in one region: the invariants of its host mm, and what is beside.

Each finding is a dict: `what` it is, a `sentence` for people, and whether it can be `mended`. Of a
region in use a finding may be gone at the next look: whoever asks has to look again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msharefs import processes
from msharefs.native import LEVELS
from msharefs.verbs import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .view import View


def findings(view: View) -> list[dict[str, Any]]:
    """Everything that is wrong with a region. EUCLEAN: so much that it cannot be walked."""
    return [*_tables(view), *_slots(view), *_objects(view)]


def finding(what: str, sentence: str, *, mended: bool) -> dict[str, Any]:
    """One of them."""
    return {"what": what, "sentence": sentence, "mended": mended}


def _tables(view: View) -> Iterator[dict[str, Any]]:
    audit, raw = view.audit(), view.stat()
    if audit.vmas:
        yield finding(
            "vmas",
            f"{audit.vmas} mappings are out of order, overlap or lie outside the region",
            mended=False,
        )
    if audit.stray:
        yield finding("stray", f"{audit.stray} entries lie in no mapping", mended=True)
    if audit.bad:
        yield finding(
            "bad", f"{audit.bad} entries point to a wrong place or have wrong rights", mended=True
        )
    if audit.lost:
        yield finding("lost", f"{audit.lost} page tables are in use and not reachable", mended=True)
    if audit.held:
        yield finding("held", f"{audit.held} page tables are about to be linked", mended=True)
    tables = list(audit.tables)
    used = sum(tables) + audit.lost + audit.held
    if audit.frame_bytes != PAGE * used:
        yield finding(
            "bytes",
            f"page tables take {audit.frame_bytes} bytes, and {PAGE * used} are in use",
            mended=True,
        )
    counted = list(raw.table_frames)
    if not (audit.lost or audit.held) and counted != tables:
        yield finding(
            "count",
            f"of page tables ({', '.join(LEVELS)}) {counted} are counted, {tables} are there",
            mended=True,
        )


def _slots(view: View) -> Iterator[dict[str, Any]]:
    census = processes.Census()
    for client in view.attachments():
        if not census.find(client.pid_namespace, client.pid, client.start_time):
            yield finding(
                f"slot {client.slot}",
                f"slot {client.slot} is held by process {client.pid}, which has ended",
                mended=True,
            )


def _objects(view: View) -> Iterator[dict[str, Any]]:
    used = {vma.object for vma in view.vmas() if vma.object}
    recorded, broken = view.recorded_objects()
    for number in sorted(used - recorded.keys()):
        yield finding(
            f"object {number}",
            f"object {number} is mapped and has no record: after a restart to touch it is SIGBUS",
            mended=view.knows_object(number),
        )
    for number in sorted(used & recorded.keys()):
        if view.is_lost(number, recorded[number]):
            yield finding(
                f"object {number}",
                f"object {number} is {recorded[number].path}, which is not there any more: to "
                "touch it is SIGBUS; UNMAP it and map it again",
                mended=False,
            )
    for number in sorted(recorded.keys() - used):
        yield finding(f"object {number}", f"object {number} is recorded, not mapped", mended=True)
    for name in broken:
        yield finding(f"record {name}", f"{name} is no record of an object", mended=True)
