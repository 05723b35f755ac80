"""Who takes a program's faults: its thread, a shadow, or nobody."""

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


@pytest.mark.parametrize(("asked", "count"), [("", 2), ("thread", 2), ("shadow", 1)])
def test_it_can_be_asked_for(
    threads: Callable[[], int], monkeypatch: pytest.MonkeyPatch, asked: str, count: int
) -> None:
    monkeypatch.setenv("MSHAREFS_CLIENT", asked)
    assert threads() == count


def test_nobody_under_valgrind(
    tmp_path: Path, actors: Callable[[], Actor], make_region: Callable[..., msharefs.Region],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Only one of its threads runs at a time, and it permits no shadow: memory is Linux's."""
    library = tmp_path / "vgpreload_core.so"
    subprocess.run(["cc", "-shared", "-o", library, "-xc", "/dev/null"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
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
