"""Starting programs under the preload library: ``msharefs run``."""
