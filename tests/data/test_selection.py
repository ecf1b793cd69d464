import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, write_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from support.forks import Forks, wait_until
from support.outcome import differences, outcome

from dist_sketch.core.config import DataConfig
from dist_sketch.core.errors import UserError
from dist_sketch.core.ranks import Ranks
from dist_sketch.core.saved import read_infer, read_settings
from dist_sketch.data import pack, recipe, resident
from dist_sketch.data.loader import Batch, Loader
from dist_sketch.data.resident import Resident
from dist_sketch.data.selection import chosen, refuse_none, weights
from dist_sketch.data.shards import Shards
from dist_sketch.data.sources import open_source
from dist_sketch.model import checkpoint
from dist_sketch.reports.compare.results import read
from dist_sketch.reports.compare.scores import comparable, groups
from dist_sketch.reports.compare.tables import settings_table
from dist_sketch.tracking.tracker import read_metrics

# Pair n of 1..13 has style n % 3; only some have a source; the validation pairs 14..16 have another label, too.
TRAIN: dict[str, dict[str, Any]] = {
    str(n): {"style": n % 3, "hair color": n} | ({"source": "cufs" if n < 6 else "fs2k"} if n > 2 else {})
    for n in range(1, 14)
}
LABELS = {"train": TRAIN, "val": {str(n): {"style": n % 3, "smile": n == 14} for n in range(14, 17)}}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 training and 3 validation pairs with labels, five to a shard, 64 px."""
    root = write_pairs(tmp_path_factory.mktemp("labelled") / "pairs", 13, 3)
    (root / "annotations.json").write_text(json.dumps(LABELS))
    pack.pack(recipe.load(str(root)), root.parent / "shards", size=64, shard_count=5, workers=1)
    return root.parent / "shards"


@pytest.fixture(scope="module")
def train(labelled: Path) -> Shards:
    return Shards(labelled, "train")


def keys(shards: Shards) -> list[int]:
    return [int(key) for key in shards.keys]


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        ("", list(range(1, 14))),
        ("style == 1", [1, 4, 7, 10, 13]),
        ("style == 1 and label('hair color') > 4", [7, 10, 13]),
        ("source == 'cufs'", [3, 4, 5]),
        ("source != 'cufs'", list(range(6, 14))),
        ("not source == 'cufs'", [1, 2, *range(6, 14)]),
        ("smile == 1", []),  # a label of the other split only
        ("1 == 1", list(range(1, 14))),
    ],
)
def test_a_choice_is_like_a_split_of_these_pairs_alone(train: Shards, where: str, wanted: list[int]) -> None:
    found = chosen(train, where)
    assert (keys(found), len(found)) == (wanted, len(wanted))
    for i, key in enumerate(wanted):
        mine, whole = found.read(i, 3), train.read(key - 1, 3)
        assert mine.name == whole.name == str(key)
        assert torch.equal(mine.line, whole.line)


def test_a_missing_label_of_one_split_chooses_nothing_there(labelled: Path) -> None:
    assert keys(chosen(Shards(labelled, "val"), "smile")) == [14]
    assert keys(chosen(Shards(labelled, "val"), "source == 'cufs'")) == []


LISTED = "style (0, 1, 2), hair color (1, 2, 3, 4, 5, ...), source ('cufs', 'fs2k'), smile (no values)"


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("stile == 1", f"data.where: {{shards}}: its pairs have no label 'stile'; they have these: {LISTED}"),
        (
            "style == 'bold'",
            "data.where = \"style == 'bold'\": compares the number 1 with the text 'bold'; the labels: ",
        ),
        ("style == 7", f"is true for none of the 13 train pairs of {{shards}}; they have these labels: {LISTED}"),
    ],
)
def test_a_wrong_choice_is_a_sentence_with_the_labels(train: Shards, where: str, said: str) -> None:
    with pytest.raises(UserError) as e:
        refuse_none(chosen(train, where), train, where)
    assert said.format(shards=train.folder) in str(e.value)


def test_shards_without_labels_say_how_to_get_some(shards: Path) -> None:
    with pytest.raises(UserError, match=r"no label 'style'; they have these: none \(dist-sketch pack --labels FILE"):
        chosen(Shards(shards, "train"), "style == 1")


def test_weights(train: Shards) -> None:
    assert weights(train, "") is None
    found = weights(train, "3 if source == 'cufs' else 0.5")
    assert found is not None
    assert found.tolist() == [0.5, 0.5, 3, 3, 3] + [0.5] * 8
    of_chosen = weights(chosen(train, "style == 1"), "label('hair color')")
    assert of_chosen is not None
    assert of_chosen.tolist() == [1, 4, 7, 10, 13]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("style", "gives 0 for the pair '3'"),
        ("source", "gives nothing for the pair '1'"),
        ("-1", "gives -1 for the pair '1'"),
        ("'a'", "gives 'a' for the pair '1'"),
        ("1e999", "gives inf for the pair '1'"),
        ("1001", "gives 1001 for the pair '1'; a weight is a number above 0, up to 1000"),
    ],
)
def test_wrong_weights_are_a_sentence(train: Shards, text: str, said: str) -> None:
    with pytest.raises(UserError) as e:
        weights(train, text)
    assert str(e.value).startswith(f"data.weights = {text!r}: {said}")


# Batches


def same(one: Batch, other: Batch) -> bool:
    equal = all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("line", "sketch", "good"))
    return equal and (one.keys, one.bad) == (other.keys, other.bad)


@pytest.fixture(scope="module")
def damaged(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without the last three pairs."""
    folder = tmp_path_factory.mktemp("damaged") / "shards"
    shutil.copytree(labelled, folder)
    (folder / "train-000002.tar").unlink()
    return folder


