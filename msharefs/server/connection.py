"""One connection of the control socket, and what its client may ask.

A connection begins as one end of a socket pair that a client named in ioctl(MSHAREFS_CONNECT), and
has the rights of the descriptor that the ioctl was made on. If the server may not fetch the socket
(Yama), the ioctl answers with a token for the socket in the state directory. A client that was
attached when an earlier server died shows its host mm there instead. Messages: messages.py.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import logging
import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import trio

from msharefs import proc, processes, verbs
from msharefs.native import ffi, lib

from . import descriptors, fetching, tracing
from .connections import SILENT_SECONDS
from .messages import (
    NO_REPLY,
    Reply,
    Request,
    client_socket,
    duplicated,
    peer,
    peer_mark,
    read_only,
    send,
)
from .operations import HANDLERS
from .paying import Paying
from .readers import Reader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from .connections import Connections
    from .inboxes import Inboxes
    from .region import Region
    from .regions import Regions
    from .tokens import Tokens
    from .turns import Turns

log = logging.getLogger(__name__)

# Of an ioctl's number: the size of its argument.
_SIZE_SHIFT, _SIZE_MASK = 16, 0x3FFF
# What the client is told of ordinary calls on its window; refuse: nothing.
_WINDOWS = {"inner": lib.ATTACH_INNER, "private": lib.ATTACH_PRIVATE}


class Control(Protocol):
    """What all connections of a mount have in common: control.Control."""

    regions: Regions
    path: Path
    """Of the socket."""
    connections: Connections
    inboxes: Inboxes
    tokens: Tokens
    turns: Turns
    userfaultfd: int
    """/dev/userfaultfd, to be passed; -1: it is not."""

    def serve(self, connection: Connection) -> None:
        """Starts to serve a connection."""

    def start(self, work: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        """Starts a task. ENOTCONN: the socket is not open yet."""


# Of a process that has ended others may have the socket, and send for ever.
_LAST_MESSAGES = 64
# Of a program, to find one that has its memory.
_ASKED_THREADS = 8
_numbers = itertools.count()


class Connection:
    """A client's connection: to one region, with the rights of `flags` (O_RDONLY, O_RDWR)."""

    def __init__(
        self,
        control: Control,
        sock: socket.socket,
        region: Region | None,
        flags: int,
        user: int | None = None,
    ) -> None:
        """EMFILE, EINVAL: `Connections` does not admit it; the socket is closed."""
        self._control = control
        self.number = next(_numbers)
        self.region = region
        self.flags = flags
        self.pid, self.user = peer(sock)
        """The process that made it, and the user who pays for what it makes us do."""
        if user is not None:
            self.user = user
        self._sock = sock
        sock.setblocking(False)
        self._inbox = control.inboxes.open(sock, self.user, f"process {self.pid}")
        try:
            self._member = control.connections.admit(sock, self.user, self._cut)
        except BaseException:
            self._inbox.close()
            raise
        self._life = trio.CancelScope()
        self._rest = float("inf")
        """So many messages are read before the end."""
        self.started = self.mark = 0
        self.slot: int | None = None
        self._claim = 0
        self.uffd = -1
        self.reader = False
        """A client that may only read: it cannot write the host mm, and we do it on its behalf."""
        self._answers: dict[int, _Answer] = {}
        self._last_seq = 0
        self._faults = Reader(sock, self.pid, self.user, control.start)
        self._paying = Paying(sock, self.user, control.start)

    async def run(self) -> None:
        """Serves the client until it goes; then so does its attachment.

        If the server ends first, the attachment stays, for the next server.
        """
        try:
            with self._life:
                while self._goes_on() and (request := await self._receive()) is not None:
                    self._rest -= 1
                    turn = await self._control.turns.take(self.user, self._member.inode)
                    try:
                        await self._handle(request)
                    finally:
                        self._control.turns.charge(self.user, turn)
                        request.close()
        except OSError as error:
            log.debug("connection of process %d: %s", self.pid, error)
        except Exception:
            log.exception("connection of process %d failed; it is closed", self.pid)
        finally:
            self.close()
        try:
            await self._leave()
        except Exception:
            log.exception("letting go of process %d failed", self.pid)
        for answer in self._answers.values():
            answer.set(0)

    def close(self) -> None:
        """Closes the socket, and also ends what others have of it."""
        self._faults.close()
        self._hang_up()
        trio.lowlevel.notify_closing(self._sock)
        self._inbox.close()
        self._control.connections.dismiss(self._member)

    def end(self) -> None:
        """Hangs up: `run` ends when it has read what is there. A child may have said hello."""
        self._rest = min(self._rest, _LAST_MESSAGES)
        if not self._goes_on():
            self._cut()

    def _goes_on(self) -> bool:
        return self._rest > _LAST_MESSAGES or (self._rest > 0 and self.has_news())

    def _cut(self) -> None:
        """`run` ends at once."""
        self._life.cancel()

    async def _receive(self) -> Request | None:
        """The next message; None: the connection has ended. Without an attachment it ends soon."""
        if self.slot is None or self._rest <= _LAST_MESSAGES:
            self._life.deadline = trio.current_time() + SILENT_SECONDS
        try:
            try:
                return await self._inbox.get()
            except ConnectionResetError:
                # Linux says so once: it has gone, and has not read all. What came before is there.
                return await self._inbox.get()
        finally:
            self._life.deadline = float("inf")

    async def ask(self, op: int, *arguments: int) -> int:
        """Sends the client a message and waits for its answer (see clients.Client)."""
        self._last_seq += 1
        seq = self._last_seq
        answer = self._answers[seq] = _Answer()
        try:
            await send(self._sock, op, seq, Reply(arguments=arguments), self.user)
            return await answer.get()
        except OSError as error:
            log.debug("process %d went away: %s", self.pid, error)
            self._hang_up()
            return 0
        finally:
            del self._answers[seq]

    def _hang_up(self) -> None:
        """Lets the client see that the connection has ended; so does `run`."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def has_news(self) -> bool:
        """Whether a message of the client has not been read yet."""
        return self._inbox.has_news()

    def has_ended(self) -> bool:
        """Whether the client has closed its end, whether we have read all before that or not."""
        return self._inbox.has_ended()

    async def _handle(self, request: Request) -> None:
        if request.op == lib.MSG_REPLY:
            if request.seq in self._answers:
                self._answers[request.seq].set(request.result)
            return
        handler = _HANDLERS.get(request.op)
        try:
            if handler is None:
                raise OSError(errno.EPROTO, f"process {self.pid} sent message {request.op}")
            if self.region is None and not _stands_alone(request):
                raise OSError(
                    errno.EPERM, f"process {self.pid} has not shown a right to any region"
                )
            # A client asks for these inside a fault, which the end of a region may wait for.
            if self.region is not None and request.op not in _INSIDE_FAULT:
                await self.region.settle()
            reply = await handler(self, request) or Reply()
        except OSError as error:
            log.debug("process %d, message %d: %s", self.pid, request.op, error)
            if self.region is not None:
                self.region.refused(self.pid, error)
            reply = Reply(result=-(error.errno or errno.EIO), text=str(error.strerror).encode())
        try:
            if reply is not NO_REPLY:
                await send(self._sock, lib.MSG_REPLY, request.seq, reply, self.user)
        except (BrokenPipeError, ConnectionResetError):
            # It said goodbye and has gone. Behind that a child of its may say hello: we read on.
            log.debug("process %d has not waited for its answer", self.pid)
        finally:
            reply.close()

    # The messages

    async def _token(self, request: Request) -> None:
        self._check_unsettled()  # its attachment is one of the region that it has
        self.region, self.flags = self._control.tokens.redeem(request.text[:16])

    async def _attach(self, request: Request) -> Reply:
        self._control.connections.check_clients()
        host = self._region.sized()
        self._region.check_unadopted()
        if self._region.ended:
            raise OSError(
                errno.EINVAL, f"{self._region.name} has ended with its owner; make a new one"
            )
        if self.flags & os.O_ACCMODE not in (os.O_RDONLY, os.O_RDWR):
            # Linux maps nothing that is not open for reading. The library has other checks first.
            return Reply(result=-errno.EACCES, arguments=(host.size, host.quantum))
        writes = request.arguments[0] & lib.VMA_WRITE
        if writes and self.flags & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(
                errno.EACCES, f"{self._region.name}: a read-only descriptor, attach PROT_READ"
            )
        self.reader = self._reads_only() and not self._region.quirks
        flags = (
            (lib.ATTACH_READER if self.reader else 0)
            | (lib.ATTACH_ANY_PROT if self._region.quirks else 0)
            | _WINDOWS.get(self._region.window, 0)
            | (lib.ATTACH_CHARGED if self._region.account is not None else 0)
        )
        files = read_only(host.fd, host.mem_fd) if self.reader else duplicated(host.fd, host.mem_fd)
        return Reply(
            arguments=(host.size, host.quantum, flags),
            text=os.fsencode(self._control.path),
            fds=[*files, *duplicated(self._control.userfaultfd)],
            own=True,  # the region may close its files while we wait to send
        )

    async def _adopt(self, request: Request) -> Reply:
        del request
        if self.flags & os.O_ACCMODE != os.O_RDWR:
            raise OSError(errno.EACCES, f"{self._region.name}: memory is adopted to be written")
        return Reply(fds=[self._control.regions.adopt_memory(self._region.ident)], own=True)

    async def _look(self, request: Request) -> None:
        del request
        if self.user not in (0, os.geteuid()):
            raise OSError(errno.EPERM, f"user {self.user} may not look at all regions")
        await self._control.regions.look_at_pages()

    async def _ready(self, request: Request) -> None:
        await self._settle(request)
        self._note(lib.TRACE_attach)
        self._arrange()

    async def _fault(self, request: Request) -> Reply:
        host, slot, account = self._region.sized(), self._reading(), self._region.account
        if account is not None:
            return self._paying.fault(account, host, slot, request, self._faults)
        return self._faults.fault(host, slot, request)

    async def _charge(self, request: Request) -> Reply:
        if self.slot is None or self.reader:
            raise OSError(errno.EPERM, f"process {self.pid} is not attached to be written")
        return self._paying.charge(self._region.account, self._region.sized(), request)

    async def _figures(self, request: Request) -> Reply:
        if self.slot is not None:
            self._take_figures(request)
        return NO_REPLY

    async def _forked(self, request: Request) -> Reply:
        sock = client_socket(request.take_fd(), self.user)
        # Whoever made that socket, this client pays: it may be any process's.
        child = Connection(self._control, sock, self.region, self.flags, self.user)
        child.reader = self.reader
        try:
            await child._settle(request)  # a Connection, too
            child._note(lib.TRACE_fork)
            self._control.serve(child)
            child._arrange()
        except OSError as error:  # the child has ended already
            log.debug("child of process %d: %s", self.pid, error)
            child.close()
        return NO_REPLY

    async def _rejoin(self, request: Request) -> None:
        self._check_unsettled()
        shown = request.take_fd()
        try:
            rights = _rights(shown)
            mount = descriptors.mount_of(shown)
            found = await descriptors.elsewhere(
                lambda: os.fstat(shown), f"process {self.pid}", user=self.user, mount=mount
            )
        finally:
            descriptors.close_later(shown, user=self.user)
        region = self._control.regions.by_host(found.st_dev, found.st_ino)
        if region is None:
            raise OSError(errno.ESTALE, f"process {self.pid} shows a host mm that is not ours")
        before = self.region, self.flags, self.reader
        # Whom an earlier server gave the host mm for reading cannot show it open for writing.
        self.region, self.flags, self.reader = region, rights, rights == os.O_RDONLY
        try:
            await self._settle(request)
        except BaseException:
            self.region, self.flags, self.reader = before  # who fails to rejoin has shown no right
            raise
        self._region.sized().clients.rejoined = trio.current_time()
        # Accesses were refused while no server was there; those pages may be mapped by now.
        self._control.start(self.ask, lib.MSG_REARM, 0, self._region.sized().size)
        self._arrange()

    async def _detach(self, request: Request) -> None:
        if self.slot is not None:
            self._take_figures(request)
        await self._leave(detached=True)

    async def _map(self, request: Request) -> None:
        offset, size, prot, flags, object_offset = request.arguments
        create = verbs.Create(offset, size, object_offset, prot & 0xFFFFFFFF, flags & 0xFFFFFFFF)
        given = None if create.flags & verbs.MAP_ANONYMOUS else request.take_fd(errno.EBADF)
        await self._region.create_mapping(create, self.flags, self.pid, self.user, given)

    async def _unmap(self, request: Request) -> None:
        offset, size, *_ = request.arguments
        await self._region.unmap(offset, size, self.flags, self.pid)

    async def _protect(self, request: Request) -> None:
        offset, size, prot, flags, *_ = request.arguments
        await self._region.protect(offset, size, prot, flags, self.flags, self.pid)

    async def _verb(self, request: Request) -> Reply:
        command = request.arguments[0]
        if command not in HANDLERS:
            raise OSError(errno.ENOTTY, f"{self._region.name}: there is no verb {command:#x}")
        data = request.text.ljust(command >> _SIZE_SHIFT & _SIZE_MASK, b"\0")
        answer = await HANDLERS[command](self._region, data, self.flags, self.pid)
        return Reply(fds=[_told(answer)], own=True) if answer else Reply()

    async def _window(self, request: Request) -> None:
        self._check_unsettled()
        number, slot, claim, base, *_ = request.arguments
        region = self._control.regions.find(number)
        mark = peer_mark(self._sock)
        clients = region.sized().clients
        client = clients.of_process(self.pid, mark, self.number, slot, claim, base)
        self.region, self.flags = region, client.flags

    async def _object(self, request: Request) -> Reply:
        write = not self._reads_only() or (self._region.quirks and not self.reader)
        host = self._region.sized()
        return Reply(fds=[await host.object(request.arguments[0], write=write)])

    async def _stat(self, request: Request) -> Reply:
        del request
        return Reply(text=bytes(ffi.buffer(await self._region.raw_stat())))

    async def _describe(self, request: Request) -> Reply:
        what = request.text.rstrip(b"\0").decode(errors="replace")
        if self.region is None:  # who is attached to one that no path leads to
            region = self._control.regions.seen_by(request.arguments[0], self.user)
            if what != "clients":
                raise OSError(errno.EINVAL, "of a region by number only its clients are told")
            await region.settle()
            return Reply(fds=[_told(await self._clients(region))], own=True)
        if what == "repair":
            await self._control.regions.repair(self._region.ident, self.flags)
            what = "check"
        if what == "reap":
            answer = json.dumps(await self._region.reap(self.flags)).encode()
        elif what == "watch-stores":
            await self._region.watch_stores(self.flags)
            answer = b"null"
        elif what == "refusal":
            answer = json.dumps(self._region.refusal(self.pid)).encode()
        elif what == "trace":
            answer = json.dumps(self._region.trace(request.arguments[1], self.flags)).encode()
        elif what == "watch-touches":
            self._region.watch_touches(request.arguments[1], self.flags)
            answer = b"null"
        elif what == "clients":
            answer = await self._clients(self._region)
        else:
            answer = await self._region.describe(what)
        return Reply(fds=[_told(answer)], own=True)

    async def _clients(self, region: Region) -> bytes:
        """All that have a region attached or mapped, as JSON."""
        native = await self._control.regions.native_mappings(region.ident)
        return await region.describe("clients", native)

    # Common parts

    def _reads_only(self) -> bool:
        return self.flags & os.O_ACCMODE == os.O_RDONLY

    def _reading(self) -> int:
        """The slot that we have for a reader. EPERM: it is none, or not attached."""
        if self.slot is None or not self.reader:
            raise OSError(errno.EPERM, f"process {self.pid} is not attached for reading only")
        return self.slot

    def _take_figures(self, request: Request) -> None:
        host = self._region.host
        if self.reader and host is not None:
            figures = ffi.from_buffer("struct figures *", request.text)
            lib.readers_figures(host.mm, self._reading(), figures)

    @property
    def _region(self) -> Region:
        assert self.region is not None
        return self.region

    def _check_unsettled(self) -> None:
        """EISCONN: the connection has an attachment, and holds its userfaultfd."""
        if self.slot is not None:
            raise OSError(
                errno.EISCONN, f"process {self.pid} is attached by this connection: DETACH first"
            )

    async def _settle(self, request: Request) -> None:
        """The client is attached: from now on its death frees its slot.

        Its userfaultfd is the request's next descriptor.
        """
        self._check_unsettled()
        self._region.sized()
        uffd = request.take_fd()
        try:
            await self._introduce(request)
            self.mark = processes.mark(self.pid)
            self.started = await fetching.start_time(self.pid, self.user)
            host = self._region.sized()  # it may have gone meanwhile
            if not processes.is_userfaultfd(uffd):
                raise OSError(errno.EBADF, f"process {self.pid} sent no userfaultfd")
            self._control.connections.attach(self._member)
            if self.reader:
                slot, claim = host.clients.claim_for(
                    self, *request.arguments, fresh=request.op != lib.MSG_REJOIN
                )
            else:
                slot, claim, *_ = request.arguments
            host.clients.connect(slot, claim, self)
        except BaseException:
            self._control.connections.let_go(self._member)
            descriptors.close_later(uffd, user=self.user)
            raise
        self.slot, self.uffd, self._claim = slot, uffd, claim
        self._take_figures(request)

    async def _introduce(self, request: Request) -> None:
        """A socket of a shadow (native/client/shadow.h) comes with a pidfd of the program.

        Both are one address space, or it is some other process that the client would like to be.
        """
        if not request.has_fd():
            return
        pidfd = request.take_fd()
        try:
            program = proc.pid_of(pidfd)
        finally:
            descriptors.close_later(pidfd, user=self.user)
        # Its first thread may have ended, and has no memory then.
        threads = processes.holders_of_descriptors(program) if program else iter(())
        for thread in itertools.islice(threads, _ASKED_THREADS):
            if await fetching.same_memory(thread, self.pid, self.user):
                self.pid = program
                break

    def _note(self, kind: int) -> None:
        """An event of the attachment, for whoever traces the region."""
        host = self._region.host
        client = None if host is None or self.slot is None else host.attachment(self.slot)
        if host is not None and client is not None:
            tracing.note(host, kind, self.pid, client.offset, client.offset + client.size)

    def _arrange(self) -> None:
        """Tells a client that comes while anything is executable to arrange its window."""
        host = self._region.sized()
        if host.executes() and not lib.mm_adopted(host.mm, self.slot):
            self._control.start(self.ask, lib.MSG_ARRANGE, 0, host.size)

    async def _leave(self, *, detached: bool = False) -> None:
        """The attachment ends, unless only the connection has: then the client will rejoin."""
        if self.slot is None:
            return
        self._note(lib.TRACE_detach)
        slot, self.slot = self.slot, None
        self._control.connections.let_go(self._member)
        uffd, self.uffd = self.uffd, -1
        region = self._region
        if region.host is not None:
            region.host.clients.disconnect(slot, self)
        try:
            lost = not detached and await self._is_alive(uffd)
        finally:
            # In a thread, as all that takes a lock of the client's memory: it may hold that.
            if region.host is not None and region.host.clients.lane.busy:  # it may use it
                close = partial(descriptors.close_later, uffd, user=self.user)
                region.host.clients.lane.afterwards(close)
            elif detached:  # it is told when that is done
                await descriptors.close(uffd, user=self.user)
            else:
                descriptors.close_later(uffd, user=self.user)
        if region.host is not None and not lost:
            try:
                await region.host.clients.reap(slot, self._claim)
            except OSError as error:  # `reap_dead` finds it again
                log.debug("process %d: %s", self.pid, error)
        self._control.regions.drop_unused(region.ident)

    async def _is_alive(self, uffd: int) -> bool:
        """Whether the memory of a userfaultfd lives; True also if that cannot be told in time."""
        if not processes.runs(self.pid):
            return False
        try:
            return await descriptors.elsewhere(
                lambda: bool(lib.uffd_alive(uffd)), f"process {self.pid}", user=self.user
            )
        except OSError:
            return True


class _Answer:
    """A client's answer, to come."""

    def __init__(self) -> None:
        self._event = trio.Event()
        self._result = 0

    def set(self, result: int) -> None:
        self._result = result
        self._event.set()

    async def get(self) -> int:
        await self._event.wait()
        return self._result


