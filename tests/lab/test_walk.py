"""`msharefs lab walk`: a processor in a virtual machine walks a region's own page tables.

Where there is no KVM, or none that can do it, each test asserts the sentence that says so.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import threading
from typing import TYPE_CHECKING, Any, Self

import psutil
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import msharefs
from msharefs import verbs
from msharefs.cli import cli
from msharefs.lab import walk

from support import schema
from support.wait import until
from support.walking import KVM, SAID

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.server import Mount

PAGE = 4096
SIZE = 8 << 20
SPACES = 8
READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


PATTERN = b"".join(page.to_bytes(8, "little") * (PAGE // 8) for page in range(SIZE // PAGE))


@contextlib.contextmanager
def region(mount: Mount, name: str) -> Iterator[msharefs.Region]:
    with msharefs.open(mount.path / name, os.O_RDWR | os.O_CREAT) as made:
        made.truncate(SIZE)
        yield made


def walked(path: Path, *options: str) -> dict[str, Any]:
    """The document of a walk; empty, where there is no KVM and a sentence that says so."""
    asked = CliRunner().invoke(
        cli, ["lab", "walk", "--json", "--spaces", str(SPACES), *options, str(path)]
    )
    if not KVM:
        assert SAID in str(asked.exception)
        return {}
    assert asked.stdout, asked.exception
    found: dict[str, Any] = schema.check(json.loads(asked.stdout))
    assert asked.exit_code == (0 if found["passed"] else 1)
    return found


class Running:
    """A walk that goes on until the region is changed. A context manager: it runs inside."""

    def __init__(self, path: Path) -> None:
        self.found: dict[str, Any] = {}
        self.error = ""
        self._path = path
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.found = walk.run(
                str(self._path), SPACES, check=False, wait_seconds=60, running=self._begun.set
            )
        except OSError as error:
            self.error = str(error.strerror)
        finally:
            self._begun.set()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._begun.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert KVM or SAID in self.error


def marks(path: Path) -> tuple[int, int]:
    """Accessed and dirty entries, as `pagetable` shows them."""
    shown = CliRunner().invoke(cli, ["pagetable", "--json", str(path)])
    lowest = next(
        level["tables"] for level in json.loads(shown.output)["levels"] if level["level"] == "pte"
    )
    return sum(t["accessed"] for t in lowest), sum(t["dirty"] for t in lowest)


def whole(path: Path) -> bool:
    return CliRunner().invoke(cli, ["check", str(path)]).exit_code == 0


def test_each_space_takes_one_fault_and_marks_appear_in_the_shared_entries(
    shared_mount: Mount,
) -> None:
    path = shared_mount.path / "marks"
    with region(shared_mount, "marks") as made:
        made.map(0, SIZE)
        view = made.attach()
        view[:] = PATTERN
        # The same pages, with entries of which nobody has made a store.
        made.advise(0, SIZE, verbs.MADV_DONTNEED)
        made.advise(0, SIZE, verbs.MADV_POPULATE_READ)
        made.protect(0, SIZE // 4, mmap.PROT_READ)
        made.protect(SIZE // 4, SIZE // 4, 0)
        assert marks(path) == (SIZE * 3 // 4 // PAGE, 0)
        found = walked(path, "--check")
        if not found:
            return
        assert found["passed"]
        assert found["pages"] == SIZE // PAGE
        assert found["link_faults"] == {"all": SPACES, "least": 1, "most": 1}
        readable, writable = SIZE * 3 // 4 // PAGE, SIZE // 2 // PAGE
        assert found["visited_pages"] == SPACES * (readable + writable)
        # Loads of PROT_NONE, stores, calls: 64 of each in the first space, 2 in the others.
        assert found["refused"] == 3 * (64 + 2 * (SPACES - 1))
        assert found["dirty"] == {"before": 0, "after": writable}
        assert marks(path) == (readable, writable)
        made.protect(0, SIZE // 2, READ_WRITE)
        assert view == PATTERN, "a load or a locked OR of nothing changes no byte"
        assert whole(path)


def test_cycles_are_told_for_each_way_to_switch(shared_mount: Mount) -> None:
    """With PCIDs only where the machine's processor has them."""
    path = shared_mount.path / "cycles"
    with region(shared_mount, "cycles") as made:
        made.map(0, SIZE)
        made.advise(0, SIZE, verbs.MADV_POPULATE_READ)
        found = walked(path)
    if not found:
        return
    cycles = found["cycles_a_load"]
    ways = ["flush", "pcid", "one pcid"] if cycles["has_pcid"] else ["flush"]
    assert [(each["spaces"], each["switch"]) for each in cycles["turns"]] == [
        (spaces, way) for spaces in (SPACES, 4) for way in ways
    ]
    for each in cycles["turns"]:
        assert each["shared"] > 0
        # Tables of one's own cannot have a PCID that is everybody's.
        assert (each["private"] is None) == (each["switch"] == "one pcid")


