"""A generator on the Hugging Face Hub: its files are gathered in a folder, then uploaded as a repository."""

import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, ModelCard, SpaceCardData
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors import safe_open

from dist_sketch.core import fileio
from dist_sketch.core.errors import UserError
from dist_sketch.model import pretrained
from dist_sketch.model.from_hub import hub_errors, may_upload
from dist_sketch.model.pretrained import ADDED, CARD, CARD_MARKER, FILES, ONNX, PAGE, SketchGenerator
from dist_sketch.model.weights import SCALE
from dist_sketch.reports.model_card import card, license_id
from dist_sketch.sharing import onnx_file, page

PICTURE = "samples.png"
Kind = Literal["model", "space"]
KINDS: tuple[Kind, ...] = ("model", "space")
OURS = (*FILES, *ADDED, CARD, PICTURE)
FOLDER_OF_CARD = "FOLDER_OF_THIS_FILE"  # stands in a card where the name of a folder or repository belongs


def share(
    run: Path, name: str, *, space: bool, packages: Path | None, private: bool, samples: bool, dry_run: bool
) -> None:
    """Uploads a generator as the repository `name`, and its page as a Space of this name; prints what and where.

    Args:
        run: see `pretrained.located`.
        space, packages: see `gather_space`.
        samples: see `gather_model`.
        dry_run: only list the files.

    Raises:
        UserError: the name is malformed, or nobody is logged in; the name is somebody else's, or a repository that this
            did not upload; the Hub cannot be reached; or as `gather_model` and `gather_space`.
    """
    with hub_errors(name):
        validate_repo_id(name)
    if "/" not in name:
        raise UserError(f"{name}: the name of a repository is user/name, as in {name}/portraits")
    folder, kinds = pretrained.located(run), KINDS if space else KINDS[:1]
    with tempfile.TemporaryDirectory(prefix="dist-sketch-") as home, hub_errors(f"{name}: cannot be uploaded"):
        api = None if dry_run else _ready(name, kinds)  # before the work
        folders = {kind: Path(home) / kind for kind in kinds}
        model = gather_model(folder, name, folders["model"], samples=samples)
        if space:
            onnx = folders["model"] / ONNX  # making it takes most of the time; without it the page says what is missing
            generator = onnx.read_bytes() if onnx.is_file() else None
            gather_space(model, name, folders["space"], packages, generator)
        for kind in kinds:
            print(f"{kind} {name}:")
            for file in sorted(folders[kind].iterdir()):
                print(f"  {file.stat().st_size:12,} bytes  {file.name}")
        if api is None:
            return
        for kind in kinds:
            print(_upload(api, folders[kind], name, kind, private=private))


def gather_model(run: Path, name: str, out: Path, *, samples: bool) -> SketchGenerator:
    """Writes the files of the repository `name` into `out`: an export, its card, ONNX if its packages are there.

    Args:
        run: folder of a run or an export, whose weights in 8 bits stay so.
        samples: show on the card what a run has drawn of validation pairs at the step of the weights, or before.

    Raises:
        UserError: there is no generator, or it is damaged.
    """
    folder, step = pretrained.find_weights(run)
    model = SketchGenerator.load(run, (folder, step))
    with safe_open(pretrained.weights_file(folder), "pt") as weights:
        model.compact = any(key.endswith(SCALE) for key in weights.keys())  # noqa: SIM118 - it is no dict
    model.card = model.card or card(model, name.split("/")[1], "")
    model.save_pretrained(out)
    pictures = {fileio.step_in(file.stem): file for file in (run / "samples").glob("*.png")} if samples else {}
    shown = max((made for made in pictures if made is not None and made <= step), default=None)
    if shown is not None:
        shutil.copyfile(pictures[shown], out / PICTURE)
    fileio.write_atomic(out / CARD, _for_hub(model, name, shown is not None))
    if not onnx_file.missing_packages():
        contents = onnx_file.to_bytes(model, model.compact)
        onnx_file.compare(contents, model, model.compact)
        fileio.write_atomic(out / ONNX, contents)
    return model


def _for_hub(model: SketchGenerator, name: str, picture: bool) -> str:
    """The model's card with the repository's name, the licence in its first lines, and the picture."""
    text = model.card.replace(FOLDER_OF_CARD, name)
    if picture:
        shown = f"![Line, drawing and real sketch of validation pairs]({PICTURE})"
        text = re.sub(r"(?m)^# .*$", lambda title: f"{title[0]}\n\n{shown}", text, count=1)
    result = ModelCard(text)
    if not result.data.get("license"):  # a card of an earlier version
        result.data["license"] = license_id(model)
    return str(result)


def gather_space(
    model: SketchGenerator, name: str, out: Path, packages: Path | None = None, generator: bytes | None = None
) -> None:
    """Writes the files of a static Space into `out`: the page, and a card that says how it is shown.

    Args:
        model: as `gather_model` returns it.
        packages: folder with the JavaScript packages of the page; None: they come from npm.
        generator: the ONNX file, if it was made already.

    Raises:
        UserError: a package is missing.
    """
    title = name.split("/")[1]
    shown: dict[str, Any] = {"emoji": "✏️", "colorFrom": "gray", "colorTo": "yellow", "pinned": False}
    about = SpaceCardData(title=title, sdk="static", license=license_id(model), models=[name], **shown)
    text = (
        f"# {title}\n\nDraw the lines of a face, and a portrait in pencil appears beside them: in your browser, from "
        f"which nothing is sent. The generator is [{name}](https://huggingface.co/{name}).\n"
    )
    html = page.to_html(model, title, compact=model.compact, packages=packages, generator=generator)
    fileio.write_atomic(out / PAGE, html)
    fileio.write_atomic(out / CARD, f"---\n{about.to_yaml()}\n---\n{CARD_MARKER}\n\n{text}")


def _ready(name: str, kinds: Iterable[Kind]) -> HfApi:
    """The way to the Hub, when nothing forbids the upload."""
    api = may_upload(name)
    for kind in kinds:
        _check_contents(api, name, kind)
    return api


def _check_contents(api: HfApi, name: str, kind: Kind) -> None:
    """Refuses a repository that holds files, but no card of ours."""
    try:
        there = set(api.list_repo_files(name, repo_type=kind)) - {".gitattributes"}
    except RepositoryNotFoundError:
        return
    if CARD in there and CARD_MARKER in Path(api.hf_hub_download(name, CARD, repo_type=kind)).read_text("utf-8"):
        return
    if there:
        raise UserError(
            f"{name}: the Hub has such a {kind} already, which dist-sketch has not uploaded (it holds "
            f"{', '.join(sorted(there)[:3])}); choose another name"
        )


def _upload(api: HfApi, folder: Path, name: str, kind: Kind, *, private: bool) -> str:
    """Uploads a folder in one commit, and removes what an earlier push left; returns the repository's address."""
    sdk = "static" if kind == "space" else None
    address = api.create_repo(name, repo_type=kind, private=private or None, space_sdk=sdk, exist_ok=True)
    message = "Upload with dist-sketch checkpoint push"
    api.upload_folder(
        repo_id=name, repo_type=kind, folder_path=folder, commit_message=message, delete_patterns=list(OURS)
    )
    return str(address)
