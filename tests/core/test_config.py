import ast
import dataclasses
import errno
import inspect
import json
import math
import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig

from dist_sketch import __main__ as command_line
from dist_sketch.core import config as cfg
from dist_sketch.core import fileio
from dist_sketch.core.config import Config
from dist_sketch.core.config_rules import difference, validate
from dist_sketch.core.errors import UserError

ROOT = Path(__file__).parents[2]
PRESETS = sorted(p for p in (ROOT / "launch").glob("*.toml") if not p.stem.startswith("experiment-"))
LAUNCHERS = sorted(p for p in (ROOT / "launch").glob("*.yaml") if p.stem != "sweep")
DEFAULTS = dict(cfg.items(Config()))

# The paper's values and the names that are promised to users.
PAPER = {
    "data.shards": None,
    "data.batch_size": 8,
    "data.shuffle": True,
    "data.channels": 3,
    "data.flip": False,
    "data.shift": False,
    "data.freehand": 0,
    "train.epochs": 50,
    "train.precision": "auto",
    "train.seed": 0,
    "optim.lr_g": 2e-3,
    "optim.lr_d": 1e-3,
    "optim.beta1": 0.5,
    "optim.beta2": 0.999,
    "optim.clip_norm": 0.0,
    "loss.lambda_l1": 100.0,
    "loss.scale": 0.1,
    "loss.lambda_ssim": 0.0,
    "optim.decay": 0.0,
    "loss.d_backward": "separate",
    "conditional.mode": "on",
    "conditional.timer": 2,
    "conditional.timer_net": "d",
    "conditional.timer_unit": "epochs",
    "conditional.loss_threshold": 0.02,
    "generator.network": "unet",
    "generator.dropout": 0.5,
    "generator.width": 64,
    "generator.upsample": "transposed",
    "generator.detail": 0,
    "generator.noise": 0,
    "generator.ema": 0.0,
    "discriminator.fine": 0.0,
    "norm": "batch",
}

# For each number: values that are accepted, and values just outside.
LIMITS: dict[str, tuple[list[float], list[float]]] = {
    "data.batch_size": ([1], [0, -1]),
    "data.workers": ([0], [-1]),
    "data.freehand": ([0, 64], [-1, 65]),
    "data.skip_bad": ([0], [-1]),
    "data.cache_mb": ([0.0], [-1.0, math.nan, math.inf]),
    "data.memory_mb": ([0.0], [-1.0, math.nan, math.inf]),
    "data.device_memory_mb": ([0.0], [-1.0, math.nan, math.inf]),
    "data.stall_timeout_s": ([0.0, 1e7], [-1.0, 1.1e7, 1e300, math.nan, math.inf]),
    "train.epochs": ([1], [0]),
    "train.seed": ([0, 2**63 - 1], [-1, 2**63]),
    "train.nonfinite_limit": ([1], [0]),
    "train.sync_interval_steps": ([0], [-1]),
    "train.accumulate": ([1], [0]),
    "train.hang_dump_s": ([0.0, 1e7], [-1.0, 1.1e7, 1e300, math.nan, math.inf]),
    "train.check_interval_steps": ([-1], [-2]),
    "train.rank_timeout_s": ([0.1, 1e7], [0.0, 1.1e7, 1e300, math.nan, math.inf]),
    "train.validate_interval_epochs": ([0], [-1]),
    "train.validate_limit": ([0], [-1]),
    "train.sample_interval_epochs": ([0], [-1]),
    "train.sample_count": ([1, 64], [0, 65]),
    "optim.inner": ([1.0], [-0.1, 1.1, math.nan]),
    "optim.lr_g": ([1e-9], [0.0, -1e-3, math.nan, math.inf]),
    "optim.lr_d": ([1e-9], [0.0, -1e-3, math.nan, math.inf]),
    "optim.beta1": ([0.0, 0.999], [-0.1, 1.0, math.nan]),
    "optim.beta2": ([0.0, 0.999], [-0.1, 1.0, math.nan]),
    "optim.clip_norm": ([0.0], [-0.1, math.nan, math.inf]),
    "optim.decay": ([0.0, 1.0], [-0.1, 1.1, math.nan]),
    "loss.lambda_l1": ([0.0], [-0.1, math.nan, math.inf]),
    "loss.lambda_ssim": ([0.0], [-0.1, math.nan, math.inf]),
    "loss.scale": ([1e-9], [0.0, math.nan, math.inf]),
    "conditional.timer": ([1], [0]),
    "conditional.loss_threshold": ([0.0], [-0.1, math.nan, math.inf]),
    "conditional.g_threshold": ([0.1], [0.0, -1.0, math.nan, math.inf]),
    "conditional.growth": ([0.0], [-0.1, math.nan, math.inf]),
    "conditional.hysteresis": ([1.0], [0.9, math.nan, math.inf]),
    "conditional.short_steps": ([1], [0]),
    "conditional.long_steps": ([1], [0]),
    "conditional.longest_lock_steps": ([0], [-1]),
    "generator.width": ([8, 64], [0, -8, 12]),
    "generator.detail": ([0], [-1]),
    "generator.noise": ([0], [-1]),
    "generator.enhance": ([0], [-1, 1025]),
    "discriminator.width": ([8, 64], [0, -8, 12]),
    "discriminator.scales": ([1, 4], [0, 5]),
    "discriminator.fine": ([0.0], [-0.1, math.nan, math.inf]),
    "generator.dropout": ([0.0, 0.99], [-0.1, 1.0, math.nan]),
    "generator.ema": ([0.0, 0.9999], [-0.1, 1.0, math.nan]),
    "checkpoint.interval_steps": ([0], [-1]),
    "checkpoint.keep": ([1], [0]),
    "track.timeout_s": ([0.1, 1e7], [0.0, 1.1e7, 1e300, math.nan, math.inf]),
    "track.log_interval_steps": ([1], [0]),
}


