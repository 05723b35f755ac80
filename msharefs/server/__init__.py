"""The server of a mount: its file system, the only writer of host mms, what it knows of clients."""
