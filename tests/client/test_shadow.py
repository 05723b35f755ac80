"""The process that takes a program's faults: the program does not notice it, nor can it use it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .conftest import QUANTUM
from support import cc, proc
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable

    import msharefs

    from support.actor import Actor
    from support.server import Mount

    Actors = Callable[..., Actor]
    Regions = Callable[..., msharefs.Region]

PAGE = 4096
PROGRAMS = Path(__file__).parents[1] / "programs"
CASES = [
    "end-main-first", "raw-exit", "alone", "no-descriptor", "few-descriptors", "own-namespaces",
    "forbidden", "no-process", "no-process-later", "few-processes", "no-child", "stopped",
    "replaced", "adopter", "first-process", "forbidden-later",
]  # fmt: skip


pytestmark = pytest.mark.unsanitized("a shadow has nothing that a sanitizer's functions could use")


@pytest.fixture(autouse=True)
def shadowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a program is started with."""
    monkeypatch.setenv("MSHAREFS_CLIENT", "shadow")


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cc.build(PROGRAMS / "unseen.c", tmp_path_factory.mktemp("shadow") / "unseen")


@pytest.fixture(scope="module")
def misuse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cc.build(PROGRAMS / "misuse.c", tmp_path_factory.mktemp("shadow") / "misuse")


@pytest.mark.parametrize("case", CASES)
def test_a_program_finds_all_as_without_it(unseen: Path, make_region: Regions, case: str) -> None:
    subprocess.run([unseen, case], check=True, timeout=30)
    subprocess.run([unseen, case, make_region().path], check=True, timeout=30)


@pytest.mark.parametrize(
    "flags",
    [("-DVARIABLES=3000000",), ("-fsanitize=address",), ("-fsanitize=thread",)],
    ids=["large-variables", "address", "thread"],
)
def test_a_program_that_a_sanitizer_watches(
    tmp_path: Path, make_region: Regions, flags: tuple[str, ...]
) -> None:
    """What stands before the C library's functions, or beside errno, is not for a shadow."""
    program = cc.build(PROGRAMS / "instrumented.c", tmp_path / "program", *flags)
    region = make_region(mapped=False)
    region.map(0, QUANTUM)
    for arguments in ([program], [program, region.path]):
        subprocess.run(arguments, check=True, timeout=30)


