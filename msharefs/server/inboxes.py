"""Receiving what clients send, in threads: a client can make its own socket's receiver wait.

It holds the server's end of the pair that it gave us, too. MSG_DONTWAIT covers what it can set
there, but not its own recvmsg(2): Linux keeps other receivers of a socket out while one copies a
message, and the client may copy it into a page that never comes (userfaultfd, FUSE). Only the
client can end such a wait. A send never waits like that.

So the connections of each user have a thread that receives for them. If one of them holds it up,
that connection ends, and another thread goes on with the rest.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import select
import threading
from typing import TYPE_CHECKING

import trio

from . import descriptors
from .messages import Request, take

if TYPE_CHECKING:
    import socket

    Outcome = Request | OSError | None

log = logging.getLogger(__name__)

# A thread that is found at the same message so often is held up. Once is not enough: after a
# SIGSTOP of ours everything looks late.
_LOOK_SECONDS = 0.5
_LOOKS = 4
# So many threads of a user may be held up before nobody receives for that user.
_STUCK_MAX = 8
# How long a thread may stay that nobody needs any more.
_IDLE_SECONDS = 5.0
_ONCE = select.EPOLLIN | select.EPOLLONESHOT


class Inbox:
    """The messages of one connection, to be asked for one after the other."""

    def __init__(self, sock: socket.socket, sender: str, reader: _Reader) -> None:
        self.sock = sock
        self.sender = sender
        self.registered = False
        """The reader's epoll set knows the socket."""
        self.wanted = False
        """A message is to be received."""
        self.closed = False
        """Nobody waits for messages any more. A thread that is at one closes the socket."""
        self.busy = False
        """A thread is at its socket."""
        self.coming = False
        """What a thread has received is on its way."""
        self._reader = reader
        self._came = trio.Event()
        self._outcome: Outcome = None
        self._held_up = False

    async def get(self) -> Request | None:
        """The next message; None: the connection has ended.

        EPROTO: it is no message. ETIMEDOUT: the client keeps us from receiving.
        """
        if not self._held_up:
            self._came = trio.Event()
            self._reader.arm(self)
            await self._came.wait()
        outcome, self._outcome = self._outcome, None
        if self._held_up:
            raise OSError(errno.ETIMEDOUT, f"{self.sender} keeps its socket from being read")
        if isinstance(outcome, OSError):
            try:
                raise outcome
            finally:  # its traceback has this frame, which would have it: garbage for the collector
                del outcome
        return outcome

    def has_news(self) -> bool:
        """Whether there is a message that nobody has got yet."""
        return self.busy or self.coming or bool(self._poll() & select.POLLIN)

    def has_ended(self) -> bool:
        """Whether the client has closed its end; older messages may still be there."""
        return self.closed or bool(self._poll() & select.POLLHUP)

    def _poll(self) -> int:
        if self.closed:
            return 0
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return sum(events for _, events in poll.poll(0))

    def deliver(self, outcome: Outcome) -> None:
        """A thread has received this."""
        self.coming = False
        if self.closed or self._held_up:
            if isinstance(outcome, Request):
                outcome.close()
            return
        self._outcome = outcome
        self._came.set()

    def hold_up(self) -> None:
        """A thread does not come back from it."""
        self._held_up = True
        self._came.set()

    def close(self) -> None:
        """Closes the socket, at once or when the thread that is at it has come back."""
        self._reader.remove(self)


class Inboxes:
    """The inboxes of all connections."""

    def __init__(self) -> None:
        self._readers: dict[int, _Reader] = {}

    def open(self, sock: socket.socket, user: int, sender: str) -> Inbox:
        """An inbox for a socket, which is the inbox's now; user `user` pays for it."""
        reader = self._readers.get(user)
        if reader is None:
            reader = self._readers[user] = _Reader(user)
        return reader.open(sock, sender)

    async def run(self) -> None:
        """Looks after the threads, until cancelled."""
        while True:
            await trio.sleep(_LOOK_SECONDS)
            for user, reader in list(self._readers.items()):
                if not reader.look():
                    del self._readers[user]


class _Receiver(threading.Thread):
    """A thread of a reader, and what it is doing; protected by the reader's lock."""

    def __init__(self, reader: _Reader) -> None:
        super().__init__(name="msharefs-receive", daemon=True)
        self._reader = reader
        self.at: Inbox | None = None
        self.turns = 0
        self.retired = False
        """It is to end; another has its place if there is more to do."""

    def run(self) -> None:
        while self._reader.receive(self):
            pass


