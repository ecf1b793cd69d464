"""What is told of a data set: a line when it is packed, and the card beside its shards, README.md for the Hub."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_sketch.core.fileio import write_atomic
from dist_sketch.core.licenses import hub_name
from dist_sketch.core.words import one_line
from dist_sketch.data import preview
from dist_sketch.data.layouts import SPLITS
from dist_sketch.data.looks import WHY
from dist_sketch.data.manifest import MANIFEST, read_labels
from dist_sketch.data.names import nfc
from dist_sketch.data.recipe import LISTED, FilePair, Recipe

CARD = "README.md"
MARK = "<!-- Written by dist-sketch pack, which may replace it. -->"
HUB_SPLITS = {"val": "validation"}  # what the Hub calls our splits
SIZES = {1000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}


def told(recipe: Recipe, found: Sequence[FilePair]) -> list[str]:
    """What a source is: its layout, folders, pairs and labels in one line; in another, whose two names differ."""
    places = dict.fromkeys(place for folders in recipe.splits.values() for place in folders.own(with_table=True))
    counts = Counter(pair.split for pair in found)
    numbers = ", ".join(f"{counts[split]:,} {split}" for split in SPLITS if counts[split]) or "no"
    sides = f"; the {found[0].halves[0]} half is the line" if found and found[0].halves else ""
    labels = sorted({label for pair in found for label in pair.labels})
    kept = f"; labels: {', '.join(labels)}" if labels else ""
    lines = [
        f"{recipe.root}: layout {recipe.layout or recipe.name} ({', '.join(places)}{sides}): {numbers} pairs{kept}"
    ]
    differ = [pair for pair in found if pair.sketch is not None and nfc(pair.line.stem) != nfc(pair.sketch.stem)]
    if differ and not any(folders.table for folders in recipe.splits.values()):
        lines.append(f"the names of {len(differ):,} pairs differ, as in: {_files(recipe, differ[0])}")
    return list(map(one_line, lines))


def first_pairs(recipe: Recipe, found: Sequence[FilePair]) -> list[str]:
    """The first pairs, a line each: split, name, and the files of the line and the sketch."""
    return [one_line(f"{pair.split} {pair.name}: {_files(recipe, pair)}") for pair in found[:LISTED]]


def _files(recipe: Recipe, pair: FilePair) -> str:
    sides = [
        f"{side} {path.relative_to(recipe.root).as_posix()}{f' ({half} half)' if half else ''}"
        for side, path, half in pair.sides()
    ]
    return ", ".join(sides)


def write(folder: Path, manifest: dict[str, Any], description: str) -> None:
    """Writes the card and the picture of some pairs beside the shards and the manifest that are there."""
    preview.write(folder, manifest)
    write_atomic(folder / CARD, text(folder, manifest, description))


def ours(folder: Path) -> list[str]:
    """Which of the two files in a folder are those that `write` has written, and may be replaced."""
    found = [preview.NAME] if preview.is_ours(folder / preview.NAME) else []
    return [*found, CARD] if preview.is_marked(folder / CARD, MARK) else found


def text(folder: Path, manifest: dict[str, Any], description: str = "") -> str:
    """The card of the shards in a folder, in Markdown; it depends on the manifest's contents alone."""
    splits = manifest["splits"]
    pairs = sum(part["count"] for part in splits.values())
    size = f"{manifest['size']} x {manifest['size']} px"
    rows = [
        f"| {split} | {part['count']:,} | {'yes' if part['has_sketch'] else 'no'} | {len(part['shards'])} | "
        f"{sum(shard['bytes'] for shard in part['shards']) / 1e6:,.1f} MB |"
        for split, part in splits.items()
    ]
    labels = sorted({name for split in splits for name in read_labels(folder, manifest, split)})
    settings = ", ".join(f"{name} {_code(value)}" for name, value in manifest["settings"].items())
    left_out = [f"{_code(one['file'])}: {_plain(one['why'])}" for one in manifest["skipped"]]
    passed_over = [
        f"{_code(place)}: {', '.join(f'{count} {_plain(kind)}' for kind, count in kinds.items())}"
        for place, kinds in manifest["passed_over"].items()
    ]
    seen = [f"{len(names)}: {WHY[kind]}" for kind, names in manifest["looks"].items()]
    sections = [
        _front(manifest, pairs),
        MARK,
        "",
        f"# {_plain(manifest['recipe'])}",
        "",
        *([_plain(description), ""] if description else []),
        f"{pairs:,} pairs of a line drawing and its sketch at {size}, as WebDataset tars with hashes.",
        "",
        f"![Some of the pairs, the line beside its sketch]({preview.NAME})",
        "",
        "| split | pairs | with sketches | shards | size |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"- Licence: {_plain(manifest['license'])}",
        f"- Recipe: {_code(manifest['recipe'])}",
        f"- Settings: {settings}",
        f"- Labels: {', '.join(map(_code, labels)) or 'none'}",
        *_list("Left out", left_out),
        *_list("Passed over", passed_over),
        *_list("Pairs that look odd", seen),
        "",
        f"{_code(MANIFEST)} says where each sample lies. Each has {_code('KEY.json')}, {_code('KEY.line.png')} and "
        f"{_code('KEY.sketch.png')}. To train on the pairs: {_code('dist-sketch train --data.shards FOLDER')}.",
    ]
    return "\n".join(sections) + "\n"


def _front(manifest: dict[str, Any], pairs: int) -> str:
    """The first lines, YAML for the Hub."""
    from huggingface_hub import DatasetCardData  # only here: packing in parts needs no card

    name = hub_name(manifest["license"])
    files = [{"split": HUB_SPLITS.get(split, split), "path": f"{split}-*.tar"} for split in manifest["splits"]]
    named: dict[str, Any] = {"license_name": one_line(manifest["license"])} if name == "other" else {}
    about = DatasetCardData(
        license=name,
        pretty_name=one_line(manifest["recipe"]),
        task_categories=["image-to-image"],
        tags=["webdataset", "sketch"],
        size_categories=[next((size for most, size in SIZES.items() if pairs < most), "n>1M")],
        configs=[{"config_name": "default", "data_files": files}],
        **named,
    )
    return f"---\n{about.to_yaml()}\n---"


def _list(what: str, lines: Sequence[str]) -> list[str]:
    more = [f"... and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    shown = [f"  - {line}" for line in [*lines[:LISTED], *more]]
    return [f"- {what}: {len(lines)}", *shown] if shown else [f"- {what}: nothing"]


def _plain(value: Any) -> str:
    """Others' words, which Markdown only shows."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", one_line(str(value)))


def _code(value: Any) -> str:
    return f"`{one_line(str(value)).replace('`', ' ')}`"
