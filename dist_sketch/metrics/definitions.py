"""The reported metrics: label, direction, precision and meaning of each; the table of scores for the console."""

from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table

from dist_sketch.core.words import plain


class Metric(NamedTuple):
    """A score in metrics.json."""

    key: str
    label: str
    sign: int  # +1: higher is better
    digits: int
    meaning: str
    has_rivals: bool = True  # a good drawing beats the blank page and the line in it; False where a blank page is best

    @property
    def arrow(self) -> str:
        """Points to where the better scores are."""
        return "↑" if self.sign > 0 else "↓"


METRICS = (
    Metric("ssim", "SSIM", 1, 3, "Structural similarity to the real sketch, mean over the images; 1 is identical"),
    Metric(
        "scoot",
        "SCOOT",
        1,
        3,
        "Structure co-occurrence texture: how much tones and strokes are like the real sketch's in each of 16 parts, "
        "mean over the images; 1 is identical",
    ),
    Metric("psnr", "PSNR", 1, 2, "Peak signal-to-noise ratio against the real sketch in dB, mean over the images"),
    Metric("l1", "L1", -1, 4, "Mean absolute difference from the real sketch"),
    Metric(
        "specks",
        "Specks",
        -1,
        2,
        "Small black spots on light skin or paper, mean number an image; the aim is what other real sketches have, and "
        "blank paper has none",
        has_rivals=False,
    ),
    Metric("fid_64", "FID-64", -1, 2, "Fréchet distance of 64 Inception features (first max pooling)"),
    Metric("fid_192", "FID-192", -1, 2, "Fréchet distance of 192 Inception features (second max pooling)"),
    Metric("fid_768", "FID-768", -1, 3, "Fréchet distance of 768 Inception features (before the auxiliary head)"),
    Metric("fid_2048", "FID-2048", -1, 1, "Fréchet distance of 2048 Inception features (last pooling): the usual FID"),
    Metric("kid", "KID", -1, 4, "Kernel Inception distance, unbiased, so it may fall below 0 by chance"),
)
# Said wherever scores stand of pairs by which `checkpoint.choose` selected the weights.
OPTIMISTIC = "The weights were selected by a score on these same pairs, so the scores are slightly optimistic."
BASELINES = {"blank": "blank page", "input": "input line", "reference": "other real sketches"}


def scores_text(scores: dict[str, Any]) -> str:
    """The scores that a validation during a run has logged (`val/ssim` and so on) in one line; "" if there are none."""
    known = {key.rpartition("/")[2]: value for key, value in scores.items() if isinstance(value, int | float)}
    told = ", ".join(f"{m.label} {known[m.key]:.{m.digits}f}" for m in METRICS if m.key in known)
    pairs = "training pairs" if any(key.startswith("seen/") for key in scores) else "validation"
    return told and f"{pairs}: {told}"


def scores_table(result: dict[str, Any]) -> Table:
    """The contents of metrics.json for the console: raw and denoised beside the baselines, with n and the settings.

    They are those that `core.saved` reads: others or older versions may have written less.
    """
    settings, size = result["settings"], result.get("size")
    ssim, fid, missing = (settings.get(key) or {} for key in ("ssim", "fid", "missing"))
    px = f" at {'x'.join(map(str, size)) if isinstance(size, list) else size} px" if size else ""
    caption = [f"n = {result['n']}{px}; ↑ higher is better, ↓ lower is better"]
    if ssim:
        caption.append(f"SSIM: range {ssim.get('data_range')}, Gaussian sigma {ssim.get('sigma')}; L1 in [0, 1]")
    if fid.get("weights"):
        digest = (fid.get("weights_sha256") or "")[:12]
        caption.append(f"FID: {fid.get('network')}, {fid['weights']} ({digest}), {fid.get('resize')}")
        caption += [str(fid["note"])] if fid.get("note") else []
    if (others := settings.get("reference_n")) and others != result["n"]:
        left_out = len(settings.get("reference_left_out", []))
        unread = f", because {left_out} cannot be read" if left_out else ""
        caption.append(f"{BASELINES['reference']}: n = {others}{unread}")
    for why in dict.fromkeys(missing.values()):
        caption.append(f"missing {' and '.join(k for k in missing if missing[k] == why)}: {why}")
    table = Table(title="Scores against the real sketches", caption=_shown("\n".join(caption)), caption_justify="left")
    columns = {"raw": result["raw"], "denoised": result["denoised"], **result["baselines"]}
    table.add_column("")
    for name in columns:
        table.add_column(_shown(BASELINES.get(name, name)), justify="right")
    for m in METRICS:
        values = [(scores or {}).get(m.key) for scores in columns.values()]
        cells = ["-" if value is None else f"{value:.{m.digits}f}" for value in values]
        table.add_row(f"{m.label} {m.arrow}", *cells)
    return table


def _shown(text: str) -> str:
    return escape(plain(text))
