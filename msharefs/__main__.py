"""``python -m msharefs`` is the command ``msharefs``."""

from .cli import main

main()
