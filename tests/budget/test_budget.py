"""A budget of page tables: its limit, its sources, its figures."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import msharefs

from support.actor import PAGE
from support.spans import BUDGET, SLACK, SPAN, SPANS, STEP, TOUCHED, Client
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.actor import Actor
    from support.server import Mount

NO_PT_RECLAIM = """
#define _GNU_SOURCE
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* As a kernel without CONFIG_PT_RECLAIM: it frees no table for less than one's span. */
int madvise(void *start, size_t size, int advice)
{
    size_t half = size / 2 & ~4095ul;

    if (advice != MADV_DONTNEED || !half)
        return syscall(SYS_madvise, start, size, advice);
    return syscall(SYS_madvise, start, half, advice) ||
           syscall(SYS_madvise, (char *)start + half, size - half, advice) ? -1 : 0;
}
"""


def test_page_tables_stay_within_it(client: Callable[..., Client]) -> None:
    free, bound = client(0), client()
    free.stamp()
    assert free.tables >= SPANS * PAGE, "without a budget there is a table for each span"
    assert free.seen["budget_bytes"] == free.seen["evicted_spans"] == 0

    for first in range(0, TOUCHED, TOUCHED // 16):
        assert bound.wrong(first * STEP, TOUCHED // 16, STEP, passes=50) == 0
        assert bound.tables <= BUDGET + SLACK
    seen = bound.seen
    assert (seen["budget_bytes"], seen["budget_asked_bytes"]) == (BUDGET, BUDGET)
    assert seen["evicted_spans"] == SPANS - BUDGET // PAGE
    assert (seen["refaulted_spans"], seen["budget_grown"]) == (0, 0)
    stat = bound.region.stat()
    assert stat["counters"]["evicted_spans"] == seen["evicted_spans"]
    assert stat["budget"] == {"bytes": 0, "clients_grown": 0}


def test_what_was_given_back_comes_back(client: Callable[..., Client]) -> None:
    one, other = client(), client()
    one.stamp()
    assert other.wrong() == 0
    other.stamp(1, TOUCHED)
    assert one.wrong(1, TOUCHED) == 0
    assert one.wrong() == 0
    assert one.seen["refaulted_spans"] > 0
    faults = one.region.stat()["counters"]["faults"]
    assert other.wrong() == 0
    assert one.region.stat()["counters"]["faults"] == faults, "the entries were there all along"


def test_a_budget_for_what_is_mapped_already(client: Callable[..., Client]) -> None:
    late = client(0)
    late.stamp()
    assert late.tables >= SPANS * PAGE
    late.budget(BUDGET)
    assert late.tables <= BUDGET + SLACK
    assert late.wrong() == 0
    assert late.seen["budget_asked_bytes"] == BUDGET


def test_a_budget_can_be_lowered_and_ended(client: Callable[..., Client]) -> None:
    some = client(2 * BUDGET)
    some.stamp()
    assert some.seen["budget_bytes"] == 2 * BUDGET
    some.budget(BUDGET)
    assert some.tables <= BUDGET + SLACK
    some.budget(0)
    assert some.wrong() == 0
    assert some.tables >= SPANS * PAGE
    assert some.seen["budget_bytes"] == some.seen["budget_asked_bytes"] == 0


@pytest.mark.parametrize("size", [1, 128 * 1024 - 1])
def test_too_small(client: Callable[..., Client], size: int) -> None:
    made = client(0)
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        made.budget(size)
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        made.actor.call("budget", made.base + PAGE, BUDGET)
    made.budget(128 * 1024)
    assert made.seen["budget_bytes"] == 128 * 1024


@pytest.mark.mount("quantum=2M", "budget=1M")
def test_the_mount_the_environment_and_the_program(
    mount: Mount, actors: Callable[[], Actor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT) as region:
        region.truncate(4 * SPAN)
        assert region.stat()["budget"] == {"bytes": 1 << 20, "clients_grown": 0}
        plain = Client.attached(actors(), region)
        assert plain.seen["budget_bytes"] == 1 << 20
        monkeypatch.setenv("MSHAREFS_PT_BUDGET", "256k")
        special = Client.attached(actors(), region)
        assert special.seen["budget_bytes"] == 256 << 10
        special.budget(512 << 10)
        assert special.seen["budget_bytes"] == 512 << 10
        monkeypatch.setenv("MSHAREFS_PT_BUDGET", "0")
        assert Client.attached(actors(), region).seen["budget_bytes"] == 0
        for wrong in ("4MB", "-1", "1", "x", "99999999T", " 4M"):
            monkeypatch.setenv("MSHAREFS_PT_BUDGET", wrong)
            with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
                Client.attached(actors(), region)
        assert len(region.describe("clients")) == 3


def test_python(region: msharefs.Region) -> None:
    script = """if True:
        import json, sys, msharefs
        with msharefs.open(sys.argv[1]) as region:
            try:
                region.attach(budget=4096)
            except OSError as error:
                print(json.dumps([error.errno, region.addresses]))
            with region.attach(budget=1 << 20) as view:
                view[0] = 7
                print(json.dumps([entry["budget_bytes"] for entry in region.describe("clients")]))
        """
    lines = subprocess.check_output([sys.executable, "-c", script, region.path], text=True)
    assert [json.loads(line) for line in lines.splitlines()] == [[errno.EINVAL, []], [1 << 20]]


def test_a_child_has_the_same_budget_for_itself(client: Callable[..., Client]) -> None:
    parent = client()
    parent.stamp()
    child = parent.fork()
    try:
        assert child.actor.finish() == []
        until(lambda: len(parent.region.describe("clients")) == 2, "the child is there")
        assert (child.seen["budget_bytes"], child.seen["evicted_spans"]) == (BUDGET, 0)
        for first in range(0, TOUCHED, TOUCHED // 16):
            assert child.wrong(first * STEP, TOUCHED // 16, STEP, passes=50) == 0
        assert child.tables <= BUDGET + SLACK
        assert child.seen["evicted_spans"] >= SPANS - BUDGET // PAGE
        assert parent.wrong() == 0
    finally:
        child.actor.end()


def test_a_kernel_that_keeps_empty_tables(
    client: Callable[..., Client],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("shim")
    (directory / "shim.c").write_text(NO_PT_RECLAIM)
    shim = directory / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, directory / "shim.c"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(shim))
    bound = client()
    monkeypatch.delenv("LD_PRELOAD")
    bound.stamp()
    assert bound.tables <= BUDGET + SLACK
    other = client(0)
    assert other.wrong() == 0
    assert bound.wrong() == 0
    hole = SPANS // 2 * SPAN
    bound.region.unmap(hole, PAGE)
    fault = bound.wrong()
    assert (fault.number, fault.address) == (11, bound.base + hole)
    assert len(bound.region.describe("maps")) == 2
