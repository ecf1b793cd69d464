"""Where shards lie: a folder, or an address of object storage, a web server or the Hub."""

import os
import re
from pathlib import Path
from typing import Annotated

from tyro.constructors import PrimitiveConstructorSpec

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import path_of

KINDS = "s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, https://HOST/FOLDER or hf://datasets/USER/NAME"
ALLOW_HTTP = "DIST_SKETCH_ALLOW_HTTP"
_LOOPBACK = re.compile(r"(localhost|127(\.\d+){3}|\[::1\])(:\d+)?")


class Address(str):
    """An address such as s3://bucket/faces. As it is a text, JSON and TOML hold it as it is, and `Path` never does.

    Raises:
        UserError: it is none that can be read, or holds a password, which would get into files and logs.
    """

    def __new__(cls, text: str) -> "Address":
        """Looks whether `text` is an address, and drops the slash at its end."""
        scheme, _, rest = text.partition("://")
        host = rest.partition("/")[0]
        if "@" in host and scheme != "hf":
            raise UserError(
                f"{scheme}://...@{host.rpartition('@')[2]}: an address with a name and password would get into files "
                "and logs; put them where the server's own tools look for them (~/.aws, ~/.netrc, the environment)"
            )
        if "?" in rest or "#" in rest:
            raise UserError(f"{scheme}://{host}/...: an address of a folder has no '?' and no '#'; leave out that part")
        if scheme not in ("s3", "gs", "http", "https", "hf") or not host or any(c.isspace() for c in text):
            raise UserError(f"{text}: is neither a folder nor an address that can be read: {KINDS}")
        if scheme == "hf" and not re.fullmatch(r"datasets/[^/]+/[^/]+(/.*)?", rest):
            raise UserError(f"{text}: an address of the Hub is hf://datasets/USER/NAME, or a folder in it")
        if scheme == "http" and not _LOOPBACK.fullmatch(host) and os.environ.get(ALLOW_HTTP) != "1":
            raise UserError(f"{text}: http has no protection on its way; use https, or allow it with {ALLOW_HTTP}=1")
        return super().__new__(cls, text.rstrip("/"))

    def __truediv__(self, name: str) -> "Address":
        return Address(f"{self}/{name}")

    def resolve(self) -> "Address":
        """Itself: unlike a path, it is the same in every directory."""
        return self

    @property
    def scheme(self) -> str:
        """What stands before ://."""
        return self.partition("://")[0]


def place(text: str | Path) -> "Path | Address":
    """What a user names: an address, or the path of a folder, at whose beginning `~` is the home folder."""
    if isinstance(text, Path | Address):
        return text
    return Address(text) if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) else path_of(text)


# The type of an option; a union alone would make a path of every address
Place = Annotated[
    Path | Address,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH|ADDRESS",
        instance_from_str=lambda words: place(words[0]),
        is_instance=lambda value: isinstance(value, Path | Address),
        str_from_instance=lambda value: [str(value)],
    ),
]
