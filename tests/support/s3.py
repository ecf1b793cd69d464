"""An S3 server on this machine (moto's), with one bucket, for this process and those that get `variables`."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "bucket"


@contextmanager
def bucket() -> Iterator[dict[str, str]]:
    """Yields the variables by which other processes find it; its own process has them, too."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would print each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "user",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        files().mkdir(BUCKET)
        yield variables
    server.stop()


def files() -> fsspec.AbstractFileSystem:
    """The files of the server that the variables name."""
    assert "AWS_ENDPOINT_URL" in os.environ
    return fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
