"""Who takes a program's faults: a shadow, but where that cannot be, a thread or nobody."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from support import proc
from support.actor import maperr

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import msharefs

    from support.actor import Actor

POLL = """
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>
static _Thread_local unsigned calls;
int poll(struct pollfd *fds, nfds_t count, int timeout)
{
    calls++;
    return (int)syscall(SYS_poll, fds, count, timeout);
}
"""

pytestmark = pytest.mark.unsanitized("a shadow has nothing that a sanitizer's functions could use")


@pytest.fixture
def threads(
    actors: Callable[[], Actor], make_region: Callable[..., msharefs.Region]
) -> Callable[[], int]:
    """Counts the threads of a program that has attached a region and touched it."""

    def count() -> int:
        actor = actors()
        base = actor.attach(actor.give(make_region().fd))
        assert actor.call("load", base) == [0]
        with actor.fork(base) as child:
            assert child.finish() == [0]
            here = len(proc.tasks(actor.pid))
            assert len(proc.tasks(child.pid)) == here
        assert len(proc.shadows(actor.pid)) == (here == 1)
        return here

    return count


def preload(directory: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / "it.c").write_text(text)
    library = directory / name
    subprocess.run(
        ["cc", "-D_GNU_SOURCE", "-shared", "-fPIC", "-o", library, directory / "it.c"], check=True
    )
    monkeypatch.setenv("LD_PRELOAD", str(library))


def test_a_program_has_no_thread_of_ours(threads: Callable[[], int]) -> None:
    assert threads() == 1


@pytest.mark.parametrize(
    ("name", "value", "count"),
    [
        ("MSHAREFS_CLIENT", "", 1),
        ("MSHAREFS_CLIENT", "shadow", 1),
        ("MSHAREFS_CLIENT", "thread", 2),
        ("MSHAREFS_DEBUG", "1", 2),
    ],
)
def test_it_can_be_asked_for(
    threads: Callable[[], int], monkeypatch: pytest.MonkeyPatch, name: str, value: str, count: int
) -> None:
    monkeypatch.setenv(name, value)
    assert threads() == count


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [("other.so", POLL, 2), ("harmless.so", "int other;", 1)],
    ids=["poll", "none"],
)
def test_another_library_comes_before(
    tmp_path: Path, threads: Callable[[], int], monkeypatch: pytest.MonkeyPatch,
    name: str, text: str, count: int,
) -> None:  # fmt: skip
    """The functions that it replaces may want what a thread has."""
    preload(tmp_path, name, text, monkeypatch)
    assert threads() == count


def test_nobody_under_valgrind(
    tmp_path: Path, actors: Callable[[], Actor], make_region: Callable[..., msharefs.Region],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Only one of its threads runs at a time, and it permits no shadow: memory is Linux's."""
    preload(tmp_path, "vgpreload_core.so", "", monkeypatch)
    region, actor = make_region(), actors()
    base = actor.attach(actor.give(region.fd))
    actor.call("store", base, 7)
    assert (len(proc.tasks(actor.pid)), proc.shadows(actor.pid)) == (1, [])
    with actor.fork(base) as child:
        assert child.finish() == [7]
        child.call("store", base, 8)
    assert actor.call("load", base) == [8]
    assert region.clients() == []
    actor.call("detach", base)
    assert actor.call("load", base) == maperr(base)
