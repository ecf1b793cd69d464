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
    errno.ENOMEM: "free memory, or raise its limit (ulimit -v)",
    errno.EAGAIN: "end other programs, or raise the limit of processes (ulimit -u)",
}
_WITHOUT_NAME = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # a write to an open file does not know its name


def not_utf8(text: str) -> UserError:
    """The sentence for a name that no file of ours can hold."""
    return UserError(f"{ascii(text)[1:-1]}: has bytes that are not UTF-8; choose another name")


def refused_by_system(error: BaseException) -> UserError | None:
    """What the user can do, if `error` says that the system refuses a path, a disk, memory or a library; else None."""
    text = str(error)
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return not_utf8(error.object if len(error.object) < 300 else error.object[max(0, error.start - 99) :][:200])
    if isinstance(error, RuntimeError) and text.startswith("Symlink loop"):  # Path.resolve of Python 3.11 and 3.12
        return UserError(f"{text}; {_MENDS[errno.ELOOP]}")
    if isinstance(error, MemoryError) or text == "can't start new thread":
        return UserError(f"{text or 'out of memory'}; {_MENDS[errno.ENOMEM]}, or end other programs")
    if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in text:  # torch's, of a GPU or of CPUs
        return UserError(f"the memory is too small: {text.splitlines()[0]}; use a smaller --batch-size, or free memory")
    if isinstance(error, ImportError) and ".so" in f"{error.path}":  # not a module of Python that is missing
        return UserError(f"{text}: a library cannot be loaded; {_MENDS[errno.ENOMEM]}, or install dist_sketch again")
    if not isinstance(error, OSError) or error.errno is None:
        return None
    name = error.filename2 or error.filename  # of two, as in a renaming, the second one is the user's
    if isinstance(name, str | bytes):
        where = os.fsdecode(name) or "an empty path"
    elif "temporary directory" in text:
        return UserError(f"{error.strerror}; set TMPDIR to a folder that this user can write to")
    elif error.errno in (errno.ENOMEM, errno.EAGAIN):
        where = "this machine"
    elif error.errno in _WITHOUT_NAME:
        where = "a file"
    else:
        return None
    return UserError(f"{where}: {error.strerror}; {_MENDS.get(error.errno, _OTHER)}")
