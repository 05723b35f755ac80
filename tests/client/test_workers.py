"""mshare-worker and its orchestrator, over a plain memfd: they measure, so they must be right."""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING

import pytest

from msharefs.lab.workers import PAGE_BYTES, Workers

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGES = 3000  # more than one page table holds
SIZE = PAGES * PAGE_BYTES
# Page tables that hold nothing else, wherever the kernel puts the memory. The first and the last
# may be there already, for a neighbour.
WHOLE_TABLES = -(-(PAGES - 2 * 511) // 512)


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("workers", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


@pytest.fixture
def mapped(memfd: int) -> Iterator[Workers]:
    """Four workers that have the memfd mapped."""
    with Workers(4, [memfd]) as workers:
        workers.ask(f"map {SIZE} /proc/self/fd/{memfd}")
        yield workers


def test_what_one_fills_all_verify(mapped: Workers) -> None:
    (filled,) = mapped.ask(f"fill 7 {SIZE}", [0])
    assert filled.pages == PAGES
    assert filled.minor_faults.growth >= PAGES  # one fault per page: tests have no huge pages
    assert filled.vmpte_bytes.growth >= WHOLE_TABLES * PAGE_BYTES
    assert filled.nanoseconds > 0
    for answer in mapped.ask(f"verify 7 {SIZE}"):
        assert (answer.pages, answer.wrong) == (PAGES, 0)


def test_a_worker_that_touches_nothing_has_no_faults(mapped: Workers) -> None:
    for answer in mapped.ask("report"):
        assert answer.vmpte_bytes.growth == 0
        assert answer.minor_faults.growth <= 8  # its own stack and libraries
        assert answer.pages == 0


@pytest.mark.parametrize("where", [0, PAGE_BYTES // 3 // 8 * 8, PAGE_BYTES - 8])
def test_one_wrong_word_is_found_and_its_page_named(
    mapped: Workers, memfd: int, where: int
) -> None:
    mapped.ask(f"fill 7 {SIZE}", [0])
    os.pwrite(memfd, bytes(8), 2000 * PAGE_BYTES + where)
    for answer in mapped.ask(f"verify 7 {SIZE}", [1, 3]):
        assert (answer.pages, answer.wrong, answer.first_wrong) == (PAGES, 1, 2000)


def test_pages_in_each_others_place_are_wrong(mapped: Workers, memfd: int) -> None:
    mapped.ask(f"fill 7 {SIZE}", [0])
    one, other = (os.pread(memfd, PAGE_BYTES, page * PAGE_BYTES) for page in (10, 20))
    os.pwrite(memfd, one, 20 * PAGE_BYTES)
    os.pwrite(memfd, other, 10 * PAGE_BYTES)
    (answer,) = mapped.ask(f"verify 7 {SIZE}", [2])
    assert (answer.wrong, answer.first_wrong) == (2, 10)


def test_another_seed_is_another_pattern(mapped: Workers) -> None:
    mapped.ask(f"fill 7 {SIZE}", [0])
    (answer,) = mapped.ask(f"verify 8 {SIZE}", [1])
    assert (answer.wrong, answer.first_wrong) == (PAGES, 0)


def test_progress_adds_up_to_what_was_visited() -> None:
    size = 2 * (64 << 20) + PAGE_BYTES  # two lines of progress from each, and a rest
    fd = os.memfd_create("workers", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    visited: list[int] = []
    answered: list[int] = []
    with Workers(2, [fd]) as workers:
        workers.ask(f"map {size} /proc/self/fd/{fd}")
        workers.ask(f"verify 1 {size}", visited=visited.append, answered=answered.append)
    os.close(fd)
    assert len(visited) == 6
    assert sum(visited) == 2 * size
    assert answered == [1, 1]


@pytest.mark.parametrize(
    ("command", "number", "sentence"),
    [
        ("attach /nonexistent", errno.ENOENT, "open"),
        ("map 1 /nonexistent", errno.ENOENT, "open"),
        ("fill 1 4096", errno.EINVAL, "nothing is attached"),
        ("detach", errno.EINVAL, "nothing is attached"),
        ("attach", errno.EINVAL, "no such command"),
        ("fill 1", errno.EINVAL, "no such command"),
        ("fill 1 2 3", errno.EINVAL, "no such command"),
        ("fill 1x 4096", errno.EINVAL, "no such command"),
        ("report now", errno.EINVAL, "no such command"),
        ("rep", errno.EINVAL, "no such command"),
        ("", errno.EINVAL, "no such command"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_worker_goes_on(
    command: str, number: int, sentence: str
) -> None:
    with Workers(1) as workers:
        with pytest.raises(OSError, match=sentence) as caught:
            workers.ask(command)
        assert caught.value.errno == number
        workers.ask("report")


@pytest.mark.parametrize("size", [SIZE + PAGE_BYTES, PAGE_BYTES + 1])
def test_sizes_beyond_what_is_mapped_are_refused(mapped: Workers, size: int) -> None:
    with pytest.raises(OSError, match="not a number of pages that is attached"):
        mapped.ask(f"verify 7 {size}", [0])


def test_a_plain_file_is_no_region(memfd: int) -> None:
    with Workers(1, [memfd]) as workers, pytest.raises(OSError, match="mshare_attach") as caught:
        workers.ask(f"attach /proc/self/fd/{memfd}")
    assert caught.value.errno == errno.ENOTTY


def test_a_dead_worker_is_named_with_its_signal(mapped: Workers) -> None:
    os.kill(mapped.pids[2], signal.SIGKILL)
    with pytest.raises(OSError, match=r"worker 2 .*SIGKILL"):
        mapped.ask("report")


def test_none_is_left_after_an_error() -> None:
    class OnPurposeError(Exception):
        pass

    pids: list[int] = []

    def fail() -> None:
        with Workers(3) as workers:
            pids.extend(workers.pids)
            raise OnPurposeError

    with pytest.raises(OnPurposeError):
        fail()
    assert len(pids) == 3
    assert [pid for pid in pids if os.path.exists(f"/proc/{pid}")] == []


def test_too_many_for_the_limit_of_open_files_starts_none() -> None:
    started: list[int] = []
    with pytest.raises(OSError, match="ulimit") as caught, Workers(10**7, started=started.append):
        pass
    assert caught.value.errno == errno.EMFILE
    assert started == []
