"""Ten faces that were drawn by hand as strokes, and what the generator that comes with dist_sketch makes of them."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from support.strokes import FACES, render

from dist_sketch.data import pixels
from dist_sketch.model.pretrained import WEIGHTS, SketchGenerator

SHIPPED = sorted((Path(__file__).parents[2] / "launch").glob(f"*/{WEIGHTS}"))[-1].parent


@pytest.fixture(scope="module")
def generator() -> SketchGenerator:
    return SketchGenerator.load(SHIPPED)


def test_there_are_ten_and_all_of_them_is_drawn() -> None:
    assert len(FACES) == 10
    for svg in FACES:
        text = svg.read_text()
        assert set(re.findall("[a-zA-Z]", "".join(re.findall(r' d="([^"]*)"', text)))) <= set("MLC"), svg
        assert set(re.findall(r"<(\w+)", text)) == {"svg", "title", "rect", "g", "path"}, svg
        assert 0.02 < (np.asarray(render(svg)) < 128).mean() < 0.1, svg


@pytest.mark.parametrize("svg", FACES, ids=[svg.stem for svg in FACES])
def test_a_face_becomes_a_sketch_along_its_strokes(svg: Path, generator: SketchGenerator) -> None:
    size = generator.size
    line = pixels.from_image(render(svg, size), generator.config.data.channels)
    with torch.no_grad():
        drawn = generator(pixels.to_float(line)[None])[0]
    assert torch.isfinite(drawn).all()
    sketch = pixels.to_uint8(drawn).float().mean(0).numpy()
    page = np.median(sketch)
    ink = page - sketch > 40
    assert page > 180  # not black
    assert 0.02 < ink.mean() < 0.5  # not blank
    strokes = line[0].numpy() < 160
    near = ndimage.binary_dilation(ink, iterations=2)
    assert (near & strokes).sum() > 0.8 * strokes.sum()
    far = ndimage.distance_transform_edt(~strokes) > size / 8
    assert ink[far].mean() < 0.1  # the empty page stays empty
