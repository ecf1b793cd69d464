"""The page on which people draw, used in Chromium by a hand that moves a pointer."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from playwright.sync_api import Browser, FilePayload, Page

from dist_sketch.__main__ import parse
from dist_sketch.core.config import DenoiseConfig, to_dict
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import homes
from dist_sketch.data.pixels import to_float, to_uint8
from dist_sketch.model.denoise import denoise
from dist_sketch.model.pretrained import SketchGenerator
from dist_sketch.sharing import page, runtime
from tests.sharing.test_onnx_file import made

pytestmark = pytest.mark.browser
HOSTILE = "</script><script>throw 1</script><img src=x onerror=alert(1)>\u202e'\""
READ = """(id) => {
    const canvas = document.getElementById(id);
    const copy = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
    const context = copy.getContext("2d", { willReadFrequently: true }); // else Chromium warns of slow reading
    context.drawImage(canvas, 0, 0);
    return Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data);
}"""
NOSE = [(0.5, 0.3), (0.45, 0.6), (0.55, 0.6)]
MOUTH = [(0.35, 0.75), (0.5, 0.8), (0.65, 0.75)]


@pytest.fixture(scope="module")
def model() -> SketchGenerator:
    """A small generator, whose noise removal does something and whose facts were written by an enemy."""
    model = made("baseline")
    model.denoise = DenoiseConfig(filter="median")
    model.saved["facts"] |= {"data": HOSTILE, "license": HOSTILE, "pairs": 3, "began_with": [{"name": HOSTILE}]}
    return model


@pytest.fixture(scope="module")
def file(model: SketchGenerator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / page.PAGE
    file.write_text(page.to_html(model, HOSTILE, compact=False), encoding="utf-8")
    return file


class Hand:
    """A page that is open, and a person who uses it."""

    def __init__(self, tab: Page) -> None:
        self.tab = tab
        self.tab.wait_for_selector("body[data-network], body[data-portrait=failed]", timeout=200_000)

    def draw(self, *points: tuple[float, float]) -> None:
        """Moves the pressed mouse along points, as shares of the sheet's width and height."""
        box = self.tab.locator("#lines").bounding_box()
        assert box
        (x, y), *others = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        self.tab.mouse.move(x, y)
        self.tab.mouse.down()
        for x, y in others:
            self.tab.mouse.move(x, y, steps=6)
        self.tab.mouse.up()

    def pixels(self, name: str) -> np.ndarray:
        """The gray levels of a canvas when no portrait is being drawn, (H, W)."""
        self.rest()
        levels = np.array(self.tab.evaluate(READ, name), np.uint8).reshape(-1, 4)
        assert (levels[:, 0] == levels[:, 1]).all() or name == "lines"
        side = round(len(levels) ** 0.5)
        return levels[:, 3 if name == "lines" else 0].reshape(side, side)

    def rest(self) -> None:
        self.tab.wait_for_timeout(50)  # the page asks for a portrait in its own time
        self.tab.wait_for_selector("body:not([data-busy])", timeout=200_000)

    def strokes(self) -> str:
        return str(self.tab.get_attribute("#lines", "aria-label")).removeprefix("Your drawing: ")

    def save(self, kind: str) -> bytes:
        self.tab.click("#save")
        with self.tab.expect_download() as download:
            self.tab.click(f"[data-save={kind}]")
        return Path(download.value.path()).read_bytes()

    def open(self, picture: Image.Image, by: str = "line") -> None:
        path = Path(self.tab.url.removeprefix("file://")).with_name("opened.png")
        picture.save(path)
        self.tab.set_input_files(f"#{by}-file", path)


@pytest.fixture(scope="module")
def opened(browser: Browser) -> Iterator[Callable[..., Hand]]:
    """Opens pages; at the end none has had an error, or made a request that leaves it."""
    said: list[str] = []
    requests: list[str] = []

    def open_page(file: Path, **options: Any) -> Hand:
        tab = browser.new_context(**options).new_page()
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(file.as_uri())
        return Hand(tab)

    yield open_page
    assert not said
    assert requests
    assert all(url.startswith(("file:", "blob:", "data:")) for url in requests)


@pytest.fixture(scope="module")
def open_page(opened: Callable[..., Hand], file: Path) -> Hand:
    """One page for many tests, because a browser needs seconds to make a program of the runtime."""
    return opened(file, viewport={"width": 900, "height": 700})


