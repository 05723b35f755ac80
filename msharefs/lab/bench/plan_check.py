"""A plan's shared side, built for real: a host mm with every entry filled, and no data page."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from msharefs import verbs
from msharefs.lab import plan
from msharefs.native import LEVELS, check, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 300 << 30  # the cover letter's SGA
QUANTUM = 512 << 30
STEP = 1 << 30


def run(size: int, step: Callable[[int], None]) -> dict[str, Any]:
    """Fill the tables of a window of `size` bytes; the document, with both sides' bytes.

    `step` is called with the number of bytes as it gets on. The host mm is a memfd of our own: the
    core is the same, and no server is needed. OSError: ENOMEM or ENOSPC, too little memory for the
    tables.
    """
    span = verbs.round_up(size, QUANTUM)
    fd = os.memfd_create("msharefs-plan-check", os.MFD_CLOEXEC)
    mm = ffi.new("struct mm *")
    try:
        check(lib.mm_format(fd, 1, span, QUANTUM), f"a host mm of {span} bytes")
        check(lib.mm_open(mm, fd), "the host mm")  # which owns the descriptor now
    except BaseException:
        os.close(fd)
        raise
    try:
        return _fill(mm, size, step)
    finally:
        lib.mm_close(mm)


def _fill(mm: Any, size: int, step: Callable[[int], None]) -> dict[str, Any]:
    flags = lib.VMA_READ | lib.VMA_WRITE
    vma = ffi.new("struct mm_vma *", {"start": 0, "end": size, "flags": flags})
    check(lib.hostmm_map(mm, vma[0]), f"mapping {size} bytes")
    pages = os.memfd_create("msharefs-plan-check-pages", os.MFD_CLOEXEC)
    try:
        check(lib.hostmm_finish(mm, pages), f"mapping {size} bytes")
    finally:
        os.close(pages)
    slot = check(lib.slot_claim(mm, os.getpid(), 0), "a client's slot")
    started = time.monotonic()
    entries = 0
    for start in range(0, size, STEP):
        end = min(size, start + STEP)
        entries += check(lib.mm_prefill(mm, slot, start, end), f"filling {start:#x}-{end:#x}")
        step(end - start)
    seconds = time.monotonic() - started
    audit = ffi.new("struct mm_audit *")
    check(lib.mm_audit(mm, audit), "the audit")
    planned = plan.host_mm(size)
    found = {name: audit.tables[level] for level, name in enumerate(LEVELS)}
    return {
        "size_bytes": size,
        "planned": {"tables": planned, "bytes": plan.count_bytes(planned)},
        "built": {
            "tables": found,
            "bytes": check(lib.mm_frame_bytes(mm), "its bytes"),
            "entries": entries,
            "whole_object_bytes": os.fstat(mm.fd).st_blocks * 512,
        },
        "seconds": seconds,
        "ns_per_entry": seconds * 1e9 / entries,
        "equal": found == planned
        and check(lib.mm_frame_bytes(mm), "its bytes") == plan.count_bytes(planned)
        and entries == size // plan.PAGE_SIZES["4K"],
    }