def with_(**values: Any) -> Config:
    """The defaults with some values changed: section__key=value."""
    config = Config()
    for name, value in values.items():
        section, _, key = name.rpartition("__")
        change = {key: value}
        if section:
            change = {section: dataclasses.replace(getattr(config, section), **change)}
        config = dataclasses.replace(config, **change)
    return config


def parse(*arguments: object) -> Any:
    """What `dist-sketch train --out x ARGUMENTS` would run."""
    return command_line.parse(["train", "--out", "x", *map(str, arguments)]).__self__  # type: ignore[attr-defined]


def toml(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# Defaults, TOML, command line


def test_defaults_are_the_papers() -> None:
    assert {k: DEFAULTS[k] for k in PAPER} == PAPER
    assert validate(Config()) == Config()
    assert parse().settings == cfg.load(None) == Config()


def test_toml_overrides_defaults(tmp_path: Path) -> None:
    text = 'norm = "instance"\n[data]\nbatch-size = 4\nshuffle = false\nshards = "a/b"\n[optim]\nlr_g = 1\n'
    config = cfg.load(str(toml(tmp_path / "c.toml", text)))
    changes = {"data__batch_size": 4, "data__shuffle": False, "data__shards": Path("a/b"), "optim__lr_g": 1.0}
    assert config == with_(norm="instance", **changes)
    assert type(config.optim.lr_g) is float


def test_command_line_overrides_toml_overrides_defaults(tmp_path: Path) -> None:
    path = toml(tmp_path / "c.toml", "[data]\nbatch_size = 4\nflip = true\n[optim]\nlr_d = 0.5\n")
    flags = ("--data.batch-size", 2, "--data.no-flip", "--train.epochs", 3, "--norm", "none", "--data.shards", "s")
    expected = {"data__batch_size": 2, "optim__lr_d": 0.5, "train__epochs": 3, "data__shards": Path("s")}
    for order in ((*flags, "--config", path), ("--config", path, *flags), (f"--config={path}", *flags)):
        parsed = parse(*order)
        assert parsed.settings == with_(norm="none", **expected)
        assert (parsed.out, parsed.config) == (Path("x"), str(path))


def test_hyphen_and_underscore_are_the_same(tmp_path: Path) -> None:
    for key in ("batch-size", "batch_size"):
        assert parse(f"--data.{key}", 2).settings.data.batch_size == 2
        assert cfg.load(str(toml(tmp_path / "c.toml", f"[data]\n{key} = 2\n"))).data.batch_size == 2
    for flag in ("--dry-run", "--dry_run"):
        assert parse(flag).dry_run


def test_the_paper_preset_is_the_papers_rule_and_order() -> None:
    config = parse("--config", "paper").settings
    assert config == with_(data__shuffle=False, conditional__mode="paper")
    assert parse("--config", "paper", "--data.shuffle").settings.data.shuffle


@pytest.mark.parametrize("argument", ["--data.nonsense=1", "--optim.lr-g=x", "--norm=layer", "--data.channels=2"])
def test_what_the_command_line_cannot_read_exits_with_2(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        parse(argument)
    assert e.value.code == 2
    assert re.split("[=.]", argument.removeprefix("--"))[0] in capsys.readouterr().err


def test_a_value_out_of_range_on_the_command_line_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dist-sketch", "train", "--out", str(tmp_path / "run"), "--optim.lr-g", "-1"])
    with pytest.raises(SystemExit) as e:
        command_line.main()
    assert e.value.code == 2
    assert capsys.readouterr().err.startswith("error: optim.lr_g = -1.0: must be above 0")
    assert not (tmp_path / "run").exists()


# Bad files


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[data]\nbatchsize = 4", "there is no setting data.batchsize; did you mean batch_size?"),
        ("[optimizer]\nlr = 1", "there is no setting optimizer; did you mean optim?"),
        ("[conditional]\ntimer-nets = 'd'", "there is no setting conditional.timer-nets; did you mean timer_net?"),
        ("[loss]\nzzz = 1", "there is no setting loss.zzz; known here: d_backward, lambda_l1, lambda_ssim, scale"),
        ("data = 3", "data must be a table of settings, not 3"),
        ("[data]\nbatch_size = 4.0", "data.batch_size = 4.0: must be of type int"),
        ("[data]\nbatch_size = true", "data.batch_size = True: must be of type int"),
        ("[data]\nbatch_size = '4'", "data.batch_size = '4': must be of type int"),
        ("[data]\nshuffle = 1", "data.shuffle = 1: must be of type bool"),
        ("[data]\nshards = 1", "data.shards = 1: must be of type path"),
        ("[optim]\nlr_g = 'fast'", "optim.lr_g = 'fast': must be of type float"),
        ("[optim]\nlr_g = false", "optim.lr_g = False: must be of type float"),
        ("[track]\ngroup = 1", "track.group = 1: must be of type str"),
        ("norm = 'layer'", "norm = 'layer': must be one of 'batch', 'instance', 'group', 'none'"),
        ("[data]\nchannels = 2", "data.channels = 2: must be one of 1, 3"),
        ("[data]\nchannels = true", "data.channels = True: must be one of 1, 3"),
        ("[data]\nchannels = 3.0", "data.channels = 3.0: must be one of 1, 3"),
        ("[train]\nprecision = []", "train.precision = []: must be one of 'auto', 'no', 'bf16', 'fp16', 'fp64'"),
    ],
)
def test_a_wrong_file_is_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = toml(tmp_path / "c.toml", text)
    with pytest.raises(UserError) as e:
        cfg.load(str(path))
    assert str(e.value) == f"{path}: {sentence}"


