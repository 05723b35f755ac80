"""Sphinx: the pages of the repository as they are, and the reference that scripts/docs makes."""

from msharefs import __version__

project = "msharefs"
author = "The msharefs authors"
version = release = __version__
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = [
    "*.md", "docs/*.md", "docs/tutorials/*.md", "examples/README.md", "native/README.md",
    "reference/*.md", "tests/README.md",
]  # fmt: skip
myst_heading_anchors = 4
# What is read on GitHub begins below its first heading, or has none.
suppress_warnings = ["myst.header"]
html_theme = "furo"
html_title = f"msharefs {version}"
html_copy_source = False
html_show_copyright = False
highlight_language = "none"
