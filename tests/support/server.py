"""A server of one test: mounted, watched, stopped, and its log read."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msharefs
from msharefs.cli import check

from . import fusectl, namespace, proc, served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

HERE = Path(__file__).parent
START_LIMIT = 30.0  # seconds: a slow machine imports for a while
STOP_LIMIT = 15.0
STACKS_WAIT = 1.0
TROUBLE = re.compile(
    r"^(Traceback \(most recent call last\)|Fatal Python error|watchdog:)", re.MULTILINE
)


class Mount:
    """One mount point with its state directory, and its server (or several, one after the other).

    Everything is under `base`, which must be on a tmpfs, and open to other users for tests that
    change their user. The server runs in the foreground in its own session, and its output goes to
    `log`. `limit` is the time in seconds that one server may live before the watchdog dumps its
    stacks and ends it. `seconds` are limits of the server that are to be others (serve.py).
    """

    def __init__(
        self,
        base: Path,
        options: tuple[str, ...] = (),
        limit: float = 60.0,
        seconds: Mapping[str, float] | None = None,
    ) -> None:
        self.base = base
        self.path = base / "mnt"
        self.state = base / "state"
        self.log = base / "server.log"
        self.options = (f"state={self.state}", *options)
        self.limit = limit
        self.start_limit = START_LIMIT
        self.seconds = dict(seconds or {})
        self.wrapper: tuple[str, ...] = ()
        """A command that runs the server."""
        self.damaged = False
        """The test damages regions itself, and says here that nobody needs to look."""
        self.process: served.Served | subprocess.Popen[bytes] | None = None
        self._minor = -1
        self._crashed = False
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._expected: list[str] = []
        self.path.mkdir(parents=True)

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self.process is not None, "the server is not running"
        return self.process.pid

    def text(self) -> str:
        """The server's log so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def expect(self, pattern: str) -> None:
        """Allow log entries that match this regular expression, and require at least one."""
        self._expected.append(pattern)

    def start(self) -> None:
        """Start the server and wait until the mount answers."""
        assert self.process is None, "the server is running already"
        before = namespace.at(self.path)
        self._minor = -1
        self._crashed = False
        seconds = " ".join(f"{name}={value}" for name, value in self.seconds.items())
        verb = ["mount", "-f", "-o", ",".join(self.options), str(self.path)]
        with self.log.open("ab") as out:
            out.write(f"to repeat: .venv/bin/msharefs {shlex.join(verb)}\n".encode())
            out.flush()
            environment = {**os.environ, "MSHAREFS_TEST_SECONDS": seconds}
            self.process = served.start(verb, out, environment, self.wrapper)
        pidfd = os.pidfd_open(self.pid)
        try:
            self._minor = self._wait_for_mount(before, pidfd)
            self._watchdog = subprocess.Popen(
                [sys.executable, "-S", HERE / "watchdog.py",
                 str(self.limit), str(self.pid), str(pidfd), str(self._minor), self.log],
                stdin=subprocess.PIPE, start_new_session=True, pass_fds=[pidfd],
            )  # fmt: skip
            (self.path / "mshare_info").stat()
        except BaseException:
            self.clean_up()
            raise
        finally:
            os.close(pidfd)

    def stop(self) -> None:
        """Stop the server like an administrator, by SIGTERM; it must unmount and exit with 0."""
        self._end(signal.SIGTERM)

    def wait(self) -> None:
        """Wait for the end of a server whose mount somebody took away."""
        self._end(None)

    def kill(self) -> None:
        """Let the server crash (SIGKILL). The dead mount stays, and the next server must cope."""
        self._end(signal.SIGKILL)

    def clean_up(self) -> None:
        """Remove everything by force: server, watchdog, mounts and files, if they still exist."""
        if self.process is not None:
            fusectl.abort(self._minor)
            _kill_group(self.process)
            self.process = None
        self._dismiss_watchdog()
        while namespace.at(self.path):
            namespace.detach(self.path)
        shutil.rmtree(self.base, ignore_errors=True)

    @contextlib.contextmanager
    def region(self, size: int, name: str = "r") -> Iterator[msharefs.Region]:
        """A region of so many bytes with nothing in it, whose file goes in the end."""
        path = self.path / name
        with msharefs.open(path, os.O_RDWR | os.O_CREAT) as opened:
            opened.truncate(size)
            yield opened
        path.unlink()

    def check(self) -> list[str]:
        """What `msharefs check` finds wrong with the regions, while the server runs."""
        if self.damaged or not namespace.at(self.path):
            return []
        try:
            result = check.check_all(str(self.path), repair=False)
        except OSError as error:
            return [f"check: {error}"]
        return [
            f"{name}: {each['sentence']}" for name, (_, left) in result.items() for each in left
        ]

    def kernel_stacks(self) -> str:
        """Where it is in the kernel; asking does not wake it."""
        waiting = fusectl.waiting(self._minor)
        return f"server {self.pid}, {waiting} requests not answered:\n{proc.stacks(self.pid)}"

    def write_stacks(self) -> None:
        """Into the log: where it is in the kernel, then in Python, and in its tasks.

        A signal may end what it waits for.
        """
        assert self.process is not None
        with self.log.open("a") as out:
            print(self.kernel_stacks(), file=out)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            self.process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STACKS_WAIT)

    def problems(self) -> list[str]:
        """Everything wrong that this mount left behind or logged, after the last stop."""
        found = []
        log = self.text()
        for pattern in self._expected:
            log, count = re.subn(pattern, "", log)
            if count == 0:
                found.append(f"the server's log lacks what the test expects: {pattern}")
        if TROUBLE.search(log):
            found.append("the server's log has a traceback nobody expects")
        if self._crashed:
            return found  # a crash leaves mount and state, as it should
        if namespace.at(self.path):
            found.append(f"{self.path} is still mounted")
        if self.state.exists() and any(self.state.iterdir()):
            left = sorted(str(path.relative_to(self.state)) for path in self.state.rglob("*"))
            found.append(f"the state directory still holds {', '.join(left)}")
        return found

    def _wait_for_mount(self, before: namespace.MountPoint | None, pidfd: int) -> int:
        """Minor device number of the new mount; the kernel tells when the mount table changes."""
        with Path("/proc/self/mountinfo").open("rb") as table:
            poll = select.poll()
            poll.register(table, select.POLLPRI)
            poll.register(pidfd, select.POLLIN)
            while True:
                mount = namespace.at(self.path)
                # Minor and mount id of a stale mount may be given again to the one in its place.
                if mount and (before is None or self._answers()):
                    return mount.minor
                events = poll.poll(self.start_limit * 1000)
                if not events:
                    self.write_stacks()
                    raise self._failed(f"no mount after {self.start_limit:g} s")
                if any(fd == pidfd for fd, _ in events):
                    raise self._failed("the server ended before it had mounted")

    def _answers(self) -> bool:
        """Whether a live server is behind the mount point."""
        try:
            self.path.stat()
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                return False
            raise
        return True

    def _end(self, number: signal.Signals | None) -> None:
        process = self.process
        assert process is not None, "the server is not running"
        if number is not None:
            process.send_signal(number)
        try:
            status = process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self.write_stacks()
            ignored = number.name if number is not None else "that its mount is gone"
            failure = self._failed(f"the server ignores {ignored}")
            self.clean_up()
            raise failure from None
        self.process = None
        self._crashed = number == signal.SIGKILL
        self._dismiss_watchdog()
        expected = -number if number == signal.SIGKILL else 0
        if status != expected:
            raise self._failed(f"the server ended with status {status}")

    def _failed(self, what: str) -> AssertionError:
        return AssertionError(f"{what}; its log:\n{self.text()}")

    def _dismiss_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.communicate(b"!")
            self._watchdog = None


@contextlib.contextmanager
def mounting(base: Path) -> Iterator[Callable[..., Mount]]:
    """Gives a function that makes mounts below `base`; at the end all must have gone well."""
    made: list[Mount] = []

    def make(
        *options: str,
        limit: float = 60.0,
        start: bool = True,
        seconds: Mapping[str, float] | None = None,
    ) -> Mount:
        mount = Mount(base / f"mount{len(made)}", options, limit, seconds)
        made.append(mount)
        if start:
            mount.start()
        return mount

    yield make
    problems: list[str] = []
    for mount in made:
        try:
            if mount.process is not None:
                problems += mount.check()
                mount.stop()
            problems += mount.problems()
        except AssertionError as error:
            problems.append(str(error))
        finally:
            # Shown by pytest beside a failure of the test or of this clean-up.
            print(f"--- {mount.log}\n{mount.text()}")
            mount.clean_up()
    assert not problems, "\n".join(problems)


def _kill_group(process: served.Served | subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
