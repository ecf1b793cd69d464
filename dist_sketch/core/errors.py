"""Errors; their class decides what is printed and with which code the process exits."""

import errno
import os


class UserError(Exception):
    """A mistake of the user: the message says what, where and how to mend it. Exit code 2, no traceback."""


class SharedError(UserError):
    """A user's mistake that all ranks raise at the same time; only rank 0 prints it."""


class PeerLost(Exception):
    """Another rank failed or is gone; its own message says why. Exit code 1, no traceback."""


_RIGHTS = "this user needs the rights to it, or another path is needed"
_SPACE = "make room there, then start the same command again"
_OTHER = "look at this path, or name another one"
_MENDS = {
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a part of this path is a file, not a folder: name another path",
    errno.EISDIR: "this is a folder, and a file is needed: name a file",
    errno.EEXIST: "something else has this name: choose another one",
    errno.ENOTEMPTY: "something else lies in this folder: choose another one",
    errno.EROFS: "this disk can only be read: choose a path on another one",
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "raise the limit of the size of files (ulimit -f)",
    errno.ELOOP: "links there lead to each other: name another path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "the disk has a fault: look at the system's log",
}
_WITHOUT_NAME = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # a write to an open file does not know its name


def refused_by_system(error: BaseException) -> UserError | None:
    """What the user can do, if `error` says that the system refuses a path or that a disk is full; else None."""
    if not isinstance(error, OSError) or error.errno is None:
        return None
    name = error.filename2 or error.filename  # of two, as in a renaming, the second one is the user's
    if isinstance(name, str | bytes):
        where = os.fsdecode(name) or "an empty path"
    elif error.errno in _WITHOUT_NAME:
        where = "a file"
    else:
        return None
    return UserError(f"{where}: {error.strerror}; {_MENDS.get(error.errno, _OTHER)}")
