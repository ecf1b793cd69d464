"""A web server on this machine in the place of the Hugging Face Hub, for this process and those with HF_ENDPOINT."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

import pytest
from huggingface_hub import constants

TOKEN = "hf_good"


class Hub(Protocol):
    """What the server asks."""

    def answer(self, method: str, path: str, token: str, asked: str, body: bytes) -> tuple[int, Any]:
        """Status, and a JSON value, a file's bytes, or the name of an error; `asked` is the header Range."""

    def commit_of(self, path: str) -> str:
        """The commit whose file lies at this path."""


@contextmanager
def serving(hub: Hub, folder: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """The Hub's library asks `hub`, and keeps its files in `folder`; the user is logged in."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            told = [self.headers.get(name, "") for name in ("Authorization", "Range")]
            status, value = hub.answer(self.command, self.path, *told, body)
            value = {"error": value} if isinstance(value, str) else value
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            if status > 399:
                self.send_header("X-Error-Code", value["error"])
                self.send_header("X-Error-Message", value["error"])
            if isinstance(value, bytes):
                self.send_header("X-Repo-Commit", hub.commit_of(self.path))
                self.send_header("ETag", f'"{hashlib.sha1(value).hexdigest()}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_POST = do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    address = f"http://127.0.0.1:{web.server_port}"
    patch.setenv("HF_ENDPOINT", address)
    patch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    patch.setenv("HF_TOKEN", TOKEN)
    yield
    web.shutdown()
    web.server_close()
