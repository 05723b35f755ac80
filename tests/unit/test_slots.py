"""Client slots that change hands."""

from __future__ import annotations

import errno

import pytest

from msharefs.native import lib

from support.core import PAGE, Core, check
from support.rawmm import SLOT_CLAIM


def test_a_slot_is_given_up_once() -> None:
    """Server and client may both do it; when the later one does, another client has the slot."""
    with Core() as core:
        core.map(0, PAGE)
        slot = core.claim()
        mine = lib.mm_claim(core.mm, slot)
        check(lib.slot_release(core.mm, slot, mine))
        assert core.claim() == slot
        lib.slot_enter(core.mm, slot)
        check(core.begin_unmap(0, PAGE))
        assert lib.slot_release(core.mm, slot, mine) == -errno.ESTALE
        assert core.straggler() == slot, "an UNMAP does not wait for the one who has the slot now"
        assert core.stat().clients == 1
        lib.slot_leave(core.mm, slot)
        assert core.straggler() is None


def test_a_slot_that_was_not_quite_claimed() -> None:
    """Its process died before the slot had a number: no other process can have it."""
    with Core() as core:
        slot = core.claim()
        assert core.raw.read(core.raw.slot_at(slot) + SLOT_CLAIM) == lib.mm_claim(core.mm, slot)
        core.raw.write(core.raw.slot_at(slot) + SLOT_CLAIM, 0)
        check(lib.slot_release(core.mm, slot, 0))
        assert core.stat().clients == 0
        assert core.claim() == slot


@pytest.mark.parametrize("number", [lib.MM_SLOTS, (1 << 32) - 1])
def test_there_is_no_such_slot(number: int) -> None:
    with Core() as core:
        assert lib.slot_release(core.mm, number, 0) == -errno.EINVAL
