"""Samples whose hash is right and whose bytes are not: whatever is inside, it costs this sample alone."""

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.manifests import Columns, change_training

from dist_sketch.core.config import DataConfig
from dist_sketch.data.loader import Loader
from dist_sketch.data.shards import MOST_BYTES, BadSample, Shards, _members

Members = dict[str, bytes | tarfile.TarInfo]
ABOUT = {"name": "6", "split": "train", "line": {"width": 80, "height": 80}, "sketch": {"width": 80, "height": 80}}


def png(size: tuple[int, int] = (64, 64), mode: str = "L", format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, format)
    return file.getvalue()


def header(width: int, height: int) -> bytes:
    """A PNG that claims a size, with a right checksum."""
    data = bytearray(png())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def info(kind: bytes, **values: Any) -> tarfile.TarInfo:
    member = tarfile.TarInfo("6.line.png")
    member.type = kind
    for name, value in values.items():
        setattr(member, name, value)
    return member


def tar(members: Members, format: int = tarfile.PAX_FORMAT) -> bytes:
    """Members without the zero blocks at a tar's end."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return file.getvalue()[: archive.offset]


def sample(**changed: Any) -> bytes:
    """A good sample, but for the members `json`, `line` or `sketch`."""
    about = json.dumps(ABOUT).encode()
    parts: Members = {"6.json": about, "6.line.png": png(), "6.sketch.png": png()}
    names = {"json": "6.json", "line": "6.line.png", "sketch": "6.sketch.png"}
    return tar(parts | {names[name]: value for name, value in changed.items()})


def about(**changed: Any) -> bytes:
    return json.dumps(ABOUT | changed).encode()


def line_of(width: Any, height: Any) -> bytes:
    return about(line={"width": width, "height": height})


def huge_member() -> bytes:
    """A header that claims 8 GB."""
    block = bytearray(sample())
    block[124:136] = b"77777777777\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


def cut_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header with a right checksum that claims any size, also one below 0."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = (256**12 + size).to_bytes(12, "big") if size < 0 else b"%011o\0" % size
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def extended(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A header that tells more about the next member, before a good sample."""
    return cut_header("more", len(records), kind) + records + bytes(-len(records) % 512) + sample()


