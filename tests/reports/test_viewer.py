"""The pages in Chromium: pictures enlarge, tables sort, and the page of a run goes on with the run."""

import json
import re
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from dist_sketch.core.config import Config, to_dict
from dist_sketch.core.fileio import write_json
from dist_sketch.reports import live, report
from dist_sketch.reports.compare import comparison

pytestmark = pytest.mark.browser
HOSTILE = "<img src=x onerror=alert(1)> ä%?#'\""
NAMES = ["1", HOSTILE, "10", "2"]
SHADES = {"line": 250, "raw": 100, "sketch": 120, "real": 170}
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def opened(browser: Browser) -> Iterator[Open]:
    """Opens pages; at the end none has had an error, or made a request that leaves the disk."""
    said: list[str] = []
    requests: list[str] = []

    def open_page(file: Path, width: int = 1200, height: int = 900) -> Page:
        tab = browser.new_context(viewport={"width": width, "height": height}).new_page()
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(file.as_uri())
        return tab

    yield open_page
    assert not said
    assert requests
    assert all(url.startswith(("file:", "data:")) for url in requests)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of three epochs, whose samples show two faces at 20 px; the drawn one gets lighter."""
    folder = tmp_path_factory.mktemp("live") / "run"
    facts = {"steps": 60, "steps_an_epoch": 10, "size": 20}
    write_json(folder / "config.json", {"config": to_dict(Config()), "facts": facts})
    (folder / "samples").mkdir()
    lines = [{"kind": "train", "step": s, "epoch": (s - 1) // 10, "loss/d": 1.0, "loss/g": 2.0} for s in range(1, 31)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for epoch in (1, 2, 3):
        show_epoch(folder, epoch)
    return folder


def show_epoch(folder: Path, epoch: int, state: str = "running") -> None:
    """Writes the samples of an epoch, and then the page."""
    sheet = Image.new("L", (60, 40), 250)
    for row in (0, 1):
        sheet.paste(40 * epoch + 10 * row, (20, 20 * row, 40, 20 * row + 20))
        sheet.paste(SHADES["real"], (40, 20 * row, 60, 20 * row + 20))
    sheet.save(folder / "samples" / f"step-{10 * epoch:08d}.png")
    write_json(folder / "status.json", {"state": state, "step": 10 * epoch, "epoch": epoch, "epochs": 6})
    live.build(folder)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    """An output folder with four faces, each of its pictures in one shade."""
    folder = tmp_path_factory.mktemp("drawn") / "out"
    for name in NAMES:
        for kind, shade in SHADES.items():
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.new("L", (300, 300), shade).save(folder / kind / f"{name}.png")
    infer = {"run": str(run), "step": 30, "config": to_dict(Config()), "input": "in", "split": "val", "size": 300,
             "output_size": "network", "format": "png", "mode": {}, "denoise": {}, "names": NAMES}  # fmt: skip
    write_json(folder / "infer.json", infer)
    figures = {"ssim": 0.3, "l1": 0.1, "psnr": 10.0}
    images = [{"name": n, "raw": figures, "denoised": figures | {"ssim": i / 10}} for i, n in enumerate(NAMES)]
    better = figures | {"ssim": 0.4}
    scores = {"n": 4, "size": 300, "raw": figures, "denoised": figures, "settings": {}, "images": images}
    write_json(folder / "metrics.json", scores | {"baselines": {"blank": better, "input": figures}})
    return folder


def shade(tab: Page, x: float = 0.5) -> int:
    """The gray level that the viewer shows, at this share of its width."""
    with Image.open(BytesIO(tab.locator("#viewer .stage").screenshot())) as picture:
        return picture.convert("L").getpixel((round(x * picture.width), picture.height // 2))  # type: ignore[return-value]


def modes(tab: Page) -> list[str]:
    return tab.locator("#viewer nav button").all_inner_texts()


def test_every_picture_of_a_report_enlarges(opened: Open, output: Path) -> None:
    tab = opened(report.build(output))
    picture = tab.locator(".ranks .face img").first
    picture.click()
    assert modes(tab) == ["line", "raw", "denoised", "real", "difference", "slider"]
    assert tab.inner_text("#viewer header strong") == "1"
    box = tab.locator("#viewer .stage").bounding_box()
    assert box
    assert box["height"] > 600  # all that the window leaves
    seen = []
    for _ in range(5):
        seen.append(shade(tab))
        tab.keyboard.press("ArrowRight")
    assert seen[:4] == list(SHADES.values())
    assert abs(seen[4] - (255 - (SHADES["real"] - SHADES["sketch"]))) <= 1  # the difference, on white
    assert [shade(tab, x) for x in (0.25, 0.75)] == [SHADES["sketch"], SHADES["real"]]  # the slider in the middle
    tab.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 99)
    assert [shade(tab, x) for x in (0.25, 0.75)] == [SHADES["sketch"]] * 2
    tab.keyboard.press("ArrowDown")  # another face, still with the slider
    assert tab.inner_text("#viewer header strong") == HOSTILE
    assert tab.locator("#viewer .stage").get_attribute("data-kind") == "slider"
    tab.keyboard.press("Escape")
    assert not tab.locator("#viewer").is_visible()


def test_small_pictures_of_a_table_enlarge_to_the_file_s_own_size(
    browser: Browser, opened: Open, output: Path, tmp_path: Path
) -> None:
    file = report.build(output)
    tab = opened(file)
    tab.locator(".images tbody tr").nth(1).locator("img").first.click()
    assert tab.inner_text("#viewer header strong") == HOSTILE
    expect(tab.locator("#viewer .pane img").first).to_have_js_property("naturalWidth", 300)
    alone = tmp_path / "alone.html"  # the page without its folder shows what is embedded
    alone.write_bytes(file.read_bytes())
    tab.close()
    copy = browser.new_page()
    copy.goto(alone.as_uri())
    copy.locator(".images tbody tr").first.locator("img").first.click()
    expect(copy.locator("#viewer .pane img").first).to_have_js_property("naturalWidth", 96)


def test_tables_sort_and_come_back(opened: Open, output: Path, tmp_path: Path) -> None:
    tab = opened(report.build(output))

    def column(table: str, i: int) -> list[str]:
        return tab.locator(f"{table} tbody tr > :nth-child({i})").all_inner_texts()

    written = column(".images", 1)
    tab.click(".images th:first-child button")
    assert column(".images", 1) == [HOSTILE, "1", "2", "10"]  # numbers in names by their size
    head = tab.locator(".images th", has_text="SSIM").first
    for order, names in (("ascending", written), ("descending", written[::-1]), (None, written)):
        head.locator("button").click()
        assert column(".images", 1) == names
        assert head.get_attribute("aria-sort") == order
    rows = [["2_b", "−2.5 ± 0.1"], ["2_a", "10.15† ± 0.1"], ["2_c", "–"], ["2_d", "10.2"]]
    comparison.write([output], tmp_path / "c.html", sections=[comparison.Section("Added", ["name", "value"], rows)])
    tab = opened(tmp_path / "c.html")
    table = "section:has(h2:text('Added')) table"
    tab.click(f"{table} th:nth-child(2) button")
    assert column(table, 1) == ["2_b", "2_a", "2_d", "2_c"]
    tab.click(f"{table} th:nth-child(2) button")
    assert column(table, 1) == ["2_d", "2_a", "2_b", "2_c"]
    tab.click(f"{table} th:first-child button")
    assert column(table, 1) == ["2_a", "2_b", "2_c", "2_d"]  # names, though each begins with a number


def test_pictures_of_a_comparison_enlarge(opened: Open, output: Path, tmp_path: Path) -> None:
    comparison.write([output], tmp_path / "c.html")
    tab = opened(tmp_path / "c.html")
    tab.locator(".samefaces tbody img").nth(1).click()
    assert modes(tab) == ["line", "raw by out", "denoised by out", "real", "difference", "slider"]
    tab.keyboard.press("ArrowDown")
    assert tab.inner_text("#viewer header strong") == HOSTILE


@pytest.mark.parametrize("width", [400, 1400])
def test_faces_are_large_enough_and_nothing_is_wider_than_the_window(opened: Open, output: Path, width: int) -> None:
    tab = opened(report.build(output), width)
    for picture in tab.locator(".face:not(.maps) img").all():
        box = picture.bounding_box()
        assert box
        assert box["width"] >= 150
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.locator("h1 em").get_attribute("class") == "bad"  # it loses against the blank page, and says so below


def test_a_run_s_faces_over_the_epochs(opened: Open, run: Path) -> None:
    tab = opened(run / "index.html")
    assert "epoch 3 of 6" in tab.inner_text("h1")
    tab.wait_for_selector("#faces .face")
    assert tab.locator("#faces .face").count() == 2
    tab.locator("#faces img").nth(4).click()  # what was drawn for the second face
    assert shade(tab) == 130
    assert modes(tab) == ["line", "drawn", "real", "difference", "slider"]
    tab.keyboard.press("PageUp")  # an epoch earlier
    expect(tab.locator("#viewer header span")).to_have_text("drawn · epoch 2, step 20")
    expect(tab.locator("#viewer .pane img").first).to_have_attribute("src", re.compile("step-00000020"))
    assert shade(tab) == 90
    tab.keyboard.press("Escape")
    assert tab.inner_text(".when output") == "epoch 2, step 20"


def test_the_page_of_a_run_loads_itself_again_until_the_run_ends(
    opened: Open, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "RELOAD_S", 0.4)
    show_epoch(run, 3)
    tab = opened(run / "index.html", height=300)
    tab.wait_for_selector("#faces .face")
    tab.evaluate("scrollTo(0, 120)")
    show_epoch(run, 4)
    tab.wait_for_selector("h1:has-text('epoch 4 of 6')")
    expect(tab.locator(".when output")).to_have_text("epoch 4, step 40")  # the newest
    assert tab.evaluate("scrollY") == 120
    tab.evaluate("moment.value = 1; moment.dispatchEvent(new Event('input'))")
    expect(tab.locator("#faces img").first).to_have_attribute("src", re.compile("step-00000020"))
    show_epoch(run, 5, "finished")
    tab.wait_for_selector("h1:has-text('finished')")
    expect(tab.locator(".when output")).to_have_text("epoch 2, step 20")  # stays chosen
    loads: list[Any] = []
    tab.on("load", lambda page: loads.append(page))
    tab.wait_for_timeout(1000)
    assert not loads
