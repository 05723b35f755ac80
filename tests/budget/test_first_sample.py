"""The time after which a budget that has grown looks for spans that it can lose again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from support.spans import BUDGET, Client
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable

# The first look is due 250 ms after the budget has grown; after a look that finds nothing, the next
# was not due for 16 s. In between, with room for a busy machine.
SOON = 6.0


def grow(client: Client) -> int:
    """Uses the whole region until the budget has grown; returns its new size."""
    for _ in range(20):
        assert client.wrong() == 0
    size: int = client.seen["budget_bytes"]
    assert size > BUDGET
    return size


def test_it_grows_again_after_a_look_at_nothing(client: Callable[..., Client]) -> None:
    made = client()
    made.stamp()
    grow(made)
    until(lambda: made.seen["budget_bytes"] == BUDGET, "it is as asked", limit=60)
    # One more look follows after 250 ms, and finds no budget that has grown. That cannot be seen
    # from outside, and without it the test would pass for another reason.
    time.sleep(1)
    size = grow(made)
    until(lambda: made.seen["budget_bytes"] < size, "it has lost some again", limit=SOON)
