"""`SketchGenerator.draw`: pictures in, portraits out, the same that `dist-sketch infer` writes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import face
from PIL import Image, ImageOps

from dist_sketch import SketchGenerator
from dist_sketch.__main__ import parse
from dist_sketch.core import config as cfg
from dist_sketch.core.config import Config, DataConfig, DenoiseConfig, GeneratorConfig
from dist_sketch.core.errors import UserError
from dist_sketch.data.image_files import as_read, read_image

SIZE = 64
CLEAN = DenoiseConfig(filter="median", shadows=True)
GENERATORS: dict[str, dict[str, Any]] = {  # both kinds of channels, with and without gray, with dropout
    "gray": {"channels": 1, "clean": CLEAN},
    "colored": {"channels": 3, "clean": DenoiseConfig(gray=False, filter="nlm", shadows=False)},
}


def generator(channels: int, clean: DenoiseConfig) -> SketchGenerator:
    torch.manual_seed(0)
    config = Config(data=DataConfig(channels=channels), generator=GeneratorConfig(width=8), norm="batch")
    contents = {"config": cfg.to_dict(config), "facts": {"size": SIZE}}
    return SketchGenerator(contents, {"denoise": cfg.to_dict(clean)}).eval()


@pytest.fixture(scope="module")
def gray() -> SketchGenerator:
    return generator(**GENERATORS["gray"])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven lines: more than one batch, of several shapes and modes, one lying on its side."""
    folder = tmp_path_factory.mktemp("lines")
    for number in range(7):
        face(number, 60 + 5 * number)[0].save(folder / f"{number}.png")
    wide = Image.new("L", (150, 90), 250)
    wide.paste(face(7, 90)[0], (30, 0))
    exif = Image.Exif()
    exif[274] = 6
    wide.save(folder / "wide.png")
    wide.save(folder / "turned.jpg", exif=exif)
    clear = Image.merge("LA", (wide, wide.point(lambda level: 255 - level)))
    clear.save(folder / "clear.png")
    Image.fromarray(np.asarray(wide).astype(np.uint16) * 257).save(folder / "deep.png")
    return folder


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ()),
        ({"size": "source"}, ("--output-size", "source")),
        ({"size": 48, "fit": "pad"}, ("--output-size", "48", "--fit", "pad")),
        ({"size": "source", "fit": "crop", "invert": True}, ("--output-size", "source", "--fit", "crop", "--invert")),
        ({"denoise": False, "size": "source", "fit": "pad"}, ("--output-size", "source", "--fit", "pad")),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_draws_what_infer_writes(
    kind: str, options: dict[str, Any], words: tuple[str, ...], tmp_path: Path, files: Path
) -> None:
    model = generator(**GENERATORS[kind])
    model.save_pretrained(tmp_path / "made")
    arguments = [
        "infer",
        "--run",
        tmp_path / "made",
        "--input",
        files,
        "--out",
        tmp_path / "out",
        "--workers",
        0,
        *words,
    ]
    assert parse([*map(str, arguments), "--track.wandb", "off"])() == 0
    lines = sorted(files.iterdir())
    drawn = model.draw(lines, **options)
    folder = tmp_path / "out" / ("sketch" if options.get("denoise", True) else "raw")
    assert len(drawn) == len(list(folder.iterdir())) == 11
    for line, mine in zip(lines, drawn, strict=True):
        theirs = Image.open(folder / f"{line.stem}.png")
        assert (mine.mode, mine.size, mine.tobytes()) == (theirs.mode, theirs.size, theirs.tobytes()), line


def test_one_gives_one_and_several_give_several(gray: SketchGenerator, files: Path) -> None:
    path = files / "wide.png"
    one = gray.draw(path)
    assert (one.mode, one.size) == ("L", (SIZE, SIZE))
    assert gray.draw(str(path)) == gray.draw(Image.open(path)) == one
    assert gray.draw([path]) == gray.draw((path,)) == [one]
    assert gray.draw([]) == []
    assert gray.draw(path, size="source").size == (150, 90)
    assert gray.draw(path, size=30, fit="pad").size == (30, 18)


