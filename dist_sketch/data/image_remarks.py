"""What lies beside the pixels in an image file: taken off before Pillow can stumble over it, and asked only two things.

The two are how the picture must be turned, and which level is white.
"""

import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

PNG_START = b"\x89PNG\r\n\x1a\n"
JPEG_START = b"\xff\xd8\xff"
ORDERS: dict[bytes, Literal["little", "big"]] = {b"II": "little", b"MM": "big"}  # how a TIFF and an EXIF block begin
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
MAX_TEXT = 2**20  # bytes of a text, unzipped
COLOR_SEGMENTS = {(0xE0, b"JFIF\0"): 14, (0xEE, b"Adobe"): 12}  # which say RGB or YCbCr -> bytes that libjpeg asks for
EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
# Tags of TIFF and EXIF
ORIENTATION, MAX_LEVEL, XMP_TAG = 274, 281, 700
PIXEL_TAGS = {
    *(256, 257, 258, 259, 262, 266, 277, 284, 317, 320, 332, 338, 339),  # size, kind and packing of the levels
    *(273, 278, 279, 322, 323, 324, 325),  # strips and tiles
    *(292, 293, 347, *range(512, 522), *range(529, 533)),  # settings of fax and of JPEG
}


class Stripped(NamedTuple):
    """An image file without its remarks; what these say is kept apart."""

    pixels: bytes
    turns: tuple[bytes, ...] = ()  # EXIF blocks, then texts of XMP
    white: int | None = None  # the level that is said to be the highest


