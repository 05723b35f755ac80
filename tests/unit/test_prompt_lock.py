"""The lock of a host mm: one holder at a time, in the order of asking."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from msharefs.server.prompt_lock import PromptLock


def test_a_free_one_is_taken_at_once() -> None:
    async def main() -> None:
        lock = PromptLock()
        with trio.testing.assert_no_checkpoints():
            async with lock:
                assert lock.locked()
        assert not lock.locked()

    trio.run(main)


def test_one_at_a_time_in_order() -> None:
    async def main() -> None:
        lock, order = PromptLock(), []

        async def worker(number: int) -> None:
            async with lock:
                order.append(number)
                assert lock.locked()
                await trio.testing.wait_all_tasks_blocked()
                order.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(worker, number)
                await trio.testing.wait_all_tasks_blocked()
        assert order == [number for number in range(5) for _ in "ab"]
        assert not lock.locked()

    trio.run(main)


def test_who_gives_up_waiting_does_not_get_it() -> None:
    async def main() -> None:
        lock = PromptLock()
        async with lock:
            with trio.move_on_after(0) as patience:
                async with lock:
                    pytest.fail("there are two holders")
            assert patience.cancelled_caught
            assert lock.locked()
        assert not lock.locked()
        async with lock:
            pass

    trio.run(main)


def test_an_error_lets_go_of_it() -> None:
    async def main() -> None:
        lock = PromptLock()
        with pytest.raises(ValueError, match="inside"):
            async with lock:
                raise ValueError("inside")
        assert not lock.locked()

    trio.run(main)
