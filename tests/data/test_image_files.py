"""The door for pictures: every encoding comes out right or is refused by name, and nothing else opens one."""

import ast
import io
import os
import pickle
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

import dist_sketch
from dist_sketch.data.image_files import BadImage, read_image, read_packed
from dist_sketch.reports.page import embed

GRAY = np.arange(64 * 48, dtype=np.int64).reshape(48, 64) * 7 % 256
COLOR = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], axis=2)
PNG_START = b"\x89PNG\r\n\x1a\n"


def save(path: Path, value: int = 200) -> Path:
    Image.new("L", (8, 8), value).save(path)
    return path


def chunk(kind: bytes, data: bytes, wrong: int = 0) -> bytes:
    """A part of a PNG; `wrong` changes its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ wrong)


def png(rows: NDArray, color: int, bits: int, width: int, *side: bytes) -> bytes:
    """A PNG of packed rows (height, bytes) with chunks `side` before its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), bits, color, 0, 0, 0))
    pixels = b"".join(b"\0" + row.tobytes() for row in rows)
    return PNG_START + header + b"".join(side) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with right checksums and almost no pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return PNG_START + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def refused(path: Path) -> str:
    with pytest.raises(BadImage) as e:
        read_image(path)
    assert str(e.value) == f"{path}: {e.value.why}"
    return e.value.why


# --- read_image: conversions ---


def check(image: Image.Image, mode: str, expected: np.ndarray, source_mode: str, tolerance: int = 0) -> None:
    assert image.mode == mode
    assert image.info == {"mode": source_mode}
    assert np.abs(np.asarray(image).astype(int) - expected).max() <= tolerance


def test_gray_stays_gray(tmp_path: Path) -> None:
    Image.fromarray(GRAY.astype(np.uint8)).save(tmp_path / "a.png")
    check(read_image(tmp_path / "a.png"), "L", GRAY, "L")


def test_gray_stored_as_rgb(tmp_path: Path) -> None:
    rgb = np.repeat(GRAY.astype(np.uint8)[..., None], 3, axis=2)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    check(read_image(tmp_path / "a.png"), "L", GRAY, "RGB")
    rgb[3, 4, 2] ^= 1
    Image.fromarray(rgb).save(tmp_path / "b.png")
    check(read_image(tmp_path / "b.png"), "RGB", rgb, "RGB")


def test_palette(tmp_path: Path) -> None:
    indices = np.array([[0, 1], [2, 1]], dtype=np.uint8)
    colors = np.array([[255, 0, 0], [0, 128, 0], [1, 2, 3]])
    image = Image.fromarray(indices, "L")
    image.putpalette(colors.astype(np.uint8).tobytes())
    image.save(tmp_path / "a.png")
    check(read_image(tmp_path / "a.png"), "RGB", colors[indices], "P")
    image.save(tmp_path / "b.png", transparency=1)
    colors[1] = 255
    check(read_image(tmp_path / "b.png"), "RGB", colors[indices], "P")
    image.save(tmp_path / "c.png", transparency=bytes([255, 0, 255]))
    check(read_image(tmp_path / "c.png"), "RGB", colors[indices], "P")


def test_gray_palette(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "L")
    image.putpalette([250, 250, 250, 9, 9, 9])
    image.save(tmp_path / "a.gif")
    check(read_image(tmp_path / "a.gif"), "L", np.array([[250, 9]]), "P")


def test_cmyk(tmp_path: Path) -> None:
    ink = np.zeros((8, 24, 4), np.uint8)
    ink[:, 8:16, 0] = 255  # cyan
    ink[:, 16:, 3] = 255  # black
    expected = np.repeat(np.array([[255, 255, 255], [0, 255, 255], [0, 0, 0]]), 8, axis=0)[None].repeat(8, axis=0)
    Image.fromarray(ink, "CMYK").save(tmp_path / "a.tif")
    check(read_image(tmp_path / "a.tif"), "RGB", expected, "CMYK")
    Image.fromarray(ink, "CMYK").save(tmp_path / "a.jpg", quality=95)
    check(read_image(tmp_path / "a.jpg"), "RGB", expected, "CMYK", tolerance=12)


