"""The spans that go are those that are not in use; and if all are in use, the budget grows."""

from __future__ import annotations

import os
import random
from array import array
from itertools import accumulate
from typing import TYPE_CHECKING

import pytest

from support.actor import PAGE
from support.spans import BUDGET, SLACK, SPAN, SPANS, STEP, TOUCHED, Client
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SPAN_PAGES = SPAN // PAGE
COVERED = BUDGET // PAGE


def play(client: Client, pages: Iterable[int], group: int = 1, times: int = 1) -> None:
    """Access stamped pages in this order; `group` of them `times` times before the next."""
    order = array("I", pages)
    fd = os.memfd_create("order")
    try:
        os.write(fd, order)
        number = client.actor.give(fd)
        assert client.actor.call("play", client.base, number, len(order), group, times) == [0]
        client.actor.call("close", number)
    finally:
        os.close(fd)


@pytest.mark.timeout(400)
def test_spans_in_use_stay_while_a_scan_goes_by(client: Callable[..., Client]) -> None:
    hot = [span * SPAN_PAGES for span in range(0, SPANS, SPANS // 24)]
    scanned = [span * SPAN_PAGES for span in range(SPANS) if span * SPAN_PAGES not in hot]
    order = [page for span in scanned * 2 for page in (*hot, *range(span, span + 8 * STEP, STEP))]
    # Time that a host takes from a virtual machine looks like the cost of spans that came back.
    for _ in range(4):
        made = client()
        made.stamp()
        made.actor.patient(300)
        before = made.seen
        # Each is in use for a while, so that the spans that come back cost little in comparison.
        play(made, order, len(hot) + 8, 400_000)
        seen = made.seen
        if not seen["budget_grown"]:
            break
    assert seen["budget_grown"] == 0
    gone = seen["evicted_spans"] - before["evicted_spans"]
    back = seen["refaulted_spans"] - before["refaulted_spans"]
    scans = 2 * len(scanned)
    assert gone >= scans - COVERED
    # First in, first out would take every span in use each time that the queue has turned.
    turns = scans / (COVERED - len(hot))
    assert back - scans < len(hot) * turns / 2


def test_a_working_set_above_the_budget_makes_it_grow(client: Callable[..., Client]) -> None:
    made = client()
    made.stamp()
    chance = random.Random(7)
    pages = [page * STEP for page in range(TOUCHED)]
    chance.shuffle(pages)
    weights = list(accumulate(rank**-0.99 for rank in range(1, TOUCHED + 1)))
    order = chance.choices(pages, cum_weights=weights, k=200_000)
    play(made, order)
    first = made.seen
    assert first["budget_asked_bytes"] == BUDGET
    assert first["budget_bytes"] >= 2 * BUDGET
    assert first["budget_grown"] >= 2
    assert made.region.stat()["budget"]["clients_grown"] == 1
    assert made.tables <= first["budget_bytes"] + SLACK
    play(made, order * 3)
    again = made.seen
    # Fewer than one access in a thousand: the ones that show whether the budget is still too small.
    assert again["refaulted_spans"] - first["refaulted_spans"] < 600


def test_a_budget_that_has_grown_shrinks_when_little_is_in_use(
    client: Callable[..., Client],
) -> None:
    made = client()
    made.stamp()
    for _ in range(20):
        assert made.wrong() == 0
    grown = made.seen
    assert grown["budget_bytes"] > BUDGET
    until(lambda: made.seen["budget_bytes"] == BUDGET, "it is as asked", limit=60)
    assert made.tables <= BUDGET + SLACK
    assert made.seen["budget_grown"] == grown["budget_grown"]
    assert made.wrong() == 0
