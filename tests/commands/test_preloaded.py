"""The stand-in for `dist-sketch` in tests (`support.preloaded`) is like the command itself to whoever signals it."""

import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from support import preloaded
from support.forks import wait_until


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2], ids=lambda n: n.name)
def test_signals_reach_the_command(number: signal.Signals) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,  # short: the path of a socket has at most 107 characters
        socket.socket(socket.AF_UNIX) as server,
        subprocess.Popen(["sleep", "60"]) as command,
    ):
        server.bind(f"{folder}/socket")
        server.listen()

        def serve() -> None:
            """Answers as the server of `forks`: the command's process id, then its exit code."""
            for answer in (lambda: command.pid, command.wait):
                caller, _ = server.accept()
                with caller:
                    caller.recv(1 << 20)
                    caller.sendall(json.dumps(answer()).encode() + b"\n")

        threading.Thread(target=serve, daemon=True).start()
        arguments = [sys.executable, preloaded.__file__, f"{folder}/socket", "dist-sketch", "train"]
        with subprocess.Popen(arguments) as stand_in:
            caught = Path(f"/proc/{stand_in.pid}/status")

            def listens() -> bool:
                mask = int(caught.read_text().split("SigCgt:")[1].split()[0], 16)
                return bool(mask >> (signal.SIGUSR2 - 1) & 1)  # its last handler

            try:
                wait_until(listens, "its handlers")
                stand_in.send_signal(number)
                assert stand_in.wait(60) == 128 + number
                assert command.poll() == -number
            finally:
                stand_in.kill()
                command.kill()
