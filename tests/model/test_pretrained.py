"""The exported generator: what is written, that it draws the same, what is refused, and what a fault may cost."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, Run
from safetensors.torch import load_file, save_file
from torch import nn

from dist_sketch.__main__ import parse
from dist_sketch.core import config as cfg
from dist_sketch.core.config import Config, GeneratorConfig
from dist_sketch.core.errors import UserError
from dist_sketch.core.ranks import Ranks
from dist_sketch.data.manifest import manifest_hash
from dist_sketch.data.sources import open_source
from dist_sketch.model import checkpoint, from_hub, networks
from dist_sketch.model.pretrained import SketchGenerator, export, find_weights
from dist_sketch.model.weights import load_weights

STEPS = (2, 4, 6)  # checkpoints of the run below


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def digest(folder: Path) -> str:
    return hashlib.sha256(b"".join(k.encode() + v for k, v in contents(folder).items())).hexdigest()


def dtypes(file: Path) -> set[torch.dtype]:
    return {v.dtype for v in load_file(file).values()}


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def lines() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Trap:
    """Makes a folder if it is unpickled."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def set_trap(folder: Path, name: str, place: Path) -> None:
    """Replaces a file of a checkpoint by a trap, and seals the folder anew."""
    torch.save(Trap(place), folder / name)
    seal = json.loads((folder / "checkpoint.json").read_text())
    content = (folder / name).read_bytes()
    seal["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "checkpoint.json").write_text(json.dumps(seal))
    assert checkpoint.verify(folder) == []


@pytest.fixture(scope="module")
def options(shards: Path) -> tuple[Any, ...]:
    return ("train", "--data.shards", shards, *SMALL, "--train.epochs", 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cli: Run, options: tuple[Any, ...]) -> Path:
    """A finished run with an averaged generator; read only."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = cli(*options, "--generator.ema", 0.9, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, cli: Run, run: Path) -> Path:
    """Its export; read only."""
    folder = tmp_path_factory.mktemp("exported") / "generator"
    before = digest(run)
    done = cli("checkpoint", "export", run, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder}: the generator of step {STEPS[-1]}, for 64 px\n"
    assert digest(run) == before
    assert list(folder.parent.iterdir()) == [folder]
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A run's folder around the 5-layer network, with checkpoints at steps 1 and 2 and no calibration."""
    folder, config = tmp_path / "small", Config(generator=GeneratorConfig(network="baseline"))
    for step in (1, 2):
        torch.manual_seed(step)
        modules: dict[str, nn.Module] = {"generator": networks.generator(config)}
        checkpoint.save(folder, step, modules, {"place": step}, Ranks(), keep=3)
    facts = {"size": 64, "world_size": 1, "run_id": "0badcafe"}
    (folder / "config.json").write_text(json.dumps({"config": cfg.to_dict(config), "facts": facts}))
    return folder


# What an export is


def test_an_export_is_the_generator_that_draws_and_nothing_else(run: Path, exported: Path) -> None:
    newest = run / f"checkpoints/step-{STEPS[-1]:08d}"
    assert set(contents(exported)) == {"generator.safetensors", "config.json", "denoise.json", "README.md"}
    weights = (exported / "generator.safetensors").read_bytes()
    assert weights == (newest / "ema.safetensors").read_bytes()
    assert weights != (newest / "generator.safetensors").read_bytes()
    mine, theirs = (json.loads((f / "config.json").read_text()) for f in (exported, run))
    theirs["config"]["data"]["shards"] = None  # a path of one machine means nothing elsewhere
    assert mine == {"config": theirs["config"], "facts": theirs["facts"] | {"step": STEPS[-1], "chosen": False}}
    mine, theirs = (json.loads((f / "denoise.json").read_text()) for f in (exported, run))
    assert mine == theirs


def test_it_loads_ready_to_draw_as_the_run_does(run: Path, exported: Path) -> None:
    model = SketchGenerator.from_pretrained(str(exported))
    assert not any(m.training for m in model.modules())
    settings = json.loads((run / "config.json").read_text())["config"]
    assert cfg.to_dict(model.config) == settings | {"data": settings["data"] | {"shards": None}}
    assert (model.size, model.step) == (64, STEPS[-1])
    assert cfg.to_dict(model.denoise) == json.loads((run / "denoise.json").read_text())["denoise"]
    net = networks.generator(model.config)
    load_weights(run / f"checkpoints/step-{STEPS[-1]:08d}/ema.safetensors", net)
    with torch.no_grad():
        drawn = model(lines())
        assert torch.equal(drawn, net.eval()(lines()))
    assert drawn.shape == (2, 3, 64, 64)
    assert drawn.abs().max() <= 1
    assert same_weights(SketchGenerator.from_pretrained(run), model)


def test_saved_again_from_any_precision_and_layout_it_is_bit_equal(tmp_path: Path, exported: Path) -> None:
    model = SketchGenerator.from_pretrained(exported)
    model.save_pretrained(tmp_path / "deep" / "one")
    alone = {k: v for k, v in contents(exported).items() if k != "README.md"}
    assert contents(tmp_path / "deep" / "one") == alone
    model.double().to(memory_format=torch.channels_last).train().save_pretrained(str(tmp_path / "two"))
    assert contents(tmp_path / "two") == alone
    model.half().save_pretrained(tmp_path / "two")  # over the other; rounded, but still what `infer` takes
    assert dtypes(tmp_path / "two" / "generator.safetensors") == {torch.float32, torch.int64}
    SketchGenerator.from_pretrained(tmp_path / "two")


def test_a_fourth_of_the_bytes_draws_the_same_to_a_few_tones(
    tmp_path: Path, cli: Run, run: Path, exported: Path
) -> None:
    for source in (run, tmp_path / "small"):  # also onto itself: nothing is rounded twice
        done = cli("checkpoint", "export", source, "--out", tmp_path / "small", "--compact")
        assert done.returncode == 0, done.stderr
        file = tmp_path / "small" / "generator.safetensors"
        assert dtypes(file) == {torch.int8, torch.float32, torch.int64}
        assert file.stat().st_size < 0.28 * (exported / file.name).stat().st_size
        whole, small = (SketchGenerator.from_pretrained(f) for f in (exported, tmp_path / "small"))
        assert {p.dtype for p in small.parameters()} == {torch.float32}
        for one, other in zip(whole.parameters(), small.parameters(), strict=True):
            assert (one - other).abs().max() <= one.abs().max() / 127 * 0.501
        with torch.no_grad():
            assert 127.5 * (whole(lines()) - small(lines())).abs().mean() < 2


def test_saving_over_another_leaves_no_calibration_of_the_other(tmp_path: Path, small: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "denoise.json").write_text("{}")
    (tmp_path / "there" / "mine.txt").write_text("mine")
    SketchGenerator.load(small).save_pretrained(tmp_path / "there")
    assert set(contents(tmp_path / "there")) == {"generator.safetensors", "config.json", "mine.txt"}


def test_infer_draws_the_same_from_the_run_and_from_what_was_saved_again(
    tmp_path: Path, cli: Run, run: Path, exported: Path, shards: Path
) -> None:
    SketchGenerator.from_pretrained(exported).save_pretrained(tmp_path / "again")
    outs = []
    for source in (run, tmp_path / "again"):
        out = tmp_path / f"out{len(outs)}"
        done = cli("infer", "--run", source, "--input", shards, "--out", out)
        assert done.returncode == 0, done.stderr
        about = json.loads((out / "infer.json").read_text())
        assert about.pop("run") == str(source)
        assert about["config"]["data"].pop("shards") == (str(shards.resolve()) if source == run else None)
        outs.append((about, {k: v for k, v in contents(out).items() if k not in ("infer.json", ".lock")}))
    assert outs[0] == outs[1]
    assert outs[0][0]["step"] == STEPS[-1]
    assert outs[0][0]["reference"] is not None
    assert len(outs[0][1]) == 4 * 5 + 1  # pictures and scores
    with pytest.raises(UserError, match=rf"^--step 4: {exported} is an exported generator of step {STEPS[-1]}$"):
        find_weights(exported, 4)


def test_a_float64_run_without_average_or_calibration(tmp_path: Path, cli: Run, options: tuple[Any, ...]) -> None:
    done = cli(*options, "--train.precision", "fp64", "--train.epochs", 1, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    (tmp_path / "run" / "denoise.json").unlink()
    model = export(tmp_path / "run", tmp_path / "exported")
    assert set(contents(tmp_path / "exported")) == {"generator.safetensors", "config.json"}
    saved = load_file(tmp_path / "run/checkpoints/step-00000003/generator.safetensors")
    assert {v.dtype for v in saved.values()} == {torch.float64, torch.int64}
    mine = load_file(tmp_path / "exported/generator.safetensors")
    assert {v.dtype for v in mine.values()} == {torch.float32, torch.int64}
    assert mine.keys() == saved.keys()
    assert all(torch.equal(mine[k], saved[k].to(mine[k].dtype)) for k in mine)
    for folder in ("run", "exported"):
        assert same_weights(SketchGenerator.from_pretrained(tmp_path / folder), model)


# Which checkpoint


def test_who_draws_knows_whether_its_weights_were_chosen_and_on_which_pairs(
    tmp_path: Path, small: Path, shards: Path
) -> None:
    saved = json.loads((small / "config.json").read_text())
    saved["config"]["checkpoint"]["choose"] = "kid"
    saved["facts"]["manifest_sha256"] = manifest_hash(shards)
    (small / "config.json").write_text(json.dumps(saved))
    (small / "status.json").write_text(json.dumps({"state": "stopped", "best": 1}))  # it may not have ended yet
    assert SketchGenerator.load(small, find_weights(small, 1)).chosen
    (small / "status.json").write_text(json.dumps({"state": "finished", "draws": 1, "best": 2}))
    assert not SketchGenerator.load(small, find_weights(small, 2)).chosen
    assert export(small, tmp_path / "export", step=1).chosen
    best = SketchGenerator.load(tmp_path / "export")
    assert best.chosen
    shutil.copytree(shards, tmp_path / "other")
    its_data = best.saved["facts"]["manifest_sha256"]
    assert open_source(tmp_path / "other", "val").sha256 == its_data  # wherever they lie
    manifest = tmp_path / "other" / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    assert open_source(tmp_path / "other", "val").sha256 != its_data


def test_the_newest_complete_one_or_that_of_a_step(
    tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(small, tmp_path / "out").step == 2
    assert find_weights(tmp_path / "out") == find_weights(tmp_path / "out", 2) == (tmp_path / "out", 2)
    assert export(small, tmp_path / "out", step=1).step == 1  # an earlier export is replaced
    one = small / "checkpoints/step-00000001/generator.safetensors"
    assert (tmp_path / "out/generator.safetensors").read_bytes() == one.read_bytes()
    newest = small / "checkpoints/step-00000002/generator.safetensors"
    os.truncate(newest, 100)
    assert export(small, tmp_path / "other").step == 1
    assert capsys.readouterr().out == f"passed over: {newest}: damaged (size or hash)\n"
    with pytest.raises(UserError, match=rf"^--step 2: {newest}: damaged"):
        export(small, tmp_path / "none", step=2)
    with pytest.raises(UserError, match=r"^--step 3: .* has no such checkpoint; there are 1, 2$"):
        export(small, tmp_path / "none", step=3)
    one.unlink()
    with pytest.raises(UserError, match="has no complete checkpoint"):
        export(small, tmp_path / "none")
    with pytest.raises(UserError, match="is neither a run nor an exported generator"):
        export(tmp_path / "nowhere", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_export_may_lie_in_its_run_and_be_exported_again(tmp_path: Path, small: Path) -> None:
    before = contents(small)
    export(small, small / "export")
    assert {k: v for k, v in contents(small).items() if not k.startswith("export/")} == before
    export(small / "export", small / "export")  # onto itself
    export(small / "export", tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(small / "export")
    assert export(small, tmp_path / "copy").step == 2  # the run is still a run


# Where it may be written


def test_only_an_earlier_export_or_an_empty_folder_is_written_over(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    export(small, tmp_path / "empty")
    good = contents(tmp_path / "empty")
    (tmp_path / "link").symlink_to("empty")
    export(small, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "empty") == good
    monkeypatch.chdir(tmp_path / "empty")
    export(small, Path("."))
    assert contents(tmp_path / "empty") == good
    (tmp_path / "empty" / "README.md").write_text("mine")
    (tmp_path / "incomplete").mkdir()
    (tmp_path / "incomplete" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("mine")
    before = digest(tmp_path)
    for out, holds in (
        *((tmp_path / "empty", "README.md"), (tmp_path / "incomplete", "an incomplete one")),
        *((tmp_path / "file", "file"), (small, "checkpoints"), (tmp_path, "empty")),
    ):
        with pytest.raises(UserError, match=rf"is there already and not an earlier export \(it holds {holds}"):
            export(small, out)
    for name, text in (("a", '{"model_type": "bert"}'), ("b", '{"config": {}}'), ("c", "{"), ("d", "[1]")):
        foreign = tmp_path / name  # as others have files of the same names
        foreign.mkdir()
        (foreign / "config.json").write_text(text)
        (foreign / "generator.safetensors").write_text("theirs")
        with pytest.raises(UserError, match=rf"^{foreign}/config\.json: "):
            export(small, foreign)
        assert (foreign / "generator.safetensors").read_text() == "theirs"
        assert (foreign / "config.json").read_text() == text
    before = digest(tmp_path)
    with pytest.raises(UserError, match=r"file/below: cannot be written \(Not a directory\)"):
        export(small, tmp_path / "file" / "below")
    assert digest(tmp_path) == before


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("replaces", [False, True], ids=["new", "over an earlier one"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), Killed()], ids=["full", "killed"])
def test_every_fault_leaves_a_whole_export_or_none(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, replaces: bool
) -> None:
    out = tmp_path / "home" / "out"
    old = contents(tmp_path / "old") if replaces and export(small, tmp_path / "old", 1) else {}
    new = contents(tmp_path / "new") if export(small, tmp_path / "new", 2) else {}
    calls = {name: getattr(os, name) for name in ("fsync", "replace", "mkdir")}
    at = done = failures = 0

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done == at:
                raise error
            return call(*arguments, **options)

        return wrapped

    while done >= at:  # the last time no fault is left
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir(parents=True)
        if replaces:
            shutil.copytree(tmp_path / "old", out)
        at, done, failed = at + 1, 0, None
        with monkeypatch.context() as m:
            for name, call in calls.items():
                m.setattr(os, name, wrap(call))
            try:
                export(small, out, 2)
            except (Killed, UserError) as e:
                failed = e
        there = contents(out) if out.exists() else {}
        if isinstance(error, Killed):  # between two renames the earlier one lies beside
            assert there in (old, new, {})
        else:
            assert failed is None or str(failed).endswith("cannot be written (No space left on device)")
            assert there == (old if failed else new)
            assert [p for p in out.parent.iterdir() if p != out] == []
        failures += failed is not None
    assert there == new
    # A folder, two files and the folder synced, three renamed (an earlier one before it); where the folder is there
    # already, only a death is noticed.
    assert failures == 7 + replaces + 2 * isinstance(error, Killed)


# What is read


def test_no_pickle_is_opened_for_an_export(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("state.pt", "rng.pt"):
        set_trap(small / "checkpoints/step-00000002", name, tmp_path / "sprung")

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(torch, "load", load)
    export(small, tmp_path / "out")
    SketchGenerator.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")
    assert not (tmp_path / "sprung").exists()


def test_a_resumed_run_does_not_run_what_a_checkpoint_holds(
    tmp_path: Path, cli: Run, run: Path, options: tuple[Any, ...]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    folder = tmp_path / "run" / f"checkpoints/step-{STEPS[-1]:08d}"
    set_trap(folder, "state.pt", tmp_path / "sprung")
    done = cli(*options, "--generator.ema", 0.9, "--train.epochs", 3, "--out", tmp_path / "run")
    assert done.returncode == 2, done.stderr
    sentence = f"error: {folder / 'state.pt'}: damaged, or holds more than plain values; nothing of it was run. Remove "
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "sprung").exists()


def edit(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def edited(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(change(value)))

    return edited


def spoil_all(name: str, value: float) -> Callable[[Path], None]:
    """Puts a value, in float64, everywhere into the first tensor whose name ends so."""

    def spoiled(folder: Path) -> None:
        file = folder / "generator.safetensors"
        tensors = load_file(file)
        found = next(n for n in tensors if n.endswith(name))
        save_file(tensors | {found: torch.full_like(tensors[found], value, dtype=torch.float64)}, file)

    return spoiled


def spoil(value: float) -> Callable[[Path], None]:
    """Puts a value into the weights."""

    def spoiled(folder: Path) -> None:
        file = folder / "generator.safetensors"
        tensors = load_file(file)
        next(t for t in tensors.values() if t.is_floating_point()).view(-1)[0] = value
        save_file(tensors, file)

    return spoiled


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda f: os.truncate(f / "generator.safetensors", 1000), "does not hold the weights of this network"),
        (lambda f: (f / "generator.safetensors").unlink(), "has no complete checkpoint, and no generator.safetensors"),
        (lambda f: (f / "config.json").unlink(), "is neither a run nor an exported generator"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: is not valid JSON"),
        (edit("config.json", lambda v: [v]), "config.json: the file must be a table"),
        (edit("config.json", lambda v: {"config": v["config"]}), "config.json: is not the configuration of a run"),
        (edit("config.json", lambda v: v | {"config": None}), "config.json: config = None: must be of type dict"),
        (edit("config.json", lambda v: v | {"facts": {"size": "64"}}), "facts.size = '64': must be of type int"),
        (edit("config.json", lambda v: v | {"facts": {"size": 65}}), "size = 65: must be a multiple of 64"),
        (edit("config.json", lambda v: v | {"config": {"generator": {"width": 8192}}}), "must be a multiple of 8 from"),
        (edit("config.json", lambda v: v | {"config": {"generator": {"width": 10**9}}}), "must be a multiple of 8"),
        (edit("config.json", lambda v: v | {"config": {"generator": {"width": -8}}}), "must be a multiple of 8 from"),
        (edit("config.json", lambda v: v | {"config": {"generator": {"width": 1024}}}), "does not hold the weights of"),
        (edit("config.json", lambda v: v | {"config": {"generator": {"dropout": 5}}}), "dropout = 5.0: must be in [0"),
        (spoil(float("nan")), "has values that are not finite"),
        (spoil(float("inf")), "has values that are not finite"),
        (spoil_all("0.weight", 1e300), "weight has values that are not finite, or too large"),
        (spoil_all("0.weight", 1e30), "weight has values that are not finite, or too large"),
        (lambda f: (f / "denoise.json").symlink_to(f / "gone"), "denoise.json: is a link to a file that is gone"),
        (
            lambda f: (f / "denoise.json").write_text('{"denoise": {"strength": -1}}'),
            "must be from 0 (nothing) to",
        ),
        (edit("config.json", lambda v: v | {"config": {"norn": "none"}}), "config.json: there is no setting norn"),
        (edit("config.json", lambda v: v | {"config": {}}), "does not hold the weights of this network"),
        (lambda f: (f / "denoise.json").write_text("[1]"), "denoise.json: the file must be a table"),
        (lambda f: (f / "denoise.json").write_text("{}"), "denoise.json: denoise is missing"),
        (lambda f: (f / "denoise.json").write_text('{"denoise": {"strong": 1}}'), "there is no setting denoise.strong"),
    ],
)
def test_damage_is_a_sentence(tmp_path: Path, small: Path, damage: Callable[[Path], Any], sentence: str) -> None:
    folder = tmp_path / "out"
    export(small, folder)
    damage(folder)
    with pytest.raises(UserError, match=f"^{folder}") as e:
        SketchGenerator.from_pretrained(folder)
    assert sentence in str(e.value)


# The Hub


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("running_var", -1.0, "has values below 0, which no variance has"),
        ("running_var", 1e300, "not finite, or too large"),
        ("running_mean", -1e300, "not finite, or too large"),
        ("bias", float("nan"), "not finite, or too large"),
    ],
)
def test_no_training_gives_such_statistics(name: str, value: float, sentence: str, tmp_path: Path) -> None:
    tensors = torch.nn.BatchNorm2d(3).state_dict()
    tensors[name] = torch.full_like(tensors[name], value, dtype=torch.float64)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=f"{name} has values.*{sentence.removeprefix('has values')}"):
        load_weights(tmp_path / "x.safetensors", torch.nn.BatchNorm2d(3))


@pytest.fixture
def cache(tmp_path: Path, small: Path) -> Path:
    """The Hub's cache as a download of me/sketch would leave it."""
    sha = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "cache" / "models--me--sketch"
    export(small, home / "snapshots" / sha)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(sha)
    return home.parent


def test_a_repository_of_the_hub(cache: Path, small: Path) -> None:
    model = SketchGenerator.from_pretrained("me/sketch", cache_dir=cache, local_files_only=True)
    assert not model.training
    assert model.step == 2
    assert same_weights(SketchGenerator.load(small), model)


def test_the_download_takes_the_options_and_only_our_files(
    cache: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (snapshot,) = (cache / "models--me--sketch" / "snapshots").iterdir()
    asked = []

    def download(repo: str, **options: Any) -> str:
        asked.append({"repo_id": repo, **options})
        return str(snapshot)

    monkeypatch.setattr(from_hub, "snapshot_download", download)
    options = {"revision": "v1", "token": "secret", "cache_dir": cache, "force_download": True}
    SketchGenerator.from_pretrained("me/sketch", **options)
    names = ["generator.safetensors", "config.json", "denoise.json", "README.md"]
    assert asked == [{"repo_id": "me/sketch", "allow_patterns": names, **options}]


def test_neither_a_folder_nor_a_repository(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}/nowhere: is neither a run nor an exported generator"):
        SketchGenerator.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"^me/other: there is no such folder; as a repository of the Hub: "):
        SketchGenerator.from_pretrained("me/other", cache_dir=cache, local_files_only=True)


# The command line


def test_list_verify_and_export_on_the_command_line(
    tmp_path: Path, cli: Run, small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def output(*arguments: object) -> list[str]:
        assert parse(["checkpoint", *map(str, arguments)])() == 0
        return capsys.readouterr().out.splitlines()

    monkeypatch.setenv("COLUMNS", "200")
    folders = [small / f"checkpoints/step-0000000{n}" for n in (2, 1)]
    states = [line.split("│")[-2].strip() for line in output("list", small) if line.startswith("│")]
    assert states == ["complete, newest", "complete"]
    good = [line.split(": good (4 files, ")[0] for line in output("verify", small)]
    assert good == [str(f) for f in folders]

    for step in (1, 2):
        said = output("export", small, "--out", tmp_path / "out", "--step", step)
        assert said == [f"{tmp_path / 'out'}: the generator of step {step}, for 64 px"]

    os.truncate(folders[0] / "state.pt", 10)
    states = [line.split("│")[-2].strip() for line in output("list", small) if line.startswith("│")]
    assert states == ["state.pt: damaged (size or hash)", "complete, newest"]
    assert output("verify", small, "--step", 1)[0].startswith(f"{folders[1]}: good")
    assert output("export", small, "--out", tmp_path / "out") == [
        f"passed over: {folders[0] / 'state.pt'}: damaged (size or hash)",
        f"{tmp_path / 'out'}: the generator of step 1, for 64 px",
    ]
    done = cli("checkpoint", "verify", small)
    assert done.returncode == 2
    assert done.stdout.startswith(f"{folders[1]}: good")
    assert done.stderr == (
        f"error: 1 of 2 checkpoint(s) damaged:\n  {folders[0] / 'state.pt'}: damaged (size or hash)\n"
        f"newest complete checkpoint: {folders[1]}\n"
    )


@pytest.mark.parametrize("command", ["list", "verify", "export"])
def test_mistakes_on_the_command_line(
    tmp_path: Path, exported: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = () if command != "export" else ("--out", str(tmp_path / "o"))
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere", *([exported] if command != "export" else [])):
        with pytest.raises(UserError, match=rf"^{folder}: (has no checkpoints|is neither a run nor)"):
            parse(["checkpoint", command, str(folder), *out])()
    for arguments in ([], [command], [command, "a", *out, "--nonsense"], ["nonsense"]):
        with pytest.raises(SystemExit) as e:
            parse(["checkpoint", *arguments])
        assert e.value.code == 2
        assert capsys.readouterr().err


@pytest.mark.parametrize("command", ["list", "verify", "export", "push"])
def test_each_sub_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        parse(["checkpoint", "--help"])
    assert e.value.code == 0
    assert f"• {command}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as e:
        parse(["checkpoint", command, "--help"])
    assert e.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: dist-sketch checkpoint {command} [-h] ")
