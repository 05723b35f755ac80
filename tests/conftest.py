"""Fixtures for all tests.

The whole run enters a private mount namespace before the first test, so a bare `pytest` does the
same as `make test`. `mount` is a mounted msharefs; a test chooses its options with
`@pytest.mark.mount("quantum=2M", limit=30)`. `mounts` makes any number of them. After each test
nothing it started may be left: no process, no mount, no state.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from support import alone, leftovers, namespace
from support import browser as browsers
from support.actor import Actor, build
from support.server import mounting

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from support.server import Mount

NEEDS_ROOT = pytest.StashKey[str]()
LEFT_OUT = pytest.StashKey[list[pytest.Item]]()

# A deadline on a shared machine finds slow neighbours, not bugs. CI gets the same examples each
# time.
hypothesis.settings.register_profile("msharefs", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("msharefs")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "mount(*options, limit=60, seconds={}): -o options of the fixture mount, its time limit, "
        "and limits of the server that are to be others, such as {'hands.HELD_SECONDS': 0.3}",
    )
    leftovers.mark()
    # Programs inherit what is ignored: by nohup(1), or by a shell for its background jobs.
    for number, usual in (
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
    try:
        namespace.enter()
    except PermissionError as error:
        config.stash[NEEDS_ROOT] = f"mounting needs root: run the tests as root ({error.strerror})"


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before the test's time begins
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with alone.turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "MSHAREFS_SANITIZE" not in os.environ:
        return
    left_out = [item for item in items if item.get_closest_marker("unsanitized")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)
    config.stash[LEFT_OUT] = left_out


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for item in config.stash.get(LEFT_OUT, []):
        marker = item.get_closest_marker("unsanitized")
        assert marker is not None
        terminalreporter.write_line(f"LEFT OUT {item.nodeid} - {marker.args[0]}")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Fail a test that leaves a process, a mount or a file in /dev/shm; remove what it left."""
    before = leftovers.snapshot()
    yield
    found = leftovers.clean(before)
    assert not found, "\n".join(found)


@pytest.fixture
def by_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that are started have their faults taken by a thread, and not by a shadow."""
    monkeypatch.setenv("MSHAREFS_CLIENT", "thread")


@pytest.fixture
def public_tmp() -> Iterator[Path]:
    """A directory on tmpfs that other users may enter, unlike tmp_path."""
    with _public_directory() as path:
        yield path


@contextlib.contextmanager
def _public_directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=namespace.SHM, prefix="test-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def _need_root(request: pytest.FixtureRequest) -> None:
    if NEEDS_ROOT in request.config.stash:
        pytest.fail(request.config.stash[NEEDS_ROOT], pytrace=False)


@pytest.fixture
def mounts(request: pytest.FixtureRequest, public_tmp: Path) -> Iterator[Callable[..., Mount]]:
    """Make mounts: `mounts("quantum=2M", limit=30)` gives a started `Mount`.

    With `start=False` it is started later.
    """
    _need_root(request)
    with mounting(public_tmp) as make:
        yield make


@pytest.fixture(scope="module")
def shared_mount(request: pytest.FixtureRequest) -> Iterator[Mount]:
    """One mount for all tests of a file, which make regions of their own names.

    Its quantum is 2M, or it has the options of the file's mark `mount`.
    """
    _need_root(request)
    marker = request.node.get_closest_marker("mount")
    options = marker.args if marker else ["quantum=2M"]
    seconds = marker.kwargs.get("seconds") if marker else None
    with _public_directory() as base, mounting(base) as make:
        yield make(*options, limit=600, seconds=seconds)


@pytest.fixture
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browsers.Browser]:
    """A Chromium that looks at pages. One for each test: it starts in a third of a second."""
    chromium = browsers.program()
    if chromium is None:
        name = browsers.PROGRAMS[0]
        pytest.skip(f"no Chromium is installed: apt-get install {name}, or `make test` as root")
    with browsers.Browser(chromium, tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture(scope="session")
def actor_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled tests/programs/actor.c; other users may start it."""
    directory = tmp_path_factory.mktemp("actor")
    return build(directory)


@pytest.fixture
def actors(actor_program: Path) -> Iterator[Callable[[], Actor]]:
    """Start processes of tests/programs/actor.c; they end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(Actor.launch(actor_program))


@pytest.fixture
def mount(request: pytest.FixtureRequest, mounts: Callable[..., Mount]) -> Mount:
    """A mounted msharefs with the options of the test's mark `mount`."""
    marker = request.node.get_closest_marker("mount")
    return mounts(*marker.args, **marker.kwargs) if marker else mounts()
