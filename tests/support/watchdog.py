"""Ends a mount that outlives its time limit or its test run.

Called as watchdog.py LIMIT PID PIDFD CONNECTION LOG, the pids being the server's. A process and not
a thread, because it must also act when the test process itself is stuck in the kernel on the dead
mount, or was killed. Its standard input is a pipe from the test process: a byte means that all went
well, the end of file that the test process is gone.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from pathlib import Path

import fusectl
import proc

STACKS_WAIT = 1.0  # seconds for the server to write its Python stacks


def stacks(pid: int, log: Path) -> None:
    """Write where each thread of the server stands into its log, for Python and in the kernel."""
    os.kill(pid, signal.SIGUSR1)
    select.select([], [], [], STACKS_WAIT)
    with log.open("a") as out:
        for task in proc.tasks(pid):
            print(f"thread {task.name} {proc.comm(task)} in the kernel:", file=out)
            print((task / "stack").read_text(), file=out)


def main() -> None:
    """Wait for the end of the mount, or bring it about."""
    limit = float(sys.argv[1])
    pid, server, minor = map(int, sys.argv[2:5])
    log = Path(sys.argv[5])
    ready, _, _ = select.select([0], [], [], limit)
    if ready and os.read(0, 1):
        return
    if select.select([server], [], [], 0)[0]:
        return  # it ended by itself; another mount may have the connection's number by now
    with log.open("a") as out:
        why = "the test run is gone" if ready else f"time limit of {limit:g} s"
        print(f"watchdog: {why}; server {pid} is stopped by force", file=out)
    try:
        stacks(pid, log)
    except OSError as error:
        print(f"watchdog: no stacks: {error}", file=sys.stderr)
    fusectl.abort(minor)
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


main()