@pytest.mark.parametrize(("mode", "color"), [("RGBA", (255, 0, 0)), ("LA", (0,))])
def test_alpha_on_white(tmp_path: Path, mode: str, color: tuple[int, ...]) -> None:
    pixels = np.zeros((1, 3, len(color) + 1), np.uint8)
    pixels[..., : len(color)] = color
    pixels[0, :, -1] = (255, 0, 51)  # opaque, clear, one fifth
    Image.fromarray(pixels, mode).save(tmp_path / "a.png")
    expected = np.array([[color, [255] * len(color), [255 - (255 - c) // 5 for c in color]]])
    check(read_image(tmp_path / "a.png"), mode.rstrip("A"), expected.squeeze(-1) if mode == "LA" else expected, mode)


def test_transparent_gray_level(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 90]], np.uint8)).save(tmp_path / "a.png", transparency=0)
    check(read_image(tmp_path / "a.png"), "L", np.array([[255, 90]]), "L")


def test_exif_rotation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    Image.fromarray(GRAY.astype(np.uint8)).save(tmp_path / "a.png", exif=exif)
    check(read_image(tmp_path / "a.png"), "L", np.rot90(GRAY, -1), "L")


def test_16_bit(tmp_path: Path) -> None:
    Image.fromarray((GRAY * 257).astype(np.uint16)).save(tmp_path / "a.png")
    check(read_image(tmp_path / "a.png"), "L", GRAY, "I;16")
    Image.fromarray((GRAY * 257).astype(np.uint16)).save(tmp_path / "a.tif")
    check(read_image(tmp_path / "a.tif"), "L", GRAY, "I;16")
    Image.fromarray((GRAY * 257).astype(np.int32)).save(tmp_path / "b.tif")
    check(read_image(tmp_path / "b.tif"), "L", GRAY, "I")


@pytest.mark.parametrize("scale", [1 / 255, 1, 257])
def test_float(tmp_path: Path, scale: float) -> None:
    Image.fromarray((GRAY * scale).astype(np.float32)).save(tmp_path / "a.tif")
    check(read_image(tmp_path / "a.tif"), "L", GRAY, "F")


@pytest.mark.parametrize("level", [-1.0, 70000.0, float("nan")])
def test_levels_without_a_scale(tmp_path: Path, level: float) -> None:
    Image.fromarray(np.array([[0, level]], np.float32)).save(tmp_path / "a.tif")
    assert "cannot be used: its gray levels go from" in refused(tmp_path / "a.tif")


def test_1_bit(tmp_path: Path) -> None:
    bits = GRAY > 100
    Image.fromarray(bits).save(tmp_path / "a.png")
    check(read_image(tmp_path / "a.png"), "L", bits * 255, "1")


# --- read_image: refusals ---


def test_short_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Image.Image) -> None:
        raise MemoryError

    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "load", full)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", full)
    assert refused(tmp_path / "a.png").startswith("needs more memory than there is")


def test_missing_and_empty(tmp_path: Path) -> None:
    assert refused(tmp_path / "a.png") == "cannot be read (No such file or directory)"
    assert refused(tmp_path) == "cannot be read (Is a directory)"
    (tmp_path / "a.png").touch()
    assert refused(tmp_path / "a.png") == "the file is empty (0 bytes)"


