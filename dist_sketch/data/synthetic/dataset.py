"""Procedural portraits: pairs of a rough line drawing and the same face finished in pencil.

The steps: `person` -> `portrait` (layers) -> `render_line`, `render_sketch`.
"""

import io
import os
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.progress import track
from scipy.ndimage import gaussian_filter

from dist_sketch.core import cpus
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import read_regular, write_atomic
from dist_sketch.core.folders import refuse_file_name, tidy
from dist_sketch.core.workers import check_count
from dist_sketch.core.workers import workers as processes
from dist_sketch.data.synthetic.person import Array, Layer, N, S, person
from dist_sketch.data.synthetic.portrait import portrait


def _canvas(size: int) -> int:
    return size * 2 if size <= 512 else size  # small images are drawn at twice their size and reduced


def _front_layer(layers: list[Layer], n: int) -> NDArray[np.uint8]:
    """The number of the front layer at each pixel (n, n)."""
    image = Image.new("L", (n, n), 0)
    for i, layer in enumerate(layers):
        if layer.shape is not None:
            ImageDraw.Draw(image).polygon([(x, y) for x, y in (layer.shape * n).tolist()], fill=i)
    return np.asarray(image)


def _strokes(layers: list[Layer], line: bool) -> dict[float, tuple[Array, Array, Array, Array]]:
    """Strokes of the line drawing or the sketch, by width: curves (k, N, 2), press (k, N), layer (k), inside (k)."""
    groups: dict[float, list[tuple[Array, Array, Array, Array]]] = {}
    for i, layer in enumerate(layers):
        for m in (m for m in layer.marks if m.line == line):
            flags = np.full((2, len(m.curves)), [[i], [m.inside]])
            groups.setdefault(m.width, []).append((m.curves, m.press, *flags))
    return {w: tuple(map(np.concatenate, zip(*g, strict=True))) for w, g in sorted(groups.items())}  # type: ignore[misc]


def _deposit(
    front: NDArray[np.uint8], radius: float, curves: Array, press: Array, layer: Array, inside: Array
) -> Array:
    """Graphite (n, n) of strokes: dots a pixel apart, blurred to `radius` px, where no other layer is in front."""
    n = len(front)
    a, b = (c.reshape(-1, 2) * n for c in (curves[:, :-1], curves[:, 1:]))
    length = np.hypot(*(b - a).T)
    count = np.ceil(length).astype(int)
    which = np.repeat(np.arange(len(a)), count)
    f = (np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)) / count[which]
    x, y = (a[which] + (b - a)[which] * f[:, None]).T - 0.5
    ok = (x >= 0) & (y >= 0) & (x < n - 1) & (y < n - 1)
    x, y, which = x[ok], y[ok], which[ok]
    xi, yi, row = x.astype(int), y.astype(int), which // (N - 1)
    top = front[yi, xi]
    visible = np.where(inside[row], top == layer[row], top <= layer[row])
    ink = (press[:, :-1].ravel() * length / np.maximum(count, 1))[which] * visible
    x, y, at = x - xi, y - yi, yi * n + xi
    corners = ((0, (1 - x) * (1 - y)), (1, x * (1 - y)), (n, (1 - x) * y), (n + 1, x * y))
    dots = np.bincount(
        np.concatenate([at + o for o, _ in corners]), np.concatenate([ink * w for _, w in corners]), n * n
    )
    return gaussian_filter(dots.reshape(n, n).astype(np.float32), radius, truncate=2.5) * radius * np.sqrt(2 * np.pi)


def render_line(layers: list[Layer], size: int, rng: Generator) -> Image.Image:
    """Draws the line drawing: wobbling strokes on white that overshoot, have gaps and are sometimes doubled."""
    curves, press, *where = _strokes(layers, True)[1.0]
    again = np.concatenate([np.arange(len(curves)), np.flatnonzero(rng.random(len(curves)) < 0.15)])
    curves, layer, inside, k = curves[again], where[0][again], where[1][again], len(again)
    length = np.hypot(*np.diff(curves, axis=1).T).sum(0)[:, None, None]
    phase, amplitude = rng.uniform(0, 6.3, (k, 3, 2, 1)), rng.normal(0, 1, (k, 3, 2, 1))
    wave = np.sin(np.array([3, 6, 12])[:, None, None] * S + phase) * amplitude
    curves = curves + wave.sum(1).transpose(0, 2, 1) * np.minimum(0.0022, 0.02 * length)
    curves[:, [0, -1]] += (curves[:, [0, -1]] - curves[:, [2, -3]]) * rng.uniform(-0.3, 0.6, (k, 2, 1))
    gap = rng.uniform(0.2, 0.8, (k, 1)) + 9 * (rng.random((k, 1)) > 0.3)
    press, n = rng.uniform(0.75, 1.0, (k, 1)) * (np.abs(S - gap) > 0.04), _canvas(size)
    ink = _deposit(_front_layer(layers, n), max(0.0021 * n, 0.8), curves, press, layer, inside)
    return _finish(255 - 225 * np.clip(1.15 - 1.15 * np.exp(-2.2 * np.maximum(ink - 0.12, 0)), 0, 1), size)


