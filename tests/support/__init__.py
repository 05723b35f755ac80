"""The base of the tests: a private mount namespace, watched servers, a search for left-overs."""