@pytest.mark.parametrize("case", ["no-process-later", "few-processes"])
def test_a_child_goes_on_where_no_thread_can_be_made(
    unseen: Path, make_region: Regions, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setenv("MSHAREFS_CLIENT", "thread")
    subprocess.run([unseen, case, make_region().path], check=True, timeout=30)


def test_it_says_what_it_does_instead(
    unseen: Path, make_region: Regions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MSHAREFS_VERBOSE", "1")
    said = {
        case: subprocess.run(
            [unseen, case, make_region().path],
            check=True, timeout=30, stderr=subprocess.PIPE, text=True,
        ).stderr
        for case in ("alone", "no-process", "few-processes")
    }  # fmt: skip
    assert said["alone"] == ""
    assert said["no-process"].endswith(
        ": no shadow can be made: a thread takes its faults (Operation not permitted)\n"
    )
    assert "nobody can take the faults of a child: " in said["few-processes"]


def field(shadow: Path, name: str) -> str:
    return proc.status(shadow, name)


def test_it_has_no_rights_and_no_descriptor_of_the_program(
    actors: Actors, make_region: Regions
) -> None:
    actor = actors()
    open_before = set(os.listdir(f"/proc/{actor.pid}/fd"))
    fd = actor.give(make_region().fd)
    actor.attach(fd)
    shadow = proc.service_thread(actor.pid)
    for each in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(field(shadow, each), 16) == 0
    assert (field(shadow, "NoNewPrivs"), field(shadow, "Seccomp")) == ("1", "2")
    assert set(os.listdir(f"/proc/{actor.pid}/fd")) == open_before | {str(fd)}
    theirs = {os.readlink(path) for path in Path(f"/proc/{actor.pid}/fd").iterdir()}
    ours = {os.readlink(path) for path in (shadow / "fd").iterdir()}
    assert not ours & theirs
    assert os.readlink(shadow / "cwd") == "/"
    assert os.getsid(int(shadow.name)) != os.getsid(actor.pid)


def test_it_may_only_serve(actors: Actors, make_region: Regions, misuse: Path) -> None:
    """Whoever can write its memory decides what it does, for instance a program that gave up root.

    A tracer stands in for that, and lets it try.
    """
    actor = actors()
    base = actor.attach(actor.give(make_region().fd))
    shadow = proc.service_thread(actor.pid)
    tried = subprocess.run(
        [misuse, shadow.name], check=True, stdout=subprocess.PIPE, text=True, timeout=20
    )
    assert tried.stdout == ""
    assert actor.call("store", base + PAGE, 7) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_do_not_concern_it(
    actors: Actors, make_region: Regions, number: signal.Signals
) -> None:
    actor = actors()
    base = actor.attach(actor.give(make_region().fd))
    os.kill(int(proc.service_thread(actor.pid).name), number)
    assert actor.call("store", base + PAGE, 7) == []


def test_it_ends_with_its_program(actors: Actors, make_region: Regions) -> None:
    actor = actors()
    region = make_region()
    base = actor.attach(actor.give(region.fd))
    child = actor.fork(base + PAGE)
    assert child.finish() == [0]
    shadows = [*proc.shadows(actor.pid), *proc.shadows(child.pid)]
    assert len(shadows) == 2
    actor.kill()
    child.end()
    until(lambda: not any((each / "exe").exists() for each in shadows), "both have ended")
    until(lambda: region.describe("clients") == [], "the region knows")


def test_it_ends_with_exec_though_the_next_program_has_no_first_thread(
    actors: Actors, make_region: Regions
) -> None:
    """A first thread that has ended says nothing of the address space that the others have."""
    region = make_region()
    crowd = [actors() for _ in range(4)]
    bases = [actor.attach(actor.give(region.fd)) for actor in crowd]
    *replaced, left = crowd
    for actor in crowd:
        if actor is not left:
            assert actor.call("exec") == []
        assert actor.call("leave-main") == []
    until(lambda: len(region.clients()) == 1, "those that have been replaced are gone")
    assert [client["pid"] for client in region.clients()] == [left.pid]
    assert not any(proc.shadows(actor.pid) for actor in replaced)
    assert left.call("store", bases[-1] + PAGE, 7) == []


def test_it_ends_with_exec_though_the_next_program_does_the_same(
    actors: Actors, make_region: Regions
) -> None:
    """A program that runs itself again has as much memory as it had."""
    region = make_region()
    crowd = [actors() for _ in range(4)]
    for actor in crowd:
        actor.attach(actor.give(region.fd))
    for actor in crowd:
        assert actor.call("exec") == []
        actor.attach(actor.give(region.fd))
    until(lambda: len(region.clients()) == len(crowd), "the first attachments are gone")
    assert {client["pid"] for client in region.clients()} == {actor.pid for actor in crowd}


def test_each_attachment_has_one(actors: Actors, make_region: Regions) -> None:
    actor = actors()
    bases = [actor.attach(actor.give(make_region(QUANTUM).fd)) for _ in range(3)]
    assert len(proc.shadows(actor.pid)) == 3
    assert actor.call("detach", bases[1]) == []
    until(lambda: len(proc.shadows(actor.pid)) == 2, "the third has ended")
    assert actor.call("store", bases[2], 1) == []


def test_a_child_of_a_parent_that_ends_at_once(actors: Actors, make_region: Regions) -> None:
    """As a daemon has it: its shadow comes for its descriptors when the parent's is about to go."""
    region = make_region()
    actor = actors()
    base = actor.attach(actor.give(region.fd))
    for _ in range(20):
        child = actor.fork(base + PAGE)
        actor.kill()
        child.finish()
        assert child.call("store", base, 1) == []
        actor = child
    actor.end()


def sockets(shadow: Path) -> set[str]:
    """The sockets that a process has open."""
    links = (os.readlink(path) for path in (shadow / "fd").iterdir())
    return {link for link in links if link.startswith("socket:")}


def test_a_child_says_hello_behind_its_parents_goodbye(
    actors: Actors, make_region: Regions, shared_mount: Mount
) -> None:
    """Both by one socket, whose other end nobody has any more when the server comes to read it."""
    region = make_region()
    parent = actors()
    base = parent.attach(parent.give(region.fd))
    os.kill(shared_mount.pid, signal.SIGSTOP)
    try:
        child = parent.fork()
        parent.kill()
        until(lambda: not proc.shadows(parent.pid), "its shadow has said goodbye")
        assert child.finish() == []
        assert child.call("store", base, 1) == []  # the child's shadow says hello before that
        (shadow,) = proc.shadows(child.pid)
        before = sockets(shadow)
    finally:
        os.kill(shared_mount.pid, signal.SIGCONT)

    def known() -> list[int]:
        return [each["pid"] for each in region.clients() if each["start_time"]]

    until(lambda: known() == [child.pid], "the server knows the child, and only that")
    assert sockets(shadow) == before  # and not because the child has had to come again
    child.end()
