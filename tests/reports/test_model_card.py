"""The model card of an export: what it says, that its scores are its weights' own, and whose file it may replace."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from dist_sketch.__main__ import parse
from dist_sketch.core import config as cfg
from dist_sketch.core.config import Config, DataConfig, GeneratorConfig, OptimConfig
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import sha256, write_json
from dist_sketch.core.ranks import Ranks
from dist_sketch.model import checkpoint, networks, pretrained
from dist_sketch.model.pretrained import CARD_MARKER

FACTS = {"size": 64, "run_id": "0badcafe", "pairs": 1058, "data": "fs2k_lines", "license": "MIT (FS2K & others)"}
FACTS |= {"steps": 20, "device": "cpu", "precision": "bf16", "code": "0123456789abcdef"}
DENOISE = {"gray": True, "filter": "nlm", "strength": 0.5, "shadows": False}
SCORES = {"ssim": 0.7654, "psnr": 18.0, "l1": 0.1, "fid_64": 1.0, "fid_192": 2.0, "fid_768": 0.5, "fid_2048": 59.87}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder around the 5-layer network, with a checkpoint at step 10 and a calibration."""
    folder = tmp_path / "faces"
    config = Config(
        generator=GeneratorConfig(network="baseline"), data=DataConfig(channels=1), optim=OptimConfig(decay=0.5)
    )
    torch.manual_seed(0)
    modules: dict[str, nn.Module] = {"generator": networks.generator(config)}
    checkpoint.save(folder, 10, modules, {}, Ranks(), keep=1)
    write_json(folder / "config.json", {"config": cfg.to_dict(config), "facts": FACTS})
    write_json(folder / "denoise.json", {"denoise": DENOISE, "candidates": []})
    return folder


def about(folder: Path, **changes: object) -> dict[str, object]:
    """infer.json."""
    weights = sha256(pretrained.weights_file(folder / "checkpoints/step-00000010"))
    found = {"run": str(folder), "step": 10, "weights_sha256": weights, "split": "val", "names": ["1"]}
    return found | {"denoise": DENOISE, "mode": {"statistics": "running"}} | changes


@pytest.fixture
def scored(tmp_path: Path, run: Path) -> Path:
    """What `infer` leaves of scores."""
    folder = tmp_path / "out"
    write_json(folder / "infer.json", about(run))
    scores = {"n": 105, "size": 64, "raw": SCORES | {"kid": None}, "denoised": SCORES | {"kid": 0.0123, "ssim": 0.7777}}
    scores |= {"images": [], "settings": {}}
    scores["baselines"] = {"blank": SCORES | {"ssim": 0.28}, "input": SCORES | {"ssim": 0.69}, "reference": None}
    write_json(folder / "metrics.json", scores)
    return folder


def export(*arguments: object) -> None:
    assert parse(["checkpoint", "export", *map(str, arguments)])() == 0


def test_it_tells_data_licence_training_scores_and_limits(tmp_path: Path, run: Path, scored: Path) -> None:
    export(run, "--out", tmp_path / "made", "--scores", scored)
    text = (tmp_path / "made" / "README.md").read_text(encoding="utf-8")
    head = text.split("---\n")[1]
    assert "library_name: dist_sketch\npipeline_tag: image-to-image\n" in head
    for said in (
        "# faces: from rough lines of a face to a pencil portrait, 64 × 64 px",
        "1,058 pairs of fs2k_lines",
        "Licence of the data: MIT (FS2K & others).",
        "50 epochs, 10 steps of 8 pairs (of 20); seed 0; cpu, bf16; code 0123456789ab.",
        "| `generator.network` | baseline | unet |",
        "| `optim.decay` | 0.5 | 0.0 |",
        "105 validation pairs at 64 × 64 px, 8-bit RGB; n = 105 in every score.",
        "| SSIM (higher is better) | 0.765 | 0.778 | 0.280 | 0.690 | – |",
        "| FID-2048 (lower is better) | 59.9 | 59.9 | 59.9 | 59.9 | – |",
        "| KID (lower is better) | – | 0.0123 | – | – | – |",
        "Noise removal after drawing: gray, filter nlm of strength 0.5.",
        "## Intended use",
        "## Limits",
    ):
        assert said in text, said
    assert "{{" not in text
    assert "&amp;" not in text
    assert str(tmp_path) not in text  # nobody else has these folders


def test_without_scores_or_facts_it_says_so(tmp_path: Path, run: Path) -> None:
    saved = json.loads((run / "config.json").read_text())
    saved["facts"] = {"size": 64, "run_id": "0badcafe"}  # as an early version wrote them
    saved["config"] = cfg.to_dict(Config(generator=GeneratorConfig(network="baseline"), data=DataConfig(channels=1)))
    write_json(run / "config.json", saved)
    (run / "denoise.json").unlink()
    export(run, "--out", tmp_path / "made")
    text = (tmp_path / "made" / "README.md").read_text(encoding="utf-8")
    for said in (
        "an unknown number of pairs of a data set without a name. Licence of the data: not stated.",
        "Not scored. To score it, run `dist-sketch infer`",
    ):
        assert said in text


