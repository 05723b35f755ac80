"""Kills for a long time: soak.py [--seconds N] [--seed N].

A real mount and real processes, which fault, map, unmap, change protections, attach, detach, fork
and keep to budgets, in memory, files and huge pages (tests/programs/soaker.c says how they know
what is right). They and the server are killed and stopped at random. After a third of the
time the server is no longer killed, so that its memory can be watched.

From time to time all stand still, and the region must be whole as `msharefs check` and the audit
see it. Less often all are killed and everything is unmapped: then no frame, no slot and no
descriptor of the server may be in use that was not before.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import mmap
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, os.fspath(Path(__file__).parents[1]))

import pytest

import msharefs
from msharefs.client import READ_WRITE
from msharefs.verbs import MAP_FIXED

from support import hugepages, namespace, proc, soakers
from support.audit import assert_whole
from support.server import Mount
from support.soakers import CALM, RUN, STOP, Board, Soakers
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

CROWD = 5
"""Processes, not counting children."""
ROUND_SECONDS = 8.0
ROUNDS_TO_EBB = 3
SILENT, CALM_LIMIT = 20.0, 60.0
"""Seconds until what everybody waits for is written down, and until that is a failure."""
START_LIMIT = 120.0
"""Seconds: processes that cannot wait for it keep the processors busy."""
HOUR = 3600.0
GROWTH = 2 << 20
"""Bytes an hour that the server may grow by."""
WARM_SECONDS = 150.0
"""A server's caches, and malloc's arenas, are full by then: it has grown by more than a MiB."""
NOISE, NOISE_BEFORE = 128 << 10, 4 << 20
"""Bytes by which two looks may differ without any growth, afterwards and before. A run that is too
short for a warm server finds only what is lost quickly."""
CURVE = 24
"""Looks that are printed."""
FILE = mmap.MAP_SHARED | MAP_FIXED
OPTIONS = ("quantum=2M", "fault_around=16")


class SoakError(Exception):
    """Something is wrong; the text says what."""


class Tally:
    """How many were killed, and stopped."""

    def __init__(self) -> None:
        self.clients = self.servers = self.stopped = self.server_stopped = 0
        self.frames = self.slots = self.descriptors = 0


class Soak:
    """One run."""

    def __init__(self, mount: Mount, base: Path, seed: int, huge: str) -> None:
        self.chance = random.Random(seed)
        self.mount = mount
        self.board = Board()
        self.tally = Tally()
        file = base / "file"
        with file.open("w+b") as opened:
            os.ftruncate(opened.fileno(), soakers.SIZE)
            numbers = range(soakers.HUGE_CELLS if huge != "-" else 0, soakers.CELLS)
            soakers.write_stamps(opened.fileno(), soakers.FILED, numbers)
        self.path = mount.path / "r"
        with msharefs.open(self.path, os.O_RDWR | os.O_CREAT) as region:
            region.truncate(soakers.SIZE)
            # Some descriptors stay open from the first use on.
            region.detach(region.attach())
            region.map(0, soakers.PAGE)
            with file.open("r+b") as opened:
                region.map(0, soakers.PAGE, READ_WRITE, FILE, opened.fileno())
            region.unmap(0, soakers.PAGE)
        self.board.all_unmapped()
        program = soakers.build(base)
        self.crowd = Soakers(program, self.board, [str(self.path), str(file), huge])
        self._seeds = iter(lambda: self.chance.getrandbits(32), None)
        self._continue: list[tuple[float, int]] = []
        self._descriptors = self._settled()
        self._memory: list[tuple[float, int]] = []
        self._started = time.monotonic()

    def run(self, seconds: float) -> None:
        """For so long."""
        start = time.monotonic()
        for number in itertools.count(1):
            left = start + seconds - time.monotonic()
            if left <= 0:
                break
            self._round(min(ROUND_SECONDS, left), server_may_die=left > seconds * 2 / 3)
            print(f"soak: {time.monotonic() - start:.0f} s: {self.figures()}", flush=True)
            if number % ROUNDS_TO_EBB == 0:
                self._ebb()
        self._ebb()
        grown, hours, noise = self._growth()
        print(
            f"soak: the server has grown by {grown / 1024:.0f} KiB in {hours * HOUR:.0f} s, that "
            f"is {grown / 1024 / hours:.0f} KiB an hour; up to {noise >> 10} KiB may be noise\n"
            f"soak: its memory, in KiB by seconds: {self._curve()}",
            flush=True,
        )
        if grown > noise and grown > GROWTH * hours:
            raise SoakError("the server grows")

    def figures(self) -> str:
        """All of them, in one line."""
        counts, tally = self.board.counts(), self.tally
        done = sum(counts[name] for name in ("loads", "stores", "changes", "attaches", "forks"))
        return (
            f"killed {tally.clients} clients and {tally.servers} servers, stopped {tally.stopped} "
            f"and {tally.server_stopped}; {done} operations ({counts['changes']} changes, "
            f"{counts['busy']} busy, {counts['failed']} without a server, {counts['attaches']} "
            f"attaches, {counts['forks']} forks, {counts['refused']} signals); "
            f"{counts['wrong']} wrong; lost {tally.frames} frames, {tally.slots} slots, "
            f"{tally.descriptors} descriptors"
        )

    def end(self) -> None:
        """Whatever happened, nothing is left."""
        self.board.phase(STOP)
        self.crowd.kill_all()
        self.board.close()

    # A round

    def _round(self, seconds: float, *, server_may_die: bool) -> None:
        self.board.phase(RUN)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.crowd.fill(CROWD, self._seeds)
            self._wake()
            what = self.chance.random()
            if what < 0.5:
                self._kill_one()
            elif what < 0.75:
                self._stop_one()
            elif what < 0.8 and server_may_die:
                self._kill_server()
            elif what < 0.88:
                self._stop_server()
            time.sleep(self.chance.uniform(0.005, 0.2))
            self._look()
        self._calm()

    def _pick(self) -> int | None:
        return self.chance.choice(self.crowd.pids() or [0]) or None

    def _kill_one(self) -> None:
        pid = self._pick()
        if pid and self.crowd.signal(pid, signal.SIGKILL):
            self.tally.clients += 1

    def _stop_one(self) -> None:
        pid = self._pick()
        if pid and self.crowd.signal(pid, signal.SIGSTOP):
            self.tally.stopped += 1
            self._continue.append((time.monotonic() + self.chance.uniform(0.01, 1.5), pid))

    def _wake(self, *, everybody: bool = False) -> None:
        now = time.monotonic()
        for when, pid in list(self._continue):
            if everybody or when <= now:
                self.crowd.go_on(pid)
                self._continue.remove((when, pid))

    def _kill_server(self) -> None:
        self.mount.kill()
        self.tally.servers += 1
        for _ in range(self.chance.randrange(4)):
            self._kill_one()
            time.sleep(self.chance.uniform(0.0, 0.2))
            self._wake()
        self.mount.start()
        self._memory.clear()
        self._started = time.monotonic()

    def _stop_server(self) -> None:
        os.kill(self.mount.pid, signal.SIGSTOP)
        self.tally.server_stopped += 1
        time.sleep(self.chance.uniform(0.0, 0.3))
        if self.chance.random() < 0.5:
            self._kill_one()
        os.kill(self.mount.pid, signal.SIGCONT)

    def _look(self) -> None:
        found = self.crowd.reap()
        if wrongs := self.board.wrongs():
            found += [*map(str, wrongs), f"the region has {self._regions_maps()}"]
        if self.mount.process is None or self.mount.process.poll() is not None:
            found.append("the server has ended by itself")
        if found:
            raise SoakError("\n".join(found))

    def _regions_maps(self) -> str:
        try:
            with msharefs.open(self.path) as region:
                return "\n".join(map(str, region.maps()))
        except OSError as error:
            return str(error)

    # What must hold between the rounds

    def _calm(self) -> None:
        self.board.phase(CALM)
        self._wake(everybody=True)
        try:
            self._stand_still(SILENT)
        except AssertionError:
            print(f"soak: some still do not stand still: {self._where()}", flush=True)
            try:
                self._stand_still(CALM_LIMIT - SILENT)
            except AssertionError as error:
                where = self._where()
                self.mount.write_stacks()
                raise SoakError(f"{error}: {where}") from None
        self._look()
        problems: list[str] = []

        def whole() -> bool:
            problems[:] = self.mount.check()
            return not problems

        # The server hears of a death a moment later.
        with contextlib.suppress(AssertionError):
            until(whole, "msharefs check finds nothing")
        if problems:
            raise SoakError("\n".join(problems))
        with msharefs.open(self.path) as region:
            assert_whole(region)
        memory = proc.status_bytes(self.mount.pid, "RssAnon")
        self._memory.append((time.monotonic() - self._started, memory))

    def _stand_still(self, limit: float) -> None:
        until(lambda: not self.crowd.not_calm(), "all stand still", limit=limit)

    def _where(self) -> str:
        """Where those are in the kernel that do not stand still, and the server."""
        stacks = [f"process {pid}:\n{proc.stacks(pid)}" for pid in set(self.crowd.not_calm())]
        return "\n".join([*stacks, self.mount.kernel_stacks()])

    def _ebb(self) -> None:
        """Nobody is there, and nothing is mapped."""
        self.crowd.kill_all()
        self._continue.clear()
        with msharefs.open(self.path) as region:
            with contextlib.suppress(AssertionError):
                until(lambda: not region.stat()["clients"], "no slot is in use")
            region.unmap(0, soakers.SIZE)
            stat = assert_whole(region)
            self.tally.slots += stat["clients"]
            self.tally.frames += sum(stat["table_frames"].values()) - 1
            rss, left = stat["rss_bytes"], region.clients()
        self.board.all_unmapped()
        before, now = self._descriptors, self._settled()
        more = [name for name in now if now.count(name) > before.count(name)]
        self.tally.descriptors += max(0, len(now) - len(before))
        if self.tally.slots or self.tally.frames or self.tally.descriptors or rss:
            raise SoakError(f"lost: {self.figures()}; {rss} bytes of memory; {more} {left}")

    def _settled(self) -> list[str]:
        """The server's open files, once it has closed what it needed for an answer."""
        known = getattr(self, "_descriptors", None)
        found: list[str] = []

        def few() -> bool:
            found[:] = proc.open_files(self.mount.pid)
            return known is None or len(found) <= len(known)

        with contextlib.suppress(AssertionError):
            until(few, "the server has no more descriptors than before")
        return sorted(found)

    def _growth(self) -> tuple[float, float, int]:
        """Bytes that the last server has grown by, in how many hours, and the noise.

        By the median of the slopes between any two looks (Theil and Sen): one step, as when a table
        is made anew, does not decide it.
        """
        points, noise = [each for each in self._memory if each[0] > WARM_SECONDS], NOISE
        if len(points) < 5:
            points, noise = self._memory[len(self._memory) // 4 :], NOISE_BEFORE
        if len(points) < 3:
            return 0.0, 1 / HOUR, noise
        seconds = points[-1][0] - points[0][0]
        slope = statistics.median(
            (after[1] - before[1]) / (after[0] - before[0])
            for before, after in itertools.combinations(points, 2)
        )
        return slope * seconds, seconds / HOUR, noise

    def _curve(self) -> str:
        """Seconds and KiB: some of the looks."""
        some = self._memory[:: max(1, len(self._memory) // CURVE)]
        return ", ".join(f"{seconds:.0f}: {memory >> 10}" for seconds, memory in some)


@contextlib.contextmanager
def huge_file(base: Path) -> Iterator[str]:
    """A file of huge pages; "-" where there are none."""
    directory = base / "huge"
    directory.mkdir()
    size = soakers.HUGE_CELLS * soakers.HUGE_PAGES * soakers.PAGE
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hugepages.at_least(2 * soakers.HUGE_CELLS))
        except (pytest.skip.Exception, OSError) as error:
            print(f"soak: without huge pages: {error}")
            yield "-"
            return
        namespace.hugetlbfs(directory, "pagesize=2M")
        stack.callback(namespace.detach, directory)
        with (directory / "file").open("w+b") as opened:
            os.ftruncate(opened.fileno(), size)
            numbers = range(soakers.HUGE_CELLS)
            soakers.write_stamps(opened.fileno(), soakers.HUGED, numbers)
        yield str(directory / "file")


def main() -> None:
    """Mounts, runs, unmounts; exit status 1 and how to repeat it if something is wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    given = parser.parse_args()
    namespace.enter()
    base = Path(tempfile.mkdtemp(dir=namespace.SHM, prefix="soak-"))
    faults = ("linux", "watched")[given.seed % 2]
    mount = Mount(base / "mount", (*OPTIONS, f"faults={faults}"), given.seconds + 600)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, base, ignore_errors=True)
        stack.callback(mount.clean_up)
        mount.start_limit = START_LIMIT
        huge = stack.enter_context(huge_file(base))
        try:
            mount.start()
            soak = Soak(mount, base, given.seed, huge)
            stack.callback(soak.end)
            soak.run(given.seconds)
            (mount.path / "r").unlink()
            mount.stop()
            problems = mount.problems()
            if problems:
                raise SoakError("\n".join(problems))
            print(f"soak: {soak.figures()}")
        except (SoakError, AssertionError, OSError) as error:
            print(f"{mount.text()[-8000:]}\nsoak: {error}")
            print(f"soak: to repeat: scripts/soak {given.seconds:g} --seed {given.seed}")
            sys.exit(1)


if __name__ == "__main__":
    main()
