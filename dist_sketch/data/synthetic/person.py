"""A person as parameters, and the curves and pencil strokes that a portrait is made of.

Curves use the head's units: the eyes are at y = 0 (y grows downwards), the cheeks at x = -1 and 1, the chin near y =
1.45.
"""

import typing
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
N = 32  # vertices of a curve; a bundle of k curves is (k, N, 2)
S: Array = np.linspace(0, 1, N)
SIDES = (-1, 1)

Kinds = tuple[tuple[str, int, int], ...]  # (name, weight for men, weight for women)
HAIR: Kinds = (("bald", 3, 0), ("buzz", 3, 0), ("crop", 5, 1), ("swept", 5, 1), ("curly", 3, 3), ("parted", 5, 2))
HAIR += (("fringe", 1, 4), ("bob", 0, 5), ("long", 1, 5), ("wavy", 1, 5), ("bun", 0, 4))
BEARD = (("none", 9, 1), ("stubble", 4, 0), ("full", 4, 0), ("goatee", 2, 0), ("moustache", 2, 0))
COLLAR = (("crew", 4, 3), ("v", 3, 3), ("shirt", 4, 2), ("suit", 3, 1), ("turtle", 2, 2), ("scoop", 0, 3))
GLASSES = (("none", 5, 5), ("round", 1, 1), ("square", 1, 1))


@dataclass(frozen=True)
class Face:
    """A person in a pose. Each number is annotated with (low, high, addition for men), each kind with its table."""

    tilt: Annotated[float, -0.15, 0.15, 0]
    turn: Annotated[float, -0.42, 0.42, 0]
    nod: Annotated[float, -0.06, 0.06, 0]
    scale: Annotated[float, 0.2, 0.245, 0]
    x: Annotated[float, 0.46, 0.54, 0]
    y: Annotated[float, 0.43, 0.48, 0]
    cheek: Annotated[float, 0.92, 1.02, 0]
    jaw: Annotated[float, 0.7, 0.82, 0.1]
    chin: Annotated[float, 0.22, 0.33, 0.09]
    length: Annotated[float, 1.38, 1.56, 0]
    eye: Annotated[float, 0.215, 0.255, -0.015]
    lids: Annotated[float, 0.65, 1.0, 0]
    gap: Annotated[float, 0.41, 0.46, 0]
    slant: Annotated[float, -0.02, 0.04, 0]
    gaze: Annotated[float, -0.5, 0.5, 0]
    brow: Annotated[float, 0.5, 0.8, 0.35]
    arch: Annotated[float, 0.02, 0.11, -0.01]
    nose: Annotated[float, 0.58, 0.69, 0]
    nostril: Annotated[float, 0.17, 0.22, 0.03]
    mouth: Annotated[float, 0.35, 0.44, 0.01]
    lips: Annotated[float, 0.85, 1.3, -0.25]
    smile: Annotated[float, 0.015, 0.12, 0]
    joy: Annotated[float, 0, 1, 0]
    age: Annotated[float, 0, 1, 0]
    neck: Annotated[float, 0.46, 0.54, 0.15]
    volume: Annotated[float, 0.08, 0.2, -0.02]
    part: Annotated[float, -0.45, 0.45, 0]
    wave: Annotated[float, 0.01, 0.05, 0]
    dark: Annotated[float, 0.25, 1, 0]
    cloth: Annotated[float, 0.02, 0.6, 0]
    paper: Annotated[float, 0.92, 0.97, 0]
    hair: Annotated[str, HAIR]
    beard: Annotated[str, BEARD]
    collar: Annotated[str, COLLAR]
    glasses: Annotated[str, GLASSES]

    @property
    def laughs(self) -> bool:
        """Whether the teeth show."""
        return self.joy > 0.78

    def skin(self, points: ArrayLike, depth: float = 1.0) -> Array:
        """Turns and nods points of the face, which lie on a cylinder; the nose is in front of it: `depth` above 1."""
        p, r = np.asarray(points, float), 1.08 * depth
        angle = np.arcsin(np.clip(p[..., 0] / r, -1, 1)) + self.turn
        return np.stack([r * np.sin(angle), p[..., 1] + self.nod * (3 * depth - 2)], -1)

    def edge(self, points: ArrayLike) -> Array:
        """Turns points of the outline: the chin moves with the face, the back of the head in the other direction."""
        p = np.asarray(points, float)
        shift = np.interp(p[..., 1], [-1.5, 0, 0.8, 1.5, 2.2], [-0.15, 0.12, 0.6, 0.85, 0.2])
        return np.stack([p[..., 0] + self.turn * shift, p[..., 1] + self.nod / 2], -1)


def person(rng: Generator) -> Face:
    """Draws a random person; beard, jaw, neck and hair are loosely correlated, as they are in people."""
    male = bool(rng.random() < 0.5)
    values: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(Face, include_extras=True).items():
        if typing.get_args(hint)[0] is float:
            _, low, high, more = typing.get_args(hint)
            values[name] = rng.uniform(low, high) + more * male
        else:
            kinds: Kinds = typing.get_args(hint)[1]
            weights = np.array([row[1 if male else 2] for row in kinds])
            values[name] = kinds[rng.choice(len(kinds), p=weights / weights.sum())][0]
    return Face(**values)


