"""The simulated reclaim of `lab bits`, beside a second one and with lists worked out by hand."""

from __future__ import annotations

from abc import ABC, abstractmethod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msharefs.lab import clock
from msharefs.lab.clock import EACH, SHARED, Outcome, play

References = list[tuple[int, int]]
some_references = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=120)
A, B, C, D = range(4)


class Second(ABC):
    """The same by other means: all that is known is the list of what was used so far.

    A page's bits are the processes that have used it since somebody last looked at it.
    """

    def __init__(self, memory: int, view: str) -> None:
        self.memory = memory
        self.view = view
        self.history: References = []
        self.looked: dict[int, int] = {}
        self.here: set[int] = set()

    @abstractmethod
    def came(self, page: int) -> None: ...

    @abstractmethod
    def leaves(self) -> int: ...

    def look(self, page: int) -> int:
        since = self.history[self.looked.get(page, 0) :]
        self.looked[page] = len(self.history)
        users = {process for process, used in since if used == page}
        return len(users) if self.view == EACH else min(len(users), 1)

    def play(self, references: References) -> Outcome:
        found = Outcome()
        left: dict[int, int] = {}
        for reference in references:
            page = reference[1]
            if page not in self.here:
                found.faults += 1
                if page in left:
                    found.refaults += 1
                    since = {used for _, used in self.history[left[page] :]}
                    found.wrongly += bool(self.here - since)
                if len(self.here) == self.memory:
                    gone = self.leaves()
                    self.here.remove(gone)
                    # From the next reference on: this one has not been made.
                    left[gone] = len(self.history)
                    found.thrown_out += 1
                self.looked[page] = len(self.history)
                self.here.add(page)
                self.came(page)
            self.history.append(reference)
        return found


class Queue(Second):
    """CLOCK as a queue: who has a turn to go joins it again at its end."""

    def __init__(self, memory: int, view: str) -> None:
        super().__init__(memory, view)
        self.queue: list[int] = []
        self.turns: dict[int, int] = {}

    def came(self, page: int) -> None:
        self.queue.append(page)
        self.turns[page] = 0

    def leaves(self) -> int:
        while True:
            page = self.queue.pop(0)
            bits = self.look(page)
            # One bit is worth this turn, two are worth another one, which does not add up.
            self.turns[page] = 1 if bits > 1 else self.turns[page] - (not bits)
            if self.turns[page] < 0:
                return page
            self.queue.append(page)


class Ranks(Second):
    """Lists without a list: each page has a rank in its class, and the lowest is its head."""

    def __init__(self, memory: int, view: str) -> None:
        super().__init__(memory, view)
        self.next = 0
        self.rank: dict[int, tuple[bool, int]] = {}

    def put(self, page: int, *, good: bool) -> None:
        self.next += 1
        self.rank[page] = (good, self.next)

    def of(self, *, good: bool) -> list[int]:
        chosen = [page for page, (which, _) in self.rank.items() if which == good]
        return sorted(chosen, key=lambda page: self.rank[page][1])


class Lists(Ranks):
    """An active page is good. A page is referenced if the last look at it while inactive found a
    bit."""

    def __init__(self, memory: int, view: str) -> None:
        super().__init__(memory, view)
        self.referenced: dict[int, bool] = {}

    def came(self, page: int) -> None:
        self.referenced[page] = False
        self.put(page, good=False)

    def leaves(self) -> int:
        while True:
            active, inactive = self.of(good=True), self.of(good=False)
            if len(inactive) <= len(active):
                self.look(active[0])
                self.put(active[0], good=False)
            page = self.of(good=False)[0]
            bits = self.look(page)
            if not bits:
                del self.rank[page]
                return page
            self.put(page, good=bits > 1 or self.referenced[page])
            self.referenced[page] = True


class Generations(Ranks):
    """A young page is good."""

    def came(self, page: int) -> None:
        self.put(page, good=True)

    def leaves(self) -> int:
        while True:
            old = self.of(good=False)
            for page in [] if old else self.of(good=True):
                self.put(page, good=self.look(page) > 0)
            for page in old[:1]:
                if not self.look(page):
                    del self.rank[page]
                    return page
                self.put(page, good=True)


SECOND = {"CLOCK": Queue, "two lists": Lists, "two generations": Generations}


@pytest.mark.parametrize("policy", clock.POLICIES)
@given(some_references, st.integers(1, 6), st.sampled_from([SHARED, EACH]))
def test_each_is_as_a_second_one(
    policy: str, references: References, memory: int, view: str
) -> None:
    second = SECOND[policy](memory, view)
    assert play(policy, memory, view, references) == second.play(references)


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


@pytest.mark.parametrize("policy", ["CLOCK", "two lists"])
def test_a_page_of_several_stays_where_their_bits_are_told_apart(policy: str) -> None:
    # A is used by two processes, B and C by one; then D needs room.
    references = [(0, A), (1, A), (0, B), (0, C), (0, D), (0, A)]
    assert play(policy, 3, EACH, references).refaults == 0
    assert play(policy, 3, SHARED, references).refaults == 1


@given(some_references, st.integers(1, 6))
def test_generations_do_not_ask_how_many(references: References, memory: int) -> None:
    one, each = (play("two generations", memory, view, references) for view in (SHARED, EACH))
    assert one == each


def test_generations_worked_out_by_hand() -> None:
    # At D all three have a bit and stay young, then are old in order: A leaves.
    assert play("two generations", 3, SHARED, [(0, A), (0, B), (0, C), (0, D)]).thrown_out == 1
    # B is old and used again: it is young when A comes back, and C leaves.
    again = [(0, A), (0, B), (0, C), (0, D), (0, B), (0, A), (0, B), (0, D)]
    assert play("two generations", 3, SHARED, again) == Outcome(5, 1, 2, 1)


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
