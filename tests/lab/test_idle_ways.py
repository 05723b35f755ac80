"""`msharefs idle --method`: accessed bits of Linux's own page tables, and stores.

Processes whose accesses the test knows, interval by interval.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

import msharefs
from msharefs import proc
from msharefs.cli import cli
from msharefs.lab import idle, idle_ways, pagemap

from support import schema
from support.calls import AS_NOBODY
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
from support.nativemap import Native

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.actor import Actor
    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M", "fault_around=1", "faults=watched", "allow_other")
KNOWN = PAGES - NOBODY_TOUCHED
HALF = SIZE // 2


def nothing() -> None:
    """An interval in which nobody uses anything."""


def store(actor: Actor, base: int, pages: list[int]) -> None:
    for page in pages:
        assert actor.call("store", base + page * PAGE, page % 251) == []


def used(found: dict[str, Any]) -> dict[int, list[int]]:
    """Pages by process, the last interval first."""
    return {
        each["pid"]: [size // PAGE for size in each["bytes"]]
        for each in found["regions"][0]["clients"]
    }


def bounds(found: dict[str, Any]) -> list[tuple[int, int]]:
    return [
        (each["at_least_bytes"] // PAGE, each["at_most_bytes"] // PAGE)
        for each in found["regions"][0]["bounds"]
    ]


def test_accessed_bits_tell_how_much_of_a_mapping_was_used(
    shared_mount: Mount, actors: Callable[[], Actor]
) -> None:
    with filled(shared_mount, "bits") as region:
        actor = actors()
        base = attached(actor, region)
        load(actor, base, range(300))
        found = idle.run(
            [region.path], 3, 1.0,
            Accesses(lambda: load(actor, base, range(40)), lambda: load(actor, base, [3, 4]),
                     nothing),
            idle_ways.Referenced,
        )  # fmt: skip
        assert found["method"] == "clear_refs"
        assert all(each["cost"] > 0 for each in found["intervals"]), "its memory was locked"
        if pagemap.has_soft_dirty():  # what a TLB remembers seems to be idle
            return
        assert used(found) == {actor.pid: [0, 2, 40]}
        assert bounds(found) == [(0, 0), (2, 2), (40, 40)]
        # Pages 0 to 39 are of one of the window's mappings, in which 3 and 4 were used later.
        unused, last, before, never = ages(found)
        assert (unused, before, last + never) == (0, 0, KNOWN)
        assert last >= 40


def test_accessed_bits_of_one_of_many(shared_mount: Mount, actors: Callable[[], Actor]) -> None:
    with filled(shared_mount, "many bits") as region:
        crowd = [actors() for _ in range(16)]
        bases = [attached(actor, region) for actor in crowd]
        for actor, base in zip(crowd, bases, strict=True):
            load(actor, base, [3, 777])
        found = idle.run(
            [region.path], 2, 1.0,
            Accesses(lambda: load(crowd[5], bases[5], [777]), nothing), idle_ways.Referenced,
        )  # fmt: skip
        if not pagemap.has_soft_dirty():
            assert used(found) == {each.pid: [0, int(each is crowd[5])] for each in crowd}
            unused, last, never = ages(found)
            assert (unused, last + never) == (0, KNOWN)
            assert last > 0, "it is not idle"


def test_where_linux_fills_accessed_bits_are_a_way(
    mounts: Callable[..., Mount], actors: Callable[[], Actor]
) -> None:
    """And an attachment by a plain mmap(2) is seen."""
    with filled(mounts("quantum=2M", "faults=linux"), "linux") as region:
        native = Native.map(actors(), region.fd, SIZE)

        def use() -> None:
            load(native.actor, native.base, [1, 5])

        use()
        found = idle.run([region.path], 1, 1.0, Accesses(use), idle_ways.Referenced)
        assert used(found) == {native.actor.pid: [2]} or pagemap.has_soft_dirty()
        with pytest.raises(OSError, match="clear_refs or entries"):
            idle.run([region.path], 1, 1.0, Accesses(use), idle_ways.Stores)


def test_what_has_come_into_memory_was_used(
    shared_mount: Mount, actors: Callable[[], Actor]
) -> None:
    with filled(shared_mount, "came") as region:
        actor = actors()
        base = attached(actor, region)
        last = PAGES - 1
        found = idle.run(
            [region.path], 2, 1.0, Accesses(lambda: store(actor, base, [last]), nothing),
            idle_ways.Referenced,
        )  # fmt: skip
        assert found["regions"][0]["pages"] == KNOWN + 1
        assert used(found) == {actor.pid: [0, 1]}


def test_stores_are_told_by_the_page_and_process(
    shared_mount: Mount, actors: Callable[[], Actor]
) -> None:
    with filled(shared_mount, "stores") as region:
        first, second = actors(), actors()
        ours, theirs = attached(first, region), attached(second, region)
        for actor, base in ((first, ours), (second, theirs)):
            load(actor, base, range(100))

        def one() -> None:
            store(first, ours, [5, 6])
            load(second, theirs, [7])

        def two() -> None:
            store(second, theirs, [6])
            load(first, ours, range(100))

        found = idle.run([region.path], 3, 1.0, Accesses(one, two, nothing), idle_ways.Stores)
        assert used(found) == {first.pid: [0, 0, 2], second.pid: [0, 1, 0]}
        assert ages(found) == [0, 1, 1, KNOWN - 2]
        assert first.call("load", ours + 6 * PAGE) == [6]
        store(first, ours, [50])
        assert {each["prot"] for each in region.maps()} == {"rw-s"}


def test_a_first_load_counts_as_a_store_as_its_error_says(
    shared_mount: Mount, actors: Callable[[], Actor]
) -> None:
    with filled(shared_mount, "first") as region:
        actor = actors()
        base = attached(actor, region)
        load(actor, base, [0])
        found = idle.run(
            [region.path], 1, 1.0, Accesses(lambda: load(actor, base, [0, 600])), idle_ways.Stores
        )
        assert 1 <= used(found)[actor.pid][0] <= 16


def test_stores_leave_out_what_cannot_be_watched(
    shared_mount: Mount, actors: Callable[[], Actor]
) -> None:
    with filled(shared_mount, "sealed") as region:
        region.protect(0, HALF, mmap.PROT_READ)
        region.seal(HALF, SIZE // 4)
        actor = actors()
        base = attached(actor, region)
        found = idle.run(
            [region.path], 1, 1.0,
            Accesses(lambda: store(actor, base, [HALF // PAGE, PAGES * 3 // 4])), idle_ways.Stores,
        )  # fmt: skip
        assert found["regions"][0]["left_out_bytes"] == SIZE * 3 // 4
        assert ages(found) == [1, PAGES // 4 - NOBODY_TOUCHED - 1]
        assert actor.call("store", base, 1) != [], "it is still not permitted"


def test_to_watch_stores_takes_the_right_to_write(shared_mount: Mount) -> None:
    with (
        filled(shared_mount, "reader") as region,
        msharefs.open(region.path, os.O_RDONLY) as reader,
        pytest.raises(PermissionError, match="the descriptor is read-only"),
    ):
        reader.describe("watch-stores")


def test_another_users_process_is_refused_with_the_way_out(
    shared_mount: Mount, actors: Callable[[], Actor]
) -> None:
    with filled(shared_mount, "other") as region:
        actor = actors()
        base = attached(actor, region)
        load(actor, base, [0])
        os.chmod(region.path, 0o666)
        for method in ("clear_refs", "stores"):
            asked = subprocess.run(
                [*AS_NOBODY.split(), sys.executable, "-m", "msharefs", "idle", "--rounds", "1",
                 "--interval", "0.01", "--method", method, region.path],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert asked.returncode == 1
            assert asked.stderr.startswith(f"msharefs: {region.path}: ")
            assert asked.stderr.endswith("by you: be root, or look by --method entries\n")


def test_a_process_that_has_ended_is_no_error(
    shared_mount: Mount, actors: Callable[[], Actor]
) -> None:
    with filled(shared_mount, "ended") as region:
        for way in (idle_ways.Referenced, idle_ways.Stores):
            actor = actors()
            base = attached(actor, region)
            load(actor, base, [0])
            found = idle.run([region.path], 1, 1.0, Accesses(actor.kill), way)
            assert used(found).get(actor.pid, [0]) == [0]
    with pytest.raises(ProcessLookupError):
        proc.clear_accessed(actor.pid, flush=False)


@pytest.mark.parametrize("method", list(idle_ways.WAYS))
def test_the_verb_names_its_way_and_its_error(
    shared_mount: Mount, actors: Callable[[], Actor], method: str
) -> None:
    with filled(shared_mount, f"verb {method}") as region:
        actor = actors()
        store(actor, attached(actor, region), [1])
        asked = ["idle", "--interval", "0.01", "--rounds", "2", "--method", method]
        shown = CliRunner().invoke(cli, [*asked, region.path])
        assert shown.exit_code == 0, shown.output
        assert shown.output.startswith(f"method: {method}; exact to a ")
        assert "\nits error: " in shown.output
        assert f"not used: {method}" not in shown.output
        told = CliRunner().invoke(cli, [*asked, "--json", region.path])
        document = schema.check(json.loads(told.output))
        assert document["method"] == method
        assert bool(document["regions"][0]["bounds"]) == (method == "clear_refs")