class Directory(NamedTuple):
    """The first list of tags of a TIFF, or of an EXIF block, which is a small TIFF."""

    order: Literal["little", "big"]
    start: int
    entries: dict[int, bytes]  # tag -> tag, type, number of values, and the value or its place

    def number(self, tag: int) -> int | None:
        """The value of a tag; None if it is missing, or no whole number."""
        entry = self.entries.get(tag, b"")
        length = {1: 1, 3: 2, 4: 4}.get(int.from_bytes(entry[2:4], self.order), 0)
        value = entry[4 + (len(entry) - 4) // 2 :][:length]
        return int.from_bytes(value, self.order) if value else None

    def text(self, block: bytes, tag: int) -> bytes:
        """The text of a tag, which lies elsewhere in the block."""
        entry = self.entries.get(tag, b"")[4:]
        count, place = (
            int.from_bytes(half, self.order) for half in (entry[: len(entry) // 2], entry[len(entry) // 2 :])
        )
        return block[place : place + count]


def strip(data: bytes) -> Stripped:
    """Takes the remarks out of a PNG, JPEG or TIFF. Other formats are left as they are: Pillow reads theirs well.

    Raises:
        OSError: a PNG's pixels are damaged. Its decoder stops at the last pixel and does not check them.
    """
    if data.startswith(PNG_START):
        return _strip_png(data)
    if data.startswith(JPEG_START):
        return _strip_jpeg(data)
    return _strip_tiff(data) if data[:2] in ORDERS else Stripped(data)


def orientation(turns: Iterable[bytes]) -> int:
    """How the camera was held: the first EXIF block or text of XMP that says so is believed; 1 if none does."""
    for remark in turns:
        block = remark.removeprefix(EXIF).removeprefix(EXIF)
        number = None
        if block[:2] in ORDERS:
            number = _read_directory(block).number(ORIENTATION)
        elif match := re.search(rb'tiff:Orientation(?:="|>)([0-9])', block):
            number = int(match[1])
        if number is not None:
            return number
    return 1


def _strip_png(data: bytes) -> Stripped:
    kept, exif, old_exif, xmp, white = [PNG_START], [], [], [], None
    for kind, chunk in _chunks(data):
        good = zlib.crc32(memoryview(chunk)[4:-4]).to_bytes(4, "big") == chunk[-4:]
        if kind in PIXEL_CHUNKS:
            if not good:
                raise OSError(f"the checksum of a PNG's chunk {kind.decode()} is wrong")
            kept.append(chunk)
        elif good:
            content = chunk[8:-4]
            if kind == b"eXIf":
                exif.append(content)
            elif kind == b"sBIT" and len(content) == 1:
                white = 2 ** content[0] - 1
            elif kind in TEXT_CHUNKS and content.startswith(b"Raw profile type exif\0"):
                old_exif.append(_from_hex(_text(kind, content)))
            elif kind in TEXT_CHUNKS and content.startswith(b"XML:com.adobe.xmp\0"):
                xmp.append(_text(kind, content))
    return Stripped(b"".join(kept), (*exif, *old_exif, *xmp), white)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(PNG_START)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        chunk = data[place : place + 12 + length]
        if len(chunk) < 12 + length:
            break
        yield kind, chunk
        if kind == b"IEND":
            return
        place += len(chunk)
    raise OSError("the PNG's end is missing")


def _text(kind: bytes, content: bytes) -> bytes:
    """The text in a chunk of a PNG; empty if it is damaged. A long one is cut: it may be a bomb."""
    text = content.partition(b"\0")[2]
    zipped = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    if kind == b"iTXt":
        text = text[2:].split(b"\0", 2)[-1]  # behind the language and the translated name
    elif kind == b"zTXt":
        text = text[1:]
    try:
        return zlib.decompressobj().decompress(text, MAX_TEXT) if zipped else text[:MAX_TEXT]
    except zlib.error:
        return b""


def _from_hex(text: bytes) -> bytes:
    """The EXIF block that old programs wrote into a PNG: a line with a name, one with the length, then hex digits."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""


def _strip_jpeg(data: bytes) -> Stripped:
    # A download that was given its whole room at once and then broke off ends in zeros, which decode to gray. Without
    # them the decoder sees that the end is missing.
    data = data.rstrip(b"\0")
    kept, exif, xmp, place = [data[:2]], [], [], 2
    while data[place : place + 1] == b"\xff":
        marker = data[place + 1] if place + 1 < len(data) else 0
        if marker == 0xFF:  # padding
            place += 1
            continue
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if end < place + 4 or end > len(data) or not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xDA:
            break  # the first scan, or damage: the decoder's business
        content = data[place + 4 : end]
        needed = COLOR_SEGMENTS.get((marker, content[:5]))
        if marker < 0xE0 or (needed and len(content) >= needed):
            kept.append(data[place:end])
        elif marker == 0xE1 and content.startswith(EXIF):
            exif.append(content)
        elif marker == 0xE1 and content.startswith(XMP):
            xmp.append(content)
        place = end
    return Stripped(b"".join(kept) + data[place:], (*exif, *xmp))


def _strip_tiff(data: bytes) -> Stripped:
    """The first picture alone, with the tags that its pixels need, in place of the list of all tags."""
    tags = _read_directory(data)
    kept = [entry for tag, entry in tags.entries.items() if tag in PIXEL_TAGS]
    if not kept:
        return Stripped(data)
    big = len(kept[0]) == 20
    directory = len(kept).to_bytes(8 if big else 2, tags.order) + b"".join(kept) + bytes(8 if big else 4)
    pixels = data[: tags.start] + directory + data[tags.start + len(directory) :]
    return Stripped(pixels, (data, tags.text(data, XMP_TAG)), tags.number(MAX_LEVEL))


def _read_directory(block: bytes) -> Directory:
    """Reads what is there: a list that is cut, or lies outside the block, has fewer entries or none."""
    order = ORDERS[block[:2]]
    big = b"+" in block[2:4]  # a BigTIFF: more than 4 GB are possible
    start = int.from_bytes(block[8:16] if big else block[4:8], order)
    first, size = (start + 8, 20) if big else (start + 2, 12)
    count = min(int.from_bytes(block[start:first], order), (len(block) - first) // size)
    entries = (block[place : place + size] for place in range(first, first + count * size, size))
    return Directory(order, start, {int.from_bytes(entry[:2], order): entry for entry in entries})
