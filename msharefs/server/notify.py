"""What systemd is told of a server that it has started with Type=notify: sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket


class Notifier:
    """The socket of the service manager, if there is one; otherwise it does nothing.

    Taken out of the environment: the programs that a server starts have nothing to say.
    """

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._status = ""

    @property
    def listens(self) -> bool:
        """Whether anybody does."""
        return bool(self._address)

    def ready(self) -> None:
        """The mount works."""
        self._send("READY=1")

    def stopping(self) -> None:
        """It has been unmounted, or is about to be."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """A line for ``systemctl status``."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # It must never keep the server waiting, nor end it.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock,
        ):
            sock.sendto(message.encode(), self._address)
