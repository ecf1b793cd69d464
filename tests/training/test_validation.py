"""The scores during a run: every pair counts once on any number of ranks, and FID-64 is that of the final scores."""

import os
from pathlib import Path

import pytest
import torch
from support import ranked
from torch import nn

from dist_sketch.core.errors import UserError
from dist_sketch.core.ranks import Ranks
from dist_sketch.data import pixels
from dist_sketch.data.shards import Shards
from dist_sketch.metrics import fid_kid, inception
from dist_sketch.metrics.scorer import Scorer
from dist_sketch.training.closing import kid_from
from dist_sketch.training.validation import Validation, drawing

OF_ONE = ("ssim", "scoot", "l1", "specks")
LIMITS = (0, 3, 1)  # of the five validation pairs


def generator() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 3, 5, padding=2), nn.Tanh())


def scores(ranks: Ranks) -> ranked.Result:
    validation = Validation(Shards(Path(os.environ["SHARDS"]), "train"), 3, ranks, fid=2048)
    net = generator()
    state = torch.get_rng_state()
    told: list[None] = []
    found = {str(limit): validation.scores(net, limit, lambda: told.append(None)) for limit in (*LIMITS, 0)}
    assert len(told) == sum(len(ranks.share(limit or 5)) for limit in (*LIMITS, 0))
    assert torch.equal(state, torch.get_rng_state())
    assert net.training
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> ranked.Result:
    return ranked.run(1, scores, tmp_path_factory.mktemp("one"), SHARDS=str(shards))[0]


def test_two_ranks_score_as_one(tmp_path: Path, shards: Path, one: ranked.Result) -> None:
    for found in ranked.run(2, scores, tmp_path, SHARDS=str(shards)):
        assert found.keys() == one.keys()
        for limit, values in found.items():
            assert values == pytest.approx(one[limit], rel=1e-12)


def test_fid_and_kid_are_those_of_the_final_scores(shards: Path, one: ranked.Result) -> None:
    weights = inception.find()
    assert weights is not None
    scorer = Scorer(inception.load(weights, "cpu"))
    val, net = Shards(shards, "val"), generator()
    for i in range(len(val)):
        sample = val.read(i, 3)
        assert sample.sketch is not None
        with drawing(net, torch.device("cpu")) as draw:
            raw = draw(sample.line[None])
        images = {"raw": raw, "denoised": raw, "line": sample.line[None], "real": sample.sketch[None]}
        scorer.add([i], [sample.name], {k: pixels.to_rgb(v) for k, v in images.items()})
    final = Scorer.result([scorer.state()])["raw"]
    for name in ("fid_64", "fid_2048", "kid"):
        assert one["0"][f"val/{name}"] == pytest.approx(final[name], rel=1e-4)
    for name in ("ssim", "scoot", "specks"):
        assert one["0"][f"val/{name}"] == pytest.approx(final[name], rel=1e-9)
    assert "val/fid_64" in one["3"]
    assert one["1"].keys() == {f"val/{name}" for name in OF_ONE}  # one picture has no distribution


def test_kid_is_not_done_without(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "find", lambda: None)
    with pytest.raises(UserError, match=r"checkpoint.choose = 'kid': a rank's machine has no Inception weights; "):
        Validation(Shards(shards, "train"), 3, Ranks(), fid=2048)
    assert kid_from([], torch.device("cpu")) is None


def test_kid_from_real_sketches_is_that_of_the_scores() -> None:
    weights = inception.find()
    assert weights is not None
    real, drawn = torch.randint(0, 256, (2, 5, 3, 64, 64), dtype=torch.uint8)
    net = inception.load(weights, "cpu")
    features = [inception.features(net, images)[2048].numpy() for images in (drawn, real)]
    distance = kid_from(list(real), torch.device("cpu"))
    assert distance is not None
    assert distance(list(drawn)) == pytest.approx(fid_kid.kid(*features), rel=1e-4)


@pytest.mark.parametrize("fid", [64, None])
def test_without_weights_or_wish_there_is_no_fid(
    shards: Path, monkeypatch: pytest.MonkeyPatch, fid: int | None
) -> None:
    monkeypatch.setattr(inception, "find", lambda: None if fid else pytest.fail("nobody asked for FID"))
    validation = Validation(Shards(shards, "train"), 3, Ranks(), fid=fid)
    for _ in range(2):
        assert validation.scores(generator(), 0).keys() == {f"val/{name}" for name in OF_ONE}


def test_features_up_to_64_are_the_same(shards: Path) -> None:
    weights = inception.find()
    assert weights is not None
    net = inception.load(weights, "cpu")
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    few, all_of_them = inception.features(net, images, most=64), inception.features(net, images)
    assert few.keys() == {64}
    assert torch.equal(few[64], all_of_them[64])
    assert inception.features(net, images[:0], most=192).keys() == {64, 192}


def test_training_pairs_are_not_scored_as_validation(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = Shards(shards, "train")
    Validation(training, 3, Ranks())
    assert capsys.readouterr().out == ""
    training.paired.pop("val")
    validation = Validation(training, 3, Ranks())
    assert capsys.readouterr().out.startswith(f"warning: {shards} has no validation pairs: pairs that the run trains")
    assert validation.scores(generator(), 2).keys() == {f"seen/{name}" for name in OF_ONE}
