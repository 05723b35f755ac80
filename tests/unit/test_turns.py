"""Turns of users: one who asks for much does not keep the others waiting."""

from __future__ import annotations

import time
from itertools import count

import pytest
import trio
import trio.testing

from msharefs.server import turns as turns_module
from msharefs.server.turns import Turns

COST = 0.001
MANY = 400


def work() -> None:
    """Keeps the thread, as answering does."""
    end = time.perf_counter() + COST
    while time.perf_counter() < end:
        pass


CALLERS = count(1)


@pytest.fixture(autouse=True)
def long_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine takes the processor away for longer than a window lasts."""
    monkeypatch.setattr(turns_module, "_WINDOW_SECONDS", 10.0)


async def ask(turns: Turns, user: int) -> None:
    turn = await turns.take(user, next(CALLERS))
    try:
        work()
    finally:
        turns.charge(user, turn)


def test_a_request_now_and_then_waits_for_nothing() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            turns = Turns(nursery.start_soon)
            for _ in range(5):
                with trio.testing.assert_no_checkpoints():
                    await ask(turns, 1)
                await trio.sleep(0.02)

    trio.run(main)


@pytest.mark.alone
def test_many_requests_of_one_user_and_one_of_another() -> None:
    async def main() -> None:
        done = []
        async with trio.open_nursery() as nursery:
            turns = Turns(nursery.start_soon)

            async def one() -> None:
                await ask(turns, 1)
                done.append(1)

            for _ in range(MANY):
                nursery.start_soon(one)
            await trio.lowlevel.checkpoint()
            for _ in range(5):
                start = time.perf_counter()
                await ask(turns, 2)
                assert time.perf_counter() - start < MANY * COST / 4
                await trio.sleep(0.001)
            assert len(done) < MANY, "it came in between"
        assert len(done) == MANY

    trio.run(main)


@pytest.mark.unsanitized("it is of Python alone, and measures shares of time")
def test_users_that_all_ask_for_much_get_alike() -> None:
    async def main() -> None:
        order: list[int] = []
        async with trio.open_nursery() as nursery:
            turns = Turns(nursery.start_soon)

            async def one(user: int) -> None:
                await ask(turns, user)
                order.append(user)

            for user in (1, 2):
                for _ in range(MANY // 4):
                    nursery.start_soon(one, user)
        half = order[: len(order) // 2]
        assert min(half.count(1), half.count(2)) > len(half) / 4

    trio.run(main)


def test_the_end_of_the_server_leaves_nobody_waiting() -> None:
    async def main() -> None:
        with trio.move_on_after(0.02) as soon:
            async with trio.open_nursery() as nursery:
                turns = Turns(nursery.start_soon)
                for _ in range(MANY):
                    nursery.start_soon(ask, turns, 1)
        assert soon.cancelled_caught

    trio.run(main)
