import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import filters
from torch import Tensor

from dist_sketch.core.config import DenoiseConfig
from dist_sketch.core.errors import UserError
from dist_sketch.inference.calibration import TRIALS, calibrate, median_3x3
from dist_sketch.model.denoise import denoise, page_tone

OFF = DenoiseConfig(gray=False, filter="none", shadows=False)
FILTERS = ["median", "tv", "nlm", "bilateral"]


def tensor(array: np.ndarray) -> Tensor:
    """(H, W) or (3, H, W) -> uint8 (3, H, W)."""
    array = np.rint(np.clip(array, 0, 255)).astype(np.uint8)
    return torch.from_numpy(array).expand(3, *array.shape[-2:]).contiguous()


def drawing(seed: int = 0, side: int = 64, page: float = 245) -> np.ndarray:
    """Strokes one pixel wide, an ellipse and a hatched patch on paper; float (H, W)."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side), page)
    y, x = np.mgrid[:side, :side] / side
    r = np.hypot((x - 0.5) / 0.28, (y - 0.45) / 0.34)
    image[np.abs(r - 1) < 0.6 / (0.3 * side)] = 70
    for _ in range(4):
        (y0, y1), (x0, x1) = rng.integers(8, side - 8, (2, 2))
        t = np.linspace(0, 1, 2 * side)
        image[np.rint(y0 + (y1 - y0) * t).astype(int), np.rint(x0 + (x1 - x0) * t).astype(int)] = 90
    patch = image[side // 2 : side // 2 + 12, side // 2 - 6 : side // 2 + 6]
    patch[::3] = 110
    return image


def noisy(image: np.ndarray, seed: int) -> np.ndarray:
    """Coloured grain and coloured specks; (3, H, W)."""
    rng = np.random.default_rng(seed)
    image = image + rng.normal(0, 6, (3, *image.shape))
    for y, x in rng.integers(2, image.shape[1] - 3, (12, 2)):
        image[:, y : y + 2, x : x + 2] = rng.integers(0, 160, (3, 1, 1))
    return image


def ink(image: Tensor) -> np.ndarray:
    plane = image[0].numpy().astype(np.float32)
    return page_tone(plane) - plane > 60


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    return float((wanted & ndimage.binary_dilation(found, np.ones((3, 3)))).sum() / wanted.sum())


def test_all_off_is_the_identity():
    image = tensor(noisy(drawing(), 0))
    assert torch.equal(denoise(image, OFF), image)


@pytest.mark.parametrize("name", FILTERS)
def test_strength_0_removes_nothing(name):
    image = tensor(noisy(drawing(), 0))
    assert torch.equal(denoise(image, DenoiseConfig(gray=False, filter=name, strength=0, shadows=False)), image)


@pytest.mark.parametrize("name", FILTERS)
def test_more_strength_changes_more(name):
    image = tensor(noisy(drawing(), 0))
    gray = denoise(image, DenoiseConfig(filter="none", shadows=False)).float()
    outputs = [
        denoise(image, DenoiseConfig(filter=name, strength=s, shadows=False)).float() for s in (0, 0.1, 0.5, 1, 2)
    ]
    changes = [float((o - gray).abs().mean()) for o in outputs]
    assert changes == sorted(changes)
    assert changes[-1] > changes[1]


def test_gray_is_luma_in_three_equal_channels():
    image = tensor(noisy(drawing(), 0))
    out = denoise(image, DenoiseConfig(filter="none", shadows=False))
    luma = (image.double() * torch.tensor([0.299, 0.587, 0.114]).double()[:, None, None]).sum(0)
    assert (image[0] != image[1]).any()
    assert (out == out[:1]).all()
    assert (out[0] - luma).abs().max() <= 0.51


@pytest.mark.parametrize("side", [64, 256])
def test_specks_go_and_lines_stay(side):
    clean = drawing(side=side, page=240)
    marks = clean.copy()
    room = ndimage.distance_transform_cdt(np.pad(clean[6:-6, 6:-6] == 240, 6), "chessboard")
    spots = []
    while room.max() > 4 * max(1, side / 128):
        spots.append(np.unravel_index(room.argmax(), room.shape))
        room[tuple(slice(max(0, i - 9), i + 9) for i in spots[-1])] = 0
    assert len(spots) >= 5
    for i, (y, x) in enumerate(spots):
        marks[y : y + 1 + i % 2, x : x + 1 + i % 2] = 20 + 30 * (i % 4)
    out = denoise(tensor(marks), DenoiseConfig(shadows=False))
    assert torch.equal(out, tensor(clean))


def test_the_quick_median_is_the_plain_one(monkeypatch):
    """Also where the window is cut by the border, and has an even number of pixels."""
    images = [tensor(noisy(drawing(i, side=side), i)) for i, side in enumerate((64, 150, 64))]
    found = [denoise(i, DenoiseConfig(shadows=False)) for i in images]
    plain = filters.rank.median
    monkeypatch.setattr(filters.rank, "percentile", lambda image, window, p0: 255 - plain(255 - image, window))
    assert all(torch.equal(f, denoise(i, DenoiseConfig(shadows=False))) for f, i in zip(found, images, strict=True))
    rng = np.random.default_rng(0)
    for width, levels in ((5, 2), (9, 256), (13, 30)):
        page, window = rng.integers(0, levels, (40, 31)).astype(np.uint8), np.ones((width, width), np.uint8)
        monkeypatch.undo()
        assert (255 - filters.rank.percentile(255 - page, window, p0=0.5 - 1e-6) == plain(page, window)).all()


def test_thin_lines_are_kept():
    clean = drawing()
    image = tensor(noisy(clean, 1))
    out = ink(denoise(image, DenoiseConfig()))
    wanted = ink(tensor(clean))
    assert recall(out, wanted) >= 0.95
    assert recall(wanted, out) > 0.95 > recall(wanted, ink(denoise(image, DenoiseConfig(filter="none"))))  # precision


def test_pieces_of_a_broken_line_are_kept():
    page = np.full((64, 64), 245.0)
    page[30, 5:60] = 80
    page[30, [20, 24]] = 245
    assert torch.equal(denoise(tensor(page), DenoiseConfig()), tensor(page))


@pytest.mark.parametrize("page", [245, 200])
@pytest.mark.parametrize("side", range(4))
def test_edge_shadow_goes_and_a_dark_garment_at_the_border_stays(side, page):
    clean = np.full((128, 128), float(page))
    clean[96:, 40:90] = 60
    clean[[20, 60], :] = 90  # lines that leave the page
    far = np.mgrid[:128, :128][0]
    shade = np.rot90(1 - 0.35 * np.exp(-((far / 10) ** 1.5)), side)
    out = denoise(tensor(clean * shade), DenoiseConfig(filter="none"))[0].numpy().astype(float)
    before = tensor(clean * shade)[0].numpy().astype(float)
    paper = clean == page
    assert np.abs(before - clean)[paper].max() > 60
    assert np.abs(out - clean)[paper].mean() < 0.15 * np.abs(before - clean)[paper].mean()
    assert np.abs(out - clean)[~paper].max() <= np.abs(before - clean)[~paper].max()


@pytest.mark.parametrize("tone", [60, 180, 190])
def test_without_a_shadow_nothing_changes(tone):
    clean = np.full((128, 128), 245.0)
    clean[96:, 40:90] = tone
    clean[[20, 60], :] = 90
    clean[100:, 10:30:3] = 80  # hair that touches the border, and hair that fades
    clean[90:, 100:120:2] -= np.linspace(0, 140, 38)[:, None]
    assert torch.equal(denoise(tensor(clean), DenoiseConfig()), tensor(clean))


@pytest.mark.parametrize("name", FILTERS)
def test_filters_add_no_frame(name):
    image = np.full((64, 64), 40.0)  # dark: what a filter pads with, black as a rule, would mix in
    image[20:40, 30] = 200
    out = denoise(tensor(image), DenoiseConfig(filter=name, strength=2, shadows=False))
    assert (out[0, [0, -1]].int() - 40).abs().max() <= 1
    assert (out[0, :, [0, -1]].int() - 40).abs().max() <= 1


def test_shading_inside_the_page_is_no_shadow():
    y, x = np.mgrid[:128, :128]
    image = tensor(245 - 90 * np.exp(-((x - 64.0) ** 2 + (y - 70.0) ** 2) / 300))
    assert (denoise(image, DenoiseConfig()).int() - image.int()).abs().max() <= 2


def test_what_is_brighter_than_the_page_goes():
    clean = drawing(side=128, page=226)
    image = clean.copy()
    image[40:52, 60:70] = 255  # where the network is saturated
    image[1, ::2] = 242
    out = denoise(tensor(image), DenoiseConfig(filter="none"))[0].numpy().astype(float)
    assert (np.abs(out - clean)[clean == 226] <= 4).all()
    assert np.array_equal(out[clean < 200], np.rint(image[clean < 200]).clip(0, 230))
    assert torch.equal(denoise(tensor(image), DenoiseConfig(filter="none", shadows=False)), tensor(image))


def test_a_bright_face_before_much_dark_hair_is_no_glare():
    image = np.full((128, 128), 150.0)
    image[30:100, 40:100] = 240
    assert torch.equal(denoise(tensor(image), DenoiseConfig(filter="none")), tensor(image))


def test_dotted_column_at_the_edge_goes():
    clean = drawing(side=128)
    clean[70, :60] = 80
    image = clean.copy()
    image[::3, 0] -= 100
    image[1::3, 0] -= 50
    out = denoise(tensor(image), DenoiseConfig(filter="none"))[0].numpy().astype(float)
    rows = np.abs(np.arange(128) - 70) > 4
    assert np.abs(out - clean)[rows, 0].max() <= 10
    assert np.abs(out - clean)[~rows, 0].max() <= 10  # before ink, too


def test_strokes_to_the_edge_are_no_fringe():
    image = drawing(side=128)
    image[:12, 20:60:5] = 80  # hair that the page cuts off
    image[1, 100:104] = 80  # and a mark of its own
    out = denoise(tensor(image), DenoiseConfig(filter="none"))[0].numpy().astype(float)
    assert np.abs(out - image)[:, :96].max() <= 4
    assert (out[1, 100:104] > 240).all()


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["none", *FILTERS]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 3]),
    st.integers(16, 70),
    st.integers(16, 70),
    st.integers(0, 255),
)
def test_any_blank_page_stays_blank(name, gray, shadows, channels, height, width, tone):
    image = torch.full((channels, height, width), tone, dtype=torch.uint8)
    assert torch.equal(denoise(image, DenoiseConfig(gray=gray, filter=name, shadows=shadows)), image)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["none", *FILTERS]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 3]),
    st.integers(16, 60),
    st.integers(16, 60),
    st.floats(0, 1e3),
    st.integers(0, 9),
)
def test_any_image_pure_and_deterministic(name, gray, shadows, channels, height, width, strength, seed):
    image = torch.randint(0, 256, (channels, height, width), generator=torch.Generator().manual_seed(seed)).byte()
    before, s = image.clone(), DenoiseConfig(gray=gray, filter=name, strength=strength, shadows=shadows)
    out = denoise(image, s)
    assert out.shape == image.shape
    assert out.dtype == torch.uint8
    assert torch.equal(image, before)
    assert torch.equal(out, denoise(image, s))
    if gray:
        assert (out == out[:1]).all()


@pytest.mark.parametrize(
    "bad", [{"filter": "blur"}, {"strength": -0.1}, {"strength": float("nan")}, {"strength": float("inf")}]
)
def test_bad_settings(bad):
    with pytest.raises(UserError, match=f"denoise.{next(iter(bad))} = "):
        denoise(torch.zeros(3, 16, 16, dtype=torch.uint8), DenoiseConfig(**bad))


@pytest.mark.parametrize("image", [torch.zeros(3, 16, 16), torch.zeros(2, 16, 16).byte(), torch.zeros(3, 8, 16).byte()])
def test_bad_image(image):
    with pytest.raises(UserError, match="needs a uint8 image"):
        denoise(image, DenoiseConfig())


def test_calibrate_takes_a_filter_where_it_pays():
    real = [tensor(drawing(i)) for i in range(6)]
    raw = [tensor(noisy(drawing(i), i)) for i in range(6)]
    chosen, rows = calibrate(raw, real)
    assert chosen.filter != "none"
    assert [r["chosen"] for r in rows].count(True) == 1
    gray, best = rows[0], next(r for r in rows if r["chosen"])
    assert (gray["filter"], gray["shadows"], gray["allowed"]) == ("none", False, True)
    assert (best["filter"], best["strength"], best["shadows"]) == (chosen.filter, chosen.strength, chosen.shadows)
    assert best["ssim"] > gray["ssim"]
    stayed = [r for r in rows if r["pairs"] == len(raw)]  # to the end of the race
    ssim = {(r["filter"], r["strength"], r["shadows"]): r["ssim"] for r in stayed}
    for row in stayed:
        without = [("none", 1.0, row["shadows"]), (row["filter"], row["strength"], False), ("none", 1.0, False)]
        assert row["allowed"] == (row["ssim"] >= max(ssim.get(key, 0) for key in without))
    allowed = [r for r in stayed if r["allowed"]]
    close = 1.05 * min(r["noise_distance"] for r in allowed)
    assert best["noise_distance"] <= close
    assert best["ssim"] == max(r["ssim"] for r in allowed if r["noise_distance"] <= close)
    tried = {(r["filter"], r["shadows"]) for r in rows}
    assert tried == set(itertools.product(["none", *FILTERS], [False, True]))


@pytest.mark.parametrize("noise", [1.0, 0.3, 0.0])
def test_the_race_chooses_as_the_full_search_and_tries_less(monkeypatch, noise):
    """What the generator adds to the page differs from pair to pair, as it does in earnest."""
    clean = [drawing(i, side=48) for i in range(10)]
    real = [tensor(c + np.random.default_rng(i).normal(0, 2, c.shape)) for i, c in enumerate(clean)]
    raw = [tensor(c + noise * (noisy(c, i + 50) - c)) for i, c in enumerate(clean)]
    heard = []
    chosen, rows = calibrate(raw, real, told=heard.append)
    assert calibrate(raw, real) == (chosen, rows)
    assert heard == sorted(heard)
    assert (heard[0], heard[-1]) == (0, 10)
    pairs = [r["pairs"] for r in rows]
    assert pairs[0] == 10
    assert set(pairs) <= {4, 8, 10}
    assert sum(pairs) < 0.75 * 34 * 10
    monkeypatch.setattr("dist_sketch.inference.calibration.ROUNDS", (10,))
    full, rows = calibrate(raw, real)
    assert [r["pairs"] for r in rows] == [10] * 34
    assert full == chosen


def test_the_race_ends_at_once_when_it_is_told_to():
    heard = []

    def told(pairs):
        heard.append(pairs)
        if len(heard) == 20:
            raise KeyboardInterrupt

    images = [tensor(drawing(i)) for i in range(6)]
    with pytest.raises(KeyboardInterrupt):
        calibrate(images, images, told=told)
    assert len(heard) == 20


def test_calibrate_takes_shadows_where_they_pay():
    shade = 1 - 0.4 * np.exp(-((np.arange(64) / 5) ** 1.5))
    real = [tensor(drawing(i)) for i in range(4)]
    raw = [tensor(drawing(i) * shade) for i in range(4)]
    assert calibrate(raw, real)[0].shadows


def test_calibrate_leaves_out_what_lies_farther_from_real_sketches():
    real = [tensor(drawing(i)) for i in range(6)]
    raw = [tensor(noisy(drawing(i), i)) for i in range(6)]
    first, rows = calibrate(raw, real)
    assert all(r["distance"] is None for r in rows)
    asked = []

    def distance(images):
        asked.append(images)
        return float(len(asked) in bad)

    bad = {2}  # gray alone is asked for first, then the one that would have been taken
    second, rows = calibrate(raw, real, distance=distance)
    assert second != first
    known = [(r["filter"], r["strength"], r["shadows"], r["allowed"], r["chosen"]) for r in rows if r["distance"] == 1]
    assert known == [(first.filter, first.strength, first.shadows, False, False)]
    assert len(asked) == 3
    for images, used in zip(asked, (DenoiseConfig(filter="none", shadows=False), first, second), strict=True):
        assert all(torch.equal(i, denoise(r, used)[:1]) for i, r in zip(images, raw, strict=True))
    assert second.filter != first.filter or second.strength < first.strength  # whatever its shadows
    asked.clear()
    bad = {2, 3, 4, 5, 6}
    nothing, rows = calibrate(raw, real, distance=distance)
    assert nothing == DenoiseConfig(filter="none", shadows=False)
    assert [r["chosen"] for r in rows] == [True] + [False] * (len(rows) - 1)
    assert len(asked) <= 1 + TRIALS
    asked.clear()
    bad = set()  # equal is good enough
    assert calibrate(raw, real, distance=distance)[0] == first


def test_calibrate_takes_nothing_where_everything_harms():
    real = [tensor(drawing(i)) for i in range(4)]
    chosen, rows = calibrate(real, real)
    assert all(r["allowed"] == (r["ssim"] == 1) for r in rows)
    assert [r["allowed"] for r in rows if r["filter"] == "bilateral"] == [False] * 8
    assert (chosen.gray, chosen.filter, chosen.shadows) == (True, "none", False)


@given(seed=st.integers(0, 999), height=st.integers(1, 9), width=st.integers(1, 9), levels=st.sampled_from([2, 256]))
def test_median_of_nine_pixels(seed: int, height: int, width: int, levels: int):
    plane = np.random.default_rng(seed).integers(0, levels, (height, width)).astype(np.float32)
    assert np.array_equal(median_3x3(plane), ndimage.median_filter(plane, size=3, mode="nearest"))
