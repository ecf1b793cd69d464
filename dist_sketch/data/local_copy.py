"""Shards on a node's own disk: copied there by `dist-sketch node --stage` before its ranks start, removed at their end.

The ranks are told by an environment variable, so that a run's configuration names the folder that all nodes see.
"""

import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dist_sketch.core.errors import UserError
from dist_sketch.data import pack
from dist_sketch.data.manifest import manifest_hash

VARIABLE = "DIST_SKETCH_STAGED"  # JSON: folder of shards -> this node's copy


def nearest(shards: Path) -> Path:
    """This node's copy of the folder if there is one, else the folder itself."""
    copies = json.loads(os.environ.get(VARIABLE) or "{}")
    return Path(copies.get(str(shards.resolve()), shards))


def home(env: Mapping[str, str]) -> Path:
    """Where this node keeps its copy: $SLURM_TMPDIR or $TMPDIR, which may be the same disk for all nodes."""
    disk = env.get("SLURM_TMPDIR") or env.get("TMPDIR") or "/tmp"
    return Path(disk) / f"dist-sketch-{env.get('SLURM_JOB_ID', '0')}-{env.get('SLURM_NODEID', '0')}"


@contextmanager
def staged(shards: Path, copy: Path) -> Iterator[dict[str, str]]:
    """Copies a folder of shards and compares the copy with its manifest; removes it afterwards.

    Yields:
        The variables by which the ranks find it.

    Raises:
        UserError: the folder has no manifest, the disk is full, or the copy is not what was copied.
    """
    sha256 = manifest_hash(shards)
    shutil.rmtree(copy, ignore_errors=True)  # of an earlier leg that was killed
    try:
        try:
            shutil.copytree(shards, copy)
        except (OSError, shutil.Error) as e:
            why = getattr(e, "strerror", None) or str(e)
            raise UserError(
                f"{shards}: cannot be copied to {copy} on {socket.gethostname()} ({why}); without a copy: stage=0"
            ) from e
        if manifest_hash(copy) != sha256:
            raise UserError(f"{shards}: has changed while it was copied to {copy}")
        counts = pack.verify(copy)
        print(f"{copy}: a good copy of {shards} ({', '.join(f'{k} {v}' for k, v in counts.items())})", flush=True)
        yield {VARIABLE: json.dumps({str(shards.resolve()): str(copy)})}
    finally:
        shutil.rmtree(copy, ignore_errors=True)
