"""What is shown of a region as a kernel would show it: smaps, status, shootdowns."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import msharefs
from msharefs import verbs

from support import schema
from support.actor import Actor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


pytestmark = pytest.mark.mount("quantum=2M", "fault_around=1", "faults=watched")

PAGE = 4096
SIZE = 2 << 20


@pytest.fixture
def two(region: msharefs.Region, actor_program: Path) -> Iterator[list[tuple[Actor, int]]]:
    """Two processes on one processor, and where they have the region attached."""
    with Actor.launch(actor_program) as first, Actor.launch(actor_program) as second:
        for actor in (first, second):
            os.sched_setaffinity(actor.pid, {min(os.sched_getaffinity(0))})
        yield [(actor, actor.attach(actor.give(region.fd))) for actor in (first, second)]


def shown(*arguments: str | int) -> str:
    command = [sys.executable, "-m", "msharefs", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def smaps(region: msharefs.Region, *arguments: str | int) -> Any:
    return schema.check(json.loads(shown("smaps", region.path, "--json", *arguments)))


def test_each_page_counts_once_and_is_shared_by_those_attached(
    region: msharefs.Region, two: list[tuple[Actor, int]]
) -> None:
    (first, base), (second, other) = two
    assert first.call("fill", base, 8 * PAGE, 1, 0) == []
    assert second.call("look", other + 8 * PAGE, 4) == [0] * 4
    region.lock(0, 4 * PAGE)
    region.seal(PAGE, PAGE)
    found = smaps(region)
    assert found["processes"] == 2
    assert sum(mapping["rss_bytes"] for mapping in found["mappings"]) == 12 * PAGE
    assert sum(mapping["pss_bytes"] for mapping in found["mappings"]) == 6 * PAGE
    assert sum(mapping["shared_dirty_bytes"] for mapping in found["mappings"]) == 8 * PAGE
    assert sum(mapping["shared_clean_bytes"] for mapping in found["mappings"]) == 4 * PAGE
    assert sum(mapping["locked_bytes"] for mapping in found["mappings"]) == 2 * PAGE
    assert [mapping["vm_flags"].split()[7:] for mapping in found["mappings"]] == [
        ["lo"], ["lo", "sl"], ["lo"], [],
    ]  # fmt: skip
    lines = shown("smaps", region.path, "--pid", second.pid).splitlines()
    assert lines[0].startswith(f"{other:012x}-{other + 2 * SIZE:012x} rw-s")
    assert lines[2].endswith("container")
    assert sum(int(line.split()[1]) for line in lines if line.startswith("Rss:")) == 48
    assert sum(line.startswith("VmFlags:") for line in lines) == 5


def test_status_by_four_ways_to_count(
    region: msharefs.Region, two: list[tuple[Actor, int]]
) -> None:
    (first, base), _ = two
    assert first.call("fill", base, SIZE, 1, 0) == []
    region.lock(0, PAGE)
    found = smaps(region, "--status", "--pid", first.pid)
    host, now, without, whole, share = (
        found["counted"][key] for key in ("host_mm", "now", "without", "whole", "share")
    )
    assert host["rss_shmem_bytes"] == SIZE
    assert host["locked_bytes"] == PAGE
    assert host["vmpte_bytes"] == region.stat()["page_table_bytes"]
    assert now["rss_shmem_bytes"] - without["rss_shmem_bytes"] == SIZE
    assert whole["rss_shmem_bytes"] - without["rss_shmem_bytes"] == SIZE
    assert share["rss_shmem_bytes"] - without["rss_shmem_bytes"] == SIZE // 2
    assert "share of it" in shown("smaps", region.path, "--status", "--pid", first.pid)
    done = subprocess.run(
        [sys.executable, "-m", "msharefs", "smaps", region.path, "--pid", "1"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "process 1 has not attached" in done.stderr


def test_the_tree_tells_what_verbs_have_made(region: msharefs.Region) -> None:
    region.lock(0, PAGE)
    region.seal(PAGE, PAGE)
    region.mbind(2 * PAGE, PAGE, 2, [0])
    text = shown("pagetable", region.path)
    for word in ("locked", "sealed", "bind:0"):
        assert text.count(word) == 1
    vmstat = region.stat()["vmstat"]
    assert vmstat["nr_mlock"] == vmstat["pgfault"] == vmstat["nr_shmem"] == 1
    assert vmstat["nr_page_table_pages"] == 4


def test_shootdowns_are_counted(region: msharefs.Region, two: list[tuple[Actor, int]]) -> None:
    """Both processes run on one processor: the list has it twice, the mask once."""
    for actor, base in two:
        assert actor.call("fill", base, SIZE, 1, 0) == []
    region.protect(0, PAGE, mmap.PROT_READ)
    for actor, base in two:
        assert actor.call("load", base + 2 * PAGE) != []
    region.advise(0, SIZE, verbs.MADV_DONTNEED)
    region.advise(0, SIZE, verbs.MADV_PAGEOUT)
    for actor, base in two:
        assert actor.call("load", base + 2 * PAGE) != []
    region.protect(0, PAGE, mmap.PROT_READ | mmap.PROT_WRITE)
    region.advise(0, SIZE, verbs.MADV_REMOVE)
    region.unmap(0, SIZE)
    found = region.stat()["shootdowns"]
    cpus = os.cpu_count() or 1
    for verb in ("protect", "dontneed", "pageout", "remove", "unmap"):
        counted, times = found[verb], 2 if verb == "protect" else 1
        assert (counted["times"], counted["broadcast"]) == (times, times), verb
        assert counted["processes"] == 2 * times
        assert counted["flush_all"] == cpus * times
        assert 0 <= counted["cpumask"] <= times
        assert counted["cpumask"] <= counted["list"] <= 2 * times
    assert any(found[verb]["list"] == 2 and found[verb]["cpumask"] == 1 for verb in found)


def test_only_who_has_the_part_is_told(
    region: msharefs.Region, two: list[tuple[Actor, int]]
) -> None:
    """The region's second half is attached by both, its first half by neither."""
    region.map(SIZE, SIZE)
    for actor, base in two:
        actor.call("detach", base)
        own = actor.give(region.fd)
        actor.attach(own, offset=SIZE, size=SIZE)
    two[0][0].attach(own, offset=SIZE, size=SIZE)  # twice: one process all the same
    region.unmap(0, PAGE)
    region.protect(SIZE, PAGE, mmap.PROT_READ)
    found = region.stat()["shootdowns"]
    assert not any(found["unmap"].values())
    assert (found["protect"]["times"], found["protect"]["processes"]) == (1, 2)


def test_nobody_attached_is_no_shootdown(region: msharefs.Region) -> None:
    region.unmap(0, SIZE)
    assert not any(region.stat()["shootdowns"]["unmap"].values())
