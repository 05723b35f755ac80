"""A prefork server with a read-mostly cache in shared memory. It has never heard of msharefs.

    prefork_server.py SIZE WORKERS SOCKET

The parent maps SIZE bytes (MAP_SHARED | MAP_ANONYMOUS), fills them with records of a page, forks
WORKERS processes and says in JSON how long both took. A worker serves one connection at a time. A
request is a packet of record numbers, 8 bytes each, WRITE set in those to be changed; the answer
has the first word of each record, which is its number.
"""

import json
import mmap
import os
import signal
import socket
import sys
import time

RECORD = 4096
WRITE = 1 << 63
PACKET = 1 << 16


def fill(cache: memoryview) -> None:
    """The number of each record into its first word."""
    words = cache.cast("Q")
    step = RECORD // 8
    for number in range(len(cache) // RECORD):
        words[number * step] = number


def serve(listener: socket.socket, cache: memoryview) -> None:
    """A worker's life."""
    words = cache.cast("Q")
    step = RECORD // 8
    while True:
        connection, _ = listener.accept()
        with connection:
            while request := connection.recv(PACKET):
                answer = memoryview(bytearray(len(request))).cast("Q")
                for index, number in enumerate(memoryview(request).cast("Q")):
                    record = number % WRITE
                    if number >= WRITE:
                        words[record * step + 1] += 1
                    answer[index] = words[record * step]
                connection.send(answer)


def main(size: int, workers: int, path: str) -> None:
    """Runs until SIGTERM."""
    started = time.monotonic_ns()
    cache = memoryview(mmap.mmap(-1, size))
    fill(cache)
    filled = time.monotonic_ns()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(workers)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # all children, or none
    children = []
    for _ in range(workers):
        pid = os.fork()
        if pid == 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            serve(listener, cache)
        children.append(pid)
    forked = time.monotonic_ns()
    print(json.dumps({"fill_ns": filled - started, "fork_ns": forked - filled,
                      "pids": [os.getpid(), *children]}), flush=True)  # fmt: skip
    signal.sigwait({signal.SIGTERM})
    for child in children:
        os.kill(child, signal.SIGTERM)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
