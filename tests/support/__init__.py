"""What the tests stand on: a private mount namespace, watched servers, a look for left-overs."""
