"""What a W&B agent types for `dist-sketch train`: values as Python writes them."""

import pytest
import tyro

from dist_sketch.commands.train import TrainCommand, as_typed


@pytest.mark.parametrize(
    ("typed", "taken"),
    [
        ("--data.flip=True", "--data.flip"),
        ("--data.flip=false", "--data.no-flip"),
        ("--train.validate-fid=False", "--train.no-validate-fid"),
        ("--data.batch_size=4.0", "--data.batch_size=4"),
        ("--train.epochs=4.5", "--train.epochs=4.5"),
        ("--optim.lr_g=4.0", "--optim.lr_g=4.0"),
        ("--track.name=True", "--track.name=True"),
        ("--data.flip", "--data.flip"),
        ("--nonsense=True", "--nonsense=True"),
        ("--dry_run=True", "--dry_run"),
        ("--dry-run=false", "--no-dry-run"),
        ("--expect_world_size=1.0", "--expect_world_size=1"),
        ("--stop_before_end_s=60.0", "--stop_before_end_s=60.0"),
        ("--out=True", "--out=True"),
        ("--config=4.0", "--config=4.0"),
    ],
)
def test_values_as_python_writes_them_are_taken(typed: str, taken: str) -> None:
    assert as_typed([typed, "x=True"]) == [taken, "x=True"]


def test_what_an_agent_types_is_parsed() -> None:
    words = ["--out=r", "--data.flip=True", "--data.batch_size=4.0", "--data.shuffle=False", "--optim.lr_g=0.001"]
    words += ["--dry_run=True", "--expect_world_size=2.0", "--stop_before_end_s=60.0"]
    command = tyro.cli(TrainCommand, args=as_typed(words))
    config = command.settings
    assert (config.data.flip, config.data.batch_size, config.data.shuffle, config.optim.lr_g) == (True, 4, False, 0.001)
    assert (command.dry_run, command.expect_world_size, command.stop_before_end_s) == (True, 2, 60.0)
