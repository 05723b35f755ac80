"""`msharefs reclaim`: the oldest pages leave, for all processes, and no page more than asked.

Files are paged out, which needs no swap. Where the tests' files are in memory themselves (tmpfs),
nothing can leave, and then only this is asked: that no page too many has left.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

import msharefs
from msharefs import verbs
from msharefs.cli import cli
from msharefs.lab import reclaim
from msharefs.native import ffi, lib

from support import schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.actor import Actor
    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M", "fault_around=1")
PAGE = 4096
SIZE = 2 << 20
PAGES = SIZE // PAGE
KEEP = 384
HOT, WARM = range(192, 304), range(112, 160)
"""In whole blocks of 16 pages: that is how exactly accesses to files are known."""


class Pauses:
    """What happens in each interval, in the place of a sleep."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self.steps = list(steps)
        self.asked: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        self.steps.pop(0)()


def nothing() -> None:
    """An interval in which nobody does anything."""


def in_memory(fd: int) -> list[int]:
    """The file's pages that are in memory, as Linux says."""
    vec = ffi.new("uint8_t[]", PAGES)
    assert lib.pages_resident(fd, 0, SIZE, vec) == 0
    return [page for page in range(PAGES) if vec[page] & 1]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A file whose pages are all in memory, each a folio of its own, since it came so."""
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    for page in range(PAGES):
        os.pwrite(fd, bytes([page % 251]) * PAGE, page * PAGE)
    yield fd
    os.close(fd)


@contextlib.contextmanager
def mapped(mount: Mount, name: str, file: int) -> Iterator[msharefs.Region]:
    with msharefs.open(mount.path / name, os.O_RDWR | os.O_CREAT) as region:
        region.truncate(SIZE)
        region.map(0, SIZE, flags=mmap.MAP_SHARED | verbs.MAP_FIXED, fd=file)
        yield region


def attached(actor: Actor, region: msharefs.Region) -> int:
    return actor.attach(actor.give(region.fd))


def load(actor: Actor, base: int, pages: range | list[int]) -> None:
    for page in pages:
        assert actor.call("load", base + page * PAGE) == [page % 251]


def can_leave(tmp_path: Path) -> bool:
    """Whether pages of a file there can leave memory."""
    path = tmp_path / "probe"
    path.write_bytes(bytes(PAGE))
    with path.open("r+b") as probe:
        os.fdatasync(probe.fileno())
        os.posix_fadvise(probe.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        vec = ffi.new("uint8_t[1]")
        assert lib.pages_resident(probe.fileno(), 0, PAGE, vec) == 0
        return not vec[0] & 1


def test_the_oldest_leave_for_all_and_no_page_more(
    shared_mount: Mount, actors: Callable[[], Actor], file: int, tmp_path: Path
) -> None:
    with mapped(shared_mount, "oldest", file) as region:
        crowd = [actors() for _ in range(4)]
        bases = [attached(actor, region) for actor in crowd]
        for actor, base in zip(crowd, bases, strict=True):
            load(actor, base, range(PAGES))
        assert len(in_memory(file)) == PAGES

        def use(pages: range) -> Callable[[], None]:
            return lambda: load(crowd[1], bases[1], pages)

        # The oldest are all but WARM and HOT: more than have to go.
        expected = [page for page in range(PAGES) if page not in WARM and page not in HOT]
        expected = expected[: PAGES - KEEP]
        pauses = Pauses(use(WARM), use(HOT), nothing, use(HOT), lambda: load(
            crowd[2], bases[2], [expected[0], expected[5]]
        ))  # fmt: skip
        found = reclaim.run(region.path, KEEP * PAGE, None, pauses)
        assert pauses.asked == [reclaim.LOOK_SECONDS / reclaim.LOOKS] * 5
        if not can_leave(tmp_path):
            assert found["left_bytes"] >= KEEP * PAGE
            return
        assert found["fits"]
        assert found["before_bytes"] == SIZE
        assert found["left_bytes"] == KEEP * PAGE
        assert found["taken_bytes"] == found["tried_bytes"] == SIZE - KEEP * PAGE
        now = set(in_memory(file))
        assert set(range(PAGES)) - set(expected) <= now
        # Linux reads ahead around what was touched again, and may not be done with that.
        assert 2 <= found["refaulted_pages"] <= len(now & set(expected))
        for actor, base in zip(crowd, bases, strict=True):
            load(actor, base, range(PAGES))


def test_a_cold_limit_leaves_what_is_used(
    shared_mount: Mount, actors: Callable[[], Actor], file: int
) -> None:
    with mapped(shared_mount, "cold", file) as region:
        actor = actors()
        base = attached(actor, region)
        load(actor, base, range(PAGES))
        used = range(64)
        pauses = Pauses(*([lambda: load(actor, base, used)] * 4), nothing)
        found = reclaim.run(region.path, PAGE, 8.0, pauses)
        assert pauses.asked == [2.0] * 5
        assert found["candidate_bytes"] == (PAGES - len(used)) * PAGE
        assert not found["fits"]
        assert set(used) <= set(in_memory(file))
        assert found["left_bytes"] >= len(used) * PAGE


def test_what_fits_is_let_alone(
    shared_mount: Mount, actors: Callable[[], Actor], file: int
) -> None:
    with mapped(shared_mount, "fits", file) as region:
        actor = actors()
        load(actor, attached(actor, region), range(PAGES))
        found = reclaim.run(region.path, SIZE, None, Pauses())
        assert (found["fits"], found["taken_bytes"], found["looks"]) == (True, 0, [])
        tables = region.describe("pagetable")["levels"][-1]["tables"]
        assert sum(table["present"] for table in tables) == PAGES


def test_locked_memory_stays(shared_mount: Mount, file: int) -> None:
    with mapped(shared_mount, "locked", file) as region:
        region.lock(0, SIZE)
        found = reclaim.run(region.path, PAGE, None, Pauses(*[nothing] * 5))
        assert (found["fits"], found["tried_bytes"]) == (False, 0)
        assert found["left_out_bytes"] == SIZE
        assert len(in_memory(file)) == PAGES
        region.unlock(0, SIZE)


def test_without_swap_anonymous_memory_is_refused(
    shared_mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reclaim, "swap_free", lambda: 0)
    with msharefs.open(shared_mount.path / "anonymous", os.O_RDWR | os.O_CREAT) as region:
        region.truncate(SIZE)
        region.map(0, SIZE)
        region.advise(0, SIZE, verbs.MADV_POPULATE_WRITE)
        with pytest.raises(OSError, match="there is no swap that they could go to"):
            reclaim.run(region.path, PAGE, None, Pauses())
        tables = region.describe("pagetable")["levels"][-1]["tables"]
        assert sum(table["present"] for table in tables) == PAGES, "nothing was given back"


def test_the_verb(shared_mount: Mount, file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reclaim, "LOOK_SECONDS", 0.01)
    with mapped(shared_mount, "verb", file) as region:
        region.advise(0, SIZE, verbs.MADV_POPULATE_READ)
        fits = CliRunner().invoke(cli, ["reclaim", "--json", "--keep", "2M", region.path])
        assert fits.exit_code == 0, fits.output
        assert schema.check(json.loads(fits.output))["fits"]
        region.lock(0, SIZE)
        stays = CliRunner().invoke(cli, ["reclaim", "--keep", "1M", region.path])
        assert stays.exit_code == 1, stays.output
        assert "1 MiB to be kept" in stays.stdout.replace(".0", "")
        assert "2 MiB are locked" in stays.stderr.replace(".0", "")
        told = CliRunner().invoke(cli, ["reclaim", "--json", "--keep", "1M", region.path])
        assert not schema.check(json.loads(told.stdout))["fits"]
        region.unlock(0, SIZE)


# What is chosen, and in which order


class Fake:
    """The ages that a look has found."""

    def __init__(self, last: list[int]) -> None:
        self._last = np.array(last, np.int32)

    def last(self) -> Iterator[tuple[int, Any]]:
        yield 2 * PAGE, self._last


def chosen(last: list[int], here: list[int], *, cold_only: bool = False) -> list[int]:
    watched: Any = Fake(last)
    everything: Callable[[Any], Any] = lambda pages: pages >= 0  # noqa: E731
    found = reclaim.oldest_first(
        watched, np.array(here, np.int64), cold_only=cold_only, movable=everything
    )
    return [int(page) for page in found]


def test_order_is_by_age_and_then_by_address() -> None:
    last = [4, 0, 2, -1, 0, 4, 1]  # of pages 2 to 8
    assert chosen(last, list(range(20))) == [3, 5, 6, 8, 4, 2, 7]
    assert chosen(last, [2, 5, 8, 11]) == [5, 8, 2]
    assert chosen(last, list(range(20)), cold_only=True) == [3, 5, 6]
    assert chosen(last, []) == []


def test_ranges_are_as_long_as_they_can_be() -> None:
    pages = np.array([1, 2, 3, 7, 9, 10], np.int64)
    assert list(reclaim.runs(pages)) == [
        (PAGE, 3 * PAGE), (7 * PAGE, PAGE), (9 * PAGE, 2 * PAGE),
    ]  # fmt: skip
    assert list(reclaim.runs(pages[:0])) == []


class Stubborn:
    """A region whose pages leave only where they may; it counts what it was asked."""

    def __init__(self, pages: int, stuck: set[int]) -> None:
        self.here = set(range(pages))
        self.pages, self.stuck = pages, stuck
        self.asked: list[int] = []

    def maps(self) -> list[dict[str, Any]]:
        return [{"start": 0, "end": self.pages * PAGE}]

    def query(self, offset: int, size: int) -> bytes:
        assert (offset, size) == (0, self.pages * PAGE)
        return bytes(page in self.here for page in range(self.pages))

    def advise(self, offset: int, size: int, advice: int) -> None:
        assert advice == verbs.MADV_PAGEOUT
        pages = range(offset // PAGE, (offset + size) // PAGE)
        self.asked.extend(pages)
        self.here -= set(pages) - self.stuck


def test_others_are_tried_for_those_that_stay_and_none_too_many() -> None:
    region: Any = Stubborn(100, set(range(5)))
    taken = reclaim.take(region, np.arange(100), np.arange(100), 90)
    assert (taken.left, taken.tried, len(taken.pages)) == (90, 15, 10)
    assert region.asked == list(range(15))


def test_where_nothing_leaves_it_is_given_up() -> None:
    region: Any = Stubborn(100, set(range(100)))
    taken = reclaim.take(region, np.arange(100), np.arange(100), 90)
    assert (taken.left, taken.tried, len(taken.pages)) == (100, 30, 0)


def test_watching_keeps_it_so_and_counts_what_came_back(
    shared_mount: Mount, actors: Callable[[], Actor], file: int, tmp_path: Path
) -> None:
    with mapped(shared_mount, "watch", file) as region:
        actor = actors()
        base = attached(actor, region)
        load(actor, base, range(PAGES))
        out = reclaim.Out()
        looks = [
            reclaim.run(region.path, KEEP * PAGE, None, Pauses(*[nothing] * 5), out=out)
            for _ in range(2)
        ]
        if not can_leave(tmp_path):
            assert all(found["left_bytes"] >= KEEP * PAGE for found in looks)
            return
        assert [found["taken_bytes"] for found in looks] == [SIZE - KEEP * PAGE, 0]
        assert [found["came_back_pages"] for found in looks] == [0, 0]
        load(actor, base, range(PAGES))
        found = reclaim.run(region.path, KEEP * PAGE, None, Pauses(*[nothing] * 5), out=out)
        assert found["came_back_pages"] == PAGES - KEEP
        assert (found["taken_bytes"], found["left_bytes"]) == (SIZE - KEEP * PAGE, KEEP * PAGE)


def test_the_verb_watches(shared_mount: Mount, file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reclaim, "LOOK_SECONDS", 0.01)
    with mapped(shared_mount, "verb watches", file) as region:
        region.advise(0, SIZE, verbs.MADV_POPULATE_READ)
        keep = ["reclaim", "--json", "--keep", "2M", "--watch", "0.01", "--count", "3"]
        shown = CliRunner().invoke(cli, [*keep, region.path])
        assert shown.exit_code == 0, shown.output
        assert [schema.check(json.loads(line))["fits"] for line in shown.stdout.splitlines()] == [
            True, True, True,
        ]  # fmt: skip
        alone = CliRunner().invoke(cli, ["reclaim", "--keep", "2M", "--count", "3", region.path])
        assert alone.exit_code == 2


def test_what_comes_back_is_counted_once() -> None:
    out = reclaim.Out()
    out.add(np.array([3, 5, 9], np.int64))
    assert out.come_back(np.array([1, 5], np.int64)) == 1
    assert out.come_back(np.array([1, 5], np.int64)) == 0
    out.add(np.array([5], np.int64))
    assert out.come_back(np.array([3, 5, 9], np.int64)) == 3