@pytest.mark.parametrize("content", [b"[data", b"\xff\xfe", b"a = 1\na = 2"])
def test_what_is_not_toml_is_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.toml").write_bytes(content)
    with pytest.raises(UserError, match=rf"^{tmp_path / 'c.toml'}: is not valid TOML: "):
        cfg.load(str(tmp_path / "c.toml"))


def test_unreadable_files_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}: cannot be read \(Is a directory\)$"):
        fileio.read_toml(tmp_path)
    with pytest.raises(UserError, match=r"c.json: cannot be read \(No such file or directory\)$"):
        fileio.read_json(tmp_path / "c.json")
    for content in (b"{", b"\xff"):
        (tmp_path / "c.json").write_bytes(content)
        with pytest.raises(UserError, match=r"c.json: is not valid JSON: "):
            fileio.read_json(tmp_path / "c.json")


# Ranges and contradictions


def test_every_number_has_limits_here() -> None:
    numbers = {k for k, v in DEFAULTS.items() if type(v) in (int, float)} - {"data.channels"}
    assert numbers == set(LIMITS)


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, (_, bad) in LIMITS.items() for v in bad])
def test_a_number_out_of_its_range_is_a_sentence(key: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"^{key} = {re.escape(repr(value))}: must be -?\w+"):
        validate(with_(**{key.replace(".", "__"): value}))


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, (good, _) in LIMITS.items() for v in good])
def test_a_number_at_its_limit_passes_and_survives_config_json(key: str, value: float, tmp_path: Path) -> None:
    # With D's threshold at 0 the thresholds of the two nets cannot cross.
    config = with_(**{"conditional__loss_threshold": 0.0, key.replace(".", "__"): value})
    assert validate(config) is config
    fileio.write_json(tmp_path / "config.json", cfg.to_dict(config))
    assert cfg.from_dict(Config, fileio.read_json(tmp_path / "config.json"), "config.json") == config


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(UserError, match=r"must be above loss_threshold \* hysteresis = 3, or both networks"):
        validate(with_(conditional__loss_threshold=2.0))
    equal = {"conditional__loss_threshold": 1.0, "conditional__hysteresis": 2.0}
    with pytest.raises(UserError, match=r"must be above loss_threshold \* hysteresis = 2, "):
        validate(with_(**equal, conditional__g_threshold=2.0))
    validate(with_(**equal, conditional__g_threshold=2.01))
    with pytest.raises(UserError, match=r"^generator.noise = 1: is an input of the detail block; also set"):
        validate(with_(generator__noise=1))
    with pytest.raises(UserError, match=r"^generator.enhance = 8: goes on from the detail block; also set"):
        validate(with_(generator__enhance=8))
    with pytest.raises(UserError, match=r"^optim.inner = 0.5: is for the U-Net in an enhancer; set generator.enhance"):
        validate(with_(optim__inner=0.5))
    with pytest.raises(UserError, match=r"^generator.network = 'baseline': has no width and no detail; remove"):
        validate(with_(generator__network="baseline", generator__width=32, generator__detail=8))
    with pytest.raises(UserError, match=r"^data.where = 'style = 1': is no expression over labels"):
        validate(with_(data__where="style = 1"))
    with pytest.raises(UserError, match=r"^data.weights = 'style \* 2': cannot have 'style \* 2' in it"):
        validate(with_(data__weights="style * 2"))
    with pytest.raises(UserError, match=r"^train.sync_batchnorm = true: norm = 'none' has no batch statistics"):
        validate(with_(train__sync_batchnorm=True, norm="none"))
    for change in ({"timer_net": "g"}, {"timer_unit": "steps"}):
        changes = {f"conditional__{k}": v for k, v in change.items()}
        validate(with_(**changes))
        with pytest.raises(UserError, match=r"^conditional.mode = 'paper': "):
            validate(with_(conditional__mode="paper", **changes))


