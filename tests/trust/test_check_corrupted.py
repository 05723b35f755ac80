"""`msharefs check` of regions that were corrupted by hand, one thing at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest

import msharefs
from msharefs.cli import check
from msharefs.client import READ_WRITE

from support import rawmm, wire
from support.rawmm import PAGE
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M", limit=100)
SIZE, MAPPED = 4 << 20, 2 << 20
UNUSED_FRAME = 9


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It need not look again after a while: nobody changes anything."""
    monkeypatch.setattr(check, "_AGAIN_SECONDS", 0)


class Made(NamedTuple):
    """A region with a page of memory and a page of a file in it."""

    path: Path
    mm: Path
    """Its host mm."""

    @property
    def records(self) -> Path:
        """Where its objects are recorded."""
        return self.mm.with_suffix(".objects")


def make(mount: Mount, file: Path, name: str) -> Made:
    path = mount.path / name
    with file.open("w+b") as opened, msharefs.open(path, os.O_RDWR | os.O_CREAT) as region:
        opened.truncate(PAGE)
        region.truncate(SIZE)
        region.map(0, MAPPED)
        region.map(PAGE, PAGE, READ_WRITE, 0x11, opened.fileno())
        view = region.attach()
        view[0] = view[PAGE] = 1
        del view
        region.detach()
    return Made(path, mount.state / "regions" / f"{path.stat().st_ino - 2}.mm")


@contextlib.contextmanager
def raw(made: Made) -> Iterator[rawmm.RawMM]:
    with made.mm.open("r+b") as file:
        opened = rawmm.RawMM(file.fileno())
        try:
            yield opened
        finally:
            opened.close()


def entry(opened: rawmm.RawMM, offset: int) -> int:
    at = opened.entry_at(0, rawmm.HOST_BASE + offset)
    assert at is not None
    return at


def a_stray_entry(made: Made) -> None:
    """An entry lies in no mapping: as its neighbour, one mapping further on."""
    with raw(made) as opened:
        value = opened.read(entry(opened, 0))
        # The page table spans 2 MiB, and so does what is mapped: take one page of that out.
        opened.write(opened.vma_at(len(opened.vmas()) - 1) + 8, MAPPED - PAGE)
        opened.write(entry(opened, MAPPED - PAGE), value + MAPPED - PAGE)


def a_wrong_address(made: Made) -> None:
    with raw(made) as opened:
        at = entry(opened, 0)
        opened.write(at, opened.read(at) + PAGE)


def a_wrong_right(made: Made) -> None:
    """An entry lets a page of a file be run."""
    with raw(made) as opened:
        at = entry(opened, PAGE)
        opened.write(at, opened.read(at) & ~rawmm.NX)


def an_entry_of_nothing(made: Made) -> None:
    """A table's entry points to itself."""
    with raw(made) as opened:
        at = opened.frame_at(0) + 8
        assert opened.read(at)
        opened.write(at, opened.read(at) - (opened.read(at) & rawmm.ADDRESS) + rawmm.TABLES_BASE)


def a_page_in_a_free_frame(made: Made) -> None:
    with raw(made) as opened:
        assert opened.word(UNUSED_FRAME) == (rawmm.FREE, 0, 0, 0)
        opened.write(opened.frame_at(UNUSED_FRAME) + 8, 1)


def a_frame_of_another_level(made: Made) -> None:
    """The count of page tables by level is wrong: the top one counts as one of another level."""
    with raw(made) as opened:
        opened.write(opened.word_at(0), opened.read(opened.word_at(0)) ^ 1 << 2)


def a_low_mark(made: Made) -> None:
    """The header says that fewer frames have ever been used."""
    with raw(made) as opened:
        opened.write(rawmm.HEADER["frames_high"], opened.header("frames_high") - 1)


def a_frame_held_by_nobody(made: Made) -> None:
    with raw(made) as opened:
        opened.write(opened.word_at(UNUSED_FRAME), rawmm.HELD | 5 << 4)
        opened.write(rawmm.HEADER["frames_high"], UNUSED_FRAME + 1)


def a_slot_of_the_dead(made: Made) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with made.mm.open("r+b") as file:
        slots = wire.Slots(file.fileno())
        slots.write(3, process.pid, 1, 4711)
        slots.close()


def no_record(made: Made) -> None:
    shutil.rmtree(made.records)


def a_broken_record(made: Made) -> None:
    (record,) = made.records.iterdir()
    record.write_text("{")


def a_record_of_nothing(made: Made) -> None:
    (record,) = made.records.iterdir()
    shutil.copy(record, record.with_name("99"))


# And what `check` says.
MENDED: list[tuple[Callable[[Made], None], str]] = [
    (a_stray_entry, "1 entries lie in no mapping"),
    (a_wrong_address, "1 entries point to a wrong place or have wrong rights"),
    (a_wrong_right, "1 entries point to a wrong place or have wrong rights"),
    (an_entry_of_nothing, "1 entries point to a wrong place or have wrong rights"),
    (a_page_in_a_free_frame, "page tables take 20480 bytes, and 16384 are in use"),
    (a_frame_of_another_level, "of page tables (pte, pmd, pud, pgd) "),
    (a_low_mark, "of page tables (pte, pmd, pud, pgd) "),
    (a_frame_held_by_nobody, "1 page tables are about to be linked"),
    (a_record_of_nothing, "object 99 is recorded, not mapped"),
]
BY_ITS_SERVER: list[tuple[Callable[[Made], None], str]] = [
    (no_record, "is mapped and has no record: after a restart to touch it is SIGBUS"),
    (a_broken_record, "is no record of an object"),
]


