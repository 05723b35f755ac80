"""The command msharefs, in which SIGUSR1 writes the stacks of all threads to stderr."""

import faulthandler
import signal

from msharefs.cli import main

faulthandler.register(signal.SIGUSR1, all_threads=True)
main()
