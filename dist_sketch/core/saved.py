"""The JSON files that dist_sketch writes and reads again: what each holds, and the one reader that checks it.

Whoever gets a file from a reader here may trust its types and ranges, even if a stranger wrote it: names stay in their
folder, counts are finite, nothing is nested without end. Keys that a reader does not know are kept.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from dist_sketch.core import config as cfg
from dist_sketch.core.config import Config, DenoiseConfig
from dist_sketch.core.config_rules import validate
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import LARGE, SMALL, parse_json, read_json
from dist_sketch.core.labels import Labels
from dist_sketch.core.not_drawn import not_drawn
from dist_sketch.core.toml_dataclass import Rule, checked

MOST_PX = 8192
IMAGE_SCORES = ("ssim", "scoot", "psnr", "l1", "specks")  # of each picture; older files have no scoot and no specks
MOST_PARTS = 10**6  # of an inference
DIGEST = re.compile("[0-9a-f]{64}")


def _is_name(text: str) -> bool:
    plain = text not in ("", ".", "..") and "/" not in text and "\0" not in text
    return plain and (len(text) < 64 or len(text.encode()) <= 255)


def _one_chosen(candidates: list[dict[str, Any]]) -> bool:
    return not candidates or any(c["chosen"] for c in candidates)


Name = Annotated[str, Rule("the plain name of a file", _is_name)]
PathText = Annotated[str, Rule("a path", lambda v: "\0" not in v and len(v) < 4096)]
Count = Annotated[int, Rule("a number from 0 to 10^12", lambda v: 0 <= v <= 10**12)]
Pixels = Annotated[int, Rule(f"from 1 to {MOST_PX}", lambda v: 1 <= v <= MOST_PX)]
Side = Annotated[int, Rule("a multiple of 64 from 64 to 2048", lambda v: 64 <= v <= 2048 and v % 64 == 0)]
Digest = Annotated[str, Rule("a SHA-256 in hexadecimal digits", lambda v: DIGEST.fullmatch(v) is not None)]
Number = float | None  # what was not finite was written as null
Scores = dict[str, Number]


class Facts(TypedDict):
    """What followed from a run's data and machine."""

    size: NotRequired[Pixels]
    step: NotRequired[Count]
    steps: NotRequired[Count]
    pairs: NotRequired[Count | None]
    pairs_packed: NotRequired[Count]  # of the training split, of which data.where has chosen `pairs`
    val_pairs: NotRequired[Count]
    val_pairs_packed: NotRequired[Count]
    pairs_an_epoch: NotRequired[Count]  # with data.weights
    steps_an_epoch: NotRequired[Count]
    world_size: NotRequired[Count]
    global_batch: NotRequired[Count]
    data: NotRequired[str | None]
    license: NotRequired[str | None]
    manifest_sha256: NotRequired[str]
    device: NotRequired[str | None]
    precision: NotRequired[str]
    code: NotRequired[str | None]
    versions: NotRequired[dict[str, Any]]
    run_id: NotRequired[str]
    chosen: NotRequired[bool]
    began_with: NotRequired[list[dict[str, str]]]  # whose networks: the newest first, then those that it began with


class Settings(TypedDict):
    """config.json of a run or an export."""

    config: dict[str, Any]  # `config_of` checks it
    facts: NotRequired[Facts | None]


class Status(TypedDict, total=False):
    """status.json of a run."""

    state: str
    reason: str
    slow: str  # ranks for which the others wait
    step: Count
    saved: Count  # the step of the newest checkpoint
    steps: Count
    epoch: Count
    epochs: Count
    draws: Count
    best: Count | None  # the step of the best score so far
    time: float


class Denoise(TypedDict, total=False):
    """Settings of the noise removal, as far as they are known."""

    gray: bool
    filter: cfg.Filter
    strength: float
    shadows: bool


class Candidate(TypedDict):
    """A noise removal that was tried."""

    filter: cfg.Filter
    strength: float
    shadows: bool
    allowed: bool
    chosen: bool
    distance: Number


class Calibration(TypedDict):
    """denoise.json of a run or an export."""

    denoise: Denoise
    pairs: NotRequired[Count]
    with_kid: NotRequired[bool]
    candidates: NotRequired[Annotated[list[Candidate], Rule("a list of which one is chosen", _one_chosen)]]