def checked(path: Path, *, repair: bool) -> tuple[list[str], list[str]]:
    """What `check` says of one region, and what is left after that."""
    (each,) = check.check_all(str(path), repair=repair).values()
    found, left = ([one["sentence"] for one in some] for some in each)
    return found, left


@pytest.mark.parametrize(("harm", "says"), [*MENDED, *BY_ITS_SERVER])
def test_under_its_server(
    shared_mount: Mount, tmp_path: Path, harm: Callable[[Made], None], says: str
) -> None:
    made = make(shared_mount, tmp_path / "f", harm.__name__)
    assert checked(made.path, repair=False) == ([], [])
    harm(made)
    found, left = checked(made.path, repair=False)
    assert any(says in each for each in found), found
    assert left == found
    found, left = checked(made.path, repair=True)
    assert found
    assert left == []
    assert checked(made.path, repair=False) == ([], [])
    with msharefs.open(made.path) as region:
        view = region.attach()
        assert (view[0], view[PAGE]) == (1, 1)
        del view
        region.unmap(0, SIZE)
        assert region.stat()["rss_bytes"] == 0
    made.path.unlink()


LEFT_BY_THE_DEAD = (a_slot_of_the_dead, a_record_of_nothing)


def wrong(result: dict[str, tuple[check.Findings, check.Findings]]) -> dict[str, list[str]]:
    """What is left, region by region."""
    return {name: [one["sentence"] for one in left] for name, (_, left) in result.items() if left}


@pytest.mark.parametrize("started", [False, True])
def test_after_its_server(mount: Mount, tmp_path: Path, *, started: bool) -> None:
    """Everything at once, each in a region of its own, mended without a server or by the next."""
    harms = [*MENDED, (a_slot_of_the_dead, "slot 3 is held by process ")]
    made = {harm: make(mount, tmp_path / harm.__name__, harm.__name__) for harm, _ in harms}
    mount.kill()
    for harm, each in made.items():
        harm(each)
    place = mount.state
    if started:
        # What the dead have left is gone then.
        mount.start()
        place = mount.path
        harms = [(harm, says) for harm, says in harms if harm not in LEFT_BY_THE_DEAD]
    result = check.check_all(str(place), repair=False)
    for harm, says in harms:
        name = next(name for name in result if name.endswith(harm.__name__))
        found = [one["sentence"] for one in result[name][1]]
        assert any(says in each for each in found), (name, found)
    assert wrong(check.check_all(str(place), repair=True)) == {}
    assert wrong(check.check_all(str(place), repair=False)) == {}
    if not started:
        mount.start()
    assert list((mount.state / "regions").glob("*.broken")) == []
    for each in made.values():
        with msharefs.open(each.path) as region:
            view = region.attach()
            assert (view[0], view[PAGE]) == (1, 1)
            del view


def test_an_object_that_nobody_knows_any_more(mount: Mount, tmp_path: Path) -> None:
    """Its record is gone, and so is the server that had it open: UNMAP mends that."""
    made = {harm: make(mount, tmp_path / harm.__name__, harm.__name__) for harm, _ in BY_ITS_SERVER}
    mount.kill()
    for harm, each in made.items():
        harm(each)
    for place in (mount.state, mount.path):
        if place == mount.path:
            mount.start()
        for repair in (False, True, True):
            left = wrong(check.check_all(str(place), repair=repair))
            assert len(left) == len(made)
            for found in left.values():
                assert any("has no record: after a restart to touch it is SIG" in x for x in found)
    for each in made.values():
        with msharefs.open(each.path) as region:
            region.unmap(PAGE, PAGE)
    assert wrong(check.check_all(str(mount.path), repair=False)) == {}


def test_files_that_are_gone(mount: Mount, tmp_path: Path) -> None:
    made = make(mount, tmp_path / "f", "r")
    mount.kill()
    made.mm.unlink()
    for repair in (False, True):
        (left,) = wrong(check.check_all(str(mount.state), repair=repair)).values()
        assert left == [f"{made.mm} is missing"]
    mount.expect(r"\S+ \S+ ERROR .* cannot be taken over and is set aside; .* is missing\n")
    mount.start()
    for repair in (False, True):
        (left,) = wrong(check.check_all(str(mount.path), repair=repair)).values()
        assert "is set aside" in left[0]
    made.path.unlink()


def test_a_record_whose_file_is_gone(mount: Mount, tmp_path: Path) -> None:
    """As long as a server has it open it need not have a name; the next one cannot find it."""
    made = make(mount, tmp_path / "f", "r")
    (tmp_path / "f").unlink()
    assert checked(made.path, repair=False) == ([], [])
    mount.kill()
    for place in (mount.state, mount.path):
        if place == mount.path:
            mount.expect(r"\S+ \S+ WARNING .* object \S+ is lost, .*\n")
            mount.start()
            until(lambda: " is lost, " in mount.text(), "it has been looked for")
        for repair in (False, True):
            ((left,),) = wrong(check.check_all(str(place), repair=repair)).values()
            assert f"is {tmp_path / 'f'}, which is not there any more: to touch it is SIGB" in left
    with msharefs.open(made.path) as region:
        region.unmap(PAGE, PAGE)
    assert checked(made.path, repair=False) == ([], [])
