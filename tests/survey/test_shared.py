"""MAP_SHARED memory, each class alone, and in company: to the table."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from typing import TYPE_CHECKING

import psutil
import pytest

from msharefs.lab.survey import figures
from msharefs.lab.survey.survey import Survey

from .conftest import (
    BASE,
    PRIVATE,
    SHARED,
    SIZE,
    SLOT,
    SPAN,
    TABLE,
    TABLES,
    memfd,
    memory,
    saved,
    scheme,
    silent,
    survey,
    the,
    touch,
)
from support import hugepages
from support.actor import READ_WRITE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.actor import Actor

CLONE_NEWIPC, CLONE_NEWPID = 0x08000000, 0x20000000
HUGE_SIZE = 2 * hugepages.BYTES
MFD_HUGETLB = 4
MAP_NORESERVE = 0x4000  # mman.h
NOBODY = 65534


@contextlib.contextmanager
def descriptor(kind: str, directory: Path) -> Iterator[int]:
    """Memory of each kind that has a descriptor."""
    if kind == "memfd":
        fd = memfd()
    elif kind == "tmpfs":
        fd, path = tempfile.mkstemp(dir="/dev/shm")  # the tests' own
        os.unlink(path)
    elif kind == "file":
        fd = os.open(directory / "file", os.O_RDWR | os.O_CREAT)
    elif kind == "zero":
        fd = os.open("/dev/zero", os.O_RDWR)
    else:
        fd = os.memfd_create("huge", MFD_HUGETLB)
    try:
        if kind != "zero":
            os.ftruncate(fd, HUGE_SIZE if kind == "hugetlb" else SIZE)
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize(("kind", "kept"), [("memfd", "shm"), ("tmpfs", "shm"), ("file", "file")])
def test_an_object_of_strangers(three: list[Actor], tmp_path: Path, kind: str, kept: str) -> None:
    with descriptor(kind, tmp_path) as fd:
        for number, actor in enumerate(three):
            memory(actor, actor.give(fd), address=BASE + number * SLOT)
            touch(actor, BASE + number * SLOT)
        found = survey(three)
        one = the(found, kept)
    each, host = TABLES + 2, TABLES + 3  # with its PGD
    assert one["processes"] == 3
    assert one["own_tables_bytes"] == one["gone_bytes"] == 3 * each * TABLE
    assert one["page_table_bytes"] == host * TABLE
    assert one["saved_bytes"] == (3 * each - host) * TABLE
    assert scheme(found, "series", kept) == one["saved_bytes"]
    assert scheme(found, "moved 1G", kept) == (2 * TABLES + 2) * TABLE
    assert scheme(found, "moved 2M", kept) == 2 * TABLES * TABLE
    # At different addresses nothing is the same in place; at any address all three levels are.
    assert scheme(found, "in place 2M", kept) == 0
    assert scheme(found, "any address 2M", kept) == 2 * TABLES * TABLE
    assert scheme(found, "any address 512G", kept) == 2 * each * TABLE
    assert found["vmpte_bytes"] == found["counted_bytes"]


@pytest.mark.parametrize("kind", ["anon", "zero"])
def test_shared_anonymous_memory(family: Callable[[int], list[Actor]], kind: str) -> None:
    parent = family.parent  # type: ignore[attr-defined]
    with descriptor("zero", None) if kind == "zero" else contextlib.nullcontext(-1) as fd:  # type: ignore[arg-type]
        memory(parent, parent.give(fd) if fd >= 0 else -1)
    touch(parent)
    actors = family(4)
    # Linux copies no entries of such memory at fork(2): these have touched a page in each table.
    for actor in actors[1:]:
        touch(actor)
    found = survey(actors)
    one = the(found, "anon")
    assert one["processes"] == 5
    assert one["own_tables_bytes"] == 5 * (TABLES + 2) * TABLE
    assert one["saved_bytes"] == (5 * (TABLES + 2) - (TABLES + 3)) * TABLE
    assert scheme(found, "in place 2M", "anon") == 4 * TABLES * TABLE
    assert scheme(found, "in place 512G", "anon") == 4 * (TABLES + 2) * TABLE


def test_system_v(three: list[Actor]) -> None:
    ident = three[0].number("segment", BASE, SIZE, 0)
    for actor in three[1:]:
        actor.number("segment", BASE, SIZE, ident)
    for actor in three:
        touch(actor)
    one = the(survey(three), "sysv")
    assert one["name"] == f"System V private, shmid {ident - 1}"
    assert one["own_tables_bytes"] == 3 * (TABLES + 2) * TABLE
    assert one["page_table_bytes"] == (TABLES + 3) * TABLE


def test_segments_of_two_namespaces_are_two_though_their_numbers_are_one(
    three: list[Actor],
) -> None:
    numbers = []
    for actor in three[:2]:
        actor.call("unshare", CLONE_NEWIPC)
        numbers.append(actor.number("segment", BASE, SIZE, 0))
        touch(actor)
    assert numbers[0] == numbers[1]
    found = survey(three)
    assert saved(found, "sysv") == 0
    assert [one["processes"] for one in found["objects"] if one["class"] == "sysv"] == []


def test_huge_pages_have_no_pte_tables(three: list[Actor], tmp_path: Path) -> None:
    with hugepages.at_least(2), descriptor("hugetlb", tmp_path) as fd:
        for actor in three:
            memory(actor, actor.give(fd), size=HUGE_SIZE)
            touch(actor, size=HUGE_SIZE)
        one = the(survey(three), "hugetlb", HUGE_SIZE)
        assert one["own_tables_bytes"] == 3 * 2 * TABLE
        assert one["own_pte_tables_bytes"] == one["linked_bytes"] == 0
        assert one["page_table_bytes"] == 3 * TABLE
        for actor in three:
            actor.call("plain-unmap", BASE, HUGE_SIZE)


def test_tables_that_linux_shares_already(three: list[Actor]) -> None:
    """hugetlbfs: whole gigabytes."""
    with hugepages.at_least(1):
        fd = os.memfd_create("huge", MFD_HUGETLB)
        os.ftruncate(fd, 1 << 30)
        for actor in three:
            memory(actor, actor.give(fd), size=1 << 30, flags=SHARED | MAP_NORESERVE)
            touch(actor, size=hugepages.BYTES)
        os.close(fd)
        found = survey(three)
        one = the(found, "hugetlb", 1 << 30)
        assert one["own_tables_bytes"] == 3 * 2 * TABLE
        assert one["linked_bytes"] == found["linked_bytes"] == 2 * TABLE
        assert one["gone_bytes"] == (3 * 2 - 2) * TABLE
        assert one["saved_bytes"] == (3 * 2 - 2 - 3) * TABLE
        assert scheme(found, "hugetlb", "hugetlb") == 2 * TABLE
        for actor in three:
            actor.call("plain-unmap", BASE, 1 << 30)


def test_transparent_huge_pages(family: Callable[[int], list[Actor]]) -> None:
    parent = family.parent  # type: ignore[attr-defined]
    memory(parent, flags=PRIVATE)
    parent.call("plain-advise", BASE, SIZE, mmap.MADV_HUGEPAGE)
    parent.call("fill", BASE, SIZE, 1, 0)
    found = survey([parent])
    # A PTE table is kept for each of them, and VmPTE has it.
    assert found["vmpte_bytes"] == found["counted_bytes"]


def test_what_anybody_touches_is_in_the_host_mm_once(three: list[Actor]) -> None:
    fd = memfd()
    for number, actor in enumerate(three):
        memory(actor, actor.give(fd))
        touch(actor, BASE + number * SPAN, mmap.PAGESIZE)
    os.close(fd)
    one = the(survey(three), "shm")
    assert one["own_tables_bytes"] == 3 * (1 + 2) * TABLE
    assert one["page_table_bytes"] == (TABLES + 3) * TABLE


def test_a_table_with_other_memory_in_it_stays(three: list[Actor]) -> None:
    fd = memfd(SPAN)
    for actor in three:
        memory(actor, actor.give(fd), size=SPAN // 2)
        touch(actor, size=SPAN // 2)
        memory(actor, address=BASE + SPAN // 2, size=SPAN // 2, flags=PRIVATE)
        actor.call("store", BASE + SPAN // 2, 1)
    os.close(fd)
    found = survey(three)
    one = the(found, "shm", SPAN // 2)
    assert one["own_tables_bytes"] == 3 * 3 * TABLE
    assert one["gone_bytes"] == one["saved_bytes"] == 0


def test_two_objects_in_one_table(three: list[Actor]) -> None:
    first, second = memfd(SPAN), memfd(SPAN)
    for actor in three:
        for number, fd in enumerate((first, second)):
            at = BASE + number * SPAN // 2
            memory(actor, actor.give(fd), address=at, size=SPAN // 2)
            touch(actor, at, SPAN // 2)
    os.close(first)
    os.close(second)
    found = survey(three)
    both = [one for one in found["objects"] if one["class"] == "shm"]
    assert [one["own_tables_bytes"] for one in both] == [3 * 3 * TABLE] * 2
    assert sorted(one["gone_bytes"] for one in both) == [0, 3 * 3 * TABLE]


def test_other_rights_are_other_tables(three: list[Actor]) -> None:
    fd = memfd()
    for prot, actor in zip((READ_WRITE, READ_WRITE, mmap.PROT_READ), three, strict=True):
        memory(actor, actor.give(fd), prot=prot)
        touch(actor)
    os.close(fd)
    found = survey(three)
    assert the(found, "shm")["page_table_bytes"] == (2 * (TABLES + 2) + 1) * TABLE
    assert scheme(found, "in place 2M", "shm") == TABLES * TABLE


def test_memory_of_one_process_is_not_shared(three: list[Actor]) -> None:
    memory(three[0])
    touch(three[0])
    found = survey(three)
    assert saved(found, "anon") == 0


def test_an_address_that_starts_elsewhere_in_a_table(three: list[Actor]) -> None:
    fd = memfd()
    for number, actor in enumerate(three):
        at = BASE + number * SLOT + number * mmap.PAGESIZE
        memory(actor, actor.give(fd), address=at)
        touch(actor, at)
    os.close(fd)
    found = survey(three)
    one = the(found, "shm")
    # The second and the third have one PTE table more each; in a region all have three.
    assert one["own_tables_bytes"] == (3 * (TABLES + 2) + 2) * TABLE
    assert one["page_table_bytes"] == (TABLES + 3) * TABLE
    assert scheme(found, "any address 2M", "shm") == 0


def test_processes_that_end_meanwhile(three: list[Actor]) -> None:
    fd = memfd()
    for actor in three:
        memory(actor, actor.give(fd))
        touch(actor)
    os.close(fd)
    made = Survey([actor.pid for actor in three], silent("", 0))
    three[0].kill()
    made.look(silent("", 0))
    assert (made.looked, made.census.ended, len(made.census.seen)) == (2, 1, 2)
    assert made.moved.own.sum() == 2 * (TABLES + 2)
    one = the(figures.document(made), "shm")
    assert (one["processes"], one["programs"]) == (2, {"actor": 2})


def test_processes_that_had_ended_before(three: list[Actor]) -> None:
    three[0].kill()
    found = survey(three)
    assert (found["processes"], found["ended"]) == (2, 1)


def test_processes_of_another_pid_namespace(three: list[Actor]) -> None:
    fd = memfd()
    three[0].call("unshare", CLONE_NEWPID)
    child = three[0].fork()
    child.finish()
    (child.pid,) = (process.pid for process in psutil.Process(three[0].pid).children())
    for actor in (child, three[1]):
        memory(actor, actor.give(fd))
        touch(actor)
    os.close(fd)
    one = the(survey([child, three[1]]), "shm")
    assert (one["processes"], one["own_tables_bytes"]) == (2, 2 * (TABLES + 2) * TABLE)


def test_other_users_processes_are_counted_and_named(three: list[Actor]) -> None:
    whole = survey(three)
    child = os.fork()
    if not child:  # nobody, without any capability
        status = 1
        try:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            status = _seen_by_nobody([actor.pid for actor in three], whole["vmpte_bytes"])
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _seen_by_nobody(pids: list[int], vmpte_bytes: int) -> int:
    from msharefs.lab import pagemap
    from msharefs.lab.survey import figures

    pagemap.can_scan = pagemap.sees_frames = lambda: False  # not our own: we were root
    found = figures.survey(pids, silent)
    right = found["unseen"] == [{"user": "root", "processes": 3, "vmpte_bytes": vmpte_bytes}]
    return 0 if right and found["vmpte_bytes"] == vmpte_bytes and not found["looked_at"] else 2
