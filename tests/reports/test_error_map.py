"""The maps of where drawings differ: known faults at known places."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import write_json
from dist_sketch.reports import error_map, report

SIZE = 32
REST = {"run": "/gone", "step": 1, "config": {}, "input": "/gone", "split": "val", "output_size": "network", "mode": {},
        "denoise": {}}  # fmt: skip


def page(path: Path, *boxes: tuple[int, int, int, int, int]) -> None:
    """White paper with boxes (top, left, bottom, right, tone)."""
    plane = np.full((SIZE, SIZE), 255, np.uint8)
    for top, left, bottom, right, tone in boxes:
        plane[top:bottom, left:right] = tone
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(plane).save(path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two faces: the first's drawing lacks its eye (black, 4 x 4), the second's is perfect."""
    eye, mouth = (8, 8, 12, 12, 0), (20, 10, 22, 20, 55)
    for name, drawn in (("a", [mouth]), ("b", [eye, mouth])):
        page(tmp_path / "real" / f"{name}.png", eye, mouth)
        page(tmp_path / "sketch" / f"{name}.png", *drawn)
        page(tmp_path / "raw" / f"{name}.png", *drawn, (30, 0, 32, 32, 0))
    write_json(tmp_path / "infer.json", {"names": ["a", "b"], "format": "png", "size": SIZE})
    return tmp_path


def test_a_fault_lies_where_it_was_made(out: Path) -> None:
    found = error_map.error_map(out, "denoised")
    by_hand = np.zeros((SIZE, SIZE))
    by_hand[8:12, 8:12] = 0.5  # black missing in one of two
    assert found.n == 2
    assert np.allclose(found.l1, by_hand, atol=1e-6)
    assert found.dissimilarity[9, 9] > 0.4
    assert np.abs(found.dissimilarity[24:, 24:]).max() < 1e-6
    assert found.real[9, 9] == 0
    assert found.real[21, 15] == 55
    assert found.ink == pytest.approx((16 + 20) / SIZE**2)
    assert found.ink_error == 1


def test_a_fault_on_the_paper_is_not_borne_by_the_ink(out: Path) -> None:
    found = error_map.error_map(out, "raw")  # a black bar of 64 pixels in both, the eye in one
    assert found.ink_error == pytest.approx(8 / (8 + 64))
    assert (found.l1[30:] == 1).all()


def test_an_even_sample_of_many(out: Path) -> None:
    names = ["a", "b"] * 10
    write_json(out / "infer.json", {"names": names, "format": "png", "size": SIZE})
    assert len(list(error_map.pairs(out, "denoised"))) == 20
    drawn = [d for d, _ in error_map.pairs(out, "denoised", 4)]  # of places 0, 5, 10, 15
    assert [bool(d[9, 9]) for d in drawn] == [True, False, True, False]


def test_a_missing_picture_is_named_and_the_report_does_without(out: Path) -> None:
    (out / "sketch" / "b.png").unlink()
    with pytest.raises(UserError, match=r"b\.png"):
        error_map.error_map(out, "denoised")
    write_json(out / "infer.json", json.loads((out / "infer.json").read_text()) | REST)
    assert "Where the drawings differ" not in report.build(out).read_text(encoding="utf-8")


def test_colours_go_from_black_to_bright() -> None:
    plane = np.zeros((10, 100), np.float32)
    plane[0, :4] = [0.0, 0.5, 1.0, 3.0]
    plane[1, :10] = 1.0
    uri, top = error_map.coloured(plane)
    assert top == 1
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        brightness = np.array(image).astype(int).sum(axis=2)[0, :4]
    assert brightness[0] < 20
    assert list(np.sign(np.diff(brightness))) == [1, 1, 0]
