"""`python preloaded.py ADDRESS [tiny] dist-sketch ARGUMENTS`: the command line in a process forked by `forks`' server.

For tests in which other programs start real commands. Signals and the exit code are passed on; the output goes where
the caller's goes.
"""

import json
import os
import select
import signal
import socket
import sys
from typing import Any


def command(tiny: bool = False) -> list[str]:
    """The words that start it from this process's server; with `tiny` networks, see `forks.shrink`."""
    from support import forks

    return [sys.executable, __file__, forks.address(), *["tiny"] * tiny, "dist-sketch"]


def ask(address: str, request: dict[str, Any], descriptors: list[int]) -> Any:
    """As `forks.ask`, which takes long to import."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(address)
        socket.send_fds(caller, [json.dumps(request).encode() + b"\n"], descriptors)
        return json.loads(caller.makefile().readline())


def run(address: str, tiny: bool, arguments: list[str]) -> int:
    """Runs `dist-sketch ARGUMENTS`; returns its exit code as a shell has it."""
    request = {"arguments": arguments, "call": [], "tiny": tiny, "group": 0}
    pid = ask(address, {**request, "cwd": os.getcwd(), "env": dict(os.environ)}, [1, 2])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    select.select([os.pidfd_open(pid)], [], [])
    code: int = ask(address, {"poll": pid}, [])
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    tiny = sys.argv[2] == "tiny"
    sys.exit(run(sys.argv[1], tiny, sys.argv[3 + tiny :]))