@pytest.fixture
def hand(open_page: Hand) -> Hand:
    """The page with a clean sheet and the pen."""
    open_page.tab.set_viewport_size({"width": 900, "height": 700})
    open_page.tab.keyboard.press("c")
    open_page.tab.keyboard.press("p")
    open_page.tab.locator("#twin").set_checked(False)
    return open_page


def drawn(model: SketchGenerator, line: np.ndarray) -> np.ndarray:
    """What Python draws from a line picture of the network's size, (H, W)."""
    with torch.inference_mode():
        portrait = model(to_float(torch.from_numpy(line.copy())[None, None]))
    return denoise(to_uint8(portrait)[0], model.denoise)[0].numpy()


def difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_the_portrait_of_strokes_is_what_python_draws(hand: Hand, model: SketchGenerator) -> None:
    assert hand.strokes() == "empty"
    hand.draw(*NOSE)
    hand.draw(*MOUTH)
    assert hand.strokes() == "2 strokes"
    line, portrait = hand.pixels("fed"), hand.pixels("portrait")
    assert line.shape == portrait.shape == (64, 64)
    assert (line == 255).mean() > 0.8
    assert line[18:40, 27:36].min() < 220 > line[45:54, 20:44].min()  # where the hand was: thin, so gray at this size
    assert np.ptp(portrait) > 10
    assert difference(portrait, drawn(model, line)) <= 2


def test_a_portrait_of_a_trained_generator_drawn_by_a_finger(
    browser: Browser, opened: Callable[..., Hand], tmp_path: Path
) -> None:
    trained = SketchGenerator.load(next(h for h in homes("launch") if h.is_dir()) / "portrait-128")
    (tmp_path / page.PAGE).write_text(page.to_html(trained, "portrait-128", compact=True))
    hand = opened(tmp_path / page.PAGE, has_touch=True, viewport={"width": 360, "height": 740}, device_scale_factor=3)
    box = hand.tab.locator("#lines").bounding_box()
    assert box
    fingers = hand.tab.context.new_cdp_session(hand.tab)
    for points in (NOSE, MOUTH):
        touches = [{"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]} for x, y in points]
        for kind, touch in zip(("touchStart", "touchMove", "touchMove"), touches, strict=True):
            fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [touch]})
        fingers.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert hand.strokes() == "2 strokes"
    line = hand.pixels("fed")
    assert hand.tab.evaluate("window.scrollY") == 0  # the sheet does not move under the finger
    assert hand.pixels("lines").shape[0] > 1000  # sharp on a fine screen
    assert difference(hand.pixels("portrait"), drawn(trained, line)) <= 2


def test_undo_redo_clear_mirror_and_both_sides(hand: Hand) -> None:
    hand.draw(*NOSE)
    one = hand.pixels("fed")
    hand.tab.keyboard.press("x")
    hand.draw((0.2, 0.2), (0.3, 0.5))
    assert hand.strokes() == "3 strokes"
    three = hand.pixels("fed")
    left, right = (three != one)[:, :32], (three != one)[:, 32:]
    assert left.any()
    assert np.abs(left.sum() - right.sum()) <= 8
    hand.tab.keyboard.press("Control+z")
    assert difference(hand.pixels("fed"), one) == 0
    hand.tab.keyboard.press("y")
    assert difference(hand.pixels("fed"), three) == 0
    hand.tab.keyboard.press("c")
    assert hand.strokes() == "empty"
    assert hand.tab.locator("#clear").is_disabled()
    hand.tab.click("#undo")
    assert hand.strokes() == "3 strokes"
    hand.tab.keyboard.press("z")
    hand.tab.keyboard.press("m")
    assert np.abs(hand.pixels("fed").astype(int) - one[:, ::-1].astype(int)).mean() < 0.5
    assert "Mirrored" in hand.tab.inner_text("#said")


def test_the_eraser_takes_parts_or_whole_strokes_and_can_be_undone(hand: Hand) -> None:
    hand.draw((0.1, 0.5), (0.9, 0.5))
    before = hand.pixels("fed")
    hand.tab.keyboard.press("e")
    hand.draw((0.5, 0.3), (0.5, 0.7))
    assert hand.strokes() == "2 strokes"
    after = hand.pixels("fed")
    assert (after[:, 31:33] == 255).all()
    assert difference(after[:, :20], before[:, :20]) < 60
    assert after[:, 10].min() < 220 > after[:, 54].min()
    hand.draw((0.5, 0.1), (0.6, 0.1))  # where nothing is
    hand.tab.keyboard.press("z")  # so this takes back the cut
    assert difference(hand.pixels("fed"), before) == 0
    hand.tab.click("input[value=whole]")
    hand.draw((0.5, 0.4), (0.5, 0.6))
    assert hand.strokes() == "empty"