class Mode(TypedDict, total=False):
    """How an output was drawn."""

    statistics: str
    seed: int
    precision: str


class NotDrawn(TypedDict, total=False):
    """What an inference has not drawn: in its infer.json, and in a file beside each part until they are merged."""

    left_out: list[str]
    skip_bad: bool  # whether that is no failure
    passed_over: dict[str, dict[str, Count]]
    looks: dict[str, list[str]]  # what seems to be wrong with lines that are drawn: kind -> names


class Infer(NotDrawn, total=False):
    """infer.json of an output folder; without `names` its inference is not finished."""

    run: PathText
    input: PathText
    files: list[PathText]  # if several were named
    scores: bool  # whether they were asked for
    reference: PathText | None
    names: list[Name]
    numbers: list[Count]  # of these among all inputs, if some were left out
    labels: Labels  # of the pictures, in the order of `names`
    split: Name
    where: str
    step: Count
    size: Pixels
    output_size: str
    format: Literal["png", "jpg"]
    weights_sha256: str
    config: dict[str, Any]
    denoise: Denoise
    mode: Mode
    fit: Literal["squash", "pad", "crop"]
    invert: bool
    packed_px: Pixels | None
    chosen: bool
    chosen_on_these: bool
    state: str
    parts: Annotated[int, Rule(f"from 1 to {MOST_PARTS:,}", lambda v: 1 <= v <= MOST_PARTS)]
    before: list[Name]  # pictures that were there when an inference began that is not finished


class ImageScores(TypedDict):
    """The scores of one picture."""

    name: Name
    raw: Scores
    denoised: Scores


class FidSettings(TypedDict, total=False):
    """How FID was computed."""

    weights_sha256: str | None


class ScoreSettings(TypedDict, total=False):
    """How scores were computed."""

    missing: dict[str, str] | None
    fid: FidSettings | None
    kid: dict[str, Any] | None
    ssim: dict[str, Any] | None
    source: str | None
    input: dict[str, Any] | None
    reference_n: Count
    reference_left_out: list[str]


class Metrics(TypedDict):
    """metrics.json of an output folder."""

    n: Count
    size: NotRequired[Any]
    raw: Scores
    denoised: Scores
    baselines: dict[str, Scores | None]
    settings: ScoreSettings
    images: list[ImageScores]


class SealedFile(TypedDict):
    """A file of a checkpoint."""

    bytes: Count
    sha256: str


class Seal(TypedDict):
    """checkpoint.json of a checkpoint."""

    step: NotRequired[Count]
    files: dict[Name, SealedFile]


class Best(TypedDict):
    """best.json of a checkpoint."""

    step: Count


class Attempt(TypedDict):
    """A line of legs.jsonl: how an attempt of a SLURM job ended."""

    job: str
    leg: Count
    state: str
    step: Count
    next: str
    why: str
    failed: NotRequired[bool]
    warned: NotRequired[bool]
    launched: NotRequired[bool]
    code: NotRequired[int]
    time: NotRequired[float]


class Record(TypedDict):
    """A line of metrics.jsonl."""

    kind: str
    step: Count
    epoch: NotRequired[Count]
    images: NotRequired[Count]
    train_d: NotRequired[bool]
    train_g: NotRequired[bool]
    reason: NotRequired[str | None]


def _read(kind: Any, path: Path, default: Any = ..., most: int = SMALL) -> Any:
    value = read_json(path, default, most)
    return default if value is default else checked(kind, value, str(path))


def read_settings(folder: Path, default: Any = ...) -> dict[str, Any]:
    """config.json of a run or an export."""
    return dict(_read(Settings, folder / "config.json", default))


def config_of(saved: dict[str, Any], folder: Path) -> Config:
    """The configuration in the contents of FOLDER/config.json.

    Raises:
        UserError: a setting is unknown, of the wrong type or out of its range.
    """
    where = str(folder / "config.json")
    config = cfg.from_dict(Config, saved["config"], where)
    try:
        return validate(config)
    except UserError as e:
        raise UserError(f"{where}: {e}") from e


def read_status(run: Path) -> dict[str, Any]:
    """status.json of a run; {} if it has none."""
    return dict(_read(Status, run / "status.json", {}))


