"""The page and gpu.json of `tests/gpu.sh`: which GPU this is, and what all parts have found.

    python tests/gpu_page.py machine DIR [--quick]   prints the first line, writes DIR/machine.json
    python tests/gpu_page.py show DIR [--quick]      prints the page, writes DIR/gpu.json

In DIR lie machine.json, parts.tsv (name, exit code, seconds), NAME.log of each part, NAME.json of each bench, and run/.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

BENCHES = {"step-portrait": "portrait", "step-paper": "the paper's settings", "infer": "infer", "loader": "loader"}
# What `timeout` and the shell say with an exit code; 75 is the training's own
CODES = {-1: "not started: no time was left", 75: "stopped and saved", 137: "killed", 143: "cut off"}
STEPS = 13_200  # of `portrait` on 1,057 pairs
TAIL = 20  # last lines of the log of a part that failed
BATCH = re.compile(r"batch (\d+), \S+?(?:: (.+))?$")

Figures = dict[str, dict[str, Any]]  # by name


class Target(NamedTuple):
    """What a GPU shall reach. `holds` is None if it was not measured."""

    name: str
    value: float | None
    unit: str
    limit: float
    at_most: bool
    holds: bool | None


def machine(out: Path, quick: bool) -> int:
    """Prints which GPU and torch this is, and writes machine.json. Returns the exit code: 2 without a GPU."""
    import torch

    found = torch.cuda.is_available()
    if not found and not quick:
        print(
            f"gpu.sh: torch {torch.__version__} finds no GPU here; `nvidia-smi` shows whether there is one. "
            "With --quick the script runs on a CPU, to show that it works",
            file=sys.stderr,
        )
        return 2
    about = {
        "gpu": torch.cuda.get_device_name() if found else None,
        "gpus": torch.cuda.device_count(),
        "memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1) if found else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "python": sys.version.split()[0],
    }
    (out / "machine.json").write_text(json.dumps(about, indent=2))
    print(headline(about))
    return 0


def headline(about: dict[str, Any]) -> str:
    """The machine in one line."""
    gpu = f"{about['gpu']}, {about['memory_gb']} GB" if about["gpu"] else "no GPU (--quick)"
    return f"{gpu}; torch {about['torch']}, CUDA {about['cuda']}, cuDNN {about['cudnn']}, Python {about['python']}"


# ---------------------------------------------------------------- what the parts have left


def collect(out: Path, quick: bool) -> dict[str, Any]:
    """The contents of gpu.json. Parts that are missing or damaged are left out; nothing else is affected."""
    parts = dict(_parts(out))
    figures = {name: _json(out / f"{name}.json") for name in BENCHES}
    rows = {name: (found or {}).get("figures", []) for name, found in figures.items()}
    trained, notes = training(out / "run"), _text(out / "notes.txt").splitlines()
    # Without FID's weights the validations cost less than the target's.
    projected = {} if trained is None else {**trained, "projected_s": None} if notes else trained
    return {
        "quick": quick,
        "machine": _json(out / "machine.json"),
        "parts": parts,
        "tests": tests(_text(out / "tests.log")),
        "training": trained,
        "targets": [target._asdict() for target in targets(rows, projected, quick)],
        "figures": rows,
        "notes": notes
        + [f"{name}: {n['text']}" for name, found in figures.items() for n in (found or {}).get("notes", [])],
    }


def _parts(out: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in _text(out / "parts.tsv").splitlines():
        name, code, seconds = line.split("\t")
        part: dict[str, Any] = {"exit_code": int(code), "seconds": int(seconds)}
        part["ended"] = "done" if code == "0" else CODES.get(int(code), "failed")
        if part["ended"] not in ("done", "stopped and saved"):
            part["tail"] = _text(out / f"{name}.log").splitlines()[-TAIL:]
        yield name, part


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except ValueError:  # it is missing, or its part was cut off
        return None


def tests(log: str) -> dict[str, Any]:
    """How many tests passed, and which did not, from what `pytest -v` prints, which may have been cut off."""
    plain = re.findall(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b", log, re.MULTILINE)
    in_parallel = re.findall(r"^\[gw\d+\] \[ *\d+%\] (PASSED|FAILED|ERROR|SKIPPED) (\S+::.+?) *$", log, re.MULTILINE)
    found = plain + [(name, end) for end, name in in_parallel]
    count = {word.lower(): sum(end == word for _, end in found) for word in ("PASSED", "SKIPPED")}
    return count | {"failed": [name for name, end in found if end in ("FAILED", "ERROR")]}


def training(run: Path) -> dict[str, Any] | None:
    """The speed of a run, from its log; None if it did not come so far.

    `projected_s` is for STEPS steps with their validations: it counts whole cycles, from the first line of the log to
    the last validation. None if there was no validation.
    """
    rows = []
    for line in _text(run / "metrics.jsonl").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # the last line of a run that was killed
            continue
    trained = [r for r in rows if r.get("kind") == "train"]
    speeds = [r["speed/step_s"] for r in trained if r.get("speed/step_s")]
    if not speeds:
        return None
    validated = [r for r in rows if r.get("kind") == "val" and r["step"] > trained[0]["step"]]
    found = {
        "steps": trained[-1]["step"],
        "validations": len(validated),
        "steps_per_s": 1 / median(speeds),  # the median leaves out the lines that hold a validation
        "data_wait": trained[-1].get("speed/data_wait"),
        "projected_s": None,
    }
    if validated:
        first, last = trained[0], validated[-1]
        found["projected_s"] = (last["time"] - first["time"]) / (last["step"] - first["step"]) * STEPS
    return found


# ---------------------------------------------------------------- targets


def targets(rows: dict[str, list[dict[str, Any]]], trained: dict[str, Any] | None, quick: bool) -> list[Target]:
    """Which targets hold. With --quick none is judged, because the sizes are other ones."""
    portrait, paper = ({f["name"]: f for f in rows[name]} for name in ("step-portrait", "step-paper"))
    shares = [f["ratio"] for f in paper.values() if f["name"].endswith(": share of the limit") and f["ratio"]]
    limits: list[tuple[str, float | None, str, float, bool]] = [
        ("portrait, 128 px, batch 4: a step (aim: 4 ms)", _first(portrait, "a step, "), "ms", 6, True),
        (
            "paper's settings, 256 px, batch 8: times the paper's step",
            _first(paper, "a step, ", "ratio"),
            "x",
            8,
            False,
        ),
        (
            "256 px, best batch: share of the card's convolution rate",
            _percent(max(shares, default=None)),
            "%",
            40,
            False,
        ),
        ("portrait, 128 px, batch 4: GPU idle", _first(portrait, "GPU idle"), "%", 10, True),
        ("paper's settings, 256 px, batch 8: GPU idle", _first(paper, "GPU idle"), "%", 10, True),
        ("portrait, 128 px: 13,200 steps with validations", (trained or {}).get("projected_s"), "s", 180, True),
    ]
    found = []
    for name, value, unit, limit, at_most in limits:
        holds = None if value is None or quick else value <= limit if at_most else value >= limit
        found.append(Target(name, value, unit, limit, at_most, holds))
    return found


def _first(figures: Figures, head: str, field: str = "value") -> float | None:
    """A field of the figure whose name begins with `head`."""
    return next((f[field] for name, f in figures.items() if name.startswith(head)), None)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


# ---------------------------------------------------------------- the page


def show(out: Path, quick: bool) -> int:
    """Prints the page and writes gpu.json. Returns the exit code: 1 if a part failed or a test did."""
    found = collect(out, quick)
    (out / "gpu.json").write_text(json.dumps(found, indent=2))
    console = Console(width=120, highlight=False)
    console.print(f"\n[bold]{escape(headline(found['machine']))}")
    if quick:
        console.print("--quick: tiny sizes; the figures mean nothing, and no target is judged")
    console.print(_targets_table(found["targets"]))
    console.print(_parts_table(found["parts"], found["tests"], found["training"]))
    for name, title in BENCHES.items():
        if rows := by_batch(found["figures"][name]):
            console.print(_batch_table(title, rows))
    if any(found["figures"].values()):
        console.print(_figures_table(found["figures"]))
    for note in found["notes"]:
        if re.search(r"our step|batch|not measured|FID", note):  # the others explain the figures; gpu.json has them
            console.print(escape(note))
    for name in found["tests"]["failed"]:
        console.print(f"[red]failed:[/red] {escape(name)}")
    for name, part in found["parts"].items():
        if part.get("tail"):
            console.print(
                f"\n[red]{name}: {part['ended']}[/red] (exit code {part['exit_code']}); the end of {name}.log:"
            )
            console.print(escape("\n".join(part["tail"])), soft_wrap=True)
    console.print(f"\n{out / 'gpu.json'}", soft_wrap=True)
    bad = [name for name, part in found["parts"].items() if "tail" in part]
    return 1 if bad or found["tests"]["failed"] else 0


def _targets_table(found: list[dict[str, Any]]) -> Table:
    table = _table("targets", "target", "measured", "limit", "holds")
    for t in found:
        limit = f"{'at most' if t['at_most'] else 'at least'} {t['limit']:g} {t['unit']}"
        holds = {True: "[green]yes", False: "[red]no", None: "not measured" if t["value"] is None else "not judged"}
        table.add_row(escape(t["name"]), _number(t["value"], t["unit"]), limit, holds[t["holds"]])
    return table


def _parts_table(parts: dict[str, Any], tested: dict[str, Any], trained: dict[str, Any] | None) -> Table:
    table = _table("parts", "part", "seconds", "ended", "about")
    about = {"tests": f"{tested['passed']} passed, {len(tested['failed'])} failed, {tested['skipped']} skipped"}
    if trained:
        about["train"] = (
            f"{trained['steps']} steps, {trained['steps_per_s']:.1f} a second between validations, "
            f"{trained['validations']} validations"
        )
    for name, part in parts.items():
        table.add_row(name, str(part["seconds"]), part["ended"], about.get(name, ""))
    return table


def by_batch(figures: list[dict[str, Any]]) -> dict[int, Figures]:
    """The figures of `bench step`'s table: batch size -> what was measured ("": images/s) -> figure."""
    found: dict[int, Figures] = {}
    for f in figures:
        if match := BATCH.match(f["name"]):
            found.setdefault(int(match[1]), {})[match[2] or ""] = f
    return found


