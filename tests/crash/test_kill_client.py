"""Clients killed in the middle of faulting: nobody is held up, and nothing is lost."""

from __future__ import annotations

import mmap
import os
import random
import signal
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs.verbs import MAP_FIXED, MAP_NORESERVE

from support.actor import PAGE, Actor, Board
from support.audit import assert_whole
from support.hostview import inside_faults, number_of
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.server import Mount

QUANTUM = 2 << 20
DATA = QUANTUM  # the memory that the survivors keep
STRIDE = QUANTUM + PAGE  # each touch needs a table of its own
TOUCHES = 8000
SIZE = DATA + (TOUCHES + 16) * QUANTUM
KILLS = 200
# More than there may be memory for; few pages of it are touched.
SPARSE = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE


@pytest.mark.slow
@pytest.mark.usefixtures("by_thread")  # a shadow would leave the fault that it is in
@pytest.mark.mount("quantum=2M", "faults=watched", limit=110)
def test_two_hundred(mount: Mount, actors: Callable[[], Actor], actor_program: Path) -> None:
    chance = random.Random(KILLS)
    region = msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT)
    region.truncate(SIZE)
    region.map(0, DATA)
    ident = number_of(region.path)
    inside = 0
    with region, Board() as board:
        board.phase(Board.THERE)
        reader, worker = survivors = [actors() for _ in range(2)]
        bases = [actor.attach(actor.give(region.fd)) for actor in survivors]
        assert reader.call("fill", bases[0], DATA, 1, 0) == []
        region.map(DATA, SIZE - DATA, flags=SPARSE)

        def flood(actor: Actor, base: int, number: int, threads: int) -> None:
            fd = actor.give(board.fd)
            place = (base + DATA, TOUCHES, STRIDE)
            actor.call("flood", fd, number, *place, threads, chance.randrange(1 << 20))

        # A process that is as busy as the victims, in the same tables.
        flood(worker, bases[1], 0, 1)
        for kill in range(KILLS):
            with Actor.launch(actor_program) as victim:
                base = victim.attach(victim.give(region.fd))
                far = board.seen(1)[0] + chance.randrange(1, 60)
                flood(victim, base, 1, 3)
                until(lambda far=far: board.seen(1)[0] >= far, "the victim faults")
                if kill % 2:  # while the server is there, and lets go of it at once
                    victim.kill()
                else:  # while the server is away, so that we see in which state it died
                    os.kill(mount.pid, signal.SIGSTOP)
                    victim.kill()
                    inside += victim.pid in inside_faults(mount, ident)
                    os.kill(mount.pid, signal.SIGCONT)
            known = {client["pid"] for client in region.describe("clients")}
            assert known == {actor.pid for actor in survivors}
            # The others still work, in the victim's places too.
            where = bases[0] + DATA + kill * STRIDE
            assert reader.call("store", where + 8, 1) == []
            assert reader.call("check", bases[0], 16 * PAGE, 1, 0) == [0]
            if kill % 50 == 49:  # new memory in the place of the old, and nobody takes a signal
                region.map(DATA, SIZE - DATA, flags=SPARSE)
        print(f"{inside} of {KILLS // 2} died inside a fault")
        assert inside >= KILLS // 20, "the victims are not killed where it hurts"

        board.phase(Board.STOP)
        worker.call("join")
        assert reader.call("check", bases[0], DATA, 1, 0) == [0]
        assert_whole(region)
        stat = region.stat()
        assert stat["clients"] == len(survivors)
        region.unmap(0, SIZE)
        assert region.stat()["rss_bytes"] == 0
        assert region.stat()["table_frames"] == {"pgd": 1, "pud": 0, "pmd": 0, "pte": 0}
        assert_whole(region)