def _tones(layers: list[Layer], front: NDArray[np.uint8]) -> Array:
    """Darkness of surfaces and shadows at each pixel (n, n), without strokes. Light comes from the upper left."""
    n, g, under = len(front), 128, 0
    tone, grid = np.array([layer.tone for layer in layers])[front], (np.arange(g) + 0.5) / g
    for i, layer in enumerate(layers):
        field = np.zeros((g, g))
        for x, y, a, b, v in layer.shades:
            field += v * np.exp(-(((grid - x) / a) ** 2)) * np.exp(-(((grid - y) / b) ** 2))[:, None]
        if layer.form:  # shade where the shape, blurred and shifted towards the light, does not cover
            mask = np.pad(_front_layer([Layer(None), layer], g), 16, "edge").astype(np.float32)
            lit = np.roll(gaussian_filter(mask, 6), (-1, -6), (0, 1))[16:-16, 16:-16]
            field += layer.form * 2 * np.maximum(0, 0.62 - lit)
        under = i if layer.form else under  # layers without a shape (nose, beard) shade the head
        if field.any():
            wide = Image.fromarray(field.astype(np.float32)).resize((n, n), Image.Resampling.BILINEAR)
            tone += np.asarray(wide) * (front == (i if layer.shape is not None else under))
    return tone


