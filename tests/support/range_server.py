"""A plain web server for the files of a folder, that answers ranges and can be told to misbehave."""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any


class RangeServer:
    """What it does, and which requests have come.

    `faults` are taken one after another by the requests for shards: 500, 403 and so on (a status), "half" (half of the
    range), "drop" (the connection ends in the middle), "whole" (Range is ignored), "hang" (no answer until `over`).
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.delay_s = 0.0
        self.faults: list[int | str] = []
        self.always: int | str | None = None  # a fault of all requests for shards
        self.requests: list[tuple[str, str, str]] = []  # method, name, Range
        self.over = Event()
        self.address = ""
        self._lock = Lock()

    def fault(self, name: str) -> int | str | None:
        with self._lock:
            return self.always or (self.faults.pop(0) if self.faults and name.endswith(".tar") else None)

    @property
    def shards_asked(self) -> int:
        return sum(method == "GET" and name.endswith(".tar") for method, name, _ in self.requests)


@contextmanager
def serving(folder: Path) -> Iterator[RangeServer]:
    """Serves `folder` on the loopback until the block ends; it can be ended before by `over`."""
    state = RangeServer(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10

        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            if state.over.is_set():  # a connection from before
                self.close_connection = True
                return
            state.requests.append((self.command, name, self.headers.get("Range", "")))
            time.sleep(state.delay_s)
            fault = state.fault(name)
            if fault == "hang":
                state.over.wait(20)
                self.close_connection = True
                return
            path = state.folder / name
            if isinstance(fault, int) or not path.is_file():
                self.send_response(fault if isinstance(fault, int) else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            size = path.stat().st_size
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if found and fault != "whole":
                with path.open("rb") as file:
                    file.seek(int(found[1]))
                    part = file.read(int(found[2]) + 1 - int(found[1]))
                part = part[: len(part) // 2] if fault == "half" else part
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {found[1]}-{int(found[1]) + len(part) - 1}/{size}")
            else:
                part = path.read_bytes()
                self.send_response(200)
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if fault == "drop":
                self.wfile.write(part[: len(part) // 2])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.wfile.write(part)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:  # a client has gone
            pass

    web = Server(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{web.server_port}/faces"
    thread = Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.over.set()
        web.shutdown()
        web.server_close()