WHERE = ["", "style == 1", "style != 1", "source == 'fs2k'"]
DATA = DataConfig(batch_size=2, workers=0, flip=True, shift=True, freehand=1, channels=1)


@pytest.fixture(scope="module")
def resident_splits(labelled: Path, damaged: Path, alone: Ranks) -> dict[tuple[str, bool], Any]:
    found = {}
    for where in WHERE:
        for is_damaged in (False, True):
            split = chosen(Shards(damaged if is_damaged else labelled, "train"), where)
            found[where, is_damaged] = split, resident.load(split, DATA, alone, 5)
    return found


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(WHERE),
    st.sampled_from(["", "2 if style == 0 else 1.5", "0.75", "3 if source == 'cufs' else 1"]),
    st.booleans(),
    st.integers(0, 5),
    st.sampled_from([0.0, 100.0]),
)
def test_chosen_and_weighted_batches_of_a_gpu_are_the_loader_s(
    resident_splits: dict[tuple[str, bool], Any],
    where: str,
    text: str,
    is_damaged: bool,
    epoch: int,
    memory_mb: float,
) -> None:
    split, images = resident_splits[where, is_damaged]
    data = replace(DATA, weights=text, memory_mb=memory_mb)
    place = {"seed": 5, "rank": 0, "world_size": 1}
    loader, other = Loader(split, data, **place), Resident(split, data, images, **place)  # type: ignore[arg-type]
    assert loader.steps == other.steps
    batches = list(zip(loader.epoch(epoch), other.epoch(epoch), strict=True))
    assert len(batches) == loader.steps
    assert all(same(*both) for both in batches)


def test_each_copy_of_a_pair_is_augmented_in_its_own_way(train: Shards) -> None:
    one = chosen(train, "label('hair color') == 5")
    data = replace(DATA, batch_size=8, weights="8", freehand=0)
    (batch,) = Loader(one, data, seed=0, rank=0, world_size=1).epoch(0)
    assert batch.keys == ["5"] * 8
    assert len({line.numpy().tobytes() for line in batch.line}) > 4
    plain = replace(data, batch_size=1, weights="")
    (first,) = Loader(one, plain, seed=0, rank=0, world_size=1).epoch(0)
    assert any(torch.equal(first.line[0], line) for line in batch.line)  # the first copy is as without weights


def test_stand_ins_are_chosen_pairs(damaged: Path) -> None:
    # Of the chosen pairs 10 to 13 only 10 can be read.
    split = chosen(Shards(damaged, "train"), "label('hair color') >= 10")
    data = DataConfig(batch_size=4, workers=0, shuffle=False)
    (batch,) = Loader(split, data, seed=0, rank=0, world_size=1).epoch(0)
    assert (batch.keys, batch.good.tolist()) == (["10"], [True, False, False, False])
    assert all(torch.equal(line, split.read(0, 3).line) for line in batch.line)


def test_infer_reads_the_chosen_pairs(labelled: Path, pairs: Path) -> None:
    source = open_source(labelled, "val", where="style == 0")
    good, _ = source.read_good(range(len(source)), 64, 3)
    assert [sample.name for sample in good.values()] == ["15"]
    with pytest.raises(UserError, match=r"^--where = 'style == 9': is true for none of the 3 val pairs"):
        open_source(labelled, "val", where="style == 9")
    with pytest.raises(UserError, match=r"^--where: .*: only packed shards keep labels"):
        open_source(pairs, "val", where="style == 0")


def test_workers_deliver_the_same_weighted_batches(train: Shards) -> None:
    data = replace(DATA, weights="2 if style == 0 else 1.5", memory_mb=0)
    here, workers = (Loader(train, replace(data, workers=n), seed=1, rank=0, world_size=1) for n in (0, 2))
    try:
        assert all(same(*both) for both in zip(here.epoch(3, 1), workers.epoch(3, 1), strict=True))
    finally:
        workers.close()


