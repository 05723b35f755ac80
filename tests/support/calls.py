"""System calls as the tests make them: expected errnos, other users, a refused mmap(2)."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import pickle
import resource
import signal
from typing import TYPE_CHECKING, TypeVar

import pytest

from . import libc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

NOBODY = 65534
# Another user, who must be able to read the tests' Python: that may lie in root's home.
AS_NOBODY = (
    f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups"
    " --inh-caps=+dac_read_search --ambient-caps=+dac_read_search"
)


@contextlib.contextmanager
def refused(number: int) -> Iterator[None]:
    """The block must fail with this errno."""
    with pytest.raises(OSError) as caught:  # noqa: PT011  # the errno is compared below
        yield
    found = caught.value.errno
    assert found == number, (
        f"{errno.errorcode.get(found or 0, found)}, not {errno.errorcode[number]}"
    )


def mmap_refused(fd: int, length: int, prot: int, flags: int, number: int) -> None:
    """mmap(2) must fail with that errno."""
    with refused(number):
        libc.mmap(fd, length, prot, flags)


def in_child(work: Callable[[], T], *, uid: int = 0, gid: int = 0, umask: int = 0o022) -> T:
    """The result of `work` in a child process of that user, with no other groups.

    An OSError there is raised here, too; any other end of the child fails the test.
    """
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(receiver)
            faulthandler.disable()  # a signal here is what the test wants to see
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.umask(umask)
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            try:
                answer: object = (True, work())
            except OSError as error:
                answer = (False, (error.errno, error.strerror))
            os.write(sender, pickle.dumps(answer))
        finally:
            os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    if not data:
        raise AssertionError(f"the child ended with status {status} ({_signal(status)})")
    succeeded, value = pickle.loads(data)  # noqa: S301  # our own child's
    if not succeeded:
        raise OSError(*value)
    return value


def _signal(status: int) -> str:
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "no signal"
