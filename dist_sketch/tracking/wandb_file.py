"""The files of offline W&B runs, `run-ID.wandb`: how far they are whole.

They are logs of LevelDB: a header, then blocks of 32 KiB, in them chunks (checksum, length, kind, data). A record is
one chunk, or a first one, middle ones and a last one. A full disk or a node without power may cut a file within a
record. W&B sends the records before that, but never takes such a file for sent.
"""

import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from dist_sketch.core.fileio import write_atomic

DAMAGED = ".damaged"  # added to the name of a file as it was found, after its whole records have taken its place
BLOCK, CHUNK = 32768, struct.Struct("<IHB")  # checksum of kind and data, length of data, kind
HEADER = b":W&B"  # and three bytes of the version
HEADER_BYTES = 7  # size of a file without records, which a run leaves that is killed in its first seconds
# As it stands in the records of steps. Those of artifacts name pictures, too, but without quotation marks.
MEDIA = re.compile(rb'"(media/(?:images|table)/[\w./-]+\.(?:png|json))"')
FULL, LAST = 1, 4  # kinds of the chunk that ends a record


def records(file: Path) -> Iterator[tuple[int, bytes]]:
    """The whole records of a file: where each ends, and its contents. None if it is no file, or not such a log."""
    if not (file.is_file() and os.access(file, os.R_OK)):  # reading anything but a file might not end
        return
    parts: list[bytes] = []
    with open(file, "rb") as f:
        for start in range(0, os.fstat(f.fileno()).st_size, BLOCK):
            block, at = f.read(BLOCK), 0
            if start == 0:
                if not block.startswith(HEADER):
                    return
                at = HEADER_BYTES
            while at + CHUNK.size <= len(block):
                checksum, length, kind = CHUNK.unpack_from(block, at)
                begin, at = at + CHUNK.size, at + CHUNK.size + length
                if at > len(block) or zlib.crc32(block[begin - 1 : at]) != checksum:  # of the kind, too
                    return
                parts.append(block[begin:at])
                if kind in (FULL, LAST):
                    # What is left of a block may be too small for a chunk.
                    full = len(block) == BLOCK and at + CHUNK.size > BLOCK
                    yield start + (BLOCK if full else at), b"".join(parts)
                    parts = []


def whole_bytes(file: Path) -> int:
    """The size of a file up to the end of its last whole record; at most HEADER_BYTES if W&B finds no run in it.

    The first record only names the program that wrote the file; the second one begins the run.
    """
    ends = [end for end, _ in records(file)]
    return ends[-1] if len(ends) > 1 else HEADER_BYTES if ends else 0


def media(file: Path) -> set[str]:
    """The pictures and tables of a run: files that lie beside its log, below `files`, and are sent with it."""
    return {name.decode() for _, record in records(file) for name in MEDIA.findall(record)}


def keep_whole_records(file: Path) -> None:
    """Cuts a file after its last whole record if it is damaged; beside it stays the file as it was."""
    found = file.read_bytes()
    if (end := whole_bytes(file)) < len(found):
        write_atomic(file.with_name(file.name + DAMAGED), found)
        write_atomic(file, found[:end])
