"""The copyright file of the Debian package: our licence, and those of the packages inside it."""

from __future__ import annotations

import sys
from importlib.metadata import PathDistribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


# What Debian has in a place of its own is not to be there again.
COMMON = (
    ("Apache License", "Apache-2.0"),
    ("GNU LIBRARY GENERAL PUBLIC LICENSE", "LGPL-2"),
    ("GNU LESSER GENERAL PUBLIC LICENSE", "LGPL-2.1"),
)


def shown(text: str) -> str:
    """A licence, or where Debian has it."""
    for title, name in COMMON:
        if title.lower() in text.lower():
            return f"The {title} as in /usr/share/common-licenses/{name}.\n"
    return text.rstrip() + "\n"


def main() -> None:
    """Prints it; the argument is the directory with the environment."""
    print("msharefs: shared page tables between processes, in user space.\n")
    print((ROOT / "LICENSE").read_text(encoding="utf-8"))
    for path in sorted(Path(sys.argv[1]).glob("lib/python3*/site-packages/*.dist-info")):
        package = PathDistribution(path)
        name = package.metadata["Name"]
        print(f"{'-' * 78}\n\n{name} {package.version}, in /usr/lib/msharefs:\n")
        licences = [
            file
            for file in sorted(path.rglob("*"))
            if file.is_file() and file.name.upper().startswith(("LICEN", "COPYING", "NOTICE"))
        ]
        for file in licences:
            print(shown(file.read_text(encoding="utf-8", errors="replace")))
        if not licences:
            print((package.metadata["License"] or "see its home page") + "\n")


if __name__ == "__main__":
    main()
