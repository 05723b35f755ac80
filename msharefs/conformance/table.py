"""The rows: what the kernel series answers, and how to ask us the same.

A row is a question: one case of the specification, with the answer that a kernel with msharefs v3
gave. It is asked of a real mount, with the default options and with `-o quirks=v3`; where plain
shared memory or tmpfs has the same semantics, of them first, and they must answer as the row says.
Where our answer is different, the row says what it is, and why (reasons.py).

Rows about a call on an attachment are also asked with `-o window=inner`, and those that one of the
calls of 2026 has an answer to, of that call (by_call.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from . import by_call
from .world import World

if TYPE_CHECKING:
    from .reasons import Reason
    from .stage import Check


@dataclass(frozen=True)
class Row:
    """One case. Answers are an errno's name, "0" for plain success, a value, or a signal."""

    ident: str
    what: str
    source: str
    """The parts of the specification that say so: 1.2 to 1.11, observed A, B, C."""
    kernel: str
    """What a kernel with v3 answers."""
    check: Check = field(compare=False)
    default: str
    """What a mount without options answers."""
    quirks: str
    """What a mount with `-o quirks=v3` answers."""
    why: Reason | None
    """The reason, if one of them differs from the kernel."""
    plain: bool
    """Plain memory and tmpfs have the same semantics."""
    title: str
    """Of the table it stands in."""
    inner: str | None = None
    """What a mount with `-o window=inner` answers; None: it is not asked."""
    call: str = ""
    """The call of 2026 that is asked the same, if there is one."""
    calls: str = ""
    """What that answers."""
    library: str | None = None
    """What a program hears that has attached by the library, and is not run by `msharefs run`:
    nobody of ours sees its call. None: it is not asked."""

    def expected(self, world: World) -> str:
        """The answer that is to come."""
        answers = {
            World.PLAIN: self.kernel,
            World.DEFAULT: self.default,
            World.V3: self.quirks,
            World.INNER: self.inner or "",
            World.CALLS: self.calls,
            World.LIBRARY: self.library or "",
        }
        return answers[world]

    def worlds(self) -> list[World]:
        """Who is to be asked, in order."""
        asked = {World.PLAIN: self.plain, World.INNER: self.inner, World.CALLS: self.call}
        asked[World.LIBRARY] = self.library
        if self.kernel == NO_CALL:
            asked |= {World.DEFAULT: False, World.V3: False}
        return [world for world in World if asked.get(world, True)]


NO_CALL = "-"
"""In place of a kernel's answer: v3 has no such call."""

ROWS: dict[str, Row] = {}
"""All rows by ident, in the order of the report."""


class Table:
    """The rows of one subject. Calling it adds one."""

    def __init__(
        self,
        title: str,
        source: str = "",
        *,
        inner: bool = False,
        call: str = "",
        library: bool = False,
    ) -> None:
        self._title = title
        self._source = source
        self._inner = inner
        self._call = call
        self._library = library

    def __call__(
        self,
        ident: str,
        what: str,
        kernel: str,
        check: Check,
        *,
        source: str = "",
        default: str | None = None,
        quirks: str | None = None,
        ours: str | None = None,
        why: Reason | None = None,
        plain: bool = False,
        inner: str | None = None,
        call: str | None = None,
        calls: str | None = None,
        library: str | None = None,
    ) -> None:
        """Add a row. `ours` is for both worlds; what is not given is the kernel's answer.

        A table that has them gives each row an answer of `-o window=inner` (`inner`), and one of
        a call of 2026 (`call`, ""  if there is none; `calls`), and one of a program that has
        attached by the library (`library`, "": it is not asked). None given: the default's.
        """
        default = default if default is not None else ours
        quirks = quirks if quirks is not None else ours
        row = Row(
            ident, what, source or self._source, kernel, check,
            kernel if default is None else default,
            kernel if quirks is None else quirks,
            why, plain, self._title,
        )  # fmt: skip
        if self._inner or inner is not None:
            row = replace(row, inner=row.default if inner is None else inner)
        if name := self._call if call is None else call:
            assert name in by_call.SOURCES, name
            row = replace(row, call=name, calls=row.default if calls is None else calls)
        if self._library and library != "":
            row = replace(row, library=row.default if library is None else library)
        differs = (row.default, row.quirks) != (kernel, kernel)
        assert ident not in ROWS, f"two rows {ident}"
        assert row.source, f"{ident} has no source"
        assert differs == (why is not None), f"{ident}: a row has a reason if it differs"
        ROWS[ident] = row