def _hatch(tone: Array, angle: float, above: float, rng: Generator) -> tuple[Array, Array]:
    """Short parallel strokes where `tone` exceeds `above`: curves (k, N, 2), press (k, N)."""
    u, v = (g.ravel() for g in np.meshgrid(np.arange(-0.75, 0.75, 0.0105), np.arange(-0.75, 0.75, 0.045)))
    u, v = u + rng.normal(0, 0.002, u.size), v + rng.uniform(-0.02, 0.02, u.size)
    reach = rng.uniform(0.03, 0.08, u.size)[:, None] * (S - 0.5)
    x, y, c, s = v[:, None] + reach, u[:, None] + 1.5 * reach**2, np.cos(angle), np.sin(angle)
    curves = np.stack([0.5 + c * x - s * y, 0.5 + s * x + c * y], -1)
    xi, yi = np.moveaxis(np.clip((curves * len(tone)).astype(int), 0, len(tone) - 1), -1, 0)
    dark = tone[yi, xi]
    keep = dark[:, N // 2] > above + rng.normal(0, 0.03, u.size)
    return curves[keep], np.clip(dark[keep] - above * 0.5, 0, 0.8) * (0.3 + 0.7 * np.sin(np.pi * S))


def render_sketch(layers: list[Layer], size: int, paper: float, rng: Generator) -> Image.Image:
    """Draws the sketch: soft tones, hatching, cross-hatching and strokes, all broken up by the paper's grain."""
    n = _canvas(size)
    front, unit = _front_layer(layers, n), n / 512
    tone = _tones(layers, front)
    hatching = [_hatch(tone, angle, above, rng) for angle, above in ((-0.9, 0.1), (-0.65, 0.3), (0.75, 0.42))]
    curves, press = (np.concatenate(x) for x in zip(*hatching, strict=True))
    anywhere = np.full(len(curves), 255), np.zeros(len(curves))
    graphite = 0.3 * tone + _deposit(front, 0.8 * unit, curves, press, *anywhere)
    for width, (curves, press, *where) in _strokes(layers, False).items():
        curves = curves + rng.normal(0, 0.0012, (len(curves), 1, 2))
        graphite += _deposit(front, max(0.85 * width * unit, 0.5), curves, press, *where)
    noise = gaussian_filter(rng.standard_normal((512, 512), np.float32), 0.7)
    grain = np.asarray(Image.fromarray(noise / noise.std()).resize((n, n), Image.Resampling.BICUBIC))
    dark = 1 - np.exp(-1.25 * graphite * np.clip(1 + 0.36 * grain, 0.35, 2))
    return _finish(255 * (paper + 0.006 * grain) * (1 - 0.86 * dark), size)


def _finish(page: Array, size: int) -> Image.Image:
    image = Image.fromarray(np.clip(page + 0.5, 0, 255).astype(np.uint8))
    return image.reduce(image.width // size) if image.width > size else image


def draw(seed: int, index: int, size: int) -> tuple[Image.Image, Image.Image]:
    """Pair number `index` of `seed` as (line, sketch), gray, `size` x `size` pixels; a pure function."""
    a, b, c, d = (np.random.default_rng(s) for s in np.random.SeedSequence([seed, index]).spawn(4))
    face = person(a)
    layers = portrait(face, b)
    return render_line(layers, size, c), render_sketch(layers, size, face.paper, d)


def write(
    root: Path, *, count: int = 64, val: int = 16, size: int = 256, seed: int = 0, workers: int | None = None
) -> None:
    """Writes RGB JPEGs ROOT/{train,val}_{line,sketch}/N.jpg: N = 1 to `count`, then `val` more for validation.

    The bytes do not depend on the number of `workers` (processes; None: one for each CPU).

    Raises:
        UserError: a value is out of range; ROOT is a file, cannot be written, or holds anything that this call would
            not write.
    """
    for name, value, low in (("count", count, 1), ("val", val, 0), ("seed", seed, 0)):
        if value < low:
            raise UserError(f"synth --{name} {value}: must be at least {low}")
    check_count(workers, 1)
    if not 64 <= size <= 2048:
        raise UserError(f"synth --size {size}: must be 64 to 2048 pixels")
    if root.exists() and not root.is_dir():
        raise UserError(f"{root}: is a file; name a folder (it is created if it does not exist)")
    refuse_file_name(root, "this is the folder for all pairs")
    folders = {split: [root / f"{split}_{side}" for side in ("line", "sketch")] for split in ("train", "val")}
    jobs = [(n, folders["train" if n <= count else "val"]) for n in range(1, count + val + 1)]
    wanted = {folder / f"{n}.jpg" for n, pair in jobs for folder in pair}
    present = [p for pair in folders.values() for folder in pair if folder.is_dir() for p in folder.iterdir()]
    others = sorted(p for p in present if p not in wanted and not p.name.startswith("."))
    if others:
        what = f"already holds {len(others)} files that this call would not write, such as {others[0]}"
        raise UserError(f"{root}: {what}; name another folder, or delete this one first")
    there = [(n, pair) for n, pair in jobs if any(os.path.lexists(folder / f"{n}.jpg") for folder in pair)]
    missing = [job for job in jobs if job not in there]
    # Only the names are known of what is there. It comes first, so that nothing is written beside somebody's pictures.
    draw_pair = partial(_write_pair, seed=seed, size=size)
    for folder in {folder for _, pair in jobs for folder in pair}:
        tidy(folder)
    with processes(min(workers or len(cpus.usable()), len(jobs)), "spawn", "fewer --workers") as pool:
        done = (one for part in (there, missing) for one in pool.map(draw_pair, part))
        for _ in track(done, f"drawing {len(jobs)} pairs", total=len(jobs)):
            pass


def _write_pair(job: tuple[int, list[Path]], *, seed: int, size: int) -> None:
    """Writes a pair, or completes it; an existing picture must be the same that would be written."""
    number, folders = job
    pictures = {}
    for folder, image in zip(folders, draw(seed, number, size), strict=True):
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=95)
        pictures[folder / f"{number}.jpg"] = buffer.getvalue()
    there = [path for path in pictures if os.path.lexists(path)]
    for path in there:
        if path.is_symlink() or not _holds(path, pictures[path]):
            raise UserError(
                f"{path}: is another picture than this call would write (of another seed or size, or not of synth); "
                "name another folder, or remove it first"
            )
    for path in pictures.keys() - there:
        write_atomic(path, pictures[path])


def _holds(path: Path, data: bytes) -> bool:
    try:
        return read_regular(path, len(data)) == data
    except OSError:  # a larger file, or none that can be read
        return False
