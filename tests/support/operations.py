"""Every operation of the core, one after another, on a host mm that may hold anything."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from msharefs.native import ffi, lib

from .core import GIB1, LOOKS, MIB2, PAGE, READ, WRITE, Core

if TYPE_CHECKING:
    from collections.abc import Callable

# The answers that an operation may give about bytes without sense, or with a wrong sense.
ANSWERS = {0} | {
    -code for code in (errno.EUCLEAN, errno.EBUSY, errno.EINVAL, errno.ENOMEM, errno.EUSERS)
}
PLACES = (0, PAGE, MIB2 - PAGE, MIB2, GIB1 - PAGE, GIB1, 2 * GIB1, 1 << 38)


def furnish(core: Core) -> int:
    """Maps and fills something at several table edges; returns a client's slot."""
    core.map(0, 3 * GIB1, READ | WRITE)
    core.map(PAGE, 2 * PAGE, READ)
    core.map(1 << 38, (1 << 38) + MIB2, READ)
    slot = core.claim()
    for at in PLACES:
        core.touch(slot, at)
    return slot


def faults(core: Core, slot: int) -> None:
    """Faults all over the region, also outside every mapping and outside the region."""
    for at in (*PLACES, 5 * GIB1, core.size - PAGE, core.size, 1 << 47, (1 << 64) - PAGE):
        for write in (False, True):
            for look in LOOKS:
                # An unknown verdict is a KeyError.
                fault = core.touch(slot, at, write=write, look=look, fill=16)
                assert fault.verdict != "MAP" or fault.object or at in fault.present


def operations(core: Core, slot: int) -> list[Callable[[], Any]]:
    """All operations except the open; each returns a result, or nothing."""
    mm = core.mm
    straggler = ffi.new("unsigned *")
    audit = ffi.new("struct mm_audit *")
    stat = ffi.new("struct mshare_stat *")
    vmas = ffi.new("struct mm_vma[]", 16)
    tables = ffi.new("struct mm_table[]", 16)
    clients = ffi.new("struct mm_client[]", 16)
    cases: list[Callable[[], Any]] = [
        lambda: faults(core, slot),
        lambda: lib.mm_audit(mm, audit),
        lambda: lib.mm_stat(mm, core.mem_fd, stat),
        lambda: min(0, lib.mm_vmas(mm, vmas, 16)),
        lambda: min(0, lib.mm_tables(mm, tables, 16)),
        lambda: min(0, lib.mm_clients(mm, clients, 16)),
        lambda: min(0, lib.mm_frame_bytes(mm)),
        lambda: None if lib.mm_poisoned(mm, 0) >= -1 else 1,
        lambda: None if lib.hostmm_mapped(mm, 0, core.size) in (True, False) else 1,
        lambda: 0 if lib.slot_grace(mm, straggler) in (0, -errno.EAGAIN) else 1,
        lambda: lib.mm_sweep(mm),
        lambda: lib.mm_mend(mm),
        core.finish,
        lambda: min(0, lib.slot_claim(mm, os.getpid(), 1)),
    ]
    for start, end in ((0, MIB2), (GIB1 - PAGE, GIB1 + PAGE), (0, core.size)):
        cases += [
            lambda start=start, end=end: core.begin_map(start, end, READ | WRITE),
            core.finish,
            lambda start=start, end=end: core.begin_unmap(start, end),
            core.finish,
            lambda start=start, end=end: core.begin_protect(start, end, 0),
            core.finish,
            lambda start=start, end=end: core.begin_map(start, end, READ),
            core.abort,
            lambda start=start, end=end: core.begin_protect(start, end, READ | WRITE),
            lambda: lib.hostmm_recover(mm, core.mem_fd),
        ]
    cases += [lambda number=number: lib.slot_reap(mm, number) for number in (slot, 1, 2, 3)]
    return cases


def run_all(core: Core, slot: int) -> None:
    """Runs them all; each must answer, and only with what is in `ANSWERS`."""
    for index, operation in enumerate(operations(core, slot)):
        answer = operation()
        assert answer is None or answer in ANSWERS, f"operation {index} answers {answer}"