def test_what_is_saved_can_be_opened_again(hand: Hand, tmp_path: Path) -> None:
    hand.tab.click("#begin")
    hand.tab.click("[data-face] >> nth=4")
    line, portrait = hand.pixels("fed"), hand.pixels("portrait")
    for kind, size in {"line": (1024, 1024), "portrait": (1024, 1024), "both": (2048, 1024)}.items():
        (tmp_path / kind).write_bytes(hand.save(kind))
        with Image.open(tmp_path / kind) as saved:
            assert saved.size == size
            small = np.asarray(saved.convert("L").resize((64 * size[0] // 1024, 64), Image.Resampling.BOX))
        wanted = {"line": [line], "portrait": [portrait], "both": [line, portrait]}[kind]
        assert np.corrcoef(small.ravel(), np.hstack(wanted).ravel())[0, 1] > 0.95
    drawing = hand.save("svg").decode()
    assert drawing.count("<path") == int(hand.strokes().split()[0])
    with Image.open(tmp_path / "line") as saved:
        hand.open(ImageOps.invert(saved.convert("L")))  # white on black: it is turned
    hand.tab.wait_for_selector("#lines[aria-label*=picture]")
    assert "light on black" in hand.tab.inner_text("#said")
    assert np.abs(hand.pixels("fed").astype(int) - line.astype(int)).mean() < 3
    hand.draw(*NOSE)
    assert hand.strokes() == "a picture of lines and 1 stroke"
    hand.tab.wait_for_timeout(600)  # then it is kept
    hand.tab.reload()
    again = Hand(hand.tab)
    again.tab.wait_for_selector("#lines[aria-label*=picture]")
    assert again.strokes() == "a picture of lines and 1 stroke"


def test_a_picture_gets_margins_and_a_photograph_is_only_traced(hand: Hand) -> None:
    wide = Image.new("L", (128, 64), 240)
    wide.paste(0, (60, 10, 66, 50))
    hand.open(wide)
    hand.tab.wait_for_selector("#lines[aria-label*=picture]")
    line = hand.pixels("fed")
    assert (line[:15] == 240).all()  # as the picture's border
    assert line[21:41, 31].max() < 60
    hand.tab.click("#clear")
    y, x = np.mgrid[:90, :90]
    hand.open(Image.fromarray((128 + 60 * np.sin(x / 9) * np.cos(y / 7) - x / 2).astype(np.uint8)))
    hand.tab.wait_for_selector("body[data-ghost]")
    assert hand.strokes() == "empty"  # nothing of it is given to the network
    assert np.ptp(np.array(hand.tab.evaluate(READ, "ghost"))[3::4]) > 50
    hand.tab.keyboard.press("t")
    assert hand.tab.locator("body[data-ghost]").count() == 0
    broken = FilePayload(name="no.png", mimeType="image/png", buffer=b"no picture")
    hand.tab.set_input_files("#line-file", broken)
    hand.tab.wait_for_selector("#said:text('no.png: is not a picture')")


def test_the_page_is_for_everyone(hand: Hand) -> None:
    hand.tab.set_viewport_size({"width": 360, "height": 640})
    hand.tab.emulate_media(color_scheme="dark", reduced_motion="reduce")
    assert hand.tab.evaluate("document.documentElement.scrollWidth") == 360
    reached = set()
    for _ in range(24):
        hand.tab.keyboard.press("Tab")
        reached.add(hand.tab.evaluate("document.activeElement.id || document.activeElement.name"))
    enabled = ("lines", "pen", "eraser", "size", "twin", "faces", "photo", "open", "about")
    assert set(enabled) <= reached
    for button in hand.tab.locator(".group button").all():
        box = button.bounding_box()
        assert box
        assert min(box["width"], box["height"]) >= 44
        assert button.inner_text().strip()
    hand.tab.keyboard.press("Shift+?")
    about = hand.tab.inner_text("#about-dialog")
    assert HOSTILE[:20] in about
    assert "leaves this device" in about
    assert all(part in about for part in ("onnxruntime-web", "perfect-freehand", "Licence of these data"))
    assert hand.tab.locator("img").count() == 0
    hand.tab.keyboard.press("Escape")
    assert not hand.tab.locator("#about-dialog").is_visible()


@pytest.mark.parametrize("shadows", [False, True])
@pytest.mark.parametrize("name", ["none", "median", "tv", "nlm", "bilateral"])
def test_noise_is_removed_as_infer_does_it(browser: Browser, name: Any, shadows: bool) -> None:
    size, rng = 64, np.random.default_rng(1)
    y, x = np.mgrid[:size, :size] / size
    page_levels = 235 - 50 * np.exp(-x / 0.1) + rng.normal(0, 3, (3, size, size))
    page_levels[:, np.abs(np.hypot(x - 0.5, y - 0.5) - 0.3) < 0.02] = 80
    for row, column in rng.integers(2, size - 3, (12, 2)):
        page_levels[:, row : row + 2, column] = 60
    image = torch.from_numpy(np.rint(page_levels.clip(0, 255)).astype(np.uint8))
    tab = browser.new_page()
    tab.add_script_tag(path=page.TEMPLATES / "denoise.js")
    for gray in (True, False):
        settings = DenoiseConfig(gray=gray, filter=name, shadows=shadows)
        planes, keep = [plane.ravel().tolist() for plane in image.numpy()], to_dict(settings)
        call = "([planes, size, settings]) => denoised(planes, size, settings).map((plane) => Array.from(plane))"
        found = np.array(tab.evaluate(call, [planes, size, keep])).reshape(-1, size, size)
        wanted = denoise(image, settings).numpy()
        assert np.abs(wanted.astype(int) - image.numpy()).max() > 5 or name == "none"
        # A rounding of the mean may tip a threshold of the shadows for single pixels.
        assert (np.abs(found - wanted.astype(int)) > 2).mean() <= (0.005 if name == "nlm" and shadows else 0)
    tab.close()


def test_the_runtime_can_come_from_a_site_or_a_folder_and_says_what_is_missing(
    model: SketchGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = page.to_html(model, "x", compact=False, runtime_url="https://example.org/ort/dist", generator=b"onnx")
    assert len(small) < 200_000
    assert "connect-src https://example.org/ort/dist/;" in small.partition("<title>")[0]
    for url in ("example.org", "https://example.org/; script-src *", "file:///tmp"):
        with pytest.raises(UserError, match="--runtime-url"):
            page.to_html(model, "x", compact=False, runtime_url=url, generator=b"onnx")
    package = runtime.FREEHAND
    with pytest.raises(UserError, match=f"has neither .* nor a folder perfect-freehand; .*npm pack {package.name}@"):
        runtime.files_of(package, tmp_path)
    home = tmp_path / "node_modules" / package.name
    (home / "dist" / "cjs").mkdir(parents=True)
    (home / "package.json").write_text(json.dumps({"version": "0.1"}))
    with pytest.raises(UserError, match=f"is version 0.1 of perfect-freehand; a page needs {package.version}"):
        runtime.files_of(package, tmp_path)
    (home / "package.json").write_text(json.dumps({"version": package.version}))
    with pytest.raises(UserError, match="is no whole package"):
        runtime.files_of(package, tmp_path)
    contents = runtime.files_of(package)
    for name, data in contents.items():
        (home / name).write_bytes(data)
    assert runtime.files_of(package, tmp_path) == contents
    (tmp_path / package.archive).write_bytes(b"changed")
    with pytest.raises(UserError, match="is not what npm has"):
        runtime.files_of(package, tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="npm, which fetches it, is not installed"):
        runtime.files_of(package)
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error network is down' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(UserError, match="npm error network is down"):
        runtime.files_of(package)


def test_export_writes_the_page_again_and_again(
    model: SketchGenerator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    model.save_pretrained(run)
    export = ["checkpoint", "export", str(run), "--out", str(out)]
    for _ in range(2):
        assert parse([*export, "--page"])() == 0
        assert (out / page.PAGE).read_text().startswith("<!doctype html>")
    assert f"{page.PAGE}: " in capsys.readouterr().out
    with pytest.raises(UserError, match="give --page, too"):
        parse([*export, "--runtime-url", "https://example.org/"])()
