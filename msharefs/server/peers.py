"""Which socket is at the other end of one of ours: sock_diag(7).

A client can give us both ends of a pair. Then nobody but we hold them, and neither ever ends.
"""

from __future__ import annotations

import socket
import struct

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST = 1  # NLM_F_REQUEST
_SHOW_PEER, _DIAG_PEER = 4, 2  # linux/unix_diag.h
_ANY = 0xFFFFFFFF
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ASKED = struct.Struct("=BBHIIIII")  # struct unix_diag_req
_FOUND = struct.Struct("=BBBBIII")  # struct unix_diag_msg
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_ANSWER_BYTES = 4096


def peer_of(inode: int) -> int:
    """The inode number of the socket that a socket of AF_UNIX is connected to; 0: not known.

    Sockets of other network namespaces are not known.
    """
    asked = _ASKED.pack(socket.AF_UNIX, 0, 0, _ANY, inode & _ANY, _SHOW_PEER, _ANY, _ANY)
    header = _HEADER.pack(_HEADER.size + len(asked), _SOCK_DIAG_BY_FAMILY, _REQUEST, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
            kernel.send(header + asked)
            answer = kernel.recv(_ANSWER_BYTES, socket.MSG_DONTWAIT)
    except OSError:  # no descriptor is left, or the kernel has no unix_diag
        return 0
    if _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return 0
    at = _HEADER.size + _FOUND.size
    while at + _ATTRIBUTE.size < len(answer):
        size, kind = _ATTRIBUTE.unpack_from(answer, at)
        if kind == _DIAG_PEER:
            return int(struct.unpack_from("=I", answer, at + _ATTRIBUTE.size)[0])
        at += max(_ATTRIBUTE.size, size + 3 & ~3)
    return 0