@pytest.mark.parametrize(
    "turn",
    [
        lambda line: line.convert("1"),
        lambda line: line.convert("P"),
        lambda line: line.convert("LA"),
        lambda line: line.convert("RGB"),
        lambda line: line.convert("RGBA"),
        lambda line: line.convert("RGBX"),
        lambda line: line.convert("CMYK"),
        lambda line: line.convert("YCbCr"),
        lambda line: line.convert("HSV"),
        lambda line: Image.fromarray(np.asarray(line).astype(np.uint16) * 257),
        lambda line: Image.fromarray(np.asarray(line).astype(np.int32)),
        lambda line: Image.fromarray(np.asarray(line).astype(np.float32) / 255),
        lambda line: Image.merge("LA", (Image.new("L", line.size, 0), ImageOps.invert(line))),
        lambda line: Image.merge("RGBA", (*[Image.new("L", line.size, 0)] * 3, ImageOps.invert(line))),
    ],
)
def test_a_picture_of_any_mode(turn: Callable[[Image.Image], Image.Image]) -> None:
    """Black and white levels, so that no mode has to round; alpha lies on white paper."""
    line = face(3)[0].point(lambda level: 255 if level > 128 else 0)
    picture = turn(line)
    before = picture.mode, picture.tobytes(), dict(picture.info)
    read = as_read(picture, "it")
    assert (read.mode, read.tobytes()) == ("L", line.tobytes())
    assert (picture.mode, picture.tobytes(), dict(picture.info)) == before


def test_an_opened_file_is_read_as_its_path_is(files: Path) -> None:
    """Turned as the camera was held, also after a conversion, and only once."""
    for path in sorted(files.iterdir()):
        read = read_image(path)
        assert as_read(Image.open(path), "it") == read, path
        assert as_read(Image.open(path).copy(), "it") == read, path
    upright = ImageOps.exif_transpose(Image.open(files / "turned.jpg"))
    assert as_read(upright, "it") == read_image(files / "turned.jpg")


def test_a_notebook_shows_it(gray: SketchGenerator, files: Path) -> None:
    assert gray.draw(files / "1.png")._repr_png_().startswith(b"\x89PNG")


def test_drawing_leaves_the_generator_as_it_was(files: Path) -> None:
    model = generator(**GENERATORS["gray"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawn = model.draw(files / "1.png")
    model.train()
    assert model.draw(files / "1.png") == drawn  # no dropout, and the statistics of the training
    assert model.training
    assert all(module.training for module in model.net.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    doubled = model.double().draw(files / "1.png")
    assert np.abs(np.asarray(doubled, float) - np.asarray(drawn)).max() <= 1


def test_mistakes_are_sentences(gray: SketchGenerator, tmp_path: Path, files: Path) -> None:
    shutil.copy(files / "1.png", tmp_path / "cut.png")
    with open(tmp_path / "cut.png", "r+b") as file:
        file.truncate(60)
    line: Any = Image.new("L", (20, 20), 255)
    for arguments, options, sentence in (
        ((tmp_path / "gone.png",), {}, f"{tmp_path}/gone.png: cannot be read (No such file or directory)"),
        ((tmp_path / "cut.png",), {}, f"{tmp_path}/cut.png: is damaged or truncated"),
        ((Image.open(tmp_path / "cut.png"),), {}, "picture 1: is damaged or truncated"),
        (([files / "1.png", Image.new("L", (0, 3))],), {}, "picture 2: has 0 x 3 px; 1 to 100,000,000 can be read"),
        ((Image.new("RGBA", (5, 5)),), {}, "picture 1: cannot be used: it is transparent everywhere"),
        (
            (np.zeros((5, 5)),),
            {},
            "picture 1: is of the type ndarray; draw takes Pillow's pictures, paths of files, or",
        ),
        ((line,), {"size": 0}, "size = 0: must be 'source', 'network' or a number of px up to 10,000"),
        ((line,), {"size": True}, "size = True: must be"),
        ((line,), {"size": "big"}, "size = 'big': must be"),
        ((line,), {"fit": "stretch"}, "fit = 'stretch': must be one of squash, pad, crop"),
    ):
        with pytest.raises(UserError) as e:
            gray.draw(*arguments, **options)
        assert str(e.value).startswith(sentence)
    with pytest.raises(UserError, match=r"^a generator takes tensors .*; its method draw takes pictures$"):
        gray(line)
    with torch.no_grad():
        broken = generator(**GENERATORS["gray"])
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match=r"^the generator draws values that are no numbers"):
        broken.draw(files / "1.png")


def test_what_is_no_line_is_said_where_it_was_asked_for(gray: SketchGenerator, files: Path) -> None:
    with pytest.warns(UserWarning, match=r"^picture 1: the line is light on black, .*: give invert=True") as found:
        gray.draw(ImageOps.invert(Image.open(files / "1.png")))
    assert found[0].filename == __file__
