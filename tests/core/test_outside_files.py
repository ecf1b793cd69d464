"""Files that we read again, with contents that others wrote: a right value or one sentence, whatever stands there."""

import ast
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_sketch.core import config as cfg
from dist_sketch.core import saved
from dist_sketch.core.config import Config, GeneratorConfig, to_dict
from dist_sketch.core.config_rules import validate
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import LARGE, SMALL, flat, read_json, read_toml, write_json
from dist_sketch.core.words import csv_cell, plain

ROOT = Path(__file__).parents[2] / "dist_sketch"
DENOISE = {"gray": True, "filter": "median", "strength": 1.0, "shadows": True}
CANDIDATE = {"filter": "none", "strength": 1.0, "shadows": True, "allowed": True, "chosen": True, "distance": None}
SCORES = {"ssim": 0.5, "kid": None}
FACTS = {"size": 64, "step": 3, "run_id": "a", "versions": {"torch": "2"}, "license": None}

# file's name -> what reads it, and contents that are right
READERS: dict[str, tuple[Callable[[Path], Any], Any]] = {
    "config.json": (
        lambda folder: saved.config_of(saved.read_settings(folder), folder),
        {"config": to_dict(Config()), "facts": FACTS},
    ),
    "status.json": (saved.read_status, {"state": "finished", "step": 3, "steps": 4, "time": 1.5, "draws": 3}),
    "denoise.json": (saved.read_calibration, {"denoise": DENOISE, "pairs": 3, "candidates": [CANDIDATE]}),
    "infer.json": (
        lambda folder: saved.read_finished_infer(folder, "run", "size"),
        {"run": "/r", "names": ["a", "b"], "size": 64, "format": "png", "mode": {"seed": 0}, "denoise": DENOISE},
    ),
    "metrics.json": (
        saved.read_scores,
        {
            "n": 1,
            "raw": SCORES,
            "denoised": SCORES,
            "baselines": {"blank": SCORES, "input": None},
            "settings": {"fid": {"weights_sha256": "a"}, "missing": {}},
            "images": [{"name": "a", "raw": SCORES, "denoised": SCORES}],
        },
    ),
    "1-of-2.json": (
        lambda folder: saved.read_not_drawn(folder / "1-of-2.json"),
        {"left_out": ["a.png: is damaged", "b"], "passed_over": {"line": {".eps": 2}}},
    ),
    "checkpoint.json": (saved.read_seal, {"step": 3, "files": {"state.pt": {"bytes": 1, "sha256": "a"}}}),
    "best.json": (saved.read_best, {"step": 3}),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
WRONG = [
    None,
    True,
    -1,
    2**64,
    1.5,
    "..",
    "../../x",
    "a\0b",
    "",
    "x" * 5000,
    [],
    [[]],
    {},
    {"": {}},
    [None],
    float("nan"),
]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a tree, but for the tree itself."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, inner in pairs for p in [(*path, key), *leaves(inner, (*path, key))]]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of a tree with another value at a path."""
    copy = json.loads(json.dumps(value))
    at = copy
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = new
    return copy


def reads(name: str, folder: Path, text: str) -> str:
    """What a reader says to a text: nothing, or its sentence."""
    (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass")
    said = ""
    try:
        READERS[name][0](folder)
    except UserError as e:
        said = str(e)
    assert not said or said.startswith(str(folder))
    assert len(said) < 1000 + len(str(folder))
    assert plain(said) == said
    return said


@pytest.mark.parametrize("name", READERS)
def test_right_contents_are_read(name: str, tmp_path: Path) -> None:
    text = json.dumps(READERS[name][1])
    assert reads(name, tmp_path, text) == ""
    assert reads(name, tmp_path, "\ufeff" + text) == ""  # as some editors save it
    more = READERS[name][1] | {"later_version": [1]}
    assert reads(name, tmp_path, json.dumps(more)) == ""


@pytest.mark.parametrize("name", READERS)
def test_a_wrong_value_at_any_place_is_a_sentence_or_allowed(name: str, tmp_path: Path) -> None:
    right = READERS[name][1]
    refused = 0
    for path in leaves(right):
        for wrong in WRONG:
            refused += bool(reads(name, tmp_path, json.dumps(put(right, path, wrong))))
    assert refused > len(leaves(right))


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=60, deadline=None)
@given(value=JSON)
def test_any_json_is_a_sentence_or_allowed(name: str, tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    reads(name, folder, json.dumps(value))
    right = READERS[name][1]
    path = leaves(right)[hash(repr(value)) % len(leaves(right))]
    reads(name, folder, json.dumps(put(right, path, value)))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 100_000, "nested too deep"),
        ("[" * 200 + "]" * 200, "nested too deep"),
        ('{"a":' * 500 + "1" + "}" * 500, "nested too deep"),
        ('{"step": NaN}', "not a finite number"),
        ('{"step": -Infinity}', "not a finite number"),
        ('{"step": 1e999}', "not a finite number"),
        ('{"step": %s}' % ("9" * 5000), "is not valid JSON"),
        ('{"step": %s}' % ("9" * 400), "too large a number"),
        ('{"step": 1, "step": 2}', "a key is there twice among step"),
        (r'{"state": "\ud800"}', "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
    ],
)
def test_texts_that_no_reader_of_json_expects(text: str, sentence: str, tmp_path: Path) -> None:
    assert sentence in reads("status.json", tmp_path, text)


