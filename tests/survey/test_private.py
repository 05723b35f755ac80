"""MAP_PRIVATE memory that is the same page in several processes all the same: to the table."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Any

import pytest

from msharefs.lab import pagemap

from .conftest import (
    BASE,
    PRIVATE,
    SIZE,
    SLOT,
    SPAN,
    TABLE,
    TABLES,
    memfd,
    memory,
    saved,
    scheme,
    survey,
    the,
    touch,
)

if TYPE_CHECKING:
    from pathlib import Path

    from support.actor import Actor

Family = Any


@pytest.fixture
def file(tmp_path: Path) -> int:
    path = tmp_path / "file"
    with path.open("wb") as made:
        made.truncate(SIZE)
    return os.open(path, os.O_RDWR)


def test_file_pages_never_written(three: list[Actor], file: int) -> None:
    for number, actor in enumerate(three):
        fd = actor.give(file)
        # Two at one address, the third at another.
        memory(actor, fd, address=BASE + number // 2 * SLOT, flags=PRIVATE, prot=mmap.PROT_READ)
        touch(actor, BASE + number // 2 * SLOT)
    os.close(file)
    found = survey(three)
    one = the(found, "unwritten")
    assert one["saved_bytes"] == one["by_class"]["unwritten"] == TABLES * TABLE
    assert one["path"].endswith("/file")
    elsewhere = three[0]
    elsewhere.call("plain-unmap", BASE, SIZE)
    less = scheme(survey(three), "any address 2M", "unwritten")
    assert scheme(found, "any address 2M", "unwritten") - less == TABLES * TABLE


def test_a_write_takes_its_table_out(three: list[Actor], file: int) -> None:
    for actor in three:
        memory(actor, actor.give(file), flags=PRIVATE)
        touch(actor)
    os.close(file)
    assert the(survey(three), "unwritten")["saved_bytes"] == 2 * TABLES * TABLE
    three[0].call("store", BASE, 1)
    assert the(survey(three), "unwritten")["saved_bytes"] == (2 * TABLES - 1) * TABLE
    three[1].call("store", BASE, 1)
    assert the(survey(three), "unwritten")["saved_bytes"] == (2 * TABLES - 2) * TABLE


def test_relro(family: Family, file: int) -> None:
    """Written by the parent, then read-only: the children have the parent's pages."""
    parent = family.parent
    memory(parent, parent.give(file), flags=PRIVATE)
    os.close(file)
    parent.call("fill", BASE, SIZE, 1, 0)
    parent.call("plain-protect", BASE, SIZE, mmap.PROT_READ)
    actors = family(3)
    one = the(survey(actors), "unwritten")
    assert one["by_class"]["relro"] == one["saved_bytes"] == 3 * TABLES * TABLE


def test_relro_of_strangers_is_not_the_same(three: list[Actor], file: int) -> None:
    for actor in three:
        memory(actor, actor.give(file), flags=PRIVATE)
        actor.call("fill", BASE, SIZE, 1, 0)
        actor.call("plain-protect", BASE, SIZE, mmap.PROT_READ)
    os.close(file)
    found = survey(three)
    assert not [one for one in found["objects"] if one["bytes"] == SIZE]


def zygote(family: Family) -> list[Actor]:
    memory(family.parent, flags=PRIVATE)
    family.parent.call("fill", BASE, SIZE, 1, 0)
    return list(family(3))


def test_private_memory_unchanged_since_fork(family: Family) -> None:
    actors = zygote(family)
    whole = survey(actors)
    for actor in actors:
        actor.call("plain-unmap", BASE, SIZE)
    without = survey(actors)
    assert saved(whole, "forked") - saved(without, "forked") == 3 * TABLES * TABLE
    assert whole["unwritten_bytes"] == without["unwritten_bytes"]


def test_what_is_written_is_no_longer_shared(family: Family) -> None:
    actors = zygote(family)
    before = survey(actors)
    actors[1].call("store", BASE, 2)
    after = survey(actors)
    assert saved(before, "forked") - saved(after, "forked") == TABLE
    assert after["unwritten_bytes"] - before["unwritten_bytes"] == TABLE
    # The parent writes too: two are left with the old page.
    actors[0].call("store", BASE, 3)
    last = survey(actors)
    assert saved(before, "forked") - saved(last, "forked") == 2 * TABLE
    # A grandchild has what its parent had.
    grandchild = actors[1].fork()
    grandchild.finish()
    assert saved(survey([*actors, grandchild]), "forked") >= saved(last, "forked") + TABLES * TABLE


def test_a_page_that_is_new_in_one_process(family: Family) -> None:
    memory(family.parent, flags=PRIVATE)
    family.parent.call("store", BASE, 1)
    actors = family(2)
    before = survey(actors)
    actors[1].call("store", BASE + mmap.PAGESIZE, 1)
    assert saved(before, "forked") - saved(survey(actors), "forked") == TABLE


def test_what_the_rights_are_changed_of(family: Family) -> None:
    actors = zygote(family)
    before = survey(actors)
    actors[1].call("plain-protect", BASE, mmap.PAGESIZE, mmap.PROT_READ)
    after = survey(actors)
    assert saved(before, "forked") - saved(after, "forked") == TABLE
    assert after["unwritten_bytes"] == before["unwritten_bytes"]


def test_huge_pages_after_fork(family: Family) -> None:
    """Their PTE tables are kept for the day when they are split."""
    memory(family.parent, flags=PRIVATE)
    family.parent.call("plain-advise", BASE, SIZE, mmap.MADV_HUGEPAGE)
    family.parent.call("fill", BASE, SIZE, 1, 0)
    actors = family(3)
    found = survey(actors)
    assert found["vmpte_bytes"] == found["counted_bytes"]
    actors[1].call("store", BASE, 2)  # Linux splits that one
    after = survey(actors)
    assert after["vmpte_bytes"] == after["counted_bytes"]
    assert saved(found, "forked") - saved(after, "forked") == TABLE


def test_without_page_frame_numbers(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    actors = zygote(family)
    actors[1].call("store", BASE, 2)
    whole = survey(actors)
    monkeypatch.setattr(pagemap, "sees_frames", lambda: False)
    monkeypatch.setattr(pagemap, "frames", None)
    blind = survey(actors)
    assert blind["sees"]["frames"] is False
    assert saved(blind, "forked") == saved(whole, "forked")


def test_without_pagemap_scan(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    actors = zygote(family)
    fd = memfd(SPAN)
    for actor in actors:
        memory(actor, actor.give(fd), address=BASE + SLOT, size=SPAN)
        touch(actor, BASE + SLOT, SPAN)
    os.close(fd)
    whole = survey(actors)
    monkeypatch.setattr(pagemap, "can_scan", lambda: False)
    old = survey(actors)
    assert old["sees"]["scans"] is False
    for one in (old, whole):
        one["objects"] = [part for part in one["objects"] if part["own_tables_bytes"]]
    assert old["objects"] == whole["objects"]
    assert old["classes"] == whole["classes"]


def test_shared_and_private_together(family: Family) -> None:
    """A zygote that also has a shared buffer: neither changes what the other saves."""
    memory(family.parent, address=BASE + SLOT)
    actors = zygote(family)
    for actor in actors:
        touch(actor, BASE + SLOT)
    found = survey(actors)
    assert the(found, "anon")["saved_bytes"] == (4 * (TABLES + 2) - (TABLES + 3)) * TABLE
    forked = saved(found, "forked")
    for actor in actors:
        actor.call("plain-unmap", BASE + SLOT, SIZE)
    assert saved(survey(actors), "forked") == forked
