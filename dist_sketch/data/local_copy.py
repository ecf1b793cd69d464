"""A copy of the shards on a node's own disk, for as long as its ranks run (`dist-sketch node --stage`).

The ranks find it by an environment variable, so that the run's configuration still names the shared folder.
"""

import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from dist_sketch.core import fileio
from dist_sketch.core.errors import SharedError, UserError
from dist_sketch.core.places import Place, place
from dist_sketch.data.manifest import files_of, manifest_hash, read_manifest
from dist_sketch.data.store import open_file

VARIABLE = "DIST_SKETCH_STAGED"  # JSON: folder or address of shards -> this node's copy


def nearest(shards: Place) -> Place:
    """This node's copy of the shards if there is one, else their own place.

    Raises:
        SharedError: the variable holds something else than `staged` says.
    """
    text, copies = os.environ.get(VARIABLE) or "{}", None
    with suppress(ValueError):
        copies = fileio.parse_json(text)
    if not isinstance(copies, dict) or not all(isinstance(copy, str) for copy in copies.values()):
        raise SharedError(f"{VARIABLE}={text}: `dist-sketch node --stage` has not set this; unset {VARIABLE}")
    return place(copies.get(str(shards.resolve()), shards))


def home(env: Mapping[str, str]) -> Path:
    """The folder for this node's copy. Its name contains the node's number, because $TMPDIR may be a shared disk."""
    disk = env.get("SLURM_TMPDIR") or env.get("TMPDIR") or "/tmp"
    return Path(disk) / f"dist-sketch-{env.get('SLURM_JOB_ID', '0')}-{env.get('SLURM_NODEID', '0')}"


@contextmanager
def staged(shards: Place, copy: Path) -> Iterator[dict[str, str]]:
    """Copies the shards in a folder or at an address, and verifies the copy; removes it at the end.

    Yields:
        The environment variables by which the ranks find the copy.

    Raises:
        UserError: there is no manifest, the disk is full, or the copy is damaged.
        NoAnswer: the store at an address refuses, or does not answer.
    """
    from dist_sketch.data.verify import verify  # only here, because all who read shards import this module

    sha256 = manifest_hash(shards)
    shutil.rmtree(copy, ignore_errors=True)  # left by a job that was killed
    try:
        names = files_of(read_manifest(shards))
        try:
            copy.mkdir(parents=True)
            for name in names:
                with open_file(shards, name) as source, open(copy / name, "xb") as target:
                    shutil.copyfileobj(source, target, 2**20)
        except OSError as e:
            node = socket.gethostname()
            raise UserError(
                f"{shards}: cannot be copied to {copy} on {node} ({e.strerror}); without a copy: stage=0"
            ) from e
        if manifest_hash(copy) != sha256:
            raise UserError(f"{shards}: has changed while it was copied to {copy}")
        counts = verify(copy)
        print(f"{copy}: a good copy of {shards} ({', '.join(f'{k} {v}' for k, v in counts.items())})", flush=True)
        yield {VARIABLE: json.dumps({str(shards.resolve()): str(copy)})}
    finally:
        shutil.rmtree(copy, ignore_errors=True)
