"""Puts packed shards on object storage: whoever reads there finds a whole set of shards, or no manifest."""

import re
import tempfile
from contextlib import suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path

from dist_sketch.core.errors import UserError
from dist_sketch.core.places import Address
from dist_sketch.data.manifest import MANIFEST, files_of, read_manifest
from dist_sketch.data.progress import progress
from dist_sketch.data.store import NoAnswer, Remote, exists, has_size

TRIAL = ".dist-sketch-trial"
OURS = re.compile(r"\w+-(\d{6}\.tar|index\.safetensors|labels\.json)")
LAST = ("README.md", "preview.png", MANIFEST)  # so that what a stopped upload leaves is known as ours
AT_ONCE = 4  # files; a large one goes in several parts at once by itself


def look(address: Address, force: bool) -> None:
    """Refuses an address that cannot be written to, or holds anything; with `force`, shards may be replaced.

    What an upload leaves that was stopped is no reason: the next one replaces it.

    Raises:
        UserError: says what to do instead.
    """
    if address.scheme == "hf":
        raise UserError(f"{address}: pack into a folder, and add --push {'/'.join(address.split('/')[3:5])}")
    if address.scheme not in ("s3", "gs"):
        raise UserError(f"{address}: a web server takes no files: pack into a folder, and copy that to the server")
    # A folder that was made in a bucket's web page is in its own list, without a name
    there = [name for name in Remote(address).names() or [] if name not in ("", TRIAL)]
    if MANIFEST not in there:
        others = [name for name in there if not OURS.fullmatch(name) and name not in LAST]
        if others or (there and not any(map(OURS.fullmatch, there))):
            raise UserError(f"{address}: holds {(others or there)[0]}, and no shards; choose another --out")
    elif not force:
        raise UserError(f"{address}: holds packed shards already; choose another --out, or replace them with --force")
    else:
        read_manifest(address)  # only what can be read is replaced
    _try_to_write(address)


def _try_to_write(address: Address) -> None:
    """Writes an empty file and removes it, because packing may take hours, and a refusal would come too late then."""
    with tempfile.NamedTemporaryFile() as empty:
        try:
            Remote(address).send(Path(empty.name), TRIAL)
        except OSError as e:
            raise _not_written(address, e) from e
    with suppress(NoAnswer):  # rights to write need not be rights to remove
        Remote(address).remove(TRIAL)


def _not_written(address: Address, error: OSError) -> UserError:
    return UserError(f"{address}: cannot be written ({error.strerror or error}); is there such a bucket?")


def upload(folder: Path, address: Address) -> None:
    """Uploads packed shards and what lies beside them, the manifest last; shards that are there are replaced.

    Raises:
        UserError: the store refuses a file, or has not all of it afterwards.
    """
    remote, old = Remote(address), _names_at(address)
    if old:
        remote.remove(MANIFEST)  # who reads now finds no shards, instead of some of both kinds
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    sizes = {path.name: path.stat().st_size for path in files}
    first = [path for path in files if path.name not in LAST]

    def send(path: Path) -> Path:
        try:
            remote.send(path, path.name)
            if not has_size(address, path.name, sizes[path.name]):
                raise UserError(f"{address / path.name}: has not the length that was sent; start again")
        except OSError as e:
            raise _not_written(address, e) from e
        return path

    with progress("uploading", sum(sizes.values()), in_bytes=True) as advance, ThreadPool(AT_ONCE) as pool:
        for path in pool.imap_unordered(send, first):
            advance(sizes[path.name])
        for name in LAST:
            if name in sizes:
                advance(sizes[send(folder / name).name])
    stopped = set(filter(OURS.fullmatch, remote.names() or []))  # of an upload that did not come to its end
    for name in (old | stopped) - sizes.keys():
        remote.remove(name)


def _names_at(address: Address) -> set[str]:
    """The files of the shards that lie there."""
    return set(files_of(read_manifest(address))) if exists(address, MANIFEST) else set()