class _Reader:
    """Receives for the connections of one user."""

    def __init__(self, user: int) -> None:
        self._user = user
        self._token = trio.lowlevel.current_trio_token()
        self._epoll = select.epoll()
        # Protects what follows, and the flags of inboxes. Nobody waits with it held.
        self._lock = threading.Lock()
        self._open = 0  # inboxes, also those that nobody has asked for a message yet
        self._inboxes: dict[int, Inbox] = {}
        self._thread: _Receiver | None = None
        self._ended = False
        self._stuck = 0
        self._seen = -1
        self._looks = 0

    def open(self, sock: socket.socket, sender: str) -> Inbox:
        """An inbox, for which this reader stays until it is removed."""
        with self._lock:
            self._open += 1
        return Inbox(sock, sender, self)

    def arm(self, inbox: Inbox) -> None:
        """Lets a thread receive the next message."""
        with self._lock:
            inbox.wanted = True
            if inbox.registered:
                self._epoll.modify(inbox.sock, _ONCE)
            else:
                self._epoll.register(inbox.sock, _ONCE)
                self._inboxes[inbox.sock.fileno()] = inbox
                inbox.registered = True
            self._go_on()

    def remove(self, inbox: Inbox) -> None:
        with self._lock:
            if inbox.closed:
                return
            inbox.closed = True
            self._open -= 1
            if inbox.registered:
                # The client has the socket, too: to close ours would not take it out.
                self._epoll.unregister(inbox.sock)
                del self._inboxes[inbox.sock.fileno()]
            if not inbox.busy:
                self._close(inbox)

    def receive(self, thread: _Receiver) -> bool:
        """One turn of a thread; False: it ends."""
        events = self._epoll.poll(_IDLE_SECONDS, 1)
        with self._lock:
            if thread.retired:
                if self._ended:
                    self._epoll.close()
                return False
            inbox = self._inboxes.get(events[0][0]) if events else None
            if inbox is None or not inbox.wanted:  # another one, by the number of an old one
                return True
            inbox.wanted = False
            thread.at = inbox
            thread.turns += 1
            inbox.busy = True
        outcome: Outcome = None
        again = False
        try:
            outcome = take(inbox.sock, inbox.sender, self._user)
        except BlockingIOError:  # the client has taken it itself
            again = True
        except OSError as error:
            outcome = error.with_traceback(None)  # as in `get`
        with self._lock:
            thread.at = None
            inbox.busy, inbox.coming = False, not again
            # From here on it may also be retired because nobody needs it: then its next turn ends.
            was_stuck = thread.retired
            self._stuck -= was_stuck
            if inbox.closed:
                self._close(inbox)
            elif again:
                inbox.wanted = True
                self._epoll.modify(inbox.sock, _ONCE)
        if not again:
            self._deliver(inbox, outcome)
        return not was_stuck

    def look(self) -> bool:
        """Gives up a thread that is held up; False: nobody needs this reader any more."""
        held_up = None
        with self._lock:
            thread = self._thread
            if thread is None or thread.at is None or thread.turns != self._seen:
                self._looks = 0
                self._seen = thread.turns if thread is not None else -1
            else:
                self._looks += 1
            if thread is not None and self._looks == _LOOKS:
                held_up, thread.retired = thread.at, True
                self._stuck += 1
                self._looks = 0
                self._thread = None
            at_work = self._thread is not None and self._thread.at is not None
            needed = bool(self._open or self._stuck or at_work)
            if self._inboxes:
                self._go_on()
            elif not needed:
                self._ended = True
                if self._thread is None:
                    self._epoll.close()
                else:
                    self._thread.retired = True  # and closes it
                    self._thread = None
        if held_up is not None:
            log.warning("%s keeps its socket from being read: it is cut off", held_up.sender)
            held_up.hold_up()
        return needed

    def _go_on(self) -> None:
        """Starts a thread if there is none."""
        if self._thread is None and self._stuck < _STUCK_MAX:
            thread = _Receiver(self)
            thread.start()
            self._thread = thread

    def _close(self, inbox: Inbox) -> None:
        # In a thread: with the socket goes what is in it, such as a socket that lingers.
        descriptors.close_later(inbox.sock.detach(), user=self._user)

    def _deliver(self, inbox: Inbox, outcome: Outcome) -> None:
        with contextlib.suppress(trio.RunFinishedError):  # the server has ended
            self._token.run_sync_soon(inbox.deliver, outcome)