@pytest.mark.parametrize(
    ("name", "path", "wrong", "sentence"),
    [
        ("infer.json", ("names", 0), "../..", "names[0] = '../..': must be the plain name of a file"),
        ("infer.json", ("run",), 3, "run = 3: must be of type str"),
        ("infer.json", ("size",), 10**9, "size = 1000000000: must be from 1 to 8192"),
        ("infer.json", ("names",), {"a": 1}, "names = {'a': 1}: must be of type list"),
        ("1-of-2.json", ("left_out",), "a.png", "left_out = 'a.png': must be of type list[str]"),
        ("1-of-2.json", ("left_out", 0), None, "left_out[0] = None: must be of type str"),
        ("1-of-2.json", ("passed_over", "line", ".eps"), "2", "passed_over.line..eps = '2': must be of type int"),
        ("1-of-2.json", ("passed_over", "line"), [2], "must be of type dict"),
        ("best.json", ("step",), True, "step = True: must be of type int"),
        ("checkpoint.json", ("files", "../x"), {"bytes": 1, "sha256": ""}, "must be the plain name of a file"),
        ("metrics.json", ("raw", "ssim"), "high", "raw.ssim = 'high': must be of type float"),
        ("denoise.json", ("candidates", 0, "chosen"), False, "must be a list of which one is chosen"),
        ("config.json", ("config", "generator", "width"), 8192, "must be a multiple of 8 from 8 to 1024"),
        ("config.json", ("config", "generator", "dropout"), 5, "must be in [0, 1)"),
        ("config.json", ("config", "train", "epochs"), 10**12, "must be at most 1,000,000"),
    ],
)
def test_the_sentence_names_key_and_value(name: str, path: Any, wrong: Any, sentence: str, tmp_path: Path) -> None:
    assert sentence in reads(name, tmp_path, json.dumps(put(READERS[name][1], path, wrong)))


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_a_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="is not a file"):
        READERS[name][0](tmp_path)