def spline(points: ArrayLike, n: int = N) -> Array:
    """Catmull-Rom curve through `points` (m, 2), as (n, 2) vertices."""
    p = np.asarray(points, float)
    p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    u = np.linspace(0, len(p) - 3, n)
    i = np.minimum(u.astype(int), len(p) - 4)
    f, (a, b, c, d) = (u - i)[:, None], (p[i + j] for j in range(4))
    return 0.5 * (2 * b + (c - a) * f + (2 * a - 5 * b + 4 * c - d) * f**2 + (3 * b - a - 3 * c + d) * f**3)


def shift(curve: ArrayLike, x: float, y: float) -> Array:
    """The curve moved by (x, y)."""
    return np.asarray(curve, float) + np.array([x, y])


def twins(points: ArrayLike) -> list[Array]:
    """Two splines, left and right, through points that are given for the right side."""
    return [spline(np.asarray(points, float) * (side, 1)) for side in SIDES]


def mirror(half: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A symmetric row of points from its right half, which begins in the middle."""
    return [(-x, y) for x, y in half[:0:-1]] + half


def cut(curve: Array, start: ArrayLike, end: ArrayLike) -> Array:
    """Pieces of a curve (n, 2), from the shares `start` to `end` (k) of its length: (k, N, 2)."""
    a, b = np.atleast_1d(start)[:, None], np.atleast_1d(end)[:, None]
    at, index = (a + (b - a) * S) * (len(curve) - 1), np.arange(len(curve))
    return np.stack([np.interp(at, index, curve[:, 0]), np.interp(at, index, curve[:, 1])], -1)


def pieces(curve: Array, k: int) -> Array:
    """A long curve as k strokes that overlap a little, as in a drawing by hand."""
    ends = np.linspace(0, 1, k + 1)
    return cut(curve, ends[:-1] - 0.12 / k, ends[1:] + 0.12 / k)


def across(start: ArrayLike, end: ArrayLike, k: int, lift: ArrayLike = (0, 0)) -> Array:
    """k curves from the spline `start` to the spline `end`, each bent by `lift`."""
    a, b, s = spline(start, k)[:, None], spline(end, k)[:, None], S[:, None]
    return a + (b - a) * s + 4 * s * (1 - s) * np.asarray(lift, float)


def along(a: Array, b: Array, k: int, rng: Generator, wave: float) -> Array:
    """k curves between the curves `a` and `b`; towards their tips they gather in locks and swing."""
    t = np.linspace(0, 1, k)[:, None]
    t = t + ((np.floor(t * 9) + 0.5) / 9 - t) * 0.6 * S * (t > 0) * (t < 1)
    swing = np.sin(14 * S + 3 * t + rng.uniform(0, 6) + rng.normal(0, 0.25, (k, 1))) * S * wave
    fray = rng.normal(0, 0.07, (k, 1)) * S**5
    return a + (b - a) * t[..., None] + np.stack([swing, fray], -1)


def sprout(strands: Array, k: int, length: float, rng: Generator, low: float = 0.0, high: float = 1.0) -> Array:
    """k short hairs along randomly chosen strands; `length` is a share of a strand's length."""
    at = rng.uniform(low, high - length, k)
    row, at = rng.integers(0, len(strands), (k, 1)), (at[:, None] + length * S) * (N - 1)
    i = np.minimum(at.astype(int), N - 2)
    return strands[row, i] + (strands[row, i + 1] - strands[row, i]) * (at - i)[..., None]


def disc(x: float, y: float, rx: float, ry: float, turns: float = 1.0, inner: float = 1.0) -> Array:
    """An ellipse, or a spiral that ends at the share `inner` of its radius."""
    a, r = S * turns * 2 * np.pi, 1 + (inner - 1) * S
    return np.stack([x + rx * r * np.cos(a), y + ry * r * np.sin(a)], -1)


@dataclass(frozen=True)
class Marks:
    """Strokes of the line drawing or of the sketch: curves (k, N, 2), pressure (k, N), the pencil's width."""

    curves: Array
    press: Array
    width: float = 1.0
    line: bool = False
    inside: bool = False  # drawn only inside the layer's own shape


@dataclass(frozen=True)
class Layer:
    """One part of the portrait. Its shape hides what is behind it; `form` is shade at the edge away from the light,
    `shades` are blobs (x, y, rx, ry, strength)."""

    shape: Array | None
    marks: tuple[Marks, ...] = ()
    tone: float = 0.0
    form: float = 0.0
    shades: tuple[tuple[float, ...], ...] = ()
    body: bool = False  # belongs to the body, which does not tilt with the head


def pencil(*curves: Array, press: float = 0.8, width: float = 1.0, inside: bool = False) -> Marks:
    """Strokes of the sketch, with less pressure at both ends."""
    stack = np.concatenate([c.reshape(-1, N, 2) for c in curves])
    pressure = np.tile(press * (0.35 + 0.65 * np.sin(np.pi * S) ** 0.5), (len(stack), 1))
    return Marks(stack, pressure, width, inside=inside)


def rough(*curves: Array, inside: bool = False) -> Marks:
    """Strokes of the line drawing."""
    stack = np.concatenate([c.reshape(-1, N, 2) for c in curves])
    return Marks(stack, np.ones(stack.shape[:2]), line=True, inside=inside)


def both(*curves: Array, press: float = 0.8, width: float = 1.0) -> tuple[Marks, Marks]:
    """The same strokes in the sketch and in the line drawing."""
    return pencil(*curves, press=press, width=width), rough(*curves)