# Runs. Of style 0 are 4 pairs, of style 1 are 5: 4 * 2 + 5 * 1.5 = 15.5, so an epoch has 15 places and 3 steps.

CHOICE = ("--data.where", "style != 2", "--data.weights", "2 if style == 0 else 1.5", "--data.flip", "--data.shift")


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    server = Forks("support.hooks", tmp_path_factory.mktemp("logs"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def options(labelled: Path) -> tuple[Any, ...]:
    return (
        "train",
        "--data.shards",
        labelled,
        *TINY,
        *CHOICE,
        "--train.epochs",
        2,
        "--train.validate-interval-epochs",
        1,
    )


@pytest.fixture(scope="module")
def finished(forks: Forks, options: tuple[Any, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    done = forks.run(*options, "--out", run)
    assert done.code == 0, done
    return run


def test_a_run_says_how_many_pairs_it_was_for(finished: Path, forks: Forks, options: tuple[Any, ...]) -> None:
    facts = read_settings(finished)["facts"]
    assert (facts["pairs"], facts["pairs_packed"], facts["val_pairs"], facts["val_pairs_packed"]) == (9, 13, 2, 3)
    assert (facts["pairs_an_epoch"], facts["steps_an_epoch"], facts["steps"]) == (15, 3, 6)
    said = " ".join(forks.run(*options, "--out", finished.parent / "other", "--dry-run").out.split())
    assert "pairs 9 of 13, chosen by data.where" in said
    assert "val_pairs 2 of 3, chosen by data.where" in said
    assert not (finished.parent / "other").exists()
    scored = [r for r in read_metrics(finished) if r["kind"] == "val"]
    assert len(scored) == 2
    assert "val/ssim" in scored[0]


def test_killed_in_mid_epoch_a_weighted_run_ends_bit_equal(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], finished: Path
) -> None:
    run = tmp_path / "run"
    pid = forks.start(*options, "--out", run, hook=("pauses", tmp_path / "pause", "training.loop:train_batch:6"))
    wait_until((tmp_path / "pause.0").exists, "step 6", lambda: str(forks.printed(pid)))
    os.kill(pid, signal.SIGKILL)
    forks.wait(pid)
    assert checkpoint.find(run) == run / "checkpoints" / "step-00000004"  # the first of the second epoch
    again = forks.run(*options, "--out", run)
    assert "resumed from" in again.out, again
    assert differences(run, outcome(finished)) == []


def test_another_choice_is_another_run(finished: Path, forks: Forks, options: tuple[Any, ...]) -> None:
    other = forks.run(*options, "--out", finished, "--data.where", "style == 0", "--data.weights", "")
    assert other.code == 2
    assert "data.where: style != 2 -> style == 0\n" in other.err
    assert "data.weights: 2 if style == 0 else 1.5 -> \n" in other.err
    wrong = forks.run(*options, "--out", finished.parent / "wrong", "--data.where", "style = 1")
    assert (wrong.code, wrong.err.startswith("error: data.where = 'style = 1': is no expression")) == (2, True)


def test_a_choice_without_validation_pairs_is_scored_on_training_pairs_and_says_so(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...]
) -> None:
    done = forks.run(*options, "--out", tmp_path / "run", "--data.where", "source == 'fs2k'", "--train.epochs", 1)
    assert "has no validation pairs for which data.where = \"source == 'fs2k'\" is true: pairs that the run" in done.out
    (scored,) = (r for r in read_metrics(tmp_path / "run") if r["kind"] == "val")
    assert "seen/ssim" in scored


def test_runs_with_other_validation_pairs_are_not_ranked(finished: Path) -> None:
    mine = read(finished)
    assert comparable(mine, mine) == []
    other = replace(mine, config=mine.config | {"data.where": ""})
    assert comparable(mine, other) == ["data.where: style != 2 and "]


def test_the_chosen_pairs_are_drawn_and_shown_by_style(
    tmp_path: Path, forks: Forks, labelled: Path, finished: Path
) -> None:
    out = tmp_path / "out"
    drawn = forks.run("infer", "--run", finished, "--input", labelled, "--out", out, "--where", "style != 1")
    assert drawn.code == 0, drawn
    infer = read_infer(out)
    assert (infer["names"], infer["where"], infer["labels"]["style"]) == (["14", "15"], "style != 1", [2, 0])
    assert json.loads((out / "metrics.json").read_text())["n"] == 2
    assert forks.run("report", out, "--by", "style").code == 0
    page = (out / "report.html").read_text()
    assert "Scores by style" in page
    assert "style != 1" in page
    mine = read(out)
    other = replace(mine, name="other", infer=mine.infer | {"where": ""}, names=["14", "15", "16"])
    rows = [list(row) for row in settings_table(groups([mine, other])).rows]
    assert ["infer: where", "style != 1", "all pairs"] in rows
