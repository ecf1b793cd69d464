"""What `pack` leaves beside the shards for people: the card and the picture of some pairs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import face, write_pairs
from huggingface_hub import DatasetCard
from PIL import Image

from dist_sketch.core.errors import UserError
from dist_sketch.data import card, preview
from dist_sketch.data.manifest import read_manifest
from dist_sketch.data.pack import pack
from dist_sketch.data.recipe import load
from dist_sketch.data.verify import verify

RECIPE = """
name = "my_set"
license = "CC BY 4.0 (somebody)"
description = "Rough *lines* | charcoal"
[splits.train]
line = "train_line"
sketch = "train_sketch"
[splits.val]
line = "val_line"
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source of 40 training pairs and three validation lines, and its shards; read only."""
    folder = tmp_path_factory.mktemp("card")
    root = write_pairs(folder / "data", 40, 3)
    (root / "annotations.json").write_text('{"train": {"1": {"style": 1, "by": "Zoë"}}}')
    (root / "train_line" / "2.png").write_bytes(b"")
    (root / "train_line" / "more.txt").touch()
    (folder / "r.toml").write_text('labels = "annotations.json"\n' + RECIPE)
    pack(load(str(folder / "r.toml"), root), folder / "out", size=64, workers=1, skip_bad=1)
    return folder, folder / "out"


def test_the_card_says_what_the_set_is(packed: tuple[Path, Path]) -> None:
    found = DatasetCard.load(packed[1] / card.CARD)
    assert found.data.license == "cc-by-4.0"
    assert found.data.size_categories == ["n<1K"]
    assert found.data.configs == [
        {
            "config_name": "default",
            "data_files": [
                {"split": "train", "path": "train-*.tar"},
                {"split": "validation", "path": "val-*.tar"},
            ],
        }
    ]
    lines = found.text.splitlines()
    for line in (
        "# my\\_set",
        "Rough \\*lines\\* \\| charcoal",
        "42 pairs of a line drawing and its sketch at 64 x 64 px, as WebDataset tars with hashes.",
        "![Some of the pairs, the line beside its sketch](preview.png)",
        "- Licence: CC BY 4.0 (somebody)",
        "- Labels: `by`, `style`",
        "- Left out: 1",
        "  - `train_line/2.png`: the file is empty (0 bytes)",
        "  - `train_line`: 1 .txt",
        "- Pairs that look odd: nothing",
    ):
        assert line in lines
    assert any(line.startswith("| train | 39 | yes | 1 | ") for line in lines)
    assert any(line.startswith("| val | 3 | no | 1 | ") for line in lines)


def test_a_licence_without_a_name_on_the_hub(packed: tuple[Path, Path]) -> None:
    manifest = read_manifest(packed[1]) | {"license": "ask me: a\nb", "recipe": "---\nx: y"}
    found = DatasetCard(card.text(packed[1], manifest))
    assert (found.data.license, found.data.license_name) == ("other", "ask me: a\\nb")
    assert found.data.pretty_name == "---\\nx: y"


def test_the_preview_shows_the_line_beside_its_sketch(packed: tuple[Path, Path]) -> None:
    with Image.open(packed[1] / preview.NAME, formats=("PNG",)) as page:
        page.load()
    side, gap, text = preview.SIDE, preview.GAP, preview.TEXT
    assert page.size == (2 * (2 * side + gap) + gap, 4 * (side + text + gap) + gap)
    for place, (seed, sides) in enumerate([(1, 2), (9, 2), (17, 2), (25, 2), (33, 2), (41, 1)]):  # the others
        left, top = gap + place // 4 * (2 * side + gap), gap + place % 4 * (side + text + gap)
        name = page.crop((left, top, left + 2 * side, top + text))
        assert name.convert("L").getextrema()[0] < 50  # it is written there
        for number, picture in enumerate(face(seed)[:sides]):
            shown = page.crop((left + number * side, top + text, left + (number + 1) * side, top + text + side))
            expected = picture.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC).resize((side, side))
            assert np.abs(np.asarray(shown).astype(int) - np.asarray(expected)).mean() < 6


def test_force_replaces_them_only_if_they_are_its_own(packed: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(packed[1], out)
    source = load(str(write_pairs(tmp_path / "data", 2, 0)))
    pack(source, out, size=64, workers=1, force=True)
    assert "2 pairs" in (out / card.CARD).read_text()
    for name in (card.CARD, preview.NAME):
        ours = (out / name).read_bytes()
        (out / name).write_bytes(b"# mine")
        with pytest.raises(UserError, match=f"{name}: is not part of these shards, and would be lost"):
            pack(source, out, size=64, workers=1, force=True)
        assert (out / name).read_bytes() == b"# mine"
        assert verify(out) == {"train": 2}
        (out / name).write_bytes(ours)
    for name in (card.CARD, preview.NAME):
        (out / name).unlink()  # as older versions have packed
    assert verify(out) == {"train": 2}
    pack(source, out, size=64, workers=1, force=True)
    assert (out / preview.NAME).is_file()