@pytest.mark.mount("quantum=2M", "faults=watched")
def test_entries_filled_ahead_are_marked_by_the_walk_alone(mount: Mount) -> None:
    path = mount.path / "ahead"
    with region(mount, "ahead") as made:
        made.map(0, SIZE)
        view = made.attach()
        view[: SIZE // 2 : PAGE] = bytes(SIZE // 2 // PAGE)
        before = marks(path)[0]
        found = walked(path)
        if not found:
            return
        assert before < found["pages"], "some were filled ahead and not accessed"
        assert found["accessed"] == {"before": before, "after": found["pages"]}
        assert marks(path)[0] == found["pages"]


@pytest.mark.parametrize("change", ["unmap", "unmap all", "protect"])
def test_a_change_while_they_run_is_seen_in_all(shared_mount: Mount, change: str) -> None:
    path = shared_mount.path / change
    with region(shared_mount, change) as made:
        made.map(0, SIZE)
        made.attach()[:] = PATTERN
        with Running(path) as running:
            if KVM and change == "protect":
                made.protect(0, SIZE, mmap.PROT_READ)
            elif KVM:
                made.unmap(0, SIZE if change == "unmap all" else SIZE // 2)
        if not KVM:
            return
        found = running.found
        gone = {"unmap": SIZE // 2 // PAGE, "unmap all": SIZE // PAGE, "protect": 0}[change]
        assert found["passed"]
        assert found["changes"] >= 1
        assert (found["gone_pages"], found["seen_by_spaces"]) == (gone, SPACES)
        assert whole(path)
        assert made.stat()["clients"] == 1, "that of this test"


def test_a_killed_walk_holds_nothing_up(shared_mount: Mount) -> None:
    path = shared_mount.path / "killed"
    with region(shared_mount, "killed") as made:
        made.map(0, SIZE)
        made.attach()[:] = PATTERN
        with Running(path) as running:
            children = psutil.Process().children(recursive=True)
            for child in children:
                if child.name() == "mshare-walk":
                    child.kill()
        if not KVM:
            return
        assert running.error.endswith("mshare-walk has ended")
        made.unmap(0, SIZE)
        until(lambda: made.stat()["clients"] == 1, "the slot is free")
        assert whole(path)


def test_a_region_that_nobody_touched_is_one_sentence(shared_mount: Mount) -> None:
    with region(shared_mount, "untouched") as made:
        made.map(0, SIZE)
        asked = CliRunner().invoke(cli, ["lab", "walk", str(shared_mount.path / "untouched")])
    assert isinstance(asked.exception, OSError)
    assert (SAID or "no page of it has an entry: let a program touch some first") in str(
        asked.exception
    )


def test_no_kvm_is_one_sentence(
    shared_mount: Mount, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(walk, "KVM", tmp_path / "kvm")
    with region(shared_mount, "none"):
        asked = CliRunner().invoke(cli, ["lab", "walk", str(shared_mount.path / "none")])
    assert isinstance(asked.exception, FileNotFoundError)
    assert asked.exception.strerror == (
        f"{tmp_path / 'kvm'}: No such file or directory: a real walk needs KVM: a processor with "
        "virtualization and the module kvm_intel or kvm_amd, and inside a virtual machine one that "
        "permits machines in it"
    )


def test_people_read_what_was_met(shared_mount: Mount) -> None:
    path = shared_mount.path / "people"
    with region(shared_mount, "people") as made:
        made.map(0, SIZE)
        made.advise(0, SIZE, verbs.MADV_POPULATE_READ)
        shown = CliRunner().invoke(cli, ["lab", "walk", str(path)])
    if not KVM:
        assert shown.exit_code == 1
        return
    lines = shown.output.splitlines()
    assert lines[0].startswith(("nested paging (", "shadow paging ("))
    assert lines[1] == (
        "64 address spaces of two pages, 2,048 pages with an entry: 1 fault in each to link the "
        "PUD table"
    )
    assert "dirty bits of the shared entries: 0, then 2,048" in lines
    assert lines[-1] == "all as the tables have it"


@pytest.mark.parametrize(
    ("spoiled", "why"),
    [
        ({"wrong": {"values": 1, "faults": 0, "accesses": 0}}, "a value"),
        ({"wrong": {"values": 0, "faults": 0, "accesses": 1}}, "an access that was not refused"),
        ({"link_faults": {"all": 9, "least": 1, "most": 2}}, "a second fault to link"),
        ({"unmarked_pages": 1}, "a page that was visited and has no mark"),
        ({"changes": 1, "seen_by_spaces": 7}, "a space that did not see the change"),
    ],
)
def test_what_is_not_as_the_tables_have_it_is_not_passed(spoiled: dict[str, Any], why: str) -> None:
    sound = {
        "wrong": {"values": 0, "faults": 0, "accesses": 0}, "unmarked_pages": 0, "changes": 0,
        "link_faults": {"all": 8, "least": 1, "most": 1}, "upper_tables": 1, "spaces": 8,
        "seen_by_spaces": 0,
    }  # fmt: skip
    assert walk.passed(sound, check=True, waited=True)
    assert not walk.passed(sound | spoiled, check=True, waited=True), why


PIECES = st.lists(
    st.tuples(
        st.integers(0, 31), st.integers(1, 8),
        st.sampled_from([0, 1, 3, 5, 7]), st.booleans(),
    ),
    min_size=1, max_size=12,
)  # fmt: skip


@settings(max_examples=6)
@given(PIECES)
def test_any_region_is_walked_as_its_tables_have_it(
    shared_mount: Mount, pieces: list[tuple[int, int, int, bool]]
) -> None:
    """Pieces of 256 KiB, mapped with any rights over each other, some touched, some unmapped."""
    path = shared_mount.path / "any"
    piece = SIZE // 32
    with region(shared_mount, "any") as made:
        made.map(0, piece)
        made.advise(0, piece, verbs.MADV_POPULATE_READ)
        for first, count, prot, kept in pieces:
            start_at, size = first * piece, min(count, 32 - first) * piece
            made.map(start_at, size, READ_WRITE)
            made.advise(start_at, size - PAGE, verbs.MADV_POPULATE_WRITE)
            if kept:
                made.protect(start_at, size, prot)
            else:
                made.unmap(start_at, size // 2)
        lowest = made.describe("pagetable")["levels"][-1]["tables"]
        if KVM and lowest:
            found = walk.run(str(path), SPACES, check=True, wait_seconds=0, running=lambda: None)
            assert found["passed"], found
        assert whole(path)
    path.unlink()
