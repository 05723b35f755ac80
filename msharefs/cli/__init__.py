"""The command ``msharefs``: one module for each verb, loaded only when that verb runs.

Each verb's module has its `click.Command` under the name ``command``. A verb reports trouble by
raising `OSError` with a sentence that says what to do; here it becomes one line on stderr and exit
status 1. Wrong usage is status 2, as in click.
"""

from __future__ import annotations

import select
import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

import click

from msharefs import __version__

from . import _examples

if TYPE_CHECKING:
    from collections.abc import Callable

# Verbs and their lines in --help: listed here, so that --help need not load every verb.
VERBS = {
    "mount": "Mount msharefs on DIRECTORY.",
    "umount": "Unmount the msharefs on DIRECTORY and wait until its server has ended.",
    "ls": "List the regions of a directory.",
    "stat": "Show a region's size, page tables, owner and counters; or a mount's limits.",
    "maps": "Show a region's mappings, in the shape of /proc/PID/maps.",
    "smaps": "Show a region's memory in the shape of /proc/PID/smaps.",
    "pagetable": "Show a region's page tables, level by level.",
    "clients": "Show the processes that are attached to a region.",
    "trace": "Show what happens to a region, event by event.",
    "idle": "Show how long pages of a region have not been used.",
    "reclaim": "Page out what of a region has not been used for longest.",
    "export": "Write a region's page tables for other programs.",
    "top": "Show regions and clients live, with their rates.",
    "metrics": "Give the figures of all regions to Prometheus.",
    "check": "Check a region, all regions of a mount, or a state directory that no server has.",
    "reap": "End the attachments of dead processes to a region, or to all regions of a mount.",
    "owner": "Hand REGION to process PID, which owns it from now on.",
    "run": "Run PROGRAM so that its mmap(2) of a region file attaches the region.",
    "demo": "Measure page tables with and without sharing, with real processes.",
    "bench": "Measure msharefs beside what programs use today.",
    "survey": "Measure what sharing page tables would save, for programs as they run now.",
    "lab": "Put questions about shared page tables to the machine.",
    "conformance": "Ask a mount what the kernel series has an answer to, case by case.",
    "plan": "Compute what page tables cost, shared and unshared.",
}


class Verbs(click.Group):
    """A click group that imports a verb's module when the verb is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order a newcomer meets them."""
        del ctx
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load the verb; None if there is no verb of that name."""
        del ctx
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"{__name__}.{cmd_name}").command
        command.epilog = command.epilog or _examples.epilog(cmd_name)
        for each, below in getattr(command, "commands", {}).items():
            below.epilog = below.epilog or _examples.epilog(f"{cmd_name} {each}")
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb; interrupted it ends with the status that shells expect."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)
        except BrokenPipeError as error:
            # click takes any for a reader of our output who has gone, and ends without a word.
            if _reader_gone():
                raise
            tell(sentence(error))
            sys.exit(1)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of verbs for --help."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


def print_libdir(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """``--libdir``: the directory and nothing more, so that $(msharefs --libdir) is usable."""
    del param
    if not value or ctx.resilient_parsing:
        return
    from msharefs import installed

    click.echo(installed.libdir())
    ctx.exit()


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_examples.epilog("msharefs"),
)
@click.version_option(__version__, prog_name="msharefs")
@click.option(
    "--libdir",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=print_libdir,
    help="Print the directory of libmsharefs.so.1; the .pc file is in pkgconfig/ below it.",
)
def cli() -> None:
    """Share page tables between processes: msharefs in user space."""


def _reader_gone() -> bool:
    """Whether nobody reads standard output or standard error any more."""
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def sentence(error: OSError) -> str:
    """One line for people from an `OSError`, with the file's name if the error has one."""
    text = error.strerror or str(error) or type(error).__name__
    if error.filename is None:
        return text
    names = [error.filename] if error.filename2 is None else [error.filename, error.filename2]
    return f"{' -> '.join(str(name) for name in names)}: {text}"


def tell(said: str) -> None:
    """A sentence for people, beside the output."""
    click.echo(f"msharefs: {said}", err=True)


def main() -> NoReturn:
    """Entry point of the command ``msharefs``."""
    execute(cli, prog_name="msharefs")


def execute(command: Callable[..., object], **settings: Any) -> NoReturn:
    """Run a click command to the end of the process; an OSError becomes its sentence, status 1."""
    try:
        command(**settings)
    except OSError as error:
        click.echo(f"msharefs: {sentence(error)}", err=True)
    sys.exit(1)
