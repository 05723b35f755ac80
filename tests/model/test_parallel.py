"""Several processes in the core at the same time, and some of them killed."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from msharefs.native import ffi, lib

from support import cc, libc
from support import steps as stepping
from support.core import (
    ACCERR,
    BROKEN,
    GIB1,
    MAP,
    MAPERR,
    MIB2,
    PAGE,
    READ,
    WAIT,
    WRITE,
    Core,
    check,
)
from support.hammer import Hammer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.steps import Steps

# Pages in a few tables, where processes meet; and pages in tables of their own, which take frames.
NEAR = [at * PAGE for at in range(64)] + [MIB2 + at * PAGE for at in range(64)]
FAR = [at * MIB2 + at % 512 * PAGE for at in range(1200)]
END = 4 * GIB1
GRACE_SECONDS = 20
MEETING_SECONDS = 1.5
MET = {MAP, MAPERR, ACCERR, WAIT}


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """In place of those that are stepped through: these run at full speed, so sanitized, too."""
    return stepping.build(tmp_path_factory.mktemp("steps"), *cc.SANITIZERS)


@contextlib.contextmanager
def hammers(core: Core, steps: Steps, count: int, pages: list[int]) -> Iterator[list[Hammer]]:
    """Clients that fault all the time; none may ever find anything broken."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(Hammer(core, steps, pages, seed)) for seed in range(count)]
        yield made
        for one in made:
            assert BROKEN not in one.seen
            one.stop()


def wait_for_grace(core: Core) -> None:
    """Bounded, as the server's; but a loaded machine may take its time."""
    deadline = time.monotonic() + GRACE_SECONDS
    while core.straggler() is not None:
        assert time.monotonic() < deadline, "a client does not leave its fault"
        os.sched_yield()


def change(core: Core, chance: random.Random, edges: list[int]) -> None:
    """One random change, as the server makes it while clients fault."""
    start, end = sorted(chance.sample(edges, 2))
    prot = chance.choice([READ | WRITE, READ | WRITE, READ, 0])
    begin = chance.choice([
        lambda: core.begin_map(start, end, prot),
        lambda: core.begin_protect(start, end, prot),
        lambda: core.begin_unmap(start, end),
        lambda: core.begin_drop(start, end),
        lambda: core.begin_remove(start, end),
    ])  # fmt: skip
    # A client may announce itself late, with an epoch that it had read before.
    while (said := begin()) == -errno.EBUSY:
        wait_for_grace(core)
    if said == -errno.ENOMEM:  # new rights for a hole
        return
    check(said)
    wait_for_grace(core)
    if chance.random() < 0.1:
        core.abort()
    else:
        check(core.finish())


@pytest.mark.parametrize("pages", [NEAR, FAR], ids=["near", "far"])
def test_four_clients_and_a_writer(pages: list[int], steps: Steps) -> None:
    chance = random.Random(1)
    edges = [0, PAGE, 5 * PAGE, 40 * PAGE, MIB2, MIB2 + 9 * PAGE, 2 * MIB2, GIB1, GIB1 + MIB2, END]
    seen: set[int] = set()
    with Core() as core:
        core.map(0, END)
        with hammers(core, steps, 4, pages) as clients:
            changes = 0
            deadline = time.monotonic() + GRACE_SECONDS
            # Until the clients have met changes: otherwise the test would prove nothing.
            while changes < 300 or (not seen >= MET and time.monotonic() < deadline):
                change(core, chance, edges)
                changes += 1
                # True at any moment: an entry can come only inside a VMA, and with its rights.
                audit = core.audit()
                assert (audit.stray, audit.bad, audit.vmas) == (0, 0, 0)
                seen = set().union(*(client.seen for client in clients))
        assert core.audit().problems() == {}
        assert core.raw.tree().wrong == []
        core.unmap(0, core.size)
        assert core.audit().problems() == {}
        assert core.audit().tables == (0, 0, 0, 1)
    assert seen >= MET


def test_a_client_or_the_server_sees_the_other(steps: Steps) -> None:
    """The fences of the grace period: by experiment, for the processor may delay a store."""
    meeting = mmap.mmap(-1, mmap.PAGESIZE)
    where = ffi.from_buffer(meeting)
    with Core() as core:
        slot = core.claim()
        client = os.fork()
        if client == 0:
            try:
                libc.die_with_parent()
                steps.meet_as_client(core.mm, slot, where)
            finally:
                os._exit(1)
        rounds, end = 0, time.monotonic() + MEETING_SECONDS
        try:
            while time.monotonic() < end:
                missed = steps.meet_as_server(core.mm, where, rounds, rounds + 200)
                rounds += 200
                assert missed == 0
        finally:
            os.kill(client, signal.SIGKILL)
            os.waitpid(client, 0)


def test_clients_killed_in_their_faults(steps: Steps) -> None:
    """200 of them, two at a time, where each fault takes frames."""
    chance = random.Random(2)
    with Core() as core:
        for _ in range(100):
            core.map(0, END)
            with Hammer(core, steps, FAR, 1) as one, Hammer(core, steps, FAR, 2) as other:
                wanted = chance.randrange(1, 600)
                deadline = time.monotonic() + GRACE_SECONDS
                # Frames are taken in order: so many tables exist, or are about to.
                while core.raw.header("frames_high") < wanted and time.monotonic() < deadline:
                    os.sched_yield()
                one.kill_and_reap()
                other.kill_and_reap()
            assert core.audit().problems() == {}
            assert core.straggler() is None
            assert core.stat().clients == 0
            core.unmap(0, END)
            assert core.audit().tables == (0, 0, 0, 1)
            assert core.audit().problems() == {}


def test_servers_killed_in_their_changes(steps: Steps) -> None:
    """The clients go on meanwhile, and the next server finishes the change before their eyes."""
    chance = random.Random(3)
    edges = [0, MIB2, 20 * MIB2, GIB1, GIB1 + MIB2, END]
    with Core() as core:
        core.map(0, END)
        with hammers(core, steps, 2, FAR):
            for seed in range(30):
                epoch = core.raw.header("epoch")
                server = os.fork()
                if server == 0:
                    run_server(core, seed, edges)
                deadline = time.monotonic() + GRACE_SECONDS
                wanted = epoch + chance.randrange(1, 20)
                while core.raw.header("epoch") < wanted and time.monotonic() < deadline:
                    os.sched_yield()
                os.kill(server, signal.SIGKILL)
                os.waitpid(server, 0)

                core.reopen()
                check(lib.mm_sweep(core.mm))
                wait_for_grace(core)
                check(lib.hostmm_recover(core.mm, core.mem_fd))
                audit = core.audit()
                assert (audit.stray, audit.bad, audit.vmas) == (0, 0, 0)
                assert not any(vma.flags & lib.VMA_BUSY for vma in core.vmas())
        assert core.audit().problems() == {}
        core.unmap(0, END)
        assert core.audit().tables == (0, 0, 0, 1)
        assert core.audit().problems() == {}


def run_server(core: Core, seed: int, edges: list[int]) -> None:
    """Makes changes until it is killed."""
    try:
        libc.die_with_parent()
        core.reopen()
        chance = random.Random(seed)
        while True:
            change(core, chance, edges)
    finally:
        os._exit(1)
