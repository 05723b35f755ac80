"""The server of one mount: takes the state directory, mounts, answers until it is unmounted.

``msharefs mount`` calls `start`, which returns when the mount works, with the server detached; or
it raises OSError with a sentence, and then nothing has changed. The heavy modules are imported
after the last fork, because libfuse, trio and the threads they start do not survive one.

SIGTERM, SIGINT and SIGHUP unmount; SIGUSR1 writes all stacks to the log. The server itself never
touches a file of its mount: that would wait for its own answer.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import logging
import os
import resource
import select
import signal
import sys
import traceback
from typing import TYPE_CHECKING, NoReturn

from msharefs import mountpoint, proc
from msharefs.native import lib

from . import devices, logs
from .notify import Notifier
from .state import StateDirectory

if TYPE_CHECKING:
    from collections.abc import Callable

    from .options import MountOptions

log = logging.getLogger(__name__)

_READY = "ready"
_START_SECONDS = 60.0
_MAPPED_BYTES = 128 << 10  # what is larger malloc maps; so it does at first


def start(options: MountOptions) -> None:
    """Mount; returns when the mount works, or with `options.foreground` when it has ended.

    The directory must be free (`mountpoint.make_free`). OSError with a sentence if it cannot be
    done.
    """
    devices.check()
    if options.allow_other and not devices.others_allowed():
        raise OSError(
            errno.EPERM,
            "-o allow_other: only root may let others in, unless /etc/fuse.conf has a line "
            "user_allow_other; add that, or mount without",
            str(options.directory),
        )
    if options.foreground:
        run(options, lambda: None)
        return
    said = _detach(options)
    if said != _READY:
        text = said or "the server ended before the mount worked; try again with -f to see why"
        raise OSError(errno.EIO, text)
    if mountpoint.probe(options.directory) != "alive":
        raise OSError(
            errno.EIO,
            f"the server does not answer; its log is {options.state / 'log'}",
            str(options.directory),
        )


def run(options: MountOptions, ready: Callable[[], None]) -> None:
    """Be the server, in this process.

    Calls `ready` when the kernel has shaken hands. Needs a main thread.
    """
    _raise_descriptor_limit()
    _have_memory_given_back()
    os.umask(0)  # the kernel has applied the caller's
    os.chdir("/")
    state = StateDirectory(options)
    clear = state.fresh  # if it fails before the mount works; an adopted directory stays
    manager = Notifier()

    def mounted() -> None:
        nonlocal clear
        clear = False
        manager.ready()
        ready()

    try:
        stream = logs.set_up(
            None if options.foreground else state.log, options.directory, debug=options.debug
        )
        faulthandler.enable(stream)
        faulthandler.register(signal.SIGUSR1, stream, all_threads=True)
        # From here on libfuse, trio, threads: no fork.
        try:
            from .serving import serve_mount
        except ImportError as error:
            if "fuse" not in str(error):
                raise
            raise OSError(
                errno.ELIBBAD,
                f"libfuse 3.14 or later does not load ({error}): install it (Debian's package "
                "libfuse3-3, from Debian 12 on), then run make setup again",
            ) from None

        clear = serve_mount(options, state, mounted, manager)
    finally:
        faulthandler.unregister(signal.SIGUSR1)
        state.release(clear=clear)


def _raise_descriptor_limit() -> None:
    """Allow as many descriptors as the system does, or at least as this user may have.

    The server needs one for each inode the kernel knows, two for each attached process, and two for
    each region that has some (parking.py).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(hard, int(proc.sysctl("fs/nr_open")))
    for limit in (most, hard):
        with contextlib.suppress(ValueError):  # only root may go beyond its hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            return


def _have_memory_given_back() -> None:
    """Has malloc share between threads what it has, and keep no more than it does at first.

    By itself it makes an arena for each thread, and what one frees there no other gets. And since
    it has seen how libfuse frees a buffer of a MiB, each arena would keep two of them.
    """
    lib.mallopt(lib.M_ARENA_MAX, 1)
    lib.mallopt(lib.M_MMAP_THRESHOLD, _MAPPED_BYTES)


def _detach(options: MountOptions) -> str:
    """Start the server as a grandchild in its own session.

    Returns its message: `_READY`, a sentence, or nothing if it died. ETIMEDOUT: it says nothing.
    """
    receiver, sender = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        os.setsid()
        if os.fork() != 0:  # not the leader of the session: it can get no terminal
            os._exit(0)
        _serve_detached(options, sender)
    os.close(sender)
    os.waitpid(child, 0)
    with open(receiver, encoding="utf-8", errors="replace") as pipe:
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        if not poll.poll(_START_SECONDS * 1000):
            raise TimeoutError(
                errno.ETIMEDOUT,
                f"the server has not said for {_START_SECONDS:g} s whether the mount works, and "
                f"may still do; its log is {options.state / 'log'}, and `msharefs umount` ends it",
                str(options.directory),
            )
        return pipe.read()


def _serve_detached(options: MountOptions, sender: int) -> NoReturn:
    """The grandchild: its first message goes to `sender`, the others to the log."""

    def tell(message: str) -> None:
        # An interrupted command reads no more, but the mount works.
        with contextlib.suppress(BrokenPipeError):
            os.write(sender, message.encode())
        os.close(sender)

    told = False

    def ready() -> None:
        nonlocal told
        told = True
        tell(_READY)

    status = 1
    try:
        run(options, ready)
        status = 0
    except OSError as error:
        if told:
            log.error("%s", error)  # noqa: TRY400  # a sentence, as on the terminal
        else:
            name = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
            tell(f"{name}{error.strerror or error}")
    except BaseException:
        if told:
            log.exception("the server failed")
        else:
            tell(f"the server failed: {traceback.format_exc()}")
    finally:
        os._exit(status)
