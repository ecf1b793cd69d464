"""Generators on the Hugging Face Hub: a stand-in on this machine takes and gives what the real one would."""

import base64
import hashlib
import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from huggingface_hub import ModelCard, constants
from PIL import Image
from support.hub_server import TOKEN, serving
from torch import nn

from dist_sketch.__main__ import parse
from dist_sketch.core import config as cfg
from dist_sketch.core.config import Config, DataConfig, GeneratorConfig
from dist_sketch.core.errors import UserError
from dist_sketch.core.ranks import Ranks
from dist_sketch.model import checkpoint, networks, pretrained
from dist_sketch.model.pretrained import CARD_MARKER, SketchGenerator
from dist_sketch.sharing import onnx_file, page

LINES = Path(__file__).parents[2] / "launch" / "lines"


class Hub:
    """Repositories in memory, and the requests that came: (method, path)."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], dict[str, bytes]] = {}  # (kind, name) -> file -> content
        self.made: list[dict[str, Any]] = []
        self.requests: list[tuple[str, str]] = []

    def answer(self, method: str, path: str, token: str, asked: str, body: bytes) -> tuple[int, Any]:
        """Status, and a JSON value or a file's bytes."""
        path, _, _ = path.partition("?")
        self.requests.append((method, path))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if found := re.fullmatch(r"/(spaces/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            files = self.repositories.get(("space" if found[1] else "model", found[2]), {})
            return (200, files[found[3]]) if found[3] in files else (404, "EntryNotFound")
        if method == "GET" and (found := re.fullmatch(r"/api/(model|space)s/([^/]+/[^/]+)(/.*)?", path)):
            files = self.repositories.get((found[1], found[2]))
            if files is None:
                return 404, "RepoNotFound"
            if (found[3] or "").startswith("/tree"):
                return 200, [self._entry(name, content) for name, content in files.items()]
            return 200, {"id": found[2], "sha": self._sha(files), "siblings": [{"rfilename": f} for f in files]}
        if token != f"Bearer {TOKEN}":
            return 401, "Invalid username or password."
        if path == "/api/whoami-v2":
            return 200, {"name": "me", "type": "user", "orgs": [{"name": "studio"}]}
        if path == "/api/repos/create":
            wanted = json.loads(body)
            self.made.append(wanted)
            key = wanted.get("type", "model"), f"{wanted['organization']}/{wanted['name']}"
            if key in self.repositories:
                return 409, {"error": "You already created this repo", "url": f"{constants.ENDPOINT}/{key[1]}"}
            self.repositories[key] = {".gitattributes": b"*.onnx filter=lfs"}
            return 200, {"url": f"{constants.ENDPOINT}/{key[1]}"}
        if found := re.fullmatch(r"/api/(model|space)s/([^/]+/[^/]+)/(preupload|commit)/main", path):
            files = self.repositories[found[1], found[2]]
            if found[3] == "preupload":
                modes = {"uploadMode": "regular", "shouldIgnore": False}
                return 200, {"files": [{"path": f["path"], **modes} for f in json.loads(body)["files"]]}
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            return 200, {
                "success": True,
                "commitOid": self._sha(files),
                "commitUrl": f"{constants.ENDPOINT}/{found[2]}/commit/1",
            }
        return 501, f"the stand-in does not know {method} {path}"

    @staticmethod
    def _sha(files: dict[str, bytes]) -> str:
        return hashlib.sha1(b"".join(name.encode() + files[name] for name in sorted(files))).hexdigest()

    @staticmethod
    def _entry(name: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def commit_of(self, path: str) -> str:
        found = re.fullmatch(r"/(spaces/)?([^/]+/[^/]+)/resolve/.+", path)
        assert found is not None
        return self._sha(self.repositories["space" if found[1] else "model", found[2]])


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in that this process and those with HF_ENDPOINT ask instead of the Hub; me is logged in."""
    stand_in = Hub()

    monkeypatch.chdir(tmp_path)
    with serving(stand_in, tmp_path, monkeypatch):
        yield stand_in


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder around the 5-layer network, with checkpoints at steps 10 and 20 and a picture of each."""
    folder = tmp_path / "faces"
    config = Config(generator=GeneratorConfig(network="baseline"), data=DataConfig(channels=1))
    torch.manual_seed(0)
    modules: dict[str, nn.Module] = {"generator": networks.generator(config)}
    facts = {"size": 64, "pairs": 10, "data": "fs2k_lines", "license": "MIT (FS2K)"}
    for step in (10, 20):
        checkpoint.save(folder, step, modules, {}, Ranks(), keep=2)
        (folder / "samples").mkdir(exist_ok=True)
        Image.new("L", (8, 8), step).save(folder / "samples" / f"step-{step:08d}.png")
    (folder / "config.json").write_text(json.dumps({"config": cfg.to_dict(config), "facts": facts}))
    return folder


@pytest.fixture
def without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if its packages were not installed: making an ONNX file takes seconds."""
    monkeypatch.setattr(onnx_file, "PACKAGES", ("no_such_package",))


def push(*arguments: object) -> None:
    assert parse(["checkpoint", "push", *map(str, arguments)])() == 0


def refused(*arguments: object) -> str:
    with pytest.raises(UserError) as e:
        push(*arguments)
    return str(e.value)


def test_what_a_push_uploads_can_be_drawn_with(
    server: Hub, run: Path, without_onnx: None, capsys: pytest.CaptureFixture[str]
) -> None:
    push(run, "me/faces")
    files = server.repositories["model", "me/faces"]
    assert set(files) == {".gitattributes", "generator.safetensors", "config.json", "README.md", "samples.png"}
    assert files["samples.png"] == (run / "samples/step-00000020.png").read_bytes()
    card = files["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n")
    assert "# faces: from rough lines of a face to a pencil portrait, 64 × 64 px\n\n![" in card
    assert "](samples.png)\n" in card
    assert 'from_pretrained("me/faces")' in card
    assert CARD_MARKER in card
    said = capsys.readouterr().out
    assert f"{len(files['config.json']):,} bytes  config.json" in said
    assert said.endswith("/me/faces\n")
    model, mine = SketchGenerator.from_pretrained("me/faces"), SketchGenerator.load(run)
    assert model.step == 20
    assert torch.equal(model.net[0].weight, mine.net[0].weight)
    assert model.card == card


def test_a_second_push_removes_what_the_first_left(server: Hub, run: Path, without_onnx: None) -> None:
    push(run, "studio/faces", "--private")
    assert server.made[-1] | {"visibility": "private", "organization": "studio"} == server.made[-1]
    server.repositories["model", "studio/faces"]["notes.txt"] = b"mine"
    push(run, "studio/faces", "--no-samples")
    files = server.repositories["model", "studio/faces"]
    assert set(files) == {".gitattributes", "generator.safetensors", "config.json", "README.md", "notes.txt"}
    assert b"![" not in files["README.md"]


def test_an_export_is_uploaded_as_it_is(server: Hub, tmp_path: Path, run: Path, without_onnx: None) -> None:
    """Its weights may be in 8 bits, and its card has scores; an older card names no licence."""
    folder = tmp_path / "made"
    card = f"---\ntags:\n- sketch\n---\n{CARD_MARKER}\n\nKID 0.05\n"
    pretrained.export(run, folder, 10, lambda *_: {"README.md": card.encode()}, compact=True)
    push(folder, "me/faces")
    files = server.repositories["model", "me/faces"]
    for name in ("generator.safetensors", "config.json"):
        assert files[name] == (folder / name).read_bytes(), name
    assert "KID 0.05" in files["README.md"].decode()
    assert "license: mit\n---" in files["README.md"].decode()


def test_onnx_is_compared_and_uploaded_and_made_once_where_its_packages_are(
    server: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, compared = [], []
    monkeypatch.setattr(onnx_file, "PACKAGES", ("json",))
    monkeypatch.setattr(onnx_file, "to_bytes", lambda model, compact: f"{model.step} {compact}".encode())
    monkeypatch.setattr(onnx_file, "compare", lambda contents, *_: compared.append(contents))
    monkeypatch.setattr(page, "to_html", lambda *_, generator, **__: asked.append(generator) or "<html>")
    push(run, "me/faces", "--space")
    assert server.repositories["model", "me/faces"]["generator.onnx"] == b"20 False"
    assert asked == compared == [b"20 False"]


def test_the_page_is_a_static_space(
    server: Hub, run: Path, without_onnx: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(page, "to_html", lambda model, name, **options: asked.append((name, options)) or "<html>")
    push(run, "me/faces", "--space", "--runtime", "modules")
    assert asked == [("faces", {"compact": False, "packages": Path("modules"), "generator": None})]
    assert [one.get("sdk") for one in server.made] == [None, "static"]
    files = server.repositories["space", "me/faces"]
    assert files["index.html"] == b"<html>"
    head = files["README.md"].decode().split("---\n")[1]
    for line in ("title: faces", "sdk: static", "license: mit", "- me/faces"):
        assert f"{line}\n" in head


def test_a_dry_run_only_lists(server: Hub, run: Path, without_onnx: None, capsys: pytest.CaptureFixture[str]) -> None:
    push(run, "me/faces", "--dry-run")
    assert not server.requests
    listed = [line.split()[-1] for line in capsys.readouterr().out.splitlines()]
    assert listed == ["me/faces:", "README.md", "config.json", "generator.safetensors", "samples.png"]


def test_others_repositories_are_left_alone(server: Hub, run: Path, without_onnx: None) -> None:
    theirs = {".gitattributes": b"", "README.md": b"# My model", "model.bin": b"1"}
    server.repositories["model", "me/old"] = dict(theirs)
    assert refused(run, "me/old").startswith("me/old: the Hub has such a model already, which dist-sketch has not upl")
    assert server.repositories["model", "me/old"] == theirs
    assert refused(run, "somebody/faces") == ("somebody/faces: me, who is logged in, can upload to me/..., studio/...")
    assert not server.made


def test_mistakes_are_sentences(server: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("me/a--b", "me/a/b", "me/.git", "ü/x"):
        assert refused(run, name).startswith(f"{name}: a repository is named user/name")
    assert refused(run, "faces") == "faces: the name of a repository is user/name, as in faces/portraits"
    assert refused(run / "gone", "me/x").startswith(f"{run / 'gone'}: is neither a run nor an exported generator")
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    assert "me/x: cannot be uploaded: the Hub does not know who asks: log in with `hf auth login`" in refused(
        run, "me/x"
    )
    monkeypatch.delenv("HF_TOKEN")
    assert refused(run, "me/x").startswith("me/x: cannot be uploaded: the Hub does not know who asks: log in with")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert refused(run, "me/x").startswith("me/x: cannot be uploaded: http://127.0.0.1:9 cannot be reached")
    assert not server.made


def test_the_mixin_uploads_the_card_of_the_export(server: Hub, tmp_path: Path, run: Path) -> None:
    """`push_to_hub`, as every model of huggingface_hub has it."""
    with pytest.raises(UserError, match=r"^this generator has no model card, because it does not come from an export"):
        SketchGenerator.load(run).push_to_hub("me/mixed")
    assert not server.requests
    assert parse(["checkpoint", "export", str(run), "--out", str(tmp_path / "made")])() == 0
    model = SketchGenerator.from_pretrained(tmp_path / "made")
    model.push_to_hub("me/mixed", private=True)
    assert server.made[-1]["visibility"] == "private"
    files = server.repositories["model", "me/mixed"]
    assert files["README.md"] == (tmp_path / "made" / "README.md").read_bytes()
    assert files["generator.safetensors"] == (tmp_path / "made" / "generator.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"^me/a--b: cannot be uploaded: a repository is named user/name"):
        model.push_to_hub("me/a--b")


def test_the_app_for_a_space_draws(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Gradio itself is not there: what it would call is called."""
    folder = Path(__file__).parents[2] / "launch" / "space"
    monkeypatch.setitem(sys.modules, "gradio", MagicMock(Error=ValueError))
    monkeypatch.setenv("GENERATOR", str(run))
    app = runpy.run_path(str(folder / "app.py"))
    assert len((folder / "app.py").read_text().splitlines()) <= 40
    line = Image.open(LINES / "1.png").convert("RGBA")
    expected = SketchGenerator.load(run).draw(line, size=512, fit="pad")
    assert app["draw"]({"composite": line}).tobytes() == expected.tobytes()
    assert app["draw"]({"composite": Image.new("RGBA", (9, 9))}) is app["draw"](None) is None
    with pytest.raises(ValueError, match=r"^picture 1: cannot be used: its colors are L\*a\*b\*"):
        app["draw"]({"composite": Image.new("LAB", (9, 9))})
    head = ModelCard.load(folder / "README.md", ignore_metadata_errors=False).data.to_dict()
    assert (head["sdk"], head["app_file"], head["python_version"]) == ("gradio", "app.py", "3.11")


# Drawing with what is there


def test_a_folder_and_a_shipped_name_win_and_a_path_is_not_asked_for(server: Hub, run: Path, tmp_path: Path) -> None:
    export = tmp_path / "me" / "faces"
    pretrained.export(run, export)
    assert pretrained.located(Path("me/faces")) == Path("me/faces")
    assert pretrained.located(Path("portrait-128")).name == "portrait-128"
    for path in ("me/faecs", "nowhere", "a/b/c", "./x/../y/z", str(tmp_path / "gone")):
        with pytest.raises(UserError, match=r"is neither a run nor an exported generator"):
            pretrained.find_weights(pretrained.located(Path(path)))
    assert not server.requests


def test_names_that_the_hub_does_not_know(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = r"^you/gone: there is no such folder; as a repository of the Hub: "
    with pytest.raises(UserError, match=begin + "there is no such repository or user; if it is private, log in"):
        pretrained.located(Path("you/gone"))
    server.repositories["model", "you/other"] = {"model.bin": b"1"}
    with pytest.raises(UserError, match=r"^you/other: the Hub's repository holds no generator of dist_sketch"):
        pretrained.located(Path("you/other"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=begin + "http://127.0.0.1:9 cannot be reached"):
        SketchGenerator.from_pretrained("you/gone")


def test_infer_draws_with_a_repository_and_again_offline(
    server: Hub, tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained.export(run, tmp_path / "made")
    server.repositories["model", "me/faces"] = {p.name: p.read_bytes() for p in (tmp_path / "made").iterdir()}

    def drawn(out: str) -> Image.Image:
        where = ("--input", LINES / "1.png", "--workers", 0, "--out", tmp_path / out, "--track.wandb", "off")
        assert parse(["infer", "--run", "me/faces", *map(str, where)])() == 0
        return Image.open(tmp_path / out / "sketch" / "1.png")

    first = drawn("one")
    assert first.tobytes() == SketchGenerator.load(run).draw(LINES / "1.png").tobytes()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.requests.clear()
    assert drawn("two").tobytes() == first.tobytes()
    assert not server.requests
