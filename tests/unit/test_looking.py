"""Looks at processes, some of which keep who looks waiting."""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING

from msharefs import looking

from support.wait import until

if TYPE_CHECKING:
    import pytest


class Processes:
    """Those of some numbers keep who looks waiting until `go_on` is set."""

    def __init__(self, *stuck: int) -> None:
        self.stuck, self.go_on = set(stuck), threading.Event()
        self.asked: list[int] = []

    def at(self, pid: int) -> int:
        self.asked.append(pid)
        if pid in self.stuck:
            self.go_on.wait()
        return 10 * pid


def forgotten() -> bool:
    return not looking._still_waiting()


def test_nobody_keeps_us_waiting() -> None:
    them = Processes()
    assert looking.look([3, 1, 2], them.at) == ({1: 10, 2: 20, 3: 30}, set(), [])
    assert looking.look([], them.at) == ({}, set(), [])
    assert them.asked == [3, 1, 2]


def test_some_do() -> None:
    """They are asked once for as long as they do."""
    them = Processes(2, 5)
    for _ in range(2):
        assert looking.look(range(1, 6), them.at, 0.8) == ({1: 10, 3: 30, 4: 40}, {2, 5}, [])
    assert sorted(them.asked) == [1, 1, 2, 3, 3, 4, 4, 5]
    them.go_on.set()
    until(forgotten, "the threads have ended")
    assert not looking.look(range(1, 6), them.at).unseen


def test_too_many_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more threads are left behind than that; the others are not asked."""
    monkeypatch.setattr(looking, "_WAITING_MAX", 3)
    them = Processes(*range(1, 9))
    found = looking.look(range(1, 11), them.at, 0.05)
    assert found == ({}, {1, 2, 3}, [4, 5, 6, 7, 8, 9, 10])
    assert found.unknown == set(range(1, 11))
    assert looking.look([9, 10], Processes().at, payer=1).seen == {9: 90, 10: 100}, "another's"
    until(lambda: sorted(them.asked) == [1, 2, 3], "they are asked")
    them.go_on.set()
    until(forgotten, "the threads have ended")


def test_one_that_cannot_be_looked_at() -> None:
    def at(pid: int) -> int:
        if pid == 2:
            raise OSError(errno.EMFILE, "too many open files")
        return pid

    assert looking.look([1, 2, 3], at) == ({1: 1, 3: 3}, {2}, [])


def test_no_more_are_asked_after_a_while() -> None:
    """But always one, so that those come to an end who ask for the rest the next time."""
    assert looking.look([1, 2, 3], Processes().at, begin_seconds=1e-9) == ({1: 10}, set(), [2, 3])
