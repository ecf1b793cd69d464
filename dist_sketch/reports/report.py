"""One self-contained HTML page for an output folder of `infer`: scores, portraits, the run's losses and settings."""

from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from dist_sketch.core import saved
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import write_atomic
from dist_sketch.data.manifest import MANIFEST
from dist_sketch.metrics.definitions import METRICS, Metric
from dist_sketch.model.pretrained import WEIGHTS
from dist_sketch.reports import error_map, history
from dist_sketch.reports.by_label import label_groups
from dist_sketch.reports.compare.results import same_run
from dist_sketch.reports.page import VARIANT_FOLDERS, changed, find_picture, render, scripts

PORTRAIT_PX = 512  # largest side of a portrait on the page
THUMB_PX = 96  # twice the shown size, for dense screens
TABLE_LIMIT, TABLE_END = 500, 200  # with more images than the limit, the table shows this number from both ends
NEEDED = ("run", "step", "input", "split", "size", "output_size", "format", "mode", "denoise")  # of infer.json
ROLES = {"line": "line", "raw": "drawn", "sketch": "drawn", "real": "real"}
CAPTIONS = {"line": "line", "raw": "raw", "sketch": "denoised", "real": "real"}  # folder of OUT -> caption


def build(out: Path, by: str | None = None) -> Path:
    """Writes OUT/report.html and returns its path.

    Args:
        by: a label; a table shows the mean scores of the pictures with each of its values.

    Raises:
        UserError: the output has no such label; `out` is not an output folder of infer, infer draws there, or one of
            its JSON files is damaged.
    """
    infer, metrics = saved.read_finished_infer(out, *NEEDED), saved.read_scores(out)
    by_label = [] if by is None else label_groups(out, infer, metrics, by)
    run = Path(infer["run"])
    kept, drew = saved.read_settings(run, {}), infer.get("config") or {}
    replaced = bool(kept and drew) and not same_run(kept["config"], drew)
    if replaced:
        kept = {}
    settings = kept.get("config") or drew
    names, scored = infer["names"], {image["name"]: image for image in metrics["images"]} if metrics else {}
    folders = [f for f in CAPTIONS if f != "real" or (out / "real").is_dir()]
    source, split = Path(infer["input"]), infer["split"]
    has_splits = "real" in folders or (source / MANIFEST).is_file() or (source / f"{split}_line").is_dir()
    calibration = {} if replaced else saved.read_calibration(run) or {}
    differences = None
    with suppress(UserError):  # a picture is missing or damaged
        differences = error_map.error_map(out, "denoised") if "real" in folders else None
    side = min(PORTRAIT_PX, int(infer.get("size") or PORTRAIT_PX))

    def portrait(name: str, px: int, small: bool) -> dict[str, Any]:
        """Each picture is (caption, role, embedded, relative address of its file, which a viewer may show larger)."""
        images = []
        for folder in folders:
            suffix = infer["format"] if folder in VARIANT_FOLDERS.values() else "png"
            address = quote(f"{folder}/{name}.{suffix}")
            images.append((CAPTIONS[folder], ROLES[folder], find_picture(out / folder, name, px, small), address))
        return {"name": name, "images": images, "scores": scored.get(name)}

    html = render(
        "report.html.j2",
        **scripts(),
        out=out,
        run=run,
        infer=infer,
        metrics=metrics,
        by=by,
        by_label=by_label,
        facts=kept.get("facts"),
        settings=settings,
        changed=changed(settings),
        split=split if has_splits else None,
        compare_scores=compare_scores,
        captions=[CAPTIONS[f] for f in folders],
        groups=[(title, [portrait(n, side, False) for n in group]) for title, group in choose(names, scored)],
        listed=[portrait(n, THUMB_PX, True) for n in shortlist(names, scored)],
        differences=differences,
        gray=error_map.gray,
        coloured=error_map.coloured,
        table_end=TABLE_END,
        of_each=[m for m in METRICS if m.key in saved.IMAGE_SCORES],
        calibration=calibration if calibration.get("denoise") == infer.get("denoise") else {},
        history=history.NOTHING if replaced else history.read(run),
        replaced=replaced,
        exported=(run / WEIGHTS).is_file(),
    )
    if saved.read_infer(out) != infer:
        raise UserError(
            f"{out}: `dist-sketch infer` began to draw there meanwhile; wait for its end, and start this again"
        )
    write_atomic(out / "report.html", html)
    return out / "report.html"


def compare_scores(mine: dict[str, Any], other: dict[str, Any]) -> dict[Metric, int]:
    """Whether `mine` is better (1), equal (0) or worse (-1) in the digits that are shown, where both are known."""
    found = {}
    for m in METRICS:
        if mine.get(m.key) is not None and other.get(m.key) is not None:
            difference = round(mine[m.key], m.digits) - round(other[m.key], m.digits)
            found[m] = int(np.sign(difference * m.sign))
    return found


def ranked(names: list[str], scored: dict[str, Any]) -> list[str]:
    """The names that have an SSIM of the denoised drawing, from worst to best."""
    ssim = {n: scored[n]["denoised"].get("ssim") for n in names if n in scored}
    return sorted((n for n in ssim if ssim[n] is not None), key=lambda n: ssim[n])


def choose(names: list[str], scored: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """(title, names) of up to three worst, median and best portraits; a sample if there are no scores."""
    order = ranked(names, scored)
    if not order:  # evenly spread over the input
        return [("A sample", [names[i * len(names) // 9] for i in range(9)] if len(names) > 9 else names)]
    if len(order) < 3:
        return [("All", order)]
    k = min(3, len(order) // 3)
    middle = (len(order) - k) // 2
    return [("Worst", order[:k]), ("Median", order[middle : middle + k]), ("Best", order[: -k - 1 : -1])]


def shortlist(names: list[str], scored: dict[str, Any]) -> list[str]:
    """The names in the table of images: all of them, or both ends of the ranking if there are too many."""
    if len(names) <= TABLE_LIMIT:
        return names
    order = ranked(names, scored) or names
    return order if len(order) <= 2 * TABLE_END else order[:TABLE_END] + order[-TABLE_END:]
