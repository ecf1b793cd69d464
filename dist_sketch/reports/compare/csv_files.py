"""The CSV files that lie beside the page of a comparison."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from dist_sketch.metrics.definitions import METRICS
from dist_sketch.reports.compare.results import Result
from dist_sketch.reports.compare.scores import Group, mean_sd, score
from dist_sketch.reports.compare.tables import BASELINES, VARIANTS
from dist_sketch.reports.page import flat


def csv_files(results: list[Result], groups: list[Group], runs: list[dict[str, Any]]) -> dict[str, str]:
    """Name -> content of each CSV file."""
    configs = [r.config | {f"facts.{k}": v for k, v in flat(r.facts)} for r in results]
    keys = dict.fromkeys(k for config in configs for k in config)
    settings = [[k, *(c.get(k) for c in configs)] for k in keys]
    return {
        "scores": _scores(groups),
        "groups": _groups(groups),
        "runs": _csv(list(runs[0]), [list(r.values()) for r in runs]),
        "config": _csv(["setting", *(r.name for r in results)], settings),
    }


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV; None is an empty field."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([columns, *rows])
    return buffer.getvalue()


def _scores(groups: list[Group]) -> str:
    """One line for each result and variant, with all that decides whether two lines may be compared."""
    keys = [m.key for m in METRICS]
    columns = ["name", "group", "seed", "kind", "variant", "n", "split", "size", "fid_weights_sha256", *keys, "path"]
    rows = []
    for group in groups:
        for r in group.results:
            fid = ((r.scores or {}).get("settings") or {}).get("fid") or {}
            output = [(r.scores or {}).get("n"), r.infer.get("split"), r.infer.get("size") or r.facts.get("size")]
            training = [None, "val", r.facts.get("size")]
            for variant in (*VARIANTS, *BASELINES, "val", "best"):
                values = [score(r, variant, key) for key in keys]
                if any(v is not None for v in values):
                    about = training if variant in ("val", "best") else output
                    head = [r.name, group.label, r.seed, r.kind, variant, *about, fid.get("weights_sha256")]
                    rows.append([*head, *values, r.path])
    return _csv(columns, rows)


def _groups(groups: list[Group]) -> str:
    """Mean, standard deviation and number of seeds of each group, variant and metric."""
    rows = []
    for group in groups:
        for variant in (*VARIANTS, "val", "best"):
            for m in METRICS:
                mean, sd, n = mean_sd(group, variant, m.key)
                if n:
                    rows.append([group.label, variant, m.key, mean, sd, n])
    return _csv(["group", "variant", "metric", "mean", "sd", "seeds"], rows)
