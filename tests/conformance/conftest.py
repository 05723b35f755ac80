"""The mounts that all rows share, an agent on each, and the report."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from msharefs.conformance.by_call import learn
from msharefs.conformance.stage import cleared
from msharefs.conformance.world import World

from .ours import OwnStage
from .report import Report
from support import agent, leftovers, namespace
from support.agent import Agents
from support.server import Mount

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.agent import Agent

# The folder of CONFORMANCE.md and README.md, given by `make conformance`.
REPORT = "MSHAREFS_CONFORMANCE"
SERVER_LIMIT = 1200.0  # seconds: all rows use the same two servers
RUN = (sys.executable, "-m", "msharefs", "run", "--mount")
OPTIONS = {World.DEFAULT: (), World.V3: ("quirks=v3",), World.INNER: ("window=inner",)}


class Worlds:
    """Plain Linux and the mounts; each is made when it is first asked."""

    def __init__(self, base: Path, program: Path, elsewhere: Path) -> None:
        self._base = base
        self._program = program
        self._elsewhere = elsewhere
        self._agents: dict[World, tuple[Agents, Agent]] = {}
        self._stack = contextlib.ExitStack()
        self.mounts: dict[World, Mount] = {}

    def start(self, world: World) -> None:
        """Make it ready."""
        by_call = world is World.CALLS
        by_library = by_call or world is World.LIBRARY
        if world is World.PLAIN:
            self._top(world).mkdir()
        elif not by_library:
            mount = self.mounts[world] = Mount(
                self._base / world.name, OPTIONS[world], SERVER_LIMIT
            )
            mount.start()
        agents = self._stack.enter_context(Agents(by_call=by_call, by_library=by_library))
        run = [] if world is World.PLAIN or by_library else [*RUN, str(self._top(world)), "--"]
        zygote = agents.start([*run, self._program])
        zygote.call("umask", 0)
        if by_library:
            learn(zygote)
        self._agents[world] = agents, zygote

    @contextlib.contextmanager
    def stage(self, world: World) -> Iterator[OwnStage]:
        """A stage for one row."""
        agents, zygote = self._agents[world]
        made: list[Mount] = []

        def mount() -> Mount:
            one = Mount(self._base / f"more{len(made)}", OPTIONS.get(world, ()))
            made.append(one)
            one.start()
            return one

        try:
            directory = self._top(world) / "row"
            stage = OwnStage(world, directory, self._elsewhere, zygote, mount)
            with cleared(stage, agents, zygote):
                yield stage
        finally:
            problems: list[str] = []
            for each in made:
                try:
                    problems += _end(each)
                finally:
                    each.clean_up()
            assert not problems, "\n".join(problems)

    def stop(self) -> list[str]:
        """Unmount; returns what went wrong."""
        self._stack.close()
        problems = []
        for mount in self.mounts.values():
            try:
                problems += _end(mount)
            finally:
                mount.clean_up()
        return problems

    def _top(self, world: World) -> Path:
        if world is World.PLAIN:
            return self._base / "plain"
        return self.mounts.get(world, self.mounts[World.DEFAULT]).path


def _end(mount: Mount) -> list[str]:
    """Stops a server; returns what went wrong, and its log if anything did."""
    if mount.process is not None:
        if namespace.at(mount.path):
            mount.stop()
        else:
            mount.wait()
    found = mount.problems()
    return [*found, mount.text()] if found else []


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """Instead of a look after each test, `worlds` looks once, after hundreds of short rows."""


# No longer than the rows: other tests look for "the only mount there is".
@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    program = agent.build(tmp_path_factory.mktemp("agent") / "agent")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    before = leftovers.snapshot()
    base = Path(tempfile.mkdtemp(dir=namespace.SHM, prefix="conformance-"))
    base.chmod(0o755)
    found = Worlds(base, program, elsewhere)
    try:
        for world in World:
            found.start(world)
        yield found
    finally:
        problems = found.stop()
        shutil.rmtree(base)
        problems += leftovers.clean(before)
    assert not problems, "\n".join(problems)


@pytest.fixture(scope="session")
def report() -> Iterator[Report]:
    made = Report()
    yield made
    if path := os.environ.get(REPORT):
        made.write(Path(path))
