"""The part of the server that serves.

It is a module of its own because importing it loads libfuse, which must come after the last fork.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from typing import TYPE_CHECKING

import trio

from msharefs import mountpoint, proc
from msharefs.native import lib

from . import devices, fuse, shortage
from .control import Control
from .fs import Filesystem
from .fuse import pyfuse3
from .ioctls import Ioctls
from .regions import Regions
from .tree import Tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from .notify import Notifier
    from .options import MountOptions
    from .state import StateDirectory

log = logging.getLogger(__name__)

# Nobody waits for this: it only decides how long memory stays after its last user has gone.
_ATTACHED_POLL_SECONDS = 0.5
_GONE_POLL_SECONDS = 5.0
_REPORT_SECONDS = 5.0
# How long the last look for processes that have ended may take: it decides whether files stay.
_LAST_LOOK_SECONDS = 2.0
END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def serve_mount(
    options: MountOptions, state: StateDirectory, ready: Callable[[], None], manager: Notifier
) -> bool:
    """Mount and serve until the end; True if nothing in the state directory is needed any more.

    `ready` is called when the kernel has shaken hands; `manager` may start services.
    """
    try:
        return trio.run(_serve, options, state, ready, manager)
    except BaseExceptionGroup as group:
        raise _only_leaf(group) from None


async def _serve(
    options: MountOptions, state: StateDirectory, ready: Callable[[], None], manager: Notifier
) -> bool:
    if options.nice:
        _ask_for_processors(options)
    with contextlib.ExitStack() as stack:
        tree = Tree(state.tree, state.gone)
        stack.callback(tree.close)
        regions = Regions(options, state.store, state.path)
        stack.callback(regions.close)
        sizes = tree.region_sizes()
        with shortage.named(len(sizes)):
            await regions.adopt(sizes, tree.region_users())
            control = Control(regions, state.path)
        async with trio.open_nursery() as nursery:
            await nursery.start(regions.charges.run)
            # Clients that an earlier server left come back as soon as there is a socket.
            await nursery.start(control.run)
            nursery.start_soon(regions.find_objects)
            nursery.start_soon(regions.watch_adopted)
            nursery.start_soon(_look_after, state)
            nursery.start_soon(_report, regions, manager)
            await nursery.start(regions.owners.run)
            end = await nursery.start(_end_on_signal)
            filesystem = Filesystem(tree, regions, Ioctls(regions, control), options, ready)
            fuse.mount(
                filesystem,
                options.directory,
                _mount_options(options),
                passthrough=options.passthrough,
            )
            mount = mountpoint.covering(options.directory)
            if mount is not None:
                regions.mounted(mount.device)
                nursery.start_soon(regions.forget_unused_devices, mount.device)
            log.info("mounted on %s, state in %s", options.directory, state.path)
            try:
                await fuse.serve(filesystem, end)
            finally:
                fuse.unmount()
            manager.stopping()
            log.info("unmounted from %s", options.directory)
            await filesystem.shut_down()
            if not end.is_set() and await regions.attached():
                await _outlive_mount(regions, state, end)
            attached = await regions.attached(_LAST_LOOK_SECONDS)
            if attached:
                log.warning("the next server on %s takes over %d attachments", state.path, attached)
            nursery.cancel_scope.cancel()
        return attached == 0


def _ask_for_processors(options: MountOptions) -> None:
    """How soon we get one is up to Linux; without the right, or on older kernels, we do without."""
    if lib.prompt_thread(options.nice):
        return
    # Where Linux weighs sessions (sched(7), autogroup), a nice value counts only among their own
    # processes. A session that somebody else is in is not ours to change.
    if not options.foreground or os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            proc.set_session_nice(options.nice)


async def _outlive_mount(regions: Regions, state: StateDirectory, end: trio.Event) -> None:
    """The mount is gone, but processes are still attached: serve them until they are gone too.

    In the kernel, too, a mapping keeps its memory after umount(2), and the memory goes back after
    that. A signal ends this earlier.
    """
    log.info("%d attachments keep this server", await regions.attached())
    state.say_unmounted()
    while await regions.attached() and not end.is_set():
        with trio.move_on_after(_ATTACHED_POLL_SECONDS):
            await end.wait()


async def _look_after(state: StateDirectory) -> None:
    """Has the log say that the state directory is gone, also where nobody asks for a name."""
    while not state.gone():  # noqa: ASYNC110  # nothing tells us
        await trio.sleep(_GONE_POLL_SECONDS)


async def _report(regions: Regions, manager: Notifier) -> None:
    """How the mount is doing, for the service manager; nobody else hears of it."""
    while manager.listens:
        with contextlib.suppress(OSError):
            attached = await regions.attached()
            manager.status(f"{len(regions)} regions, {attached} attachments")
        await trio.sleep(_REPORT_SECONDS)


async def _end_on_signal(
    task_status: trio.TaskStatus[trio.Event] = trio.TASK_STATUS_IGNORED,
) -> None:
    end = trio.Event()
    with trio.open_signal_receiver(*END_SIGNALS) as signals:
        task_status.started(end)
        async for number in signals:
            log.info("%s: ending", signal.Signals(number).name)
            end.set()


def _mount_options(options: MountOptions) -> set[str]:
    """Options for libfuse. fsname and subtype make it "msharefs on DIR type fuse.msharefs"."""
    source = options.source.replace("\\", "\\\\").replace(",", "\\,")
    given = {
        *pyfuse3.default_options,
        *options.flags,
        f"fsname={source}",
        "subtype=msharefs",
        "default_permissions",
    }
    if devices.others_allowed():
        given.add("allow_other")
    else:
        log.warning(
            "only this user can use the mount: /etc/fuse.conf does not have user_allow_other"
        )
    return given


def _only_leaf(error: BaseException) -> BaseException:
    """The one exception inside nested groups, so that an OSError's sentence reaches the user."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
