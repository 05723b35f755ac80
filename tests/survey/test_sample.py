"""A sample says what an exact look says, as nearly as its error bar promises."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

import pytest

from msharefs.lab.survey import sample, words

from .conftest import BASE, PRIVATE, SPAN, TABLE, memfd, memory, survey, the

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.actor import Actor

SPANS = 512
LARGE = SPANS * SPAN


@pytest.fixture(autouse=True)
def _small_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "WANTED", 32)
    monkeypatch.setattr(sample, "_DEARER", 0.1)


def populate(actors: list[Actor], share: float, seed: int) -> None:
    """Each maps the same memory, and touches a page in this share of its tables."""
    fd = memfd(LARGE)
    for number, actor in enumerate(actors):
        chosen = random.Random(seed * 100 + number).sample(range(SPANS), round(share * SPANS))
        memory(actor, actor.give(fd), size=LARGE)
        for span in chosen:
            actor.call("load", BASE + span * SPAN)
    os.close(fd)


def both(actors: list[Actor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a sample says, and the truth."""
    return survey(actors), survey(actors, exact=True)


def test_full_tables_are_told_as_they_are(three: list[Actor]) -> None:
    populate(three, 1.0, 0)
    drawn, exact = both(three)
    assert (drawn["sampled"]["spans"], exact["sampled"]["spans"]) == (True, False)
    one, truth = the(drawn, "shm", LARGE), the(exact, "shm", LARGE)
    assert truth["own_tables_bytes"] == 3 * (SPANS + 2) * TABLE
    for key in ("own_tables_bytes", "gone_bytes", "page_table_bytes", "saved_bytes"):
        assert one[key] == pytest.approx(truth[key], abs=1)
    assert truth["error_bytes"] == exact["error_bytes"] == 0
    assert 0 < one["error_bytes"] < 0.1 * truth["saved_bytes"]
    assert drawn["vmpte_bytes"] == exact["vmpte_bytes"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.7, 0.4])
def test_the_error_bar_holds(three: list[Actor], share: float, seed: int) -> None:
    populate(three, share, seed)
    drawn, exact = both(three)
    one, truth = the(drawn, "shm", LARGE), the(exact, "shm", LARGE)
    assert drawn["sampled"]["spans"]
    # VmPTE says how many they have; the sample, how many of them are different.
    assert one["own_tables_bytes"] == pytest.approx(truth["own_tables_bytes"], abs=1)
    assert 0 < one["error_bytes"] < 0.3 * truth["saved_bytes"]
    # Three standard deviations: so one in 370 would fail, and which ones is always the same.
    assert abs(one["saved_bytes"] - truth["saved_bytes"]) < 3 / 1.96 * one["error_bytes"]


def test_a_large_zygote(family: Any) -> None:
    memory(family.parent, flags=PRIVATE, size=LARGE)
    for span in range(SPANS):
        family.parent.call("store", BASE + span * SPAN, 1)
    actors = family(2)
    for span in range(SPANS // 2):
        actors[1].call("store", BASE + span * SPAN, 2)
    drawn, exact = both(actors)
    assert drawn["sampled"]["spans"]
    assert exact["saved_bytes"] > 1.4 * SPANS * TABLE
    assert abs(drawn["saved_bytes"] - exact["saved_bytes"]) < 3 / 1.96 * drawn["error_bytes"]


def test_processes_are_drawn_where_they_are_many(
    family: Callable[[int], list[Actor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = family.parent  # type: ignore[attr-defined]
    fd = memfd(64 * SPAN)
    memory(parent, parent.give(fd), size=64 * SPAN)
    os.close(fd)
    actors = family(39)
    for number, actor in enumerate(actors):
        for span in range(32 + number % 32):
            actor.call("load", BASE + span * SPAN)
    exact = survey(actors)
    monkeypatch.setattr(sample, "SECONDS", 0.001)
    monkeypatch.setattr(sample, "_LEAST", 20)
    drawn = survey(actors)
    assert (drawn["processes"], drawn["looked_at"], exact["looked_at"]) == (40, 20, 40)
    assert drawn["sampled"]["processes"]
    assert drawn["vmpte_bytes"] == exact["vmpte_bytes"]
    assert the(drawn, "shm", 64 * SPAN)["processes"] == 40
    assert 0 < drawn["error_bytes"] < 0.5 * exact["saved_bytes"]
    assert abs(drawn["saved_bytes"] - exact["saved_bytes"]) < 3 / 1.96 * drawn["error_bytes"]
    assert "20 of 40 processes" in " ".join(words.remarks(drawn))


def test_how_many_are_drawn_is_measured() -> None:
    """Processes that take longer to look at than their page tables tell are fewer in the sample."""
    sizes = [(pid, "slow" if pid % 2 else "fast", 1 << 20) for pid in range(1, 2001)]
    asked: list[list[int]] = []

    def measure(pids: list[int]) -> float:
        asked.append(pids)
        return len(pids) * (0.1 if pids[0] % 2 else 0.001)

    chosen = sample.processes(sizes, measure)
    # 101 s in all, of which 15 s may be used.
    assert sum(pid % 2 for pid in chosen) == sum(1 - pid % 2 for pid in chosen) == 149
    assert [len(pids) for pids in asked] == [3, 3]
    assert {pid for pids in asked for pid in pids} < chosen
    assert sample.processes(sizes[:100], measure) == set(range(1, 101))
    assert len(asked) == 2
