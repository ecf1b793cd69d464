"""Scores as a table on the console."""

from typing import Any

from rich.table import Table

from dist_sketch.metrics.scorer import PAIRED, SETS

_LABELS = {"ssim": "SSIM ↑", "l1": "L1 ↓", "psnr": "PSNR dB ↑", "kid": "KID × 1000 ↓"}


def scores_table(result: dict[str, Any]) -> Table:
    """The scores for the console: raw and denoised beside the baselines, with n and the settings below."""
    settings = result["settings"]
    shown = {"raw": result["raw"], "denoised": result["denoised"], **result["baselines"]}
    heads = {"blank": "blank page", "input": "input line", "reference": "other real sketches"}
    size = result["size"]
    caption = [
        f"n = {result['n']} at {size if isinstance(size, int) else 'x'.join(map(str, size))} px; ↑ higher is better, "
        "↓ lower is better",
        "SSIM: range {data_range}, Gaussian sigma {sigma}; L1 in [0, 1]".format(**settings["ssim"]),
    ]
    fid, missing = settings["fid"], settings["missing"]
    if fid["weights"]:
        caption.append(f"FID: {fid['network']}, {fid['weights']} ({fid['weights_sha256'][:12]}), {fid['resize']}")
        caption += [fid["note"]] if fid["note"] else []
    for why in dict.fromkeys(missing.values()):
        caption.append(f"missing {' and '.join(k for k in missing if missing[k] == why)}: {why}")
    result_table = Table(title="Scores against the real sketches", caption="\n".join(caption), caption_justify="left")
    result_table.add_column("")
    for name in shown:
        result_table.add_column(heads.get(name, name), justify="right")
    for key in (*PAIRED, *SETS):
        label = _LABELS.get(key) or f"FID-{key.removeprefix('fid_')} ↓"
        result_table.add_row(label, *(_format(key, scores[key]) for scores in shown.values()))
    return result_table


def _format(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key == "kid":
        return f"{1000 * value:.2f}"
    return f"{value:.4f}" if key in ("ssim", "l1") else f"{value:.2f}"
