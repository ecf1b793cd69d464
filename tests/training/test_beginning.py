"""`--init-from`: what a new run begins with, what it refuses to begin with, and what a continued run makes of it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, Run
from safetensors.torch import load_file
from support import ranked
from torch import Tensor
from torch.nn.functional import interpolate

from dist_sketch.__main__ import parse
from dist_sketch.core import config as cfg
from dist_sketch.core import saved
from dist_sketch.core.config import Config
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import sha256
from dist_sketch.core.ranks import Ranks
from dist_sketch.model import checkpoint, networks, pretrained
from dist_sketch.training import beginning

NETWORKS = ("--norm", "group", "--data.channels", 1, "--generator.detail", 8, "--discriminator.fine", 4)
# So slow that no weight moves by a bit: the first checkpoint shows what the run began with.
STILL = ("--optim.lr-g", 1e-30, "--optim.lr-d", 1e-30, "--train.epochs", 1, "--train.sample-interval-epochs", 0)


@pytest.fixture(scope="module")
def options(shards: Path) -> tuple[Any, ...]:
    return ("train", "--data.shards", shards, *SMALL, "--train.sample-interval-epochs", 0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, cli: Run, options: tuple[Any, ...]) -> Path:
    """A run of one epoch, whose moving average draws; read only."""
    run = tmp_path_factory.mktemp("source") / "masters"
    done = cli(*options, *NETWORKS, "--generator.ema", 0.9, "--train.epochs", 1, "--out", run)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, cli: Run, options: tuple[Any, ...], source: Path) -> Path:
    """A run that began with it, and has not changed it since; read only."""
    run = tmp_path_factory.mktemp("begun") / "pupil"
    own = ("--generator.ema", 0.5, "--train.seed", 7)
    done = cli(*options, *NETWORKS, *STILL, *own, "--init-from", source.name, "--out", run, cwd=source.parent)
    assert done.returncode == 0, done.stderr
    return run


def newest(run: Path) -> Path:
    folder = checkpoint.find(run)
    assert folder is not None
    return folder


def weights(file: Path) -> dict[str, Tensor]:
    return load_file(file)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[n], other[n], rtol=0, atol=1e-20) for n in one)


def facts(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = saved.read_settings(run)["facts"]
    return found


def settings(source: Path) -> Config:
    """Those of a run that would begin with `source`."""
    return replace(saved.config_of(saved.read_settings(source), source), init_from=source)


def test_it_begins_with_the_weights_that_draw_and_the_discriminator(source: Path, begun: Path) -> None:
    theirs, mine = newest(source), newest(begun)
    assert not same(weights(theirs / "generator.safetensors"), weights(theirs / "ema.safetensors"))
    for name in ("generator", "ema"):
        assert same(weights(mine / f"{name}.safetensors"), weights(theirs / "ema.safetensors")), name
    judging = "discriminator.safetensors"
    assert same(weights(mine / judging), weights(theirs / judging))
    assert checkpoint.step_of(mine) == 3  # its own steps
    (about,) = facts(begun)["began_with"]
    assert (about["name"], about["step"], about["networks"]) == ("masters", "3", "generator and discriminator")
    assert about["weights_sha256"] == sha256(theirs / "ema.safetensors")
    assert saved.read_settings(begun)["config"]["init_from"] == str(source)


def test_the_preset_begins_with_a_shipped_generator_at_another_size(tmp_path: Path, cli: Run, shards: Path) -> None:
    name = str(cfg.load("finetune").init_from)
    still = (*STILL, "--data.workers", 0, "--train.precision", "no", "--track.wandb", "off", "--train.no-validate-fid")
    done = cli("train", "--config", "finetune", "--data.shards", shards, *still, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    shipped = pretrained.SketchGenerator.from_pretrained(name)
    assert shipped.size != facts(tmp_path / "run")["size"] == 64
    assert same(weights(newest(tmp_path / "run") / "generator.safetensors"), shipped.net.state_dict())
    assert facts(tmp_path / "run")["began_with"][0]["networks"] == "generator"
    assert saved.read_settings(tmp_path / "run")["config"]["init_from"] == name  # not where it lies on this machine


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("", {"norm": "instance"}, "norm is 'group' there and 'instance' here; give --norm group"),
        ("data", {"channels": 3}, "data.channels is 1 there and 3 here; give --data.channels 1"),
        ("generator", {"width": 16}, "generator.width is 8 there and 16 here; give --generator.width 8"),
        ("generator", {"detail": 16}, "generator.detail is 8 there and 16 here; give --generator.detail 8"),
        ("generator", {"network": "baseline"}, "generator.network is 'unet' there and 'baseline' here; give"),
        ("generator", {"upsample": "resize"}, "'transposed' there and 'resize' here; give --generator.upsample trans"),
        ("discriminator", {"fine": 0.0}, "fine is 4.0 there and 0.0 here; give --discriminator.fine 4.0; or begin"),
    ],
)
def test_other_networks_are_a_sentence_with_both_values(source: Path, part: str, change: Any, told: str) -> None:
    config = settings(source)
    assert beginning.check(config)["began_with"]
    other = replace(config, **({part: replace(getattr(config, part), **change)} if part else change))
    with pytest.raises(UserError) as e:
        beginning.check(other)
    assert str(e.value).startswith(f"init_from = {source}: has other networks: ")
    assert told in str(e.value)


def test_an_enhancer_may_be_new_and_changes_nothing_at_first(source: Path) -> None:
    config = settings(source)
    config = replace(config, generator=replace(config.generator, enhance=8))
    torch.manual_seed(1)
    modules = {"generator": networks.generator(config), "discriminator": networks.discriminator(config)}
    beginning.begin(config, modules, Ranks())
    line = torch.rand(1, 1, 64, 64).round() * 2 - 1
    with torch.no_grad():
        small = pretrained.SketchGenerator.load(source)(line)
        large = modules["generator"].eval()(line.repeat_interleave(2, 2).repeat_interleave(2, 3))
    enlarged = interpolate(small.atanh(), scale_factor=2, mode="bilinear").tanh()
    assert torch.allclose(large, enlarged, atol=1e-4)
    with pytest.raises(UserError, match=r"generator.enhance is 8 there and 0 here; give --generator.enhance 8"):
        beginning._same_networks(source, config, settings(source), beginning.OF_G)


def test_a_generator_alone_needs_no_discriminator_that_fits(tmp_path: Path, source: Path) -> None:
    pretrained.export(source, tmp_path / "export")
    config = replace(settings(source), init_from=tmp_path / "export")
    other = replace(config, discriminator=replace(config.discriminator, fine=0.0))
    assert beginning.check(other)["began_with"][0]["networks"] == "generator"


def test_what_it_cannot_begin_with_is_a_sentence_before_anything_is_written(
    tmp_path: Path, cli: Run, cli_ranks: Run, options: tuple[Any, ...], source: Path
) -> None:
    refused = cli(*options, "--init-from", source, "--out", tmp_path / "run")
    assert refused.returncode == 2
    assert "give --norm group --data.channels 1 --generator.detail 8 --discriminator.fine 4.0" in refused.stderr
    nowhere = cli_ranks(2, *options, "--init-from", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert nowhere.returncode == 2
    assert nowhere.stderr.count("nowhere: is neither a run nor an exported generator") == 1
    assert "Traceback" not in refused.stderr + nowhere.stderr
    assert not list(tmp_path.iterdir())


def test_a_continued_run_takes_the_same_source_and_no_other(
    tmp_path: Path, cli: Run, options: tuple[Any, ...], source: Path, begun: Path
) -> None:
    shutil.copytree(begun, tmp_path / "run")
    same_command = (*options, *NETWORKS, *STILL, "--generator.ema", 0.5, "--train.seed", 7, "--out", tmp_path / "run")
    for other in (("--init-from", "portrait-128"), ()):
        refused = cli(*same_command, *other)
        assert refused.returncode == 2
        assert f"init_from: {source} -> {other[1] if other else None}" in refused.stderr
    hidden = source.rename(source.with_name("hidden"))  # it is needed no more
    try:
        longer = ("--train.epochs", 2, "--init-from", source.name)
        done = cli(*same_command, *longer, cwd=source.parent)
    finally:
        hidden.rename(source)
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stdout
    assert "begins with" not in done.stdout
    assert checkpoint.step_of(newest(tmp_path / "run")) == 6
    assert facts(tmp_path / "run")["began_with"] == facts(begun)["began_with"]
    assert saved.read_settings(tmp_path / "run")["config"]["init_from"] == str(source)


def test_a_run_that_failed_before_it_was_saved_begins_with_it_again(
    tmp_path: Path, cli: Run, options: tuple[Any, ...], source: Path, begun: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(begun, run)
    shutil.rmtree(run / "checkpoints")
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"state": "failed", "step": 0, "saved": 0}))
    own = ("--generator.ema", 0.5, "--train.seed", 7, "--init-from", source, "--out", run)
    done = cli(*options, *NETWORKS, *STILL, *own)
    assert done.returncode == 0, done.stderr
    for file in ("generator.safetensors", "discriminator.safetensors"):
        assert (newest(run) / file).read_bytes() == (newest(begun) / file).read_bytes()


def begin_on_a_rank(ranks: Ranks) -> dict[str, Any]:
    """Only the first rank sees the source, as on nodes with disks of their own."""
    config = replace(cfg.load("finetune"), generator=replace(cfg.load("finetune").generator, ema=0.9))
    if not ranks.is_main:
        config = replace(config, init_from=Path("nowhere"))
    torch.manual_seed(ranks.rank)
    modules = {"generator": networks.generator(config), "discriminator": networks.discriminator(config)}
    modules["ema"] = networks.generator(config)
    about = beginning.begin(config, modules, ranks)
    return {"facts": about, **{name: module.state_dict() for name, module in modules.items()}}


def test_all_ranks_begin_with_the_same_weights(tmp_path: Path) -> None:
    one, other = ranked.run(2, begin_on_a_rank, tmp_path)
    shipped = pretrained.SketchGenerator.from_pretrained(str(cfg.load("finetune").init_from)).net.state_dict()
    assert one["facts"] == other["facts"]
    for rank in (one, other):
        assert same(rank["generator"], shipped)
        assert same(rank["ema"], shipped)
    assert same(one["discriminator"], other["discriminator"])


def test_an_export_tells_what_it_began_with_and_no_path(tmp_path: Path, begun: Path, source: Path) -> None:
    assert parse(["checkpoint", "export", str(begun), "--out", str(tmp_path / "export")])() == 0
    card = (tmp_path / "export/README.md").read_text(encoding="utf-8")
    assert "It began with the generator and discriminator of masters at step 3, which was trained on" in card
    assert str(source.parent) not in card + (tmp_path / "export/config.json").read_text()
    names = [s["name"] for s in beginning.check(settings(begun))["began_with"]]
    assert names == ["pupil", "masters"]  # a grandchild names both
    config = replace(settings(begun), init_from=tmp_path / "export")
    assert [s["name"] for s in beginning.check(config)["began_with"]] == ["export", "masters"]


def test_the_preset_for_256_px_adds_an_enhancer_to_a_shipped_generator() -> None:
    config = cfg.load("portrait-256")
    (about,) = beginning.check(config)["began_with"]
    assert (about["name"], about["networks"]) == (str(config.init_from), "generator")
    assert config.generator.enhance
    assert not pretrained.SketchGenerator.from_pretrained(str(config.init_from)).config.generator.enhance