def put_no_file(path: Path, kind: str) -> None:
    """Puts there what never ends, or would fill the memory."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, LARGE + 1)


@pytest.mark.parametrize("kind", ["pipe", "device", "huge"])
@pytest.mark.parametrize("name", [*READERS, "x.toml"])
def test_what_never_ends_is_a_sentence(name: str, kind: str, tmp_path: Path) -> None:
    put_no_file(tmp_path / name, kind)
    with pytest.raises(UserError, match=rf"^{tmp_path / name}: .*(is not a|larger than [\d,]+ MB)"):
        read_toml(tmp_path / name) if name == "x.toml" else READERS[name][0](tmp_path)


@pytest.mark.parametrize("name", sorted(READERS.keys() - {"infer.json", "metrics.json", "1-of-2.json"}))
def test_files_of_some_lines_are_never_large(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, SMALL + 1)
    with pytest.raises(UserError, match=f"^{tmp_path / name}: cannot be read .it is larger than 4 MB"):
        READERS[name][0](tmp_path)


@pytest.mark.parametrize("lacking", [("raw", {}), ("denoised", {}), ("denoised", {"kid": 1.0})])
def test_scores_that_a_picture_lacks_are_none(lacking: tuple[str, Any], tmp_path: Path) -> None:
    kind, scores = lacking
    (tmp_path / "metrics.json").write_text(json.dumps(put(READERS["metrics.json"][1], ("images", 0, kind), scores)))
    found = saved.read_scores(tmp_path)
    assert found is not None
    assert found["images"][0][kind] == dict.fromkeys(saved.IMAGE_SCORES) | scores


@pytest.mark.parametrize("value", [b"a\xff".decode(errors="surrogateescape"), "\ud800"])
def test_a_name_that_is_no_text_is_a_sentence_when_it_is_written(value: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x.json: cannot be written: .*(udcff|ud800).* is no text"):
        write_json(tmp_path / "x.json", {"name": value})
    assert list(tmp_path.iterdir()) == []


NUMBERS = sorted(k for k, v in cfg.items(Config()) if type(v) in (int, float) and k != "data.channels")


@settings(max_examples=200, deadline=None)
@given(
    key=st.sampled_from(NUMBERS),
    value=st.floats() | st.integers() | st.sampled_from([2**63 - 1, 2**63, 10**21, 1e18, 1e30, 1e39, 1e300]),
)
def test_every_configuration_that_is_accepted_can_be_read_again(
    key: str, value: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "accepted"
    tree = to_dict(Config())
    section, _, name = key.rpartition(".")
    tree[section][name] = 1
    config = cfg.from_dict(Config, tree, "")
    kind = dict(cfg.items(Config()))[key]
    try:
        number = type(kind)(value)
        object.__setattr__(getattr(config, section), name, number)
        validate(config)
    except (UserError, ValueError, OverflowError):  # the last two: no whole number
        return
    write_json(folder / "config.json", {"config": to_dict(config)})
    assert saved.config_of(saved.read_settings(folder), folder) == config


def test_a_link_to_a_noise_removal_that_is_gone_is_no_missing_one(tmp_path: Path) -> None:
    assert saved.read_calibration(tmp_path) is None
    (tmp_path / "denoise.json").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="is a link to a file that is gone"):
        saved.read_calibration(tmp_path)


@pytest.mark.parametrize("read", [saved.attempt_line, saved.record_line])
@given(value=JSON)
def test_lines_of_logs_are_right_or_passed_over(read: Callable[[str], Any], value: Any) -> None:
    found = read(json.dumps(value))
    assert found is None or isinstance(found["step"], int)


def test_damaged_lines_of_logs_are_passed_over() -> None:
    good = {"kind": "train", "step": 3, "loss/d": None, "lock/reason": "both", "speed/step_s": 1}
    assert saved.record_line(json.dumps(good)) == good
    for wrong in ({"step": -1}, {"kind": 1}, {"loss/d": {}}, {"loss/d": "1"}, {"lock/reason": 1}, {"epoch": "a"}):
        assert saved.record_line(json.dumps(good | wrong)) is None
    assert saved.record_line("[" * 100_000) is None
    assert saved.record_line(json.dumps(good)[:-3]) is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("a = " + "[" * 10_000, "TOML|deep"), ("a = 1\na = 2", "is not valid TOML"), ("a = " + "9" * 5000, "TOML")],
)
def test_toml_that_cannot_be_read_is_a_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_toml(tmp_path / "x.toml")


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbfa = 1")
    assert read_toml(tmp_path / "x") == {"a": 1}
    (tmp_path / "x").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "x") == {"a": 1}


def test_a_configuration_of_its_own_is_read_as_it_was_saved(tmp_path: Path) -> None:
    config = Config(generator=GeneratorConfig(width=8))
    (tmp_path / "config.json").write_text(json.dumps({"config": to_dict(config)}))
    assert saved.config_of(saved.read_settings(tmp_path), tmp_path) == config


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Zoë\t東京\n", "Zoë\t東京\n"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\rb\x07\x9b", r"a\rb\x07\x9b"),
        ("\u202etxt.exe", r"\u202etxt.exe"),
    ],
)
def test_a_terminal_shows_what_it_would_obey(text: str, shown: str) -> None:
    assert plain(text) == shown


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_table_program_computes_nothing(text: str) -> None:
    assert csv_cell(text) == "'" + text
    assert (csv_cell("a" + text), csv_cell(-1), csv_cell(None)) == ("a" + text, -1, None)


# The lines of tar members and of an environment variable are no files that we read again.
# These open files of this package, of the kernel, or what they have written or looked at just before.
PLAIN = {
    *("bench/loader.py", "bench/measure.py", "bench/start.py", "core/launcher.py", "core/signals.py"),
    *("data/node_memory.py", "reports/page.py"),
    *("experiments/runner.py", "inference/one_file.py", "model/checkpoint.py", "reports/ours.py"),
    *("sharing/hub.py", "sharing/page.py", "sharing/runtime.py"),
    *(
        "slurm/command_line.py",
        "slurm/node_launcher.py",
        "slurm/submit.py",
        "tracking/speed.py",
        "tracking/wandb_file.py",
    ),
}
OWN = {"core/fileio.py", "core/config.py", "data/shards.py", "data/local_copy.py", "bench/loader.py"}


@pytest.mark.parametrize("module", sorted(p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py")))
def test_json_is_parsed_at_one_place(module: str) -> None:
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    calls = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    assert module in OWN or not calls & {"json.loads", "json.load"}


@pytest.mark.parametrize("module", sorted(p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py")))
def test_files_of_others_are_read_at_one_place(module: str) -> None:
    found = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func).rpartition(".")[2]
        mode = ast.unparse(node.args[1]).strip("'") if len(node.args) > 1 else "r"
        plain_open = ast.unparse(node.func) == "open" and mode.startswith("r")
        if call in ("read_text", "read_bytes") or plain_open:
            found.add(f"{call} in line {node.lineno}")
    assert module in PLAIN or not found


def test_flat_names_the_places_of_dicts_in_a_list() -> None:
    sources = [{"name": "first"}, {"name": "second"}]
    tree = {"facts": {"size": 64, "began_with": sources}, "names": ["a", "b"], "none": []}
    assert dict(flat(tree)) == {
        "facts.size": 64,
        "facts.began_with.0.name": "first",
        "facts.began_with.1.name": "second",
        "names": ["a", "b"],
        "none": [],
    }
