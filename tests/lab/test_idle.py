"""`msharefs idle`, with processes whose accesses the test knows, interval by interval."""

from __future__ import annotations

import itertools
import json
import mmap
import os
import random
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

import msharefs
from msharefs.cli import cli
from msharefs.lab import idle, idle_methods, idle_ways, pagemap, serving

from support import schema
from support.idling import (
    NOBODY_TOUCHED,
    PAGE,
    PAGES,
    SIZE,
    Accesses,
    ages,
    attached,
    filled,
    load,
)
from support.wait import until
from support.watched import watched

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.actor import Actor
    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M", "fault_around=1")
SPAN = 2 << 20


def test_ages_are_exact_to_the_interval(shared_mount: Mount, actors: Callable[[], Actor]) -> None:
    with filled(shared_mount, "exact") as region:
        actor = actors()
        base = attached(actor, region)
        first, second, third = range(300), range(200, 400), [0, 7, 1000]
        found = idle.run(
            [region.path], 3, 1.0,
            Accesses(*(lambda pages=pages: load(actor, base, pages)
                       for pages in (first, second, third))),
        )  # fmt: skip
        # Last used in the third interval, in the second, in the first, in none.
        assert ages(found) == [3, 200, 198, PAGES - NOBODY_TOUCHED - 401]
        assert [each["bytes"] // PAGE for each in found["regions"][0]["working_set"]] == [
            3, 203, 401,
        ]  # fmt: skip
        # 1.0 s was asked for, and nobody slept: what counts is the time that has passed.
        steps = found["regions"][0]["ages"]
        for newer, older in itertools.pairwise(steps[:-1]):
            assert newer["at_most_seconds"] <= older["at_least_seconds"] + found["between_seconds"]
        assert steps[-1]["at_most_seconds"] is None


def test_a_page_that_one_of_many_uses_is_not_idle(
    shared_mount: Mount, actors: Callable[[], Actor]
) -> None:
    with filled(shared_mount, "many") as region:
        crowd = [actors() for _ in range(64)]
        bases = [attached(actor, region) for actor in crowd]
        user, page = 37, 777

        def one() -> None:
            load(crowd[user], bases[user], [page])

        def all_of_them() -> None:
            for actor, base in zip(crowd, bases, strict=True):
                load(actor, base, [3])

        found = idle.run([region.path], 2, None, Accesses(all_of_them, one))
        assert ages(found) == [1, 1, PAGES - NOBODY_TOUCHED - 2]
        spans = {each["pid"]: each["spans"] for each in found["regions"][0]["clients"]}
        assert spans == {
            actor.pid: [int(number == user), 1] for number, actor in enumerate(crowd)
        }, "in the last interval only one process had a page, in a span of its own"


def test_what_an_ended_process_used_counts(
    shared_mount: Mount, actors: Callable[[], Actor]
) -> None:
    with filled(shared_mount, "ended") as region:
        actor = actors()
        base = attached(actor, region)

        def use_and_end() -> None:
            load(actor, base, [1, 2])
            actor.kill()

        found = idle.run([region.path], 1, None, Accesses(use_and_end))
        assert ages(found) == [2, PAGES - NOBODY_TOUCHED - 2]


def test_first_touches_and_changes_meanwhile(
    shared_mount: Mount, actors: Callable[[], Actor]
) -> None:
    with filled(shared_mount, "changes") as region:
        actor = actors()
        base = attached(actor, region)

        def touch() -> None:
            assert actor.call("store", base + (PAGES - 1) * PAGE, 1) == []

        def change() -> None:
            region.unmap(SPAN, SPAN)
            load(actor, base, [0])

        found = idle.run([region.path], 3, None, Accesses(touch, change, change))
        known = PAGES - NOBODY_TOUCHED + 1
        assert ages(found) == [1, 0, 1, known - 2]


def test_a_second_look_knows_the_pages_whose_entries_the_first_one_took(
    shared_mount: Mount,
) -> None:
    with filled(shared_mount, "second") as region:
        for _ in range(2):
            found = idle.run([region.path], 1, None, Accesses(lambda: None))
            assert ages(found) == [0, PAGES - NOBODY_TOUCHED]


def test_contents_stay(shared_mount: Mount) -> None:
    with filled(shared_mount, "contents") as region:
        view = region.attach()
        before = bytes(view[: SIZE - NOBODY_TOUCHED * PAGE])
        chosen = random.Random(7).sample(range(PAGES - NOBODY_TOUCHED), 50)

        def write() -> None:
            for page in chosen:
                view[page * PAGE + 8] = 9

        found = idle.run([region.path], 1, None, Accesses(write))
        assert ages(found)[0] == len(chosen)
        for page in chosen:
            view[page * PAGE + 8] = before[page * PAGE + 8]
        assert view[: len(before)] == before