def test_a_configuration_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().data.batch_size = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        cfg.DataConfig(Path("x"))  # type: ignore[misc]


# Help


def docstrings() -> dict[str, str]:
    """The text under each field of config.py: {"data.batch_size": ...}."""
    texts = {}
    for node in ast.parse(inspect.getsource(cfg)).body:
        if not isinstance(node, ast.ClassDef) or node.name == "DenoiseConfig":
            continue
        prefix = "" if node.name == "Config" else f"{node.name.removesuffix('Config').lower()}."
        for field, text in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                assert isinstance(field.target, ast.Name)
                texts[prefix + field.target.id] = inspect.cleandoc(text.value.value)
    return texts


def test_help_tells_every_setting_with_the_papers_names(capsys: pytest.CaptureFixture[str]) -> None:
    texts = docstrings()
    assert set(texts) == set(DEFAULTS)
    with pytest.raises(SystemExit) as e:
        parse("--help")
    assert e.value.code == 0
    shown = re.sub(r"\x1b\[[0-9;]*m|[│\s]", "", capsys.readouterr().out)  # no colors, boxes and line breaks
    for key, text in texts.items():
        assert "--" + key.replace("_", "-") in shown
        assert re.sub(r"\s", "", text) in shown, key
    for name, key in {
        "BATCHSIZE": "data.batch_size",
        "EPOCHS": "train.epochs",
        "LAMBDA": "loss.lambda_l1",
        "TIMER": "conditional.timer",
        "LOSS_THRESHOLD": "conditional.loss_threshold",
        "LEARNING_RATE": "optim.lr_g",
    }.items():
        assert texts[key].startswith(name)
        assert name in shown


# What a resumed run may change


def test_difference_names_what_would_make_another_run() -> None:
    other = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v / 2 + 0.1, str: lambda v: v + "x"}
    may_change = {"data.cache_mb", "train.hang_dump_s", "train.check_interval_steps"}
    may_change |= {"data.shards", "data.workers", "data.memory_mb", "data.skip_bad", "data.stall_timeout_s"}
    may_change |= {"data.device_memory_mb", "loss.d_backward", "checkpoint.interval_steps", "checkpoint.keep"}
    may_change |= {"train.epochs", "train.nonfinite_limit", "train.rank_timeout_s"}
    assert difference(Config(), Config()) == []
    for key, value in DEFAULTS.items():
        changed = Path("elsewhere") if value is None else other[type(value)](value)
        lines = difference(Config(), with_(**{key.replace(".", "__"): changed}))
        free = key in may_change or key.startswith("track.")
        reason = " (BatchNorm's statistics would be those of other micro-batches)" * (key == "train.accumulate")
        assert lines == ([] if free else [f"{key}: {value} -> {changed}{reason}"])


@pytest.mark.parametrize(("old", "new"), [(1, 2), (2, 1), (2, 4)])
@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
def test_micro_batches_may_change_where_no_statistics_depend_on_them(norm: str, old: int, new: int) -> None:
    lines = difference(with_(norm=norm, train__accumulate=old), with_(norm=norm, train__accumulate=new))
    assert [line.partition(" (")[0] for line in lines] == [f"train.accumulate: {old} -> {new}"] * (norm == "batch")


