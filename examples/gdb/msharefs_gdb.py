"""For gdb: figures, mappings and page table entries of regions as people read them.

(gdb) source msharefs_gdb.py
(gdb) print found                  # a struct mshare_stat of msharefs.h
(gdb) print *vma                   # a struct mm_vma, in the library or the server
(gdb) mshare-entry 0x8000000123456867

Works on a program that was built with -g, and on a core file of one.
"""

from __future__ import annotations

import gdb
import gdb.printing

LEVELS = ("PTE", "PMD", "PUD", "PGD")
BITS = (
    (0, "present"),
    (1, "writable"),
    (2, "user"),
    (5, "accessed"),
    (6, "dirty"),
    (7, "huge"),
    (8, "protnone"),
    (63, "no-execute"),
)
ADDRESS = 0x000FFFFFFFFFF000
VMA_FLAGS = ((1, "r"), (2, "w"), (4, "x"))


def size(count: int) -> str:
    """Bytes for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"


class StatPrinter:
    """A struct mshare_stat, as `msharefs stat` shows it."""

    def __init__(self, value: gdb.Value) -> None:
        self._value = value

    def to_string(self) -> str:
        """One line."""
        found = self._value
        frames = ", ".join(f"{int(found['table_frames'][at])} {LEVELS[at]}" for at in range(4))
        return (
            f"{size(int(found['size']))} region, {size(int(found['rss']))} resident, "
            f"{size(int(found['page_table_bytes']))} of page tables ({frames}), "
            f"{int(found['clients'])} clients, {int(found['faults'])} faults, "
            f"{int(found['links'])} links"
        )


class VmaPrinter:
    """A struct mm_vma, as a line of /proc/PID/maps."""

    def __init__(self, value: gdb.Value) -> None:
        self._value = value

    def to_string(self) -> str:
        """One line."""
        vma = self._value
        flags = int(vma["flags"])
        rights = "".join(letter if flags & bit else "-" for bit, letter in VMA_FLAGS)
        number = int(vma["object"])
        what = f"object {number}" if number else "[anon]"
        span = f"{int(vma['start']):012x}-{int(vma['end']):012x}"
        return f"{span} {rights}s {int(vma['offset']):08x} {what}"


def entry(value: int) -> str:
    """An entry of a page table."""
    if not value:
        return "none"
    names = [name for bit, name in BITS if value >> bit & 1]
    return f"frame {value & ADDRESS:#x}: {', '.join(names)}"


class EntryCommand(gdb.Command):
    """mshare-entry EXPRESSION: what an x86-64 page table entry says."""

    def __init__(self) -> None:
        super().__init__("mshare-entry", gdb.COMMAND_DATA)

    def invoke(self, argument: str, from_tty: bool) -> None:
        """Print it."""
        del from_tty
        print(entry(int(gdb.parse_and_eval(argument)) & (1 << 64) - 1))


def register() -> None:
    """Both printers and the command."""
    printers = gdb.printing.RegexpCollectionPrettyPrinter("msharefs")
    printers.add_printer("mshare_stat", "^mshare_stat$", StatPrinter)
    printers.add_printer("mm_vma", "^mm_vma$", VmaPrinter)
    gdb.printing.register_pretty_printer(None, printers, replace=True)
    EntryCommand()


register()
