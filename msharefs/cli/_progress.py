"""Progress bars on stderr, and ending in good order."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, NoReturn, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class Bars:
    """One progress bar for each step; without a terminal, none. A context manager."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description:24}"), BarColumn(), TaskProgressColumn(),
                   TimeElapsedColumn())  # fmt: skip
        console = Console(stderr=True)
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.__exit__(kind, error, trace)

    def step(self, title: str, total: int) -> Callable[[int], None]:
        """Show a new bar below those that are done; the result moves it on."""
        task = self._progress.add_task(title, total=total)
        return lambda amount: self._progress.advance(task, amount)


def end_on_signals() -> None:
    """Let SIGINT, SIGTERM and SIGHUP end us as an error does, with all clean-up done: 128+N."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup(1), and jobs in the background
            signal.signal(number, _end)


def _end(number: int, frame: object) -> NoReturn:
    del frame
    sys.exit(128 + number)