def test_a_run_of_before_is_read_where_its_gone_settings_said_nothing() -> None:
    old = cfg.to_dict(Config())
    old["optim"] |= {"decay_start_step": 0, "decay_steps": 0}
    assert cfg.from_dict(Config, old, "config.json") == Config()
    old["optim"]["decay_steps"] = 100
    with pytest.raises(UserError, match=r"config.json: there is no setting optim.decay_steps"):
        cfg.from_dict(Config, old, "config.json")


def test_epochs_may_only_grow() -> None:
    assert difference(with_(train__epochs=3), with_(train__epochs=2)) == ["train.epochs: 3 -> 2 (may only grow)"]


# Files that users name


def test_a_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = fileio.find_file("launch", "paper")
    assert named.is_absolute()
    assert named.read_bytes() == (ROOT / "launch/paper.toml").read_bytes()
    toml(tmp_path / "paper.toml", "norm = 'none'")
    assert fileio.find_file("launch", "paper") == named  # a bare name means the preset
    assert fileio.find_file("launch", "paper.toml") == Path("paper.toml")
    assert cfg.load("paper.toml") == with_(norm="none")
    (tmp_path / "paper").mkdir()
    assert fileio.find_file("launch", "paper") == named
    assert fileio.find_file("launch", "node8", ".yaml").suffix == ".yaml"


@pytest.mark.parametrize("name", ["papre", "", "no/such.toml", "paper.json"])
def test_an_unknown_name_lists_those_there_are(name: str) -> None:
    with pytest.raises(UserError) as e:
        fileio.find_file("launch", name)
    there = ", ".join(sorted(p.stem for p in PRESETS))
    assert str(e.value) == f"{name}: neither a .toml file nor a name in launch/ (there: {there})"


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.name)
def test_every_preset_is_valid(path: Path) -> None:
    for name in (path.stem, str(path)):
        config = parse("--config", name).settings
        assert validate(config) != Config()
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda p: p.name)
def test_every_launcher_file_is_short_and_accelerate_reads_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert 4 <= len(lines) <= 20
    assert lines[0].startswith("# ")
    values = yaml.safe_load(path.read_text())
    launcher = ClusterConfig.from_yaml_file(yaml_file=str(path))  # refuses what it does not know
    assert launcher.num_processes == values["num_processes"]
    assert launcher.mixed_precision == "no"
    assert (values["distributed_type"] == "MULTI_GPU") == (launcher.num_processes > 1)


def test_all_that_users_name_travels_in_the_wheel() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    places = ("launch/*.toml", "launch/*.yaml", "launch/lines", "shards/*.toml")
    named = [p for place in places for p in ROOT.glob(place)]
    expected = {p.relative_to(ROOT).as_posix() for p in named}
    assert {k: f"dist_sketch/files/{k}" for k in expected}.items() <= wheel["force-include"].items()


# Writing


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "new" / "a.txt"
    fileio.write_atomic(path, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m:
        m.setattr(os, failing, full)
        with pytest.raises(UserError, match=rf"^{path}: cannot be written \(No space left on device\)$"):
            fileio.write_atomic(path, b"new")
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["a.txt"]
    fileio.write_atomic(path, b"new")
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["a.txt"]


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen, fsync = tmp_path / "a.txt", [], os.fsync
    fileio.write_atomic(path, "old")

    def look(descriptor: int) -> None:
        new = os.readlink(f"/proc/self/fd/{descriptor}")
        seen.append((path.read_text(), Path(new).read_text()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    fileio.write_atomic(path, "new")
    assert seen == [("old", "new")]  # it was on the disk before it got its name
    fileio.write_atomic(path, "newer", durable=False)
    assert len(seen) == 1
    assert path.read_text() == "newer"


def test_places_that_cannot_be_written_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    # The last two fail again where the temporary file would be removed.
    for path in (tmp_path / "folder", tmp_path / "file" / "a.txt", tmp_path / ("n" * 300)):
        with pytest.raises(UserError, match=rf"^{path}: cannot be written \("):
            fileio.write_atomic(path, "x")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_json_that_every_reader_can_parse(tmp_path: Path) -> None:
    value = {"a": math.nan, "b": [math.inf, -math.inf, 1.5], "c": (1, None, True), "d": Path("p"), "e": "Zoë"}
    fileio.write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": None, "b": [None, None, 1.5], "c": [1, None, True], "d": "p", "e": "Zoë"}
    assert "Zoë" in text