SPARSE = {"GNU.sparse.size": str(2**33), "GNU.sparse.map": ""}
BAD = {
    "JSON: junk": sample(json=b"junk"),
    "JSON: not UTF-8": sample(json=b'{"name": "\xff"}'),
    "JSON: a list": sample(json=b"[]"),
    "JSON: nested without end": sample(json=b"[" * 200_000),
    "JSON: empty": sample(json=b""),
    "JSON: no name": sample(json=b'{"line": {"width": 1, "height": 1}}'),
    "JSON: the name is a number": sample(json=about(name=1)),
    "JSON: half a character": sample(json=about(name="\ud800")),
    "JSON: a name with a zero": sample(json=about(name="a\0b")),
    "JSON: a name that is too long": sample(json=about(name="n" * 300)),
    "JSON: a name that climbs": sample(json=about(name="../../x")),
    "JSON: an absolute name": sample(json=about(name="/etc/x")),
    "JSON: the name of another sample": sample(json=about(name="7")),
    "JSON: no size": sample(json=json.dumps({"name": "1"}).encode()),
    "JSON: a size in letters": sample(json=line_of("80", 80)),
    "JSON: a size below 1": sample(json=line_of(-80, 0)),
    "JSON: a huge size": sample(json=line_of(10**9, 10**9)),
    "picture: junk": sample(line=b"junk" * 99),
    "picture: empty": sample(sketch=b""),
    "picture: cut": sample(line=png()[:60]),
    "picture: of another size": sample(line=png((128, 128))),
    "picture: of another shape": sample(sketch=png((64, 128))),
    "picture: 900 megapixels": sample(line=header(30_000, 30_000)),
    "picture: with alpha": sample(line=png(mode="RGBA")),
    "picture: a JPEG": sample(line=png(format="JPEG")),
    "picture: EPS": sample(line=b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\nshowpage\n"),
    "member: a link": sample(line=info(tarfile.SYMTYPE, linkname="/etc/passwd")),
    "member: a hard link": sample(line=info(tarfile.LNKTYPE, linkname="6.sketch.png")),
    "member: a device": sample(line=info(tarfile.CHRTYPE, devmajor=1, devminor=5)),
    "member: a FIFO": sample(line=info(tarfile.FIFOTYPE)),
    "member: a folder": sample(line=info(tarfile.DIRTYPE)),
    "member: sparse": sample(
        line=info(tarfile.REGTYPE, pax_headers={"GNU.sparse.size": str(2**33), "GNU.sparse.map": ""})
    ),
    "member: claims 8 GB": huge_member(),
    "member: claims 8 GB in PAX": sample(line=info(tarfile.REGTYPE, pax_headers={"size": str(2**33)})),
    "member: of a negative size": sample() + cut_header("x", 0) + cut_header("y", -1024),
    "member: of a negative size, alone": cut_header("6.json", -512) + sample(),
    "member: thousands": cut_header("x", 0) * 50_000 + sample(),
    "member: with an escape in its name": sample() + cut_header("\x1b[31mx\ny", 0),
    "PAX: 300,000 digits": extended(b"1" * 300_000),
    "PAX: 8,000 digits": extended(b"1" * 8000),
    "PAX: a length of 0": extended(b"0 a=b\n"),
    "PAX: a negative length": extended(b"-3 a=b\n"),
    "PAX: too long a length": extended(b"99 a=b\n"),
    "PAX: another size": extended(b"12 size=999\n"),
    "PAX: a negative size": extended(b"13 size=-999\n"),
    "PAX: of a negative size": cut_header("x", -1024, tarfile.XHDTYPE) + sample(),
    "PAX: nested without end": cut_header("x", 0, tarfile.XHDTYPE) * 3000 + sample(),
    "PAX: for the whole tar": extended(b"9 path=x\n", tarfile.XGLTYPE),
    "GNU: a name of megabytes": extended(b"a" * 2**21, tarfile.GNUTYPE_LONGNAME),
    "GNU: names without end": (cut_header("x", 512, tarfile.GNUTYPE_LONGNAME) + b"a" * 512) * 3000 + sample(),
    "member: one twice": sample() + sample(),
    "member: one is missing": tar({"6.json": about(), "6.line.png": png()}),
    "tar: gzip": gzip.compress(sample()),
    "tar: gzip of a gigabyte": gzip.compress(bytes(2**30), 1),
    "tar: junk": b"junk" * 1000,
    "tar: zeros": bytes(4096),
    "tar: cut": sample()[:1500],
}


@pytest.fixture
def forged(shards: Path, tmp_path: Path) -> Callable[[bytes], Path]:
    """Puts a block in place of the first sample of the second shard, with right hashes and lengths."""

    def forge(block: bytes) -> Path:
        folder = tmp_path / "shards"
        shutil.copytree(shards, folder)

        def change(index: Columns, listed: list[dict[str, Any]]) -> None:
            first, shard = listed[0]["count"], folder / listed[1]["file"]
            content = block + shard.read_bytes()[index["length"][first] :]
            index["length"][first], index["sha256"][first] = len(block), hashlib.sha256(block).hexdigest()
            shard.write_bytes(content)
            listed[1] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

        change_training(folder, change)
        return folder

    return forge


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_sample_is_a_sentence_and_costs_itself_alone(forged: Callable[[bytes], Path], kind: str) -> None:
    read = Shards(forged(BAD[kind]), "train")
    bad = list(read.keys).index("6")
    with pytest.raises(BadSample, match=r"train-000001.tar: sample '6'") as e:
        read.read(bad, 3)
    assert len(str(e.value).splitlines()) == 1
    data = DataConfig(batch_size=13, workers=0, shuffle=False, flip=False, shift=False)
    (batch,) = Loader(read, data, seed=0, rank=0, world_size=1).epoch(0)
    assert batch.bad == [str(e.value)]
    assert len(batch.keys) == 12


def test_the_forgery_is_read_if_nothing_is_wrong(forged: Callable[[bytes], Path]) -> None:
    """So that the tests above see what they are about."""
    read = Shards(forged(sample()), "train")
    assert read.read(list(read.keys).index("6"), 1).source_size == (80, 80)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("name", ["1", "n" * 150, "Zoë" * 40, "d" * 99])
def test_names_are_read_as_tarfile_reads_them(format: int, name: str) -> None:
    contents: Members = {f"{name}.json": b"{}", f"{name}.line.png": bytes(700), f"{name}.sketch.png": b""}
    assert dict(_members(tar(contents, format))) == contents
    assert dict(_members(tar(contents, format) + bytes(10240))) == contents  # with the zeros at a tar's end


def fifo(shard: Path) -> None:
    shard.unlink()
    os.mkfifo(shard)


def device(shard: Path) -> None:
    shard.unlink()
    shard.symlink_to("/dev/zero")


def linked(shard: Path) -> None:
    shard.rename(shard.with_name("elsewhere"))
    shard.symlink_to("elsewhere")


@pytest.mark.parametrize("make", [fifo, device])
def test_a_shard_that_never_ends_is_a_bad_sample(shards: Path, tmp_path: Path, make: Callable[[Path], None]) -> None:
    shutil.copytree(shards, tmp_path / "shards")
    make(tmp_path / "shards/train-000000.tar")
    with pytest.raises(BadSample, match=r"cannot be read at sample '1' .it is not a regular file"):
        Shards(tmp_path / "shards", "train").read(0, 3)


def test_a_linked_shard_is_followed(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "shards")
    linked(tmp_path / "shards/train-000000.tar")
    assert Shards(tmp_path / "shards", "train").read(0, 3).name == "1"


def test_a_sample_of_gigabytes_is_not_read(shards: Path) -> None:
    read = Shards(shards, "train")
    read.lengths = replace_first(read.lengths, 6 * 2**30)
    with pytest.raises(BadSample, match=f"has {6 * 2**30:,} bytes; {MOST_BYTES:,} can be read"):
        read.read(0, 3)


def replace_first(values: np.ndarray, value: int) -> np.ndarray:
    return np.concatenate([[value], values[1:]])
