"""Standard output and error that cost a command nothing but output when nobody can take what it prints."""

import io
import os
import select
import sys
from typing import Any


class _Tolerant(io.FileIO):
    """Drops what cannot be written, because the reader is gone, the terminal has hung up or the log's disk is full."""

    def write(self, data: Any) -> int:
        """Takes all of `data`."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest:
                written = super().write(rest)
                if written is None:  # another program has made a terminal non-blocking that it shares with this one
                    select.select([], [self], [])
                else:
                    rest = rest[written:]
        except OSError:
            pass
        return size


def make_tolerant() -> None:
    """Replaces standard output and error for the rest of this process; a second call changes nothing.

    Characters that the encoding of a terminal or log does not have are replaced, too.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # the caller has closed it: else a file of ours could get its number, and others' output
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    for descriptor, name, errors in ((1, "stdout", "replace"), (2, "stderr", "backslashreplace")):
        own = getattr(sys, f"__{name}__")
        if getattr(sys, name) is not own:
            continue
        raw = _Tolerant(descriptor, "w", closefd=False)
        unbuffered = own is not None and own.write_through  # python -u
        stream = io.TextIOWrapper(
            raw if unbuffered else io.BufferedWriter(raw),  # as the interpreter's own
            encoding=own.encoding if own is not None else "utf-8",
            errors=errors,
            line_buffering=name == "stderr" or raw.isatty(),
            write_through=unbuffered,
        )
        setattr(sys, name, stream)
