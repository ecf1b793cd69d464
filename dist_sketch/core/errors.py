"""Errors whose kind decides what is printed and how the process exits."""


class UserError(Exception):
    """The user's mistake: a sentence that says what, where and how to mend it. Exit code 2, no traceback."""


class SharedError(UserError):
    """A user's mistake that all ranks raise alike: the first one tells it."""


class PeerLost(Exception):
    """Another rank failed or is gone: its message says why. Exit code 1, no traceback."""
