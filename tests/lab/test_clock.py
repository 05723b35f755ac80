"""The simulated reclaim of `lab bits`, beside a second one and with lists worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msharefs.lab import clock
from msharefs.lab.clock import EACH, SHARED, Outcome, play

References = list[tuple[int, int]]
some_references = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=120)
A, B, C, D = range(4)


class Queue:
    """CLOCK as a queue: who has a turn to go joins it again at its end."""

    def __init__(self, memory: int, view: str) -> None:
        self.memory = memory
        self.key = (lambda _process: 0) if view == SHARED else (lambda process: process)
        self.queue: list[int] = []
        self.marks: set[tuple[int, int]] = set()
        self.turns: dict[int, int] = {}
        self.history: list[int] = []

    def leaves(self) -> int:
        while True:
            page = self.queue.pop(0)
            mine = {mark for mark in self.marks if mark[1] == page}
            self.marks -= mine
            # One bit is worth this turn, two are worth another one, which does not add up.
            self.turns[page] = 1 if len(mine) > 1 else self.turns.get(page, 0) - (not mine)
            if self.turns[page] < 0:
                return page
            self.queue.append(page)

    def play(self, references: References) -> Outcome:
        found = Outcome()
        left: dict[int, int] = {}
        for process, page in references:
            if page not in self.queue:
                found.faults += 1
                if page in left:
                    found.refaults += 1
                    since = self.history[left[page] :]
                    found.wrongly += any(stayed not in since for stayed in self.queue)
                if len(self.queue) == self.memory:
                    gone = self.leaves()
                    self.turns.pop(gone)
                    # From the next reference on: this one has not been made.
                    left[gone] = len(self.history)
                    found.thrown_out += 1
                self.queue.append(page)
            self.history.append(page)
            self.marks.add((self.key(process), page))
        return found


@given(some_references, st.integers(1, 6), st.sampled_from([SHARED, EACH]))
def test_clock_is_as_a_second_one(references: References, memory: int, view: str) -> None:
    assert play("CLOCK", memory, view, references) == Queue(memory, view).play(references)


@given(some_references, st.integers(1, 6), st.sampled_from(list(clock.POLICIES)))
def test_the_views_are_one_where_one_process_is_alone(
    references: References, memory: int, policy: str
) -> None:
    alone = [(0, page) for _, page in references]
    assert play(policy, memory, EACH, alone) == play(policy, memory, SHARED, references)


@given(some_references, st.integers(1, 12), st.sampled_from(list(clock.POLICIES)))
def test_what_no_policy_can_change(references: References, memory: int, policy: str) -> None:
    for view in (SHARED, EACH):
        found = play(policy, memory, view, references)
        pages = len({page for _, page in references})
        assert found.faults == pages + found.refaults
        assert found.faults - found.thrown_out == min(pages, memory)
        assert 0 <= found.wrongly <= found.refaults
        if memory >= pages:
            assert not found.thrown_out


@pytest.mark.parametrize("policy", clock.POLICIES)
def test_a_page_of_several_stays_where_their_bits_are_told_apart(policy: str) -> None:
    # A is used by two processes, B and C by one; then D needs room.
    references = [(0, A), (1, A), (0, B), (0, C), (0, D), (0, A)]
    assert play(policy, 3, EACH, references).refaults == 0
    assert play(policy, 3, SHARED, references).refaults == 1


def test_lists_worked_out_by_hand() -> None:
    # Inactive A B C, all with a bit: A, B, C are looked at and stay, then A, without one, leaves.
    assert play("two lists", 3, SHARED, [(0, A), (0, B), (0, C), (0, D)]) == Outcome(4, 0, 1, 0)
    # Used again before the second look: A is active, and B leaves.
    again = [(0, A), (0, B), (0, C), (0, D), (0, B), (0, 10), (0, B), (0, 11), (0, B)]
    assert play("two lists", 3, SHARED, again).refaults == 0
    # A left at D, though C stayed, and nobody has used C since.
    assert play("CLOCK", 3, SHARED, [(0, A), (0, B), (0, C), (0, D), (0, A)]).wrongly == 1
    # With all of those that stayed used since, no choice was wrong.
    used = [(0, A), (0, B), (0, C), (0, D), (0, B), (0, C), (0, A)]
    assert play("CLOCK", 3, SHARED, used) == Outcome(5, 1, 2, 0)