def _batch_table(title: str, rows: dict[int, Figures]) -> Table:
    heads = ("batch", "images/s", "ms a step", "x paper's step", "share of the limit", "GPU idle", "kernels")
    table = _table(f"{title}: over the batch size", *heads)
    for b, of in sorted(rows.items()):
        cells = [
            (of.get("", {}).get("value"), ""),
            (of.get("a step", {}).get("value"), ""),
            (of.get("", {}).get("ratio"), ""),
            (_percent(of.get("share of the limit", {}).get("ratio")), "%"),
            (of.get("GPU idle", {}).get("value"), "%"),
            (of.get("kernels a step", {}).get("value"), ""),
        ]
        table.add_row(str(b), *(_number(value, unit) for value, unit in cells))
    return table


def _figures_table(figures: dict[str, list[dict[str, Any]]]) -> Table:
    table = _table(
        "figures (ratio: how many times better than the baseline, above 1)", "figure", "here", "baseline", "ratio"
    )
    for name, rows in figures.items():
        if rows:
            table.add_row(f"[bold]{name}")
        for f in rows:
            if not BATCH.match(f["name"]):
                cells = (_number(f["value"], f["unit"]), _number(f["baseline"], ""), _number(f["ratio"], ""))
                table.add_row(f"  {escape(f['name'])}", *cells)
        table.add_section()
    return table


def _table(title: str, *heads: str) -> Table:
    table = Table(title=title, title_justify="left")
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def _number(value: float | None, unit: str) -> str:
    """Three significant digits."""
    if value is None:
        return "-"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {unit}".strip()


def main() -> int:
    """`python tests/gpu_page.py machine|show DIR [--quick]`."""
    verb, out, *rest = sys.argv[1:]
    return {"machine": machine, "show": show}[verb](Path(out), "--quick" in rest)


if __name__ == "__main__":
    sys.exit(main())
