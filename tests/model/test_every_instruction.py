"""Death at every instruction: of a client in a fault, of the server in a change.

Each new state of shared memory on the way is copied, and the survivors must be able to make the
copy whole. See support/steps.py.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from msharefs.native import ffi, lib

from support.core import GIB1, MIB2, PAGE, READ, WRITE, Core, Vma, check, extents
from support.rawmm import NX, US, A, D, Leaf, P
from support.steps import Stepped, states

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.steps import Steps

# The places of faults: both sides of a PTE page's edge, and far away.
PLACES = (0, PAGE, MIB2 - PAGE, MIB2, GIB1 + PAGE)


def new_fault(offset: int, *, write: bool = False) -> Any:
    """Like that of a sequential access: it fills two more entries, and looks further."""
    pages = {"offset": offset, "start": offset, "end": offset + 4 * PAGE, "fill": 3}
    # In a file: all of the block, and over the edge of a table.
    pages["limit"] = offset + 3 * PAGE
    fault = ffi.new("struct fault *", pages)
    fault.access = lib.ACCESS_WRITE if write else lib.ACCESS_READ
    return fault


def assert_whole(core: Core) -> None:
    assert core.audit().problems() == {}
    assert core.raw.tree().wrong == []


def assert_useful(core: Core) -> None:
    """Everything works, and nothing was lost that would show only later."""
    slot = core.claim()
    core.map(0, 2 * GIB1)
    for place in PLACES:
        assert core.touch(slot, place, write=True).verdict == "MAP"
    assert_whole(core)
    core.unmap(0, core.size)
    assert_whole(core)
    assert core.audit().tables == (0, 0, 0, 1)
    assert core.stat().rss == 0


# A client


@dataclass(frozen=True)
class Before:
    """The contents of the region when a client's last fault begins."""

    touched: tuple[int, ...]
    offset: int
    write: bool
    states: int  # at least so many are seen: fewer, and the test does not look closely
    held: frozenset[int] = frozenset({0})  # frames in hand that are seen
    file: int = 0  # its number, if it is not anonymous memory
    flags: int = 0


