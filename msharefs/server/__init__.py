"""The server of a mount: its file system, the only writer of host mms, its clients."""