@pytest.mark.parametrize("content", [b"no image at all", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_unreadable(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    assert refused(tmp_path / "a.jpg").startswith("is not a readable image (BMP, GIF, JPEG")


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp", "gif"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    data = path.read_bytes()
    ends = [3] if suffix == "gif" else [1, 2, 4, 12, 16, 20]  # a GIF's last two bytes hold no data
    for cut in (*ends, 100, len(data) // 2):
        path.write_bytes(data[:-cut])
        why = refused(path)
        assert why.startswith(("is damaged or truncated (", "has a damaged header")), (cut, why)


JPEGS: dict[str, dict[str, object]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "with restarts": {"restart_marker_rows": 1},
    "of several pictures": {"format": "MPO", "save_all": True},
}


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_ends_in_zeros_is_truncated(tmp_path: Path, kind: str) -> None:
    """So ends a download that was given its whole room and broke off."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96), np.uint8))
    others = {"append_images": [picture]} if "save_all" in JPEGS[kind] else {}
    path = tmp_path / "a.jpg"
    picture.save(path, **{**JPEGS[kind], **others})
    data, whole = path.read_bytes(), read_image(path)
    end = data.index(b"\xff\xd9") + 2
    for kept in (end - 1, end - 2, end - 30, end // 2):
        path.write_bytes(data[:kept].ljust(len(data), b"\0"))
        assert refused(path).startswith("is damaged or truncated (image file is truncated"), kept
    path.write_bytes(data[:end] + bytes(1000))
    assert read_image(path) == whole


def test_flipped_bit(tmp_path: Path) -> None:
    ramp = np.add.outer(np.arange(300), np.arange(300)) // 7 % 256
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[80] ^= 4  # Pillow alone decodes this to other pixels without an error
    (tmp_path / "a.png").write_bytes(data)
    assert refused(tmp_path / "a.png").startswith("is damaged or truncated (")


@pytest.mark.parametrize("size", [(60_000, 60_000), (10_001, 10_000)])
def test_bomb_is_refused_by_its_header(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    def load(self: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    (tmp_path / "a.png").write_bytes(png_header(*size))
    assert refused(tmp_path / "a.png") == (
        "is too large (a decompression bomb?): more than 100,000,000 pixels; make it smaller"
    )
    assert len(recwarn) == 0


def test_no_warning_leaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.png").size == (8, 8)


def test_bad_image_survives_pickling(tmp_path: Path) -> None:
    error = pickle.loads(pickle.dumps(BadImage(tmp_path, "why")))
    assert str(error) == f"{tmp_path}: why"


# --- a matrix of encodings, written by tifffile or byte by byte ---

G8, C8 = GRAY.astype(np.uint8), COLOR.astype(np.uint8)
G16, C16 = (G8 * np.uint16(257)), (C8 * np.uint16(257))
ALPHA = np.repeat(np.array([255, 128], np.uint8), 32)[None].repeat(48, axis=0)
INK = np.dstack([np.zeros((48, 64, 3), np.uint8), 255 - G8])  # CMYK


def on_white(levels: NDArray) -> NDArray:
    alpha = ALPHA[..., None] if levels.ndim == 3 else ALPHA
    return np.rint((levels * (alpha / 255.0)) + 255 * (1 - alpha / 255.0))


def but(levels: NDArray, level: int) -> NDArray:
    """The levels with one of them transparent."""
    return np.where(levels == level, 255, levels)


def packed(levels: NDArray, bits: int) -> NDArray:
    """Levels of fewer than 8 bits, several to a byte."""
    each = 8 // bits
    return sum(levels[:, i::each] << (8 - bits * (i + 1)) for i in range(each)).astype(np.uint8)


def premultiplied(levels: NDArray) -> NDArray:
    alpha = ALPHA[..., None] if levels.ndim == 3 else ALPHA
    return np.dstack([np.rint(levels * (alpha / 255.0)).astype(np.uint8), ALPHA])


def tiff(levels: NDArray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, levels, **options)
    return file.getvalue()


def gray_tiff(levels: NDArray, kind: str = "minisblack", **options: object) -> bytes:
    return tiff(levels, photometric=kind, **options)


def color_tiff(levels: NDArray, **options: object) -> bytes:
    return tiff(levels, photometric="rgb", **options)


def bmp(alpha: int | NDArray, masks: bool, colors: NDArray = C8) -> bytes:
    """A 32-bit BMP; with `masks` its fourth byte is declared as alpha."""
    rows = np.dstack([colors[..., ::-1], np.full_like(G8, alpha)])[::-1].tobytes()
    info = struct.pack("<IiiHHIIiiII", 124 if masks else 40, 64, 48, 1, 32, 3 * masks, len(rows), 0, 0, 0, 0)
    if masks:
        info += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + bytes(124 - 56)
    return b"BM" + struct.pack("<IHHI", 14 + len(info) + len(rows), 0, 0, 14 + len(info)) + info + rows


def cmyk_jpeg(adobe: bool) -> bytes:
    file = io.BytesIO()
    Image.fromarray(INK, "CMYK").resize((8, 8)).save(file, "JPEG")
    data = file.getvalue()
    return data if adobe else data[:2] + data[2 + 16 :]  # without the segment APP14


def big(levels: NDArray) -> NDArray:
    return levels.astype(levels.dtype.newbyteorder(">"))


def exif(order: str, *entries: tuple[int, int, int, bytes]) -> bytes:
    """A block of (tag, type, count, value or offset)."""
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    return start + b"".join(struct.pack(order + "HHI", *e[:3]) + e[3] for e in entries) + bytes(4)


def segment(kind: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, len(data) + 2) + data


def old_palette(indices: NDArray, colors: int, **options: object) -> bytes:
    """A TIFF whose inverted gray palette has levels of 8 bits instead of 16."""
    levels = np.linspace(255, 0, colors).astype(np.uint16)
    return tiff(indices, photometric="palette", colormap=np.stack([levels] * 3), **options)


def said(white: int) -> dict[str, object]:
    """The tag of a TIFF that says what its highest level is."""
    return {"extratags": [(281, 3, 1, white, True)]}


G12, G10 = np.rint(G8 / 255 * 4095).astype(np.uint16), np.rint(G8 / 255 * 1023).astype(np.uint16)
C12 = np.rint(C8 / 255 * 4095).astype(np.uint16)
PLANES = np.moveaxis(C8, 2, 0)
RIGHT = {
    "TIFF 8 bit, white is zero": (gray_tiff(255 - G8, "miniswhite"), G8),
    "TIFF 8 bit, white is zero, compressed": (gray_tiff(255 - G8, "miniswhite", compression="zlib"), G8),
    "TIFF 1 bit": (gray_tiff(G8 > 99), (G8 > 99) * 255),
    "TIFF 1 bit, white is zero": (gray_tiff(G8 > 99, "miniswhite"), (G8 <= 99) * 255),
    "TIFF 16 bit": (gray_tiff(G16), G8),
    "TIFF 16 bit, big-endian": (gray_tiff(G16, byteorder=">"), G8),
    "TIFF 16 bit, big-endian, compressed": (gray_tiff(G16, byteorder=">", compression="zlib"), G8),
    "TIFF 16 bit, white is zero": (gray_tiff(65535 - G16, "miniswhite"), G8),
    "TIFF 16 bit, white is zero, compressed": (gray_tiff(65535 - G16, "miniswhite", compression="zlib"), G8),
    "TIFF 16 bit, predictor": (gray_tiff(G16, compression="zlib", predictor=True), G8),
    "TIFF 16 bit, white is zero, tiles": (
        gray_tiff(np.tile(65535 - G16, (2, 2)), "miniswhite", tile=(32, 32)),
        np.tile(G8, (2, 2)),
    ),
    "TIFF 16 bit, two pages": (gray_tiff(np.stack([G16, G16 // 2])), G8),
    "TIFF signed 16 bit": (gray_tiff(G8 * np.int16(128)), G8),
    "TIFF signed 32 bit": (gray_tiff(G16.astype(np.int32)), G8),
    "TIFF 32 bit with levels of 8": (gray_tiff(G8.astype(np.int32)), G8),
    "TIFF float to 1": (gray_tiff((G8 / 255).astype(np.float32)), G8),
    "TIFF float to 1, white is zero": (gray_tiff((1 - G8 / 255).astype(np.float32), "miniswhite"), G8),
    "TIFF float to 255, white is zero": (gray_tiff((255.0 - G8).astype(np.float32), "miniswhite"), G8),
    "TIFF float to 65535, big-endian": (gray_tiff(G16.astype(np.float32), byteorder=">"), G8),
    "TIFF 16-bit RGB": (color_tiff(C16), C8),
    "TIFF 8-bit RGB in planes": (color_tiff(PLANES, planarconfig="separate"), C8),
    "TIFF RGBA": (color_tiff(np.dstack([C8, ALPHA]), extrasamples=["unassalpha"]), on_white(C8)),
    "TIFF RGBA, premultiplied": (color_tiff(premultiplied(C8), extrasamples=["assocalpha"]), on_white(C8)),
    "TIFF 16-bit RGBA": (
        color_tiff(np.dstack([C16, ALPHA * np.uint16(257)]), extrasamples=["unassalpha"]),
        on_white(C8),
    ),
    "TIFF RGB and something": (color_tiff(np.dstack([C8, 0 * G8]), extrasamples=["unspecified"]), C8),
    "TIFF gray and alpha": (
        gray_tiff(np.dstack([G8, ALPHA]), extrasamples=["unassalpha"], planarconfig="contig"),
        on_white(G8),
    ),
    "TIFF gray and alpha, premultiplied": (
        gray_tiff(premultiplied(G8), extrasamples=["assocalpha"], planarconfig="contig"),
        on_white(G8),
    ),
    "TIFF CMYK": (tiff(INK, photometric="separated"), G8),
    "TIFF 16-bit CMYK": (tiff(INK * np.uint16(257), photometric="separated"), G8),
    "TIFF CMYK in planes": (tiff(np.moveaxis(INK, 2, 0), photometric="separated", planarconfig="separate"), G8),
    "TIFF 12 bit in 16, said so": (gray_tiff(G12, **said(4095)), G8),
    "TIFF 10 bit in 16, said so, big-endian": (gray_tiff(G10, byteorder=">", **said(1023)), G8),
    "TIFF 12 bit in 16, said so, white is zero": (gray_tiff(4095 - G12, "miniswhite", **said(4095)), G8),
    "TIFF 16 bit, its own top said": (gray_tiff(G16 // 2, **said(32700)), G8 // 2),
    "TIFF 16 bit, a wrong top said": (gray_tiff(G16, **said(4095)), G8),
    "TIFF 16 bit, dark": (gray_tiff(G16 // 6), G8 // 6),
    "TIFF 8 bit, dark": (gray_tiff(G8 // 16), G8 // 16),
    "TIFF palette of 8 bits": (old_palette(255 - G8, 256), G8),
    "TIFF palette of 8 bits, big-endian, compressed": (
        old_palette(255 - G8, 256, byteorder=">", compression="zlib"),
        G8,
    ),
    "PNG 12 bit in 16, said so": (png(big(G12), 0, 16, 64, chunk(b"sBIT", b"\x0c")), G8),
    "PNG 12 bit of 16, scaled as it should be": (png(big(G16), 0, 16, 64, chunk(b"sBIT", b"\x0c")), G8),
    "PNG 16 bit, nonsense said": (png(big(G16), 0, 16, 64, chunk(b"sBIT", b"\0")), G8),
    "PNG 16 bit, a level transparent": (
        png(big(G16), 0, 16, 64, chunk(b"tRNS", struct.pack(">H", 10 * 257))),
        but(G8, 10),
    ),
    "PNG 8 bit, a level transparent": (png(G8, 0, 8, 64, chunk(b"tRNS", b"\0\x0a")), but(G8, 10)),
    "PNG 4 bit, a level transparent": (
        png(packed(G8 // 16, 4), 0, 4, 64, chunk(b"tRNS", b"\0\3")),
        but(G8 // 16 * 17, 51),
    ),
    "PNG 2 bit, a level transparent": (
        png(packed(G8 // 64, 2), 0, 2, 64, chunk(b"tRNS", b"\0\1")),
        but(G8 // 64 * 85, 85),
    ),
    "PNG 1 bit, white transparent": (
        png(np.packbits(G8 > 99, axis=1), 0, 1, 64, chunk(b"tRNS", b"\0\1")),
        (G8 > 99) * 255,
    ),
    "PNG RGB, a color transparent": (
        png(C8.reshape(48, -1), 2, 8, 64, chunk(b"tRNS", struct.pack(">HHH", *C8[5, 5].tolist()))),
        np.where((C8[5, 5] == C8).all(axis=2, keepdims=True), 255, C8),
    ),
    "PNG 16-bit RGB": (png(big(C16).reshape(48, -1), 2, 16, 64), C8),
    "PNG 16-bit gray and alpha": (
        png(big(np.dstack([G16, ALPHA * np.uint16(257)])).reshape(48, -1), 4, 16, 64),
        on_white(G8),
    ),
    "PNG palette, partly transparent": (
        png(
            *(G8 // 128, 3, 8, 64, chunk(b"PLTE", bytes([9, 9, 9, 0, 0, 0])), chunk(b"tRNS", bytes([255, 0]))),
        ),
        np.where(G8 < 128, 9, 255),
    ),
    "BMP 32 bit, fourth byte 0": (bmp(0, masks=False), C8),
    "BMP 32 bit, fourth byte at random": (bmp(np.random.default_rng(0).integers(0, 256, G8.shape), masks=False), C8),
    "BMP 32 bit, alpha 0 everywhere": (bmp(0, masks=True), C8),
    "BMP 32 bit, alpha 255": (bmp(255, masks=True), C8),
    "PGM 16 bit": (b"P5 64 48 65535\n" + big(G16).tobytes(), G8),
    "PGM to 1023": (b"P5 64 48 1023\n" + big(G8 * np.uint16(4)).tobytes(), G8),
    "PBM": (b"P4 64 48\n" + np.packbits(G8 <= 99, axis=1).tobytes(), (G8 > 99) * 255),
    "PPM 16 bit": (b"P6 64 48 65535\n" + big(C16).tobytes(), C8),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_an_encoding_comes_out_right(tmp_path: Path, kind: str) -> None:
    data, expected = RIGHT[kind]
    (tmp_path / "a").write_bytes(data)
    image = np.asarray(read_image(tmp_path / "a")).astype(int)
    assert image.shape == expected.shape
    assert np.abs(image - expected).max() <= 1


UNCLEAR = {
    "TIFF 16-bit RGB in planes": (
        color_tiff(np.moveaxis(C16, 2, 0), planarconfig="separate"),
        "cannot be used: its colors have more than 8 bits and lie in separate planes",
    ),
    "TIFF 32 bit to the top": (gray_tiff(G16.astype(np.uint32) * 65537), "cannot be used: its gray levels go from -"),
    "TIFF signed bytes": (gray_tiff((G8 // 2).astype(np.int8)), "cannot be used: its levels are signed bytes"),
    "TIFF float, compressed, big-endian": (
        gray_tiff((G8 / 255).astype(np.float32), byteorder=">", compression="zlib"),
        "cannot be used: Pillow mixes up the order of the bytes",
    ),
    "TIFF float a little above 1": (
        gray_tiff((G8 / 250).astype(np.float32)),
        "cannot be used: its gray levels go from 0 to 1.02, which is too dark for 255; multiply",
    ),
    "TIFF 16 bit with levels of 8": (gray_tiff(G8.astype(np.uint16)), "cannot be used: its gray levels go from 0 to 2"),
    "TIFF 12 bit in 16": (
        gray_tiff(G12),
        "cannot be used: its gray levels go from 0 to 4095, which is too dark for 65535",
    ),
    "TIFF 10 bit in 16": (
        gray_tiff(G10),
        "cannot be used: its gray levels go from 0 to 1023, which is too dark for 65535",
    ),
    "TIFF 12 bit in 16, white is zero": (
        gray_tiff(G12, "miniswhite"),
        "cannot be used: its gray levels go from 0 to 4",
    ),
    "TIFF 12 bit in signed 16": (gray_tiff(G12.astype(np.int16)), "cannot be used: its gray levels go from 0 to 4095"),
    "TIFF 12 bit in 32": (gray_tiff(G12.astype(np.int32)), "cannot be used: its gray levels go from 0 to 4095"),
    "TIFF 12-bit RGB in 16": (color_tiff(C12), "cannot be used: its levels use less than an eighth of their 16 bits"),
    "TIFF 12-bit RGBA in 16": (
        color_tiff(np.dstack([C12, np.full_like(G12, 4095)]), extrasamples=["unassalpha"]),
        "cannot be used: its levels use less than an eighth of their 16 bits; multiply the levels by 255",
    ),
    "TIFF 12-bit CMYK in 16": (
        tiff((INK * np.uint16(16)), photometric="separated"),
        "cannot be used: its levels use less than an eighth of their 16 bits",
    ),
    "TIFF float to 100": (
        gray_tiff((G8 / 2.55).astype(np.float32)),
        "cannot be used: its gray levels go from 0 to 100, which is too dark for 255; multiply the levels by 255",
    ),
    "TIFF float to 4095": (gray_tiff(G12.astype(np.float32)), "cannot be used: its gray levels go from 0 to 4095"),
    "TIFF float to 1/100": (gray_tiff((G8 / 25500).astype(np.float32)), "cannot be used: its gray levels go from 0 to"),
    "PNG 12 bit in 16": (
        png(big(G12), 0, 16, 64),
        "cannot be used: its gray levels go from 0 to 4095, which is too dark",
    ),
    "PNG 12-bit RGB in 16": (
        png(big(C12).reshape(48, -1), 2, 16, 64),
        "cannot be used: its levels use less than an eighth of their 16 bits",
    ),
    "PPM 12 bit in 16": (
        b"P6 64 48 65535\n" + big(C12).tobytes(),
        "cannot be used: its levels use less than an eighth of their 16 bits",
    ),
    "PNG 12-bit gray and alpha in 16": (
        png(big(np.dstack([G12, np.full_like(G12, 65535)])).reshape(48, -1), 4, 16, 64),
        "cannot be used: its levels use less than an eighth of their 16 bits",
    ),
    "BMP 32 bit, ink in the fourth byte": (
        bmp(255 - G8, masks=False, colors=0 * C8),
        "cannot be used: its pixels have a fourth byte",
    ),
    "TIFF L*a*b*": (tiff(C8, photometric="cielab"), "cannot be used: its colors are L*a*b*"),
    "TIFF 64-bit float": (gray_tiff(G8 / 255), "has a damaged header, or one of a kind that is not read (TIFF)"),
    "TIFF float RGB": (color_tiff((C8 / 255).astype(np.float32)), "has a damaged header, or one of a kind that is not"),
    "TIFF 16 bit, white is zero, big-endian": (
        gray_tiff(65535 - G16, "miniswhite", byteorder=">"),
        "has a damaged header, or one of a kind that is not read (TIFF)",
    ),
    "TIFF transparent everywhere": (
        color_tiff(np.dstack([C8, 0 * G8]), extrasamples=["unassalpha"]),
        "cannot be used: it is transparent everywhere",
    ),
    "PNG transparent everywhere": (
        png(np.dstack([C8, 0 * G8]).reshape(48, -1), 6, 8, 64),
        "cannot be used: it is transparent everywhere",
    ),
    "PNG 16-bit RGB, a color transparent": (
        png(big(C16).reshape(48, -1), 2, 16, 64, chunk(b"tRNS", bytes(6))),
        "cannot be used: it has 16-bit colors, of which one is transparent",
    ),
    "JPEG CMYK without Adobe's remark": (cmyk_jpeg(adobe=False), "cannot be used: its colors are CMYK, and no remark"),
}


@pytest.mark.parametrize("kind", UNCLEAR)
def test_an_unclear_encoding_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    data, sentence = UNCLEAR[kind]
    (tmp_path / "a").write_bytes(data)
    why = refused(tmp_path / "a")
    assert why.startswith(sentence)
    assert why.endswith("; save it as an 8-bit PNG")


# --- only pixels decide ---

BOMB = zlib.compress(bytes(5_000_000))
SIDE = {
    "2 MB of ICC profile": chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2_000_000))),
    "zipped XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
    "a long text": chunk(b"zTXt", b"x\0\0" + BOMB),
    "a wrong checksum": chunk(b"tEXt", b"a\0b", wrong=1),
    "a wrong checksum of EXIF": chunk(b"eXIf", b"MM\0*" + bytes(20), wrong=1),
    "a short chunk": chunk(b"pHYs", b"a"),
    "an unknown chunk": chunk(b"abCd", b"junk"),
}


@pytest.mark.parametrize("side", SIDE)
def test_what_is_beside_the_pixels_of_a_png_is_no_damage(tmp_path: Path, side: str) -> None:
    data = png(G8, 0, 8, 64, SIDE[side])
    (tmp_path / "a.png").write_bytes(data)
    check(read_image(tmp_path / "a.png"), "L", GRAY, "L")


@pytest.mark.parametrize("kind", [b"IDAT", b"tRNS"])
def test_a_wrong_checksum_of_pixels_is_damage(tmp_path: Path, kind: bytes) -> None:
    good = chunk(b"tRNS", b"\0\1")
    data = png(G8, 0, 8, 64, good)
    place = data.index(kind)
    length = int.from_bytes(data[place - 4 : place], "big")
    data = data[: place + 4 + length] + b"junk" + data[place + 8 + length :]
    (tmp_path / "a.png").write_bytes(data)
    why = f"is damaged or truncated (the checksum of a PNG's chunk {kind.decode()} is wrong)"
    assert refused(tmp_path / "a.png") == why


TURNED = (274, 3, 1, b"\6\0\0\0")
ODD_EXIF = {
    "a value outside the block": exif("<", (270, 2, 5000, b"\xff\xff\0\0"), TURNED),
    "a fraction outside the block": exif("<", (33434, 5, 1, b"abcd"), TURNED),
    "an unknown type": exif("<", (40000, 99, 1, b"abcd"), TURNED),
    "a list of tags outside the block": exif("<", TURNED, (34665, 4, 1, b"\xff\xff\0\0")),
    "the other order of bytes": exif(">", (274, 3, 1, b"\0\6\0\0")),
    "a long number": exif("<", (274, 4, 1, b"\6\0\0\0")),
}
USELESS_EXIF = {
    "cut": exif("<", TURNED)[:12],
    "junk": bytes(range(200)),
    "empty": b"",
    "a turn that is none": exif("<", (274, 3, 1, b"\x63\0\0\0")),
    "a turn in letters": exif("<", (274, 2, 2, b"6\0\0\0")),
}


@pytest.mark.parametrize("block", [*ODD_EXIF, *USELESS_EXIF])
@pytest.mark.parametrize("format", ["jpg", "png"])
def test_odd_exif_is_no_damage_and_the_turn_is_found(tmp_path: Path, format: str, block: str) -> None:
    data, turned = ({**ODD_EXIF, **USELESS_EXIF})[block], block in ODD_EXIF
    ramp = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8) * 2
    if format == "png":
        (tmp_path / "a").write_bytes(png(ramp, 0, 8, 64, chunk(b"eXIf", data)))
    else:
        file = io.BytesIO()
        Image.fromarray(ramp).save(file, "JPEG", quality=98)
        jpeg = file.getvalue()
        (tmp_path / "a").write_bytes(jpeg[:2] + segment(0xE1, b"Exif\0\0" + data) + jpeg[2:])
    check(read_image(tmp_path / "a"), "L", np.rot90(ramp, -1) if turned else ramp, "L", tolerance=2)


RAMP = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8) * 2
UPRIGHT = np.rot90(RAMP, -1)
EXIF_6 = exif("<", TURNED)


def jpeg(*segments: bytes, levels: NDArray = RAMP, **options: object) -> bytes:
    """A JPEG with segments before all others."""
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=98, **options)
    data = file.getvalue()
    return data[:2] + b"".join(segments) + data[2:]


BAD_SEGMENTS = {
    "a short color profile": segment(0xE2, b"ICC_PROFILE\0"),
    "a part of a color profile": segment(0xE2, b"ICC_PROFILE\0\5\1" + bytes(20)),
    "a short remark of Adobe's": segment(0xEE, b"Adobe"),
    "a short JFIF": segment(0xE0, b"JFIF\0"),
    "a broken list of pictures": segment(0xE2, b"MPF\0II*\0" + b"\xff" * 40),
    "broken settings of Photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0" + b"\xff" * 4),
    "an empty segment": segment(0xE5, b""),
    "a long comment": segment(0xFE, b"x" * 65533),
    "padding": b"\xff" * 9,
}


@pytest.mark.parametrize("side", BAD_SEGMENTS)
def test_what_is_beside_the_pixels_of_a_jpeg_is_no_damage(tmp_path: Path, side: str) -> None:
    (tmp_path / "a").write_bytes(jpeg(BAD_SEGMENTS[side], segment(0xE1, b"Exif\0\0" + EXIF_6)))
    check(read_image(tmp_path / "a"), "L", UPRIGHT, "L", tolerance=2)
    color = np.repeat(RAMP[..., None], 3, axis=2) // np.uint8([1, 2, 3])
    (tmp_path / "a").write_bytes(jpeg(BAD_SEGMENTS[side], levels=color, subsampling=0))
    check(read_image(tmp_path / "a"), "RGB", color, "RGB", tolerance=5)


def hand_tiff(order: str, *remarks: tuple[int, int, int, int], big: bool = False, next_one: int = 0) -> bytes:
    """A TIFF of RAMP with the given tags (tag, type, number, value or place) among its own."""
    place, word = (16, "Q") if big else (8, "I")
    sizes = ((256, 64), (257, 48), (258, 8), (259, 1), (262, 1), (273, 2000), (277, 1), (278, 48), (279, 64 * 48))
    own = ((tag, 4, 1, value) for tag, value in sizes)
    tags = b""
    for tag, kind, number, value in sorted((*own, *remarks)):
        small = {1: "B", 3: "H"}.get(kind if number == 1 else 4, word)
        tags += struct.pack(f"{order}HH{word}", tag, kind, number)
        tags += struct.pack(order + small, value).ljust(8 if big else 4, b"\0")
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    start += struct.pack(order + "HHQ", 8, 0, place) if big else struct.pack(order + "I", place)
    count = struct.pack(order + ("Q" if big else "H"), 9 + len(remarks))
    return (start + count + tags + struct.pack(order + word, next_one)).ljust(2000, b"\0") + RAMP.tobytes()


FAR = 0xFFFFFFF0
BAD_TAGS = {
    "a description outside the file": (270, 2, 500, FAR),
    "a resolution outside the file": (282, 5, 1, FAR),
    "a resolution of another type": (282, 2, 40, 100),
    "a date of an unknown type": (306, 99, 20, 0),
    "XMP that is cut": (700, 1, 5000, 3000),
    "a copyright of 4 GB": (33432, 2, 0xFFFFFFFF, 8),
    "EXIF outside the file": (34665, 4, 1, FAR),
    "a color profile outside the file": (34675, 7, 5000, FAR),
    "an early unknown tag": (200, 2, 500, FAR),
    "a highest level outside the file": (281, 3, 500, FAR),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("side", BAD_TAGS)
def test_what_is_beside_the_pixels_of_a_tiff_is_no_damage(tmp_path: Path, side: str, order: str) -> None:
    (tmp_path / "a").write_bytes(hand_tiff(order, BAD_TAGS[side], (274, 3, 1, 6), next_one=FAR))
    check(read_image(tmp_path / "a"), "L", UPRIGHT, "L")


def test_what_is_beside_the_pixels_of_a_bigtiff_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(hand_tiff("<", (270, 2, 500, 2**60), (274, 3, 1, 6), big=True, next_one=2**60))
    check(read_image(tmp_path / "a"), "L", UPRIGHT, "L")


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
XMP_TAG = b"<rdf:Description><tiff:Orientation>6</tiff:Orientation></rdf:Description>"
RAW_PROFILE = b"\nexif\n      32\n" + (b"Exif\0\0" + EXIF_6).hex().encode() + b"\n"


def jpeg_xmp(text: bytes) -> bytes:
    return segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + text)


def ramp_png(kind: bytes, keyword: bytes, text: bytes) -> bytes:
    return png(RAMP, 0, 8, 64, chunk(kind, keyword + b"\0" + text))


def webp(**remarks: bytes) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RAMP).save(file, "WEBP", lossless=True, **remarks)
    return file.getvalue()


def xmp_tiff() -> bytes:
    return gray_tiff(RAMP, extratags=[(700, 1, len(XMP), XMP, True)])


SAYS_6 = {
    "JPEG, EXIF behind a broken one": jpeg(segment(0xE1, b"Exif\0\0junk"), segment(0xE1, b"Exif\0\0" + EXIF_6)),
    "JPEG, EXIF behind XMP": jpeg(jpeg_xmp(b"<x/>"), segment(0xE1, b"Exif\0\0" + EXIF_6)),
    "JPEG, EXIF of bytes": jpeg(segment(0xE1, b"Exif\0\0" + exif(">", (274, 1, 1, b"\6\0\0\0")))),
    "JPEG, doubled start of EXIF": jpeg(segment(0xE1, b"Exif\0\0Exif\0\0" + EXIF_6)),
    "JPEG, XMP": jpeg(jpeg_xmp(XMP)),
    "JPEG, XMP with a tag": jpeg(jpeg_xmp(XMP_TAG)),
    "JPEG, XMP behind EXIF that does not say": jpeg(segment(0xE1, b"Exif\0\0" + exif("<")), jpeg_xmp(XMP)),
    "JPEG, EXIF wins over XMP": jpeg(jpeg_xmp(XMP.replace(b"6", b"3")), segment(0xE1, b"Exif\0\0" + EXIF_6)),
    "PNG, XMP": ramp_png(b"iTXt", b"XML:com.adobe.xmp", b"\0\0\0\0" + XMP),
    "PNG, zipped XMP": ramp_png(b"iTXt", b"XML:com.adobe.xmp", b"\1\0en\0name\0" + zlib.compress(XMP)),
    "PNG, raw profile": ramp_png(b"zTXt", b"Raw profile type exif", b"\0" + zlib.compress(RAW_PROFILE)),
    "PNG, raw profile, not zipped": ramp_png(b"tEXt", b"Raw profile type exif", RAW_PROFILE),
    "TIFF, XMP": xmp_tiff(),
    "WebP, XMP": webp(xmp=XMP),
    "WebP, EXIF": webp(exif=EXIF_6),
}


@pytest.mark.parametrize("kind", SAYS_6)
def test_the_turn_is_found_wherever_pillow_finds_it(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").write_bytes(SAYS_6[kind])
    assert np.abs(np.asarray(read_image(tmp_path / "a")).astype(int) - UPRIGHT).max() <= 2


SAYS_NOTHING = {
    "JPEG, XMP without a number": jpeg(jpeg_xmp(XMP.replace(b"6", b""))),
    "PNG, zipped junk": ramp_png(b"iTXt", b"XML:com.adobe.xmp", b"\1\0\0\0junk"),
    "PNG, XMP that is cut": ramp_png(b"iTXt", b"XML:com.adobe.xmp", b""),
    "PNG, raw profile of no digits": ramp_png(b"tEXt", b"Raw profile type exif", RAW_PROFILE.replace(b"4", b"\xff")),
    "PNG, raw profile that is cut": ramp_png(b"tEXt", b"Raw profile type exif", b""),
    "WebP, junk": webp(exif=b"Exif\0\0junk", xmp=b"\xff", icc_profile=b"junk"),
}


@pytest.mark.parametrize("kind", SAYS_NOTHING)
def test_a_remark_that_says_no_turn_is_no_damage(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").write_bytes(SAYS_NOTHING[kind])
    assert np.abs(np.asarray(read_image(tmp_path / "a")).astype(int) - RAMP).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["png", "tiff", "tiff, compressed"])
def test_all_turns(tmp_path: Path, format: str, orientation: int) -> None:
    turns = [
        *(GRAY, GRAY[:, ::-1], GRAY[::-1, ::-1], GRAY[::-1]),
        *(GRAY.T, np.rot90(GRAY, -1), GRAY[::-1, ::-1].T, np.rot90(GRAY)),
    ]
    if format == "png":
        data = png(G8, 0, 8, 64, chunk(b"eXIf", exif("<", (274, 3, 1, bytes([orientation, 0, 0, 0])))))
    else:
        packing = "zlib" if "compressed" in format else None
        data = gray_tiff(G8, compression=packing, extratags=[(274, 3, 1, orientation, True)])
    (tmp_path / "a").write_bytes(data)
    check(read_image(tmp_path / "a"), "L", turns[orientation - 1], "L")


# --- what is no file, or too much of one ---


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    path.write_bytes(PNG_START)
    os.truncate(path, 6 * 2**30)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (fifo, "cannot be read (it is not a regular file)"),
        (device, "cannot be read (it is not a regular file)"),
        (sparse, "is too large: more than 400,000,000 bytes; make it smaller"),
    ],
    ids=["FIFO", "device", "6 GB"],
)
def test_what_never_ends_is_refused(tmp_path: Path, make: Callable[[Path], None], why: str) -> None:
    make(tmp_path / "a.png")
    assert refused(tmp_path / "a.png") == why
    assert embed(tmp_path / "a.png", 64) == ""


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(save(tmp_path / "b.png"))
    assert read_image(tmp_path / "a.png").size == (8, 8)


# --- pictures of samples ---


def encoded(size: tuple[int, int], mode: str = "L", format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, format)
    return file.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"
FOREIGN = {
    "another size": encoded((64, 128)),
    "900 megapixels": png_header(30_000, 30_000),
    "another mode": encoded((64, 64), "RGBA"),
    "a JPEG": encoded((64, 64), format="JPEG"),
    "EPS": EPS,
    "cut": encoded((64, 64))[:50],
    "nothing": b"",
    "junk": b"junk" * 100,
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_picture_of_a_sample_is_an_error(kind: str) -> None:
    with pytest.raises(Exception, match=r"."):
        read_packed(FOREIGN[kind], 64)
    assert read_packed(encoded((64, 64)), 64).size == (64, 64)


def test_no_picture_starts_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", start)
    (tmp_path / "1.png").write_bytes(EPS)
    assert refused(tmp_path / "1.png").startswith("is not a readable image")
    assert embed(tmp_path / "1.png", 64) == ""
    with pytest.raises(Exception, match="cannot identify"):
        read_packed(EPS, 64)


def test_nothing_else_opens_pictures_and_shards() -> None:
    """`bench` may, because it measures the usual ways on files that it has made itself; `freehand` opens its own, and
    `runtime` archives of npm whose hash it has compared.
    """
    root = Path(dist_sketch.__file__).parent
    found = {}
    for file in root.rglob("*.py"):
        calls = (n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.Call))
        if opened := {ast.unparse(call.func) for call in calls} & {"Image.open", "tarfile.open"}:
            found[file.relative_to(root).as_posix()] = sorted(opened)
    own = {name: calls for name, calls in found.items() if not name.startswith("bench/")}
    pictures = {"data/image_files.py": ["Image.open"], "data/freehand.py": ["Image.open"]}
    assert own == pictures | {"sharing/runtime.py": ["tarfile.open"]}