def read_calibration(folder: Path) -> dict[str, Any] | None:
    """denoise.json of a run or an export; None if it has none.

    Raises:
        UserError: it is damaged, or a link to a file that is gone: without it the drawings would be others.
    """
    path = folder / "denoise.json"
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path}: is a link to a file that is gone")
    found: dict[str, Any] | None = _read(Calibration, path, None)
    return found


def denoise_of(calibration: dict[str, Any], folder: Path) -> DenoiseConfig:
    """The noise removal in the contents of FOLDER/denoise.json.

    Raises:
        UserError: a setting is unknown or out of its range.
    """
    where = str(folder / "denoise.json")
    config = cfg.from_dict(DenoiseConfig, calibration["denoise"], where, "denoise.")
    try:
        return config.check()
    except UserError as e:
        raise UserError(f"{where}: {e}") from e


def read_infer(out: Path) -> dict[str, Any]:
    """infer.json of an output folder; {} if it has none."""
    return dict(_read(Infer, out / "infer.json", {}, LARGE))


def read_not_drawn(path: Path) -> dict[str, Any]:
    """The file of what a part of an inference has not drawn; {} if it has none."""
    return dict(_read(NotDrawn, path, {}, LARGE))


def read_finished_infer(out: Path, *needed: str) -> dict[str, Any]:
    """infer.json of a finished inference, with `names` and the keys that are `needed`.

    Raises:
        UserError: it is damaged, or the inference is not finished.
    """
    found, where = read_infer(out), out / "infer.json"
    if not found:
        raise UserError(f"{out}: {not_drawn(out)}")
    if "names" not in found:
        again = {
            "running": "it is being drawn: wait for its end, or, if it was stopped, start that command again",
            "parts": f"its parts are being drawn: wait for their end, then run `dist-sketch merge {out}`",
        }.get(found.get("state", ""), f"run `dist-sketch infer ... --out {out}` first")
        raise UserError(f"{out}: has no infer.json of a finished inference; {again}")
    for key in needed:
        if key not in found:
            raise UserError(f"{where}: {key} is missing; run `dist-sketch infer ... --out {out}` again")
    return found


def read_scores(out: Path) -> dict[str, Any] | None:
    """metrics.json of an output folder; None if it has none. A score that a picture lacks is None."""
    found: dict[str, Any] | None = _read(Metrics, out / "metrics.json", None, LARGE)
    for image in found["images"] if found else ():
        image |= {kind: dict.fromkeys(IMAGE_SCORES) | image[kind] for kind in ("raw", "denoised")}
    return found


def read_seal(checkpoint: Path) -> dict[str, Any]:
    """checkpoint.json of a checkpoint's folder."""
    return dict(_read(Seal, checkpoint / "checkpoint.json"))


def sealed_weights(checkpoint: Path) -> str | None:
    """The SHA-256, by the seal of a checkpoint's folder, of the weights that draw; None if there is no such checkpoint.

    Raises:
        UserError: the seal is damaged.
    """
    if not (checkpoint / "checkpoint.json").is_file():
        return None
    files = read_seal(checkpoint)["files"]
    found = files.get("ema.safetensors") or files.get("generator.safetensors")
    return None if found is None else str(found["sha256"])


def read_best(checkpoint: Path) -> int | None:
    """The step in best.json of a checkpoint's folder; None if it has no such file."""
    found = _read(Best, checkpoint / "best.json", None)
    return None if found is None else int(found["step"])


def attempt_line(line: str) -> dict[str, Any] | None:
    """A line of legs.jsonl; None if it is damaged, as one that was cut off."""
    found: dict[str, Any] | None = _line(Attempt, line)
    return found


def record_line(line: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None if it is damaged, as one that was cut off.

    Values whose name has a "/" are numbers, or null, but for `lock/reason`.
    """
    found: dict[str, Any] | None = _line(Record, line)
    for key, value in (found or {}).items():
        if "/" in key and not isinstance(value, str if key == "lock/reason" else int | float | None):
            return None
    return found


def _line(kind: Any, line: str) -> Any:
    try:
        return checked(kind, parse_json(line, finite_only=False), "")
    except (ValueError, UserError):
        return None