def _rights(shown: int) -> int:
    """O_RDONLY or O_RDWR: how the host mm is open that a client shows. EBADF: in another way.

    The kernel remembers that for us: nobody can make more of a descriptor of our file than what
    a server has given him.
    """
    flags = fcntl.fcntl(shown, fcntl.F_GETFL)
    if flags & os.O_PATH or flags & os.O_ACCMODE not in (os.O_RDONLY, os.O_RDWR):
        raise OSError(errno.EBADF, "a host mm is shown open for reading, or for both")
    return flags & os.O_ACCMODE


def _told(answer: bytes) -> int:
    """A memfd with an answer that is too long for a message."""
    fd = os.memfd_create("msharefs-answer", os.MFD_CLOEXEC)
    try:
        os.write(fd, answer)
    except BaseException:
        os.close(fd)
        raise
    return fd


_INSIDE_FAULT = lib.MSG_OBJECT, lib.MSG_FAULT, lib.MSG_CHARGE
_WITHOUT_REGION = lib.MSG_TOKEN, lib.MSG_REJOIN, lib.MSG_LOOK, lib.MSG_WINDOW


def _stands_alone(request: Request) -> bool:
    """Whether a request needs no right to a region, or names one by its number."""
    by_number = request.op == lib.MSG_DESCRIBE and request.arguments[0]
    return bool(by_number) or request.op in _WITHOUT_REGION


