"""`python preloaded.py SOCKET dist-sketch ARGUMENTS`: the command line in a process forked from a server, imports done.

For tests that start a dozen real commands through `dist-sketch experiment --launch`. Signals and the exit code are
passed on; the output goes where the caller's goes.
"""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def server(folder: Path) -> Iterator[list[str]]:
    """The words that start a command, as long as the server lives."""
    address = folder / "preloaded"
    process = subprocess.Popen([sys.executable, __file__, str(address)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 300
        while not address.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield [sys.executable, __file__, str(address), "dist-sketch"]
    finally:
        process.kill()
        process.wait()


def serve(address: str) -> None:
    """Forks one process after the other."""
    pass

    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address + ".new")
        listener.listen()
        os.rename(address + ".new", address)
        while True:
            caller, _ = listener.accept()
            request, descriptors, _, _ = socket.recv_fds(caller, 1 << 20, 2)
            pid = os.fork()
            if not pid:
                _become(json.loads(request), descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            caller.sendall(f"{pid}\n".encode())
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            caller.sendall(f"{code}\n".encode())
            caller.close()


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    from dist_sketch.__main__ import main

    for number, descriptor in enumerate(descriptors, 1):
        os.dup2(descriptor, number)
    os.chdir(request["folder"])
    sys.argv = ["dist-sketch", *request["arguments"]]
    code: Any = 0
    try:
        main()
    except SystemExit as e:
        code = e.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def call(address: str, arguments: list[str]) -> int:
    """Has a command run; returns its exit code."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(address)
        request = json.dumps({"folder": os.getcwd(), "arguments": arguments}).encode()
        socket.send_fds(caller, [request], [1, 2])
        answers = caller.makefile("r")
        pid = int(answers.readline())
        signal.signal(signal.SIGTERM, lambda number, _: os.kill(pid, number))
        code = int(answers.readline())
        return code if code >= 0 else 128 - code


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    else:
        sys.exit(call(sys.argv[1], sys.argv[3:]))