def test_what_cannot_be_told_is_said(shared_mount: Mount) -> None:
    with filled(shared_mount, "said") as region:
        region.protect(0, SPAN, 0)
        region.lock(SPAN, SPAN)
        found = idle.run([region.path], 1, None, Accesses(lambda: None))
        assert found["regions"][0]["left_out_bytes"] == 2 * SPAN
        assert sum(ages(found)) == (SIZE - 2 * SPAN) // PAGE - NOBODY_TOUCHED
        region.unlock(SPAN, SPAN)
        region.protect(0, SPAN, mmap.PROT_READ)


def test_a_look_that_costs_too_much_makes_the_next_one_later(
    shared_mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(serving, "seconds", lambda _pids: {1: next(clock) * 1000.0})
    asked: list[float] = []
    with filled(shared_mount, "cost") as region:
        idle.run([region.path], 3, None, asked.append)
        idle.run([region.path], 2, 5.0, asked.append)
    assert asked == [10.0, 20.0, 40.0, 5.0, 5.0]


def test_other_ways_are_named_with_what_is_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bitmap = tmp_path / "bitmap"
    monkeypatch.setattr(idle_methods, "PAGE_IDLE", bitmap)

    def here() -> dict[str, bool]:
        return {method.name: method.here for method in idle_methods.methods("entries")}

    assert here()["entries"]
    assert here()["stores"] == pagemap.can_scan()
    assert not here()["page_idle"]
    bitmap.touch()
    assert here()["page_idle"]
    rwp = "userfaultfd, protected against reads"
    for release, has in (("7.1.9", False), ("7.2.0-rc1", True), ("10.0", True), ("6.18", False)):
        monkeypatch.setattr(idle_methods, "release", lambda release=release: release)
        assert here()[rwp] == has
    for used in idle_ways.WAYS:
        assert [each.name for each in idle_methods.methods(used) if not each.why_not] == [used]


def test_the_verb(shared_mount: Mount, tmp_path: Path) -> None:
    with filled(shared_mount, "verb") as region, filled(shared_mount, "verb too"):
        page = tmp_path / "idle.html"
        shown = CliRunner().invoke(
            cli, ["idle", "--interval", "0.01", "--rounds", "2", "--html", str(page), region.path]
        )
        assert shown.exit_code == 0, shown.output
        assert "userfaultfd, protected against reads (" in shown.output
        assert f"{region.path}: {PAGES - NOBODY_TOUCHED:,} pages" in shown.output
        assert page.read_text().count("<svg") == 1
        told = CliRunner().invoke(
            cli,
            ["idle", "--json", "--interval", "0.01", "--rounds", "1", str(shared_mount.path)],
        )
        document = schema.check(json.loads(told.output))
        names = {os.path.basename(each["region"]) for each in document["regions"]}
        assert {"verb", "verb too"} <= names


def test_where_linux_fills_touches_are_watched_meanwhile(
    mounts: Callable[..., Mount], actors: Callable[[], Actor]
) -> None:
    """Exactly as elsewhere."""
    with filled(mounts("quantum=2M", "faults=linux", "fault_around=1"), "linux") as region:
        actor = actors()
        base = attached(actor, region)
        load(actor, base, range(PAGES - NOBODY_TOUCHED))
        assert watched(actor.pid, base, SIZE) == []

        def use() -> None:
            load(actor, base, [0, 7, 1000])
            assert actor.call("store", base + (PAGES - 1) * PAGE, 1) == []
            region.stat()  # somebody looks, and that is no use of a page

        found = idle.run([region.path], 2, 1.0, Accesses(lambda: load(actor, base, range(9)), use))
        assert ages(found) == [4, 7, PAGES - NOBODY_TOUCHED - 10]
        assert watched(actor.pid, base, SIZE) != []


def test_a_look_that_comes_too_late_says_so(
    mounts: Callable[..., Mount], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "_LATE_SECONDS", 0.0)
    with filled(mounts("quantum=2M", "faults=linux"), "late") as region:

        def wait() -> None:
            until(lambda: region.describe("entries")["linux_fills"], "the time is over")

        with pytest.raises(TimeoutError, match="too late"):
            idle.run([region.path], 1, 0.05, Accesses(wait))


def test_touches_are_watched_for_a_day_at_most(mounts: Callable[..., Mount]) -> None:
    """And for somebody who may write the region."""
    mount = mounts("quantum=2M", "faults=linux")
    with filled(mount, "day") as region, msharefs.open(region.path, os.O_RDONLY) as reader:
        with pytest.raises(OSError, match="a day at most"):
            region.describe("watch-touches", 25 * 3600 * 10**9)
        with pytest.raises(PermissionError):
            reader.describe("watch-touches", 10**9)
        assert region.describe("entries")["linux_fills"]
