"""Threads of other processes, as their directories in /proc/PID/task."""

from __future__ import annotations

from pathlib import Path


def tasks(pid: int) -> list[Path]:
    """All of a process."""
    return list(Path(f"/proc/{pid}/task").iterdir())


def state(task: Path) -> str:
    """What it is doing, a letter of proc_pid_stat(5)."""
    return (task / "stat").read_text().rpartition(") ")[2][0]


def service_thread(pid: int) -> Path:
    """The client library's, once it runs and has its name."""
    (found,) = (task for task in tasks(pid) if (task / "comm").read_text() == "mshare-service\n")
    return found