_HANDLERS: dict[int, Any] = {
    lib.MSG_TOKEN: Connection._token,  # noqa: SLF001
    lib.MSG_ATTACH: Connection._attach,  # noqa: SLF001
    lib.MSG_READY: Connection._ready,  # noqa: SLF001
    lib.MSG_FORKED: Connection._forked,  # noqa: SLF001
    lib.MSG_REJOIN: Connection._rejoin,  # noqa: SLF001
    lib.MSG_DETACH: Connection._detach,  # noqa: SLF001
    lib.MSG_MAP: Connection._map,  # noqa: SLF001
    lib.MSG_UNMAP: Connection._unmap,  # noqa: SLF001
    lib.MSG_PROTECT: Connection._protect,  # noqa: SLF001
    lib.MSG_OBJECT: Connection._object,  # noqa: SLF001
    lib.MSG_STAT: Connection._stat,  # noqa: SLF001
    lib.MSG_DESCRIBE: Connection._describe,  # noqa: SLF001
    lib.MSG_ADOPT: Connection._adopt,  # noqa: SLF001
    lib.MSG_LOOK: Connection._look,  # noqa: SLF001
    lib.MSG_FAULT: Connection._fault,  # noqa: SLF001
    lib.MSG_FIGURES: Connection._figures,  # noqa: SLF001
    lib.MSG_VERB: Connection._verb,  # noqa: SLF001
    lib.MSG_WINDOW: Connection._window,  # noqa: SLF001
    lib.MSG_CHARGE: Connection._charge,  # noqa: SLF001
}
