"""When a budget that has grown looks for what it can lose again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from support.spans import BUDGET, Client
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable

# The first look is due 250 ms after the budget has grown; a look at nothing was not due again for
# 16 s. In between, with room for a machine that is busy.
SOON = 6.0


def grow(client: Client) -> int:
    """Uses all of the region until the budget has grown; what it is then."""
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
    # One more look follows, 250 ms later, and finds nothing that has grown. That cannot be seen
    # from outside, and without it the test would pass for another reason.
    time.sleep(1)
    size = grow(made)
    until(lambda: made.seen["budget_bytes"] < size, "it has lost some again", limit=SOON)