def test_scores_of_other_weights_are_refused(tmp_path: Path, run: Path, scored: Path) -> None:
    for change, words in (
        ({"weights_sha256": "0" * 64}, rf"was drawn with other weights \({run}\)"),
        ({"denoise": DENOISE | {"strength": 1.0}}, "was drawn with --denoise... or --mode"),
        ({"mode": {"statistics": "paper"}}, "was drawn with --denoise... or --mode"),
    ):
        write_json(scored / "infer.json", about(run, **change))
        with pytest.raises(UserError, match=rf"--scores {scored}: {words}"):
            export(run, "--out", tmp_path / "made", "--scores", scored)
    (scored / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"is not an output folder of `dist-sketch infer` with scores"):
        export(run, "--out", tmp_path / "made", "--scores", scored)
    assert not (tmp_path / "made").exists()


def test_scores_of_an_export_of_these_weights_and_of_another_split(tmp_path: Path, run: Path, scored: Path) -> None:
    export(run, "--out", tmp_path / "made")
    write_json(scored / "infer.json", about(run, run=str(tmp_path / "made"), split="train"))
    export(tmp_path / "made", "--out", tmp_path / "made", "--scores", scored)
    text = (tmp_path / "made" / "README.md").read_text(encoding="utf-8")
    assert "\n105 TRAINING pairs at 64" in text
    assert "selected by a score" not in text


def test_scores_of_rounded_weights_are_those_of_the_export_itself(tmp_path: Path, run: Path, scored: Path) -> None:
    made = tmp_path / "made"
    with pytest.raises(UserError, match=rf"--scores {scored}: was drawn with other weights"):
        export(run, "--out", made, "--compact", "--scores", scored)  # drawn by the run
    export(run, "--out", made, "--compact")
    write_json(scored / "infer.json", about(run, weights_sha256=sha256(pretrained.weights_file(made))))
    export(made, "--out", made, "--compact", "--scores", scored)
    assert "n = 105 in every score" in (made / "README.md").read_text(encoding="utf-8")


def test_weights_that_were_chosen_on_the_scored_pairs_are_told(tmp_path: Path, run: Path, scored: Path) -> None:
    write_json(scored / "infer.json", about(run, chosen_on_these=True))
    export(run, "--out", tmp_path / "made", "--scores", scored)
    text = (tmp_path / "made" / "README.md").read_text(encoding="utf-8")
    assert "The weights were selected by a score on these same pairs" in text


def test_a_card_of_ours_is_replaced_and_another_one_is_not(tmp_path: Path, run: Path, scored: Path) -> None:
    made = tmp_path / "made"
    export(run, "--out", made)
    export(run, "--out", made, "--scores", scored)
    assert "105 validation pairs" in (made / "README.md").read_text(encoding="utf-8")
    (made / "README.md").write_text((made / "README.md").read_text().replace(CARD_MARKER, ""))
    with pytest.raises(UserError, match=r"not an earlier export \(it holds README.md"):
        export(run, "--out", made)


@pytest.mark.parametrize("words", ["<b>bold</b>", "](http://x) [y", "a\n# title", "| a | b |", "`code`", "\x1b[31mred"])
def test_others_words_are_only_words(words: str, tmp_path: Path, run: Path) -> None:
    saved = json.loads((run / "config.json").read_text())
    saved["facts"] |= {"data": words, "license": words, "device": words, "precision": words, "code": words}
    write_json(run / "config.json", saved)
    export(run, "--out", tmp_path / "made")
    card = (tmp_path / "made/README.md").read_text()
    assert words not in card
    assert not [mark for mark in ("<b>", "\n# title", "\x1b") if mark in card]


@pytest.mark.parametrize("size", [None, "<b>a | b"])
def test_scores_of_an_unknown_size_are_told_all_the_same(
    size: str | None, tmp_path: Path, run: Path, scored: Path
) -> None:
    made = json.loads((scored / "metrics.json").read_text())
    del made["size"]
    write_json(scored / "metrics.json", made | ({"size": size} if size else {}))
    export(run, "--out", tmp_path / "made", "--scores", scored)
    card = (tmp_path / "made/README.md").read_text()
    assert "105 validation pairs at " + (r"&lt;b>a \| b" if size else "? × ? px") in card


def test_an_export_keeps_no_names_of_its_surroundings(tmp_path: Path, run: Path) -> None:
    saved = json.loads((run / "config.json").read_text())
    saved["config"]["track"] |= {"project": "secret", "group": "secret", "name": "secret"}
    write_json(run / "config.json", saved)
    export(run, "--out", tmp_path / "made")
    assert "secret" not in (tmp_path / "made/config.json").read_text() + (tmp_path / "made/README.md").read_text()