FAULTS = {
    "three tables": Before((), 0, False, 18, frozenset({0, 1})),
    "one table": Before((MIB2,), 0, False, 9, frozenset({0, 1})),
    "an entry": Before((PAGE,), 0, True, 4),
    "a dirty bit": Before((0,), 0, True, 4),
    "nothing": Before((0, PAGE), 0, False, 3),
    "a block of a file": Before((), MIB2 - PAGE, True, 24, frozenset({0, 1}), file=1),
    "a huge page": Before((), MIB2, True, 14, frozenset({0, 1}), file=1, flags=lib.VMA_HUGE),
    "a huge page more": Before((0,), MIB2, False, 4, file=1, flags=lib.VMA_HUGE),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_client_dies_in_a_fault(case: str, steps: Steps) -> None:
    before = FAULTS[case]
    held, seen = set(), 0
    with Core() as core:
        other, victim = core.claim(), core.claim()
        core.map(0, 2 * GIB1, READ | WRITE | before.flags, file=before.file)
        for place in before.touched:
            core.touch(other, place)
        fault = new_fault(before.offset, write=before.write)
        for _ in states(core, steps.stop_fault, core.mm, victim, fault):
            seen += 1
            held.add(core.audit().held)
            with core.clone() as copy:
                assert_a_reap_is_enough(copy, before, victim)
        assert_whole(core)
    assert seen >= before.states
    assert held == before.held


def assert_a_reap_is_enough(copy: Core, before: Before, victim: int) -> None:
    check(lib.slot_reap(copy.mm, victim))
    assert_whole(copy)
    slot = copy.claim()
    assert slot == victim
    assert copy.touch(slot, before.offset, write=before.write).verdict == "MAP"
    leaf = copy.raw.tree().leaves[before.offset]
    assert bool(leaf.flags & D) == before.write
    assert_whole(copy)
    assert_useful(copy)


# The server


def furnished() -> Core:
    """Two mappings, touched at some places, and pages there."""
    core = Core()
    slot = core.claim()
    core.map(0, MIB2 + 2 * PAGE)
    core.map(GIB1, GIB1 + 3 * PAGE, READ)
    for place in PLACES:
        assert core.touch(slot, place).verdict == "MAP"
        os.pwrite(core.mem_fd, b"\xa5" * PAGE, place)
    check(lib.slot_reap(core.mm, slot))
    # Leftovers of the last change must not be taken for a part of the next.
    core.unmap(GIB1 + 3 * PAGE, GIB1 + 9 * PAGE)
    return core


@dataclass(frozen=True)
class Contents:
    """The part of a quiescent region that survivors can see."""

    vmas: tuple[Vma, ...]
    leaves: frozenset[Leaf]
    pages: tuple[tuple[int, int], ...]
    tables: frozenset[tuple[int, int]]

    @classmethod
    def of(cls, core: Core) -> Contents:
        """The contents of `core`."""
        tree = core.raw.tree()
        return cls(
            tuple(core.vmas()),
            frozenset(tree.leaves.values()),
            tuple(extents(core.mem_fd)),
            frozenset(tree.spans()),
        )


@dataclass(frozen=True)
class Change:
    """A change by the server; `prot` does not matter for UNMAP."""

    verb: str
    start: int
    end: int
    prot: int = 0

    def apply(self, core: Core) -> None:
        """The whole of it."""
        if self.verb == "unmap":
            core.unmap(self.start, self.end)
        else:
            getattr(core, self.verb)(self.start, self.end, self.prot)

    def states(self, core: Core, steps: Steps) -> Iterator[int]:
        """One instruction after another."""
        return states(
            core, getattr(steps, f"stop_{self.verb}"),
            core.mm, core.mem_fd, self.start, self.end, self.prot,
        )  # fmt: skip


CHANGES = {
    "unmap a page of a table": Change("unmap", PAGE, 2 * PAGE),
    "unmap over an edge": Change("unmap", MIB2 - PAGE, MIB2 + PAGE),
    "unmap a whole mapping": Change("unmap", GIB1, GIB1 + 3 * PAGE),
    "unmap all": Change("unmap", 0, GIB1 + 3 * PAGE),
    "unmap a hole": Change("unmap", GIB1 + 3 * PAGE, GIB1 + 9 * PAGE),
    "map into a hole": Change("map", MIB2 + 2 * PAGE, MIB2 + 9 * PAGE, READ),
    "map over a part": Change("map", PAGE, 3 * PAGE, READ),
    "map over two": Change("map", MIB2, GIB1 + 2 * PAGE, READ | WRITE),
    "protect a page of a table": Change("protect", PAGE, 2 * PAGE, READ),
    "protect over an edge": Change("protect", MIB2 - PAGE, MIB2 + PAGE, 0),
    "protect a whole mapping": Change("protect", GIB1, GIB1 + 3 * PAGE, READ | WRITE),
    "guard over an edge": Change("guard", MIB2 - PAGE, MIB2 + PAGE),
    "remove over an edge": Change("remove", MIB2 - PAGE, MIB2 + PAGE),
    "seal a part": Change("seal", PAGE, 2 * PAGE),
}


@pytest.mark.parametrize("case", CHANGES)
def test_the_server_dies_in_a_change(case: str, steps: Steps) -> None:
    change = CHANGES[case]
    with furnished() as core:
        before = Contents.of(core)
        with core.clone() as copy:
            change.apply(copy)
            after = Contents.of(copy)
        assert before != after or case == "unmap a hole"

        found = []
        for _ in change.states(core, steps):
            with core.clone() as copy:
                copy.recover()
                assert_whole(copy)
                found.append(Contents.of(copy))
                assert found[-1] in (before, after), "half of the change"
                assert_useful(copy)
        assert found[0] == before
        assert found[-1] == after
        # One store is the commit: before it nothing has happened, after it everything will.
        assert set(found[found.index(after) :]) == {after}
        assert Contents.of(core) == after


@pytest.mark.parametrize(
    "case",
    [
        "unmap over an edge", "map over a part", "protect over an edge", "guard over an edge",
        "remove over an edge",
    ],
)  # fmt: skip
def test_the_next_server_dies_too(case: str, steps: Steps) -> None:
    """While it finishes the first one's change, at every instruction."""
    with furnished() as core:
        deaths = list(unfinished(core, CHANGES[case], steps))
    assert len(deaths) >= 6
    for number, death in enumerate(deaths):
        with death:
            if number % (len(deaths) // 3):
                continue
            with death.clone() as copy:
                copy.recover()
                after = Contents.of(copy)
            check(lib.mm_sweep(death.mm))
            for _ in states(death, steps.stop_recover, death.mm, death.mem_fd):
                with death.clone() as copy:
                    copy.recover()
                    assert_whole(copy)
                    assert Contents.of(copy) == after
            assert Contents.of(death) == after


def unfinished(core: Core, change: Change, steps: Steps) -> Iterator[Core]:
    """Copies after the commit, in which there is still something to do."""
    epoch = core.raw.header("epoch")
    for _ in change.states(core, steps):
        if core.raw.header("epoch") == epoch + 1 and core.raw.header("intent_op"):
            yield core.clone()


def test_the_next_server_dies_while_it_sweeps(steps: Steps) -> None:
    """The first one had cut off a table but not yet freed it."""
    with Core(4 * MIB2, MIB2) as core:  # a sweep looks at all frames that could be in use
        core.map(0, 4 * MIB2)
        slot = core.claim()
        core.touch(slot, 0)
        core.touch(slot, 3 * MIB2)
        change = Change("unmap", 0, 2 * MIB2)
        lost = [core.clone() for _ in change.states(core, steps) if core.audit().lost]
    # A table goes: it is cut off, then marked free.
    assert len(lost) == 1
    with lost[0] as death:
        for _ in states(death, steps.stop_sweep, death.mm):
            with death.clone() as copy:
                copy.recover()
                assert_whole(copy)
        assert_whole(death)


def test_the_server_dies_while_it_takes_a_change_back(steps: Steps) -> None:
    change = Change("unmap", 0, MIB2)
    with furnished() as core:
        before = Contents.of(core)
        with core.clone() as copy:
            change.apply(copy)
            after = Contents.of(copy)
        found = []
        for _ in states(core, steps.stop_abort, core.mm, change.start, change.end):
            with core.clone() as copy:
                copy.recover()
                assert_whole(copy)
                found.append(Contents.of(copy))
                assert_useful(copy)
        # Until it is taken back it is a change like any other.
        assert set(found) == {before, after}
        assert Contents.of(core) == before


def test_the_server_dies_while_it_reaps(steps: Steps) -> None:
    """A dead client has a frame in hand, linked or not; then the server dies over it."""
    with Core() as core:
        victim = core.claim()
        core.map(0, 2 * GIB1)
        fault = new_fault(0)
        deaths = [
            core.clone()
            for _ in states(core, steps.stop_fault, core.mm, victim, fault)
            if core.audit().held
        ]
    assert len(deaths) >= 6
    for death in deaths:
        with death:
            for _ in states(death, steps.stop_reap, death.mm, victim):
                with death.clone() as copy:
                    # The next server sees a slot whose process is dead, or a free one.
                    copy.recover(dead=(victim,))
                    assert_whole(copy)
                    assert_useful(copy)
            assert_whole(death)


# No death, but a rival: anything may happen between any two instructions of a fault.


def unmaps(core: Core) -> Callable[[], Any]:
    """UNMAP of the page: waits for the fault if it is inside, and then nothing is left."""
    check(core.begin_unmap(0, MIB2))
    return later_or_now(core)


def replaces(core: Core) -> Callable[[], Any]:
    """Another mapping in its place: no entry of the old one may stay."""
    check(core.begin_map(0, MIB2, READ))
    return later_or_now(core)


def takes_rights(core: Core) -> Callable[[], Any]:
    """Writing is not permitted any more, nor are entries that permit it."""
    check(core.begin_protect(0, GIB1, READ))
    return later_or_now(core)


def later_or_now(core: Core) -> Callable[[], Any]:
    if core.straggler() is None:
        check(core.finish())
        return lambda: None
    return lambda: check(core.finish())


def touches(core: Core) -> Callable[[], Any]:
    """Another client's fault on the same page: one of them fills each entry."""
    slot = core.claim()
    assert core.touch(slot, 0, write=True).verdict == "MAP"
    return lambda: check(lib.slot_reap(core.mm, slot))


@pytest.mark.parametrize("rival", [unmaps, replaces, takes_rights, touches])
def test_between_any_two_instructions_of_a_fault(
    rival: Callable[[Core], Callable[[], Any]], steps: Steps
) -> None:
    waited = []
    # The whole way into the epoch and to the snapshot, and samples of the long walk after that.
    samples = [*range(100), *range(100, fault_length(steps), 37)]
    for at in samples:
        with Core() as core:
            core.map(0, GIB1)
            victim = core.claim()
            fault = new_fault(0)
            with Stepped(steps.stop_fault, core.mm, victim, fault) as child:
                for _ in range(at):
                    child.step()
                complete = rival(core)
                waited.append(core.straggler() is not None)
                child.finish()
            assert core.straggler() is None
            complete()
            assert_whole(core)
            leaves = core.raw.tree().leaves
            if rival is touches:
                assert leaves[0].flags & D
            elif rival is takes_rights:
                assert all(leaf.flags in (P | US | NX, P | US | NX | A) for leaf in leaves.values())
            elif rival is unmaps or waited[-1]:
                assert leaves == {}
            assert_useful(core)
    if rival is not touches:
        # A fault that had not begun, one that is waited for, and one that is over.
        assert not waited[0]
        assert sum(waited) > len(samples) / 3
        assert not waited[-1]


def fault_length(steps: Steps) -> int:
    """Instructions of a whole first touch."""
    with Core() as core:
        core.map(0, GIB1)
        arguments = (core.mm, core.claim(), new_fault(0))
        with Stepped(steps.stop_fault, *arguments) as child:
            count = 1
            while child.step():
                count += 1
        return count
