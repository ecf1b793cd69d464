"""Errors; their class decides what is printed and with which code the process exits."""


class UserError(Exception):
    """A mistake of the user: the message says what, where and how to mend it. Exit code 2, no traceback."""


class SharedError(UserError):
    """A user's mistake that all ranks raise at the same time; only rank 0 prints it."""


class PeerLost(Exception):
    """Another rank failed or is gone; its own message says why. Exit code 1, no traceback."""
