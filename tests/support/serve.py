"""The command msharefs, in which SIGUSR1 writes the stacks of all threads to stderr.

MSHAREFS_TEST_SECONDS has other values for limits of the server, which tests would have to wait for:
"connections.SILENT_SECONDS=1".
"""

import faulthandler
import importlib
import os
import signal

from msharefs.cli import main

faulthandler.register(signal.SIGUSR1, all_threads=True)
for each in os.environ.get("MSHAREFS_TEST_SECONDS", "").split():
    name, _, value = each.partition("=")
    module, _, limit = name.rpartition(".")
    found = importlib.import_module(f"msharefs.server.{module}")
    assert isinstance(getattr(found, limit), float), name
    setattr(found, limit, float(value))
main()
