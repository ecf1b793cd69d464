"""Builds a portrait as layers of strokes, back to front: head, features, clothes, hair."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from dist_sketch.data.synthetic.person import (
    SIDES,
    Array,
    Face,
    Layer,
    Marks,
    N,
    S,
    across,
    along,
    both,
    cut,
    disc,
    mirror,
    pencil,
    pieces,
    rough,
    shift,
    spline,
    sprout,
    twins,
)


def head(face: Face) -> Layer:
    """Skull, cheeks, jaw and chin, with their shading (the light comes from the upper left)."""
    f, low = face, face.length
    half = [(0.0, low), (f.chin * 0.7, low - 0.03), (f.chin + 0.22, low - 0.2), (f.jaw, 0.92), (f.cheek * 0.95, 0.5)]
    half += [(f.cheek, 0.15), (0.95, -0.4), (0.82, -0.92), (0.5, -1.25), (0.0, -1.36)]
    ring = f.edge(spline(mirror(half), 161))
    ends = (0.0, 1.0) if f.hair in ("bald", "buzz") else (0.16, 0.84)
    marks = [*both(pieces(cut(ring, *ends)[0], 6), press=0.75), pencil(cut(ring, 0.52, 0.72), press=0.5, width=1.5)]
    fold = [(f.nostril, f.nose - 0.08), (f.mouth * 0.9, f.nose + 0.14), (f.mouth * 1.1, f.nose + 0.25)]
    if f.age > 0.6 or f.laughs:
        marks.append(pencil(*map(f.skin, twins(fold)), press=0.1 + 0.35 * f.age**2))
    if f.age > 0.88:
        marks += both(*(spline(f.skin([(-0.4, y + 0.03), (0, y), (0.4, y + 0.02)])) for y in (-0.58, -0.68)), press=0.3)
    spots = [(-f.gap + 0.1, -0.1, 0.22, 0.12, 0.22), (f.gap - 0.05, -0.1, 0.25, 0.13, 0.3)]
    spots += [(0.66, 0.55, 0.22, 0.3, 0.16), (0.02, f.nose + 0.58, 0.2, 0.06, 0.28)]
    spots += [(0.05, f.nose + 0.12, 0.17, 0.07, 0.3)]
    if f.hair not in ("bald", "buzz"):
        spots.append((0, -0.95, 0.8, 0.2, 0.3))
    return Layer(ring, tuple(marks), 0.0, 0.75, tuple((*f.skin([x, y]), *rest) for x, y, *rest in spots))


def ear(face: Face, side: int) -> Layer:
    """One ear; the near one moves over the cheek when the head turns."""
    x0 = side * (0.97 - 0.3 * max(0.0, -side * face.turn)) + 0.12 * face.turn
    rim = [(-0.03, 0.14), (0.05, -0.03), (0.17, -0.04), (0.21, 0.14), (0.15, 0.4), (0.07, 0.56), (-0.02, 0.54)]
    inner = [(0.02, 0.1), (0.1, 0.04), (0.14, 0.14), (0.08, 0.3), (0.03, 0.32)]
    shape, fold = (spline(np.array(c) * (side, 1) + (x0, 0)) for c in (rim, inner))
    return Layer(shape, (*both(pieces(shape, 2)), *both(fold, press=0.6)), 0.1, 0.3)


def eye(face: Face, side: int, rng: Generator) -> Iterator[Layer]:
    """Lids, lashes, iris and its highlight; the brow as short hairs that lean outwards."""
    w, h = face.eye, 0.115 * face.lids * (0.82 if face.laughs else 1.0)

    def at(points: ArrayLike, lift: float = 0.0) -> Array:
        x, y = np.moveaxis(np.asarray(points, float), -1, 0)
        return face.skin(np.stack([side * (face.gap + x * w), 0.02 - lift + y * h - face.slant * (x + 1)], -1))

    upper = spline(at([(-1, 0.3), (-0.55, -0.65), (0, -1), (0.55, -0.75), (1, 0)]))
    lower = spline(at([(-1, 0.3), (-0.4, 0.65), (0.3, 0.75), (1, 0)]))
    crease = spline(at([(-0.9, -0.75), (-0.3, -1.6), (0.4, -1.6), (1.05, -0.75)]))
    bag = spline(at([(-0.7, 1.5), (0.1, 1.9), (0.8, 1.1)]))
    (x, y), r = shift(at((0, -0.08)), face.gaze * w * 0.3, 0), 0.46 * w
    rx = r * np.cos(face.turn)
    iris, rays = disc(x, y, rx, r), across(disc(x, y, rx, r), disc(x, y, rx * 0.4, r * 0.4), 30)
    tips = upper[14:] + np.stack([side * 0.07 * S[14:], 0 * S[14:] - 0.05], -1)
    marks = (
        pencil(rays, press=0.3 + 0.4 * face.dark, inside=True),
        pencil(iris, disc(x, y, rx * 0.45, r * 0.45, 4, 0.1), press=1.0, inside=True),
        rough(iris, disc(x, y, rx * 0.3, r * 0.3), inside=True),
        pencil(shift(upper, 0, 0.035), press=0.3, width=2.5, inside=True),
        *both(upper, press=1.1, width=1.5),
        pencil(upper, across(upper[14:], tips, 6), press=0.6),
        *both(crease, press=0.45),
        pencil(lower, press=0.5),
        rough(cut(lower, 0.3, 1)),
        pencil(bag, press=0.4 * face.age**2),
    )
    yield Layer(np.concatenate([upper, lower[::-1]]), marks)
    yield Layer(disc(x - 0.3 * rx, y - 0.3 * r, rx * 0.24, r * 0.24))
    base = np.array(
        [(-0.95, 0.1), (-0.5, -0.3 - face.arch * 3), (0.2, -face.arch * 8), (0.8, -face.arch * 6), (1.35, 0.6)]
    )
    lift, thick = 0.27 + 0.05 * face.laughs, face.brow * np.array([[0, 0.5], [0, 0.7], [0, 0.6], [0, 0.35], [0, 0.05]])
    band = across(at(base + thick, lift), at(base - thick, lift), 50, (side * 0.03, 0))
    hairs = sprout(band, 70, 0.5, rng) + (S - 0.5)[:, None] * (side * 0.06, 0)
    ridge = spline(at(base, lift))
    yield Layer(None, (pencil(hairs, press=0.4 + 0.4 * face.dark), pencil(ridge, press=0.2, width=2.5), rough(ridge)))


def nose(face: Face) -> Layer:
    """Wings, nostrils, tip and the shaded side of the bridge."""
    n, w, side = face.nose, face.nostril, 1 if face.turn >= 0 else -1

    def at(points: list[tuple[float, float]], s: float = 1) -> Array:
        return spline(face.skin(np.array(points) * (s * w, 1) + (0, n), 1.22))

    wings = [at([(0.8, -0.13), (1, -0.05), (0.95, 0.02), (0.7, 0.03)], s) for s in SIDES]
    holes = [at([(0.7, 0), (0.5, -0.025), (0.25, 0.02)], s) for s in SIDES]
    dark = [across(hole[::8], shift(hole[::8], 0, 0.022), 6) for hole in holes]
    base = at([(-0.4, 0.01), (0, 0.05), (0.4, 0.01)])
    bridge = at([(0.8, -n - 0.2), (0.4, -n), (0.4, 0.25 - n), (0.55, -0.15)], side)
    marks: tuple[Marks, ...] = (
        *both(*wings, base, press=0.7),
        pencil(*holes, *dark, press=0.9, width=1.5),
        rough(*holes),
    )
    marks += (pencil(cut(bridge, [0, 0.6], [0.65, 1]), press=0.3), rough(cut(bridge, 0.3, 0.8)))
    return Layer(None, marks, shades=((*face.skin([0.14, 0.35], 1.2), 0.08, 0.28, 0.22),))


def mouth(face: Face) -> Layer:
    """Lips, and teeth between them when the face laughs."""
    y, w, lip, open_ = face.nose + 0.34, face.mouth * (1 + 0.15 * face.laughs), 0.11 * face.lips, 0.14 * face.laughs
    end = (1.0, -face.smile - 0.05 * face.laughs)

    def at(half: list[tuple[float, float]]) -> Array:
        return spline(face.skin(np.array(mirror(half)) * (w, 1) + (0, y), 1.08))

    top = at([(0, -lip * 0.8), (0.15, -lip), (0.45, -lip * 0.75), end])
    mid = at([(0, 0.015), (0.15, -0.005), (0.5, 0), end])
    inner = at([(0, open_ + 0.015), (0.15, open_), (0.5, open_ * 0.8), end])
    low = at([(0, open_ + lip * 1.25), (0.4, open_ + lip * 0.95), (0.85, end[1] * 0.6 + 0.02)])
    marks = [
        pencil(across(top[::4], mid[::4], 34)[2:-2], press=0.36),
        pencil(across(inner[::4], low[::4], 24)[3:-3], press=0.2),
    ]
    marks += [*both(mid, press=1.0, width=1.5), *both(top, press=0.45), *both(low, press=0.55)]
    if face.laughs:
        gums = [across(mid[a], inner[a], 8) for a in (slice(0, 8, 2), slice(-1, -9, -2))]
        marks += [
            *both(inner, press=0.7),
            pencil(*gums, press=0.8),
            pencil(across(mid[6:26:4], shift(mid[6:26:4], 0, 0.06), 8), press=0.2),
        ]
    dents = [
        spline(shift([(s * 0.035, -0.04), (s * 0.05, 0), (s * 0.03, 0.05)], *mid[i])) for s, i in ((-1, 0), (1, -1))
    ]
    return Layer(np.concatenate([top, low[::-1]]), (*marks, pencil(*dents, press=0.4)))


def beard(face: Face, rng: Generator) -> Layer:
    """Short hairs that grow downwards from the cheeks and below the nose."""
    f, y, w, short = face, face.nose + 0.34, face.mouth + 0.12, face.beard == "stubble"
    low = [(0, f.length + 0.03), (f.chin + 0.2, f.length - 0.16), (f.jaw + 0.02, 0.9), (f.jaw + 0.1, 0.3)]
    jaw = f.edge(mirror(low))
    cheek = f.skin(mirror([(0, y + 0.24), (w, y - 0.12), (0.7, 0.7), (0.86, 0.3)]))
    lip = f.skin(mirror([(0, y - 0.12), (w * 0.6, y - 0.08), (w, y + 0.12)]), 1.05)
    under = f.skin(mirror([(0, f.nose + 0.09), (0.12, f.nose + 0.08), (w * 0.8, y - 0.1)]), 1.1)
    chin, hairs = across(cheek, jaw, 200), []
    if f.beard != "moustache":
        bundle, k = (chin[70:130], 150) if f.beard == "goatee" else (chin, 420)
        hairs.append(sprout(bundle, k, 0.09 if short else 0.25, rng))
    if f.beard != "stubble":
        hairs.append(sprout(across(under, lip, 60), 130, 0.7, rng))
    stack = np.concatenate(hairs) + rng.normal(0, 0.02, (sum(map(len, hairs)), 1, 2)) * S[:, None]
    marks = pencil(stack, press=0.35 if short else 0.4 + 0.35 * f.dark), rough(stack[::11])
    return Layer(None, marks[: 2 - short], shades=((*f.edge([0.0, f.length - 0.15]), 0.55, 0.25, 0.2),))


def glasses(face: Face) -> Layer:
    """Two rims, a bridge, and the temple on the near side."""
    power, w, h = (1.0, 0.33, 0.3) if face.glasses == "round" else (0.5, 0.36, 0.25)
    c, s = np.cos(2 * np.pi * S + 0.4), np.sin(2 * np.pi * S + 0.4)
    rim = np.stack([w * np.sign(c) * abs(c) ** power, h * np.sign(s) * abs(s) ** power + 0.04], -1)
    rims = [face.skin(shift(rim, side * face.gap, 0), 1.06) for side in SIDES]
    wires = [spline(face.skin([(w - face.gap, 0.0), (0, -0.06), (face.gap - w, 0.0)], 1.12))]
    for side in (s for s in SIDES if s * face.turn < 0.15):
        wires.append(spline([face.skin((side * (face.gap + w), -0.02), 1.06), face.edge((side * 0.99, 0.02))]))
    return Layer(None, (*both(*rims, *wires, press=1.0, width=1.5), pencil(*rims, press=0.8)))


def body(face: Face, rng: Generator) -> Iterator[Layer]:
    """Neck, shoulders and clothes."""
    w, base, x, kind = face.neck, face.length + 0.34, 0.35 * face.turn, face.collar
    neck = [(1.5 * x, 0.7, 1.0), (1.3 * x, face.length, 0.95), (x * 0.6, base - 0.08, 1.0)]
    throats = [[(s * w * b + a, y) for a, y, b in neck] for s in SIDES]
    sides = [
        spline([*p, (s * (w + 0.25), base + 0.14), (s * (w + 0.8), base + 0.5)])
        for s, p in zip(SIDES, throats, strict=True)
    ]
    bones = twins([(0.1, base + 0.42), (0.5, base + 0.3), (1.1, base + 0.22)])
    cord = spline([(0.5 * w + x, face.length + 0.1), (0.3 * w, base), (0.06, base + 0.35)])
    marks: tuple[Marks, ...] = (*both(*sides, press=0.7), pencil(cord, *bones, press=0.35), rough(bones[1]))
    shade = (1.2 * x + 0.12, face.length + 0.05, w * 0.9, 0.22, 0.6)
    yield Layer(np.concatenate([sides[0], [(-3, 5), (3, 5)], sides[1][::-1]]), marks, 0.0, 0.5, (shade,), True)
    open_ = kind in ("v", "shirt", "suit")
    n, t, dip = w + 0.16, base + 0.04, {"crew": 0.28, "turtle": -0.2, "scoop": 0.62}.get(kind, 0.6)
    n, t = (n + 0.4, t + 0.16) if kind == "scoop" else (n, t - 0.2) if kind == "turtle" else (n, t)
    first, second = ((0.33, 0.7), (0.66, 0.4)) if open_ else ((0.6, 0.92), (0.85, 0.4))
    throat = [(0.0, dip), (n * first[0], dip * first[1]), (n * second[0], dip * second[1]), (n, 0.0)]
    neckline = shift(spline(mirror(throat), 64), 0, t)
    arm = [(n, t), (n + 0.35, base + 0.22), (1.55 + 0.5 * w, base + 0.55), (1.9 + 0.5 * w, base + 1.1), (2.3, 5)]
    arms = twins(arm)
    creases = zip(rng.uniform(-1.5, 1.5, 4), base + rng.uniform(0.7, 1.1, 4), strict=True)
    folds = [spline([(a, y), (a + 0.08, y + 0.5), (a - 0.1, base + 1.8)]) for a, y in creases]
    marks = (*both(*pieces(neckline, 2), *arms, press=0.8), pencil(*folds, press=0.4), rough(folds[0]))
    if kind in ("crew", "v", "turtle", "scoop"):
        hem = shift(neckline, 0, {"turtle": 0.38, "scoop": 0.04}.get(kind, 0.08))
        marks += (*both(*pieces(hem, 2), press=0.6), pencil(across(neckline[::6], hem[::6], 26), press=0.35))
    shape = np.concatenate([arms[0][::-1], neckline, arms[1]])
    yield Layer(shape, marks, face.cloth * 0.7, 0.3, ((x, t + 0.1, n, 0.25, 0.2),), True)
    if kind not in ("shirt", "suit"):
        return
    middle = spline([(0, t + dip), (0.02, 4)])
    if kind == "suit":
        lapel = [(n + 0.08, t + 0.05), (n + 0.34, t + 0.6), (n + 0.08, t + 0.68), (n + 0.18, t + 0.85), (0, t + 2.2)]
        fronts = twins([(n, t), (n * 0.8, t + 0.9), (0, t + 2.2)])
        yield Layer(np.concatenate([fronts[0], fronts[1][::-1]]), both(*twins(lapel), *fronts), 0.02, body=True)
        knot = [(-0.1, 0), (0.1, 0), (0.07, 0.16), (0.16, 1.6), (-0.16, 1.6), (-0.07, 0.16), (-0.1, 0)]
        tie = shift(knot, 0, t + dip)
        yield Layer(tie, both(*(spline(tie[i : i + 2]) for i in range(6))), 0.7, body=True)
    else:
        buttons = (disc(0.08, t + dip + y, 0.035, 0.035) for y in (0.3, 0.8))
        yield Layer(None, both(middle, *buttons, press=0.7), body=True)
    flap = [(0.9 * n, t - 0.12), (n + 0.12, t + 0.1), (n * 0.75, t + dip + 0.12), (0, t + dip), (n * 0.4, t + dip / 2)]
    for s in SIDES:
        p = np.array(flap) * (s, 1)
        yield Layer(p, both(*(spline(p[[i, i - 4]]) for i in range(4)), spline(p[[3, 4, 0]])), 0.03, 0.3, body=True)


def tress(
    face: Face, strands: Array, rng: Generator, edges: tuple[Array, ...] = (), lines: int = 12, gloss: float = 0.85
) -> Layer:
    """A mass of hair: strands that fill its shape, with a band of gloss across them."""
    k = len(strands)
    at, lock = 0.38 + 0.06 * rng.standard_normal((k, 1)), np.linspace(0, 9, k)[:, None] % 1
    press = face.dark * rng.uniform(0.2, 1.0, (k, 1)) * (1 - gloss * np.exp(-(((S - at) / 0.17) ** 2)))
    press = press * (0.3 + 2.8 * (lock - 0.5) ** 2)  # locks are darker at their borders
    few = np.linspace(2, k - 3, lines).astype(int)
    ends = zip(few, rng.uniform(0, 0.4, lines), rng.uniform(0.6, 1, lines), strict=True)
    drawn = [cut(strands[i], a, b) for i, a, b in ends]
    shape = np.concatenate([strands[0], strands[:, -1], strands[-1][::-1], strands[::-1, 0]])
    marks = (Marks(strands, press), rough(*drawn, *edges), pencil(*edges, strands[0], press=0.3 + 0.5 * face.dark))
    return Layer(shape, marks, 0.03 + 0.3 * face.dark**2)


def crown(face: Face, v: float, low: float = 0.15) -> Array:
    """The outer edge of the hair, `v` above the skull, from the left ear over the top to the right one."""
    half = [(0.0, -1.37 - v), (0.52, -1.26 - v), (0.86 + v * 0.7, -0.93 - v * 0.7), (1.0 + v, -0.45)]
    half += [(0.99 + v * 0.6, low - 0.3)]
    return face.edge(spline(mirror(half), 64))


def hairline(face: Face, low: float = 0.15) -> Array:
    """Where the hair begins: from the left sideburn over the forehead to the right one."""
    half = [(0, -0.93), (0.45, -0.93 + 0.1 * face.part), (0.72, -0.72), (0.8, -0.42), (0.9, -0.2), (0.95, low)]
    return face.skin(spline(mirror(half), 64))


def hair_behind(face: Face, rng: Generator) -> Iterator[Layer]:
    """The hair at the back of the head: hanging down, or tied up."""
    if face.hair in ("bob", "long", "wavy", "fringe"):
        v, end = 1.0 + face.volume, _drop(face) * 0.97
        rows = [face.edge([(s * 0.5, -1.3), (s * v, -0.4), (s * (v + 0.04), 0.5), (s * v, end)]) for s in SIDES]
        yield tress(face, along(spline(rows[0]), spline(rows[1]), 160, rng, face.wave * 2), rng, (), 5, 0.1)
    if face.hair == "bun":
        x, y = face.edge((0.15 * face.part - 0.4 * face.turn, -1.5))
        coils = np.stack([disc(x + 0.1 * r, y, 0.4 * (1 - r), 0.3 * (1 - r)) for r in np.linspace(0, 0.85, 40)])
        yield tress(face, coils + rng.normal(0, 0.012, (40, 1, 2)), rng, (coils[0],), 4)


def _drop(face: Face) -> float:
    return {"bob": 1.2, "fringe": 1.4 + 0.7 * (face.part > 0)}.get(face.hair, 2.6)


def hair_in_front(face: Face, rng: Generator) -> Iterator[Layer]:
    """The hair on top of the head and beside the face."""
    style, grow = face.hair, {"buzz": 0.15, "swept": 1.8, "bun": 0.3, "curly": 2.4}
    v = face.volume * grow.get(style, 1.0)
    if style in ("buzz", "crop", "swept", "bun", "curly"):
        low = 0.6 if style == "curly" and face.part > 0 else 0.15
        top, line = crown(face, v, low), hairline(face, low)
        bumps = {"curly": 0.1, "swept": 0.04, "crop": 0.05}.get(style, 0.0) * np.abs(np.sin(np.arange(64) * 0.6))
        bumps *= rng.uniform(0.4, 1.2, 64) * np.sin(np.pi * np.linspace(0, 1, 64)) ** 0.3
        top = top + shift(top, 0, 0.3) * bumps[:, None]
        lean = np.array([0.45 * np.sign(face.part), -0.1]) * (style in ("crop", "swept"))
        lean = lean * np.sin(np.pi * np.linspace(0, 1, 210))[:, None, None] ** 2  # the sideburns do not lean
        strands = across(line, top, 210, lean) + rng.normal(0, 0.012, (210, 1, 2)) * (style != "buzz")
        hair = tress(face, strands, rng, (*pieces(top, 6), *pieces(line, 5)), 18)
        if style == "buzz":
            dots = sprout(strands, 300, 0.12, rng)
            marks = (pencil(dots, press=0.4 + 0.3 * face.dark), rough(dots[::16]), *both(pieces(top, 4), press=0.5))
            hair = replace(hair, marks=marks)
        if style == "curly":
            at, r = sprout(strands, 270, 0.01, rng)[:, :1], rng.uniform(0.05, 0.12, (270, 1, 1))
            a = rng.uniform(0, 6.3, (270, 1)) + S * rng.uniform(3.5, 7, (270, 1))
            curls = at + r * np.stack([np.cos(a), np.sin(a)], -1) * (1 - 0.4 * S)[:, None]
            press = face.dark * rng.uniform(0.35, 0.95, (270, 1)) * np.ones(N)
            rim = pieces(top, 7)
            hair = replace(hair, marks=(Marks(curls, press), rough(curls[::8], rim), pencil(rim, press=0.5)))
        yield hair
    elif style != "bald":
        part, short = face.part * (1.0 if style == "parted" else 0.5), style == "parted"
        root, front, drop = face.edge((part, -1.38 - v)), face.skin((part * 0.9, -1.1)), _drop(face)
        for s in SIDES:
            outer = [(0.3 + s * part * 0.8, -1.35 - v), (0.66, -1.21 - v * 0.8), (0.93 + v * 0.7, -0.85)]
            outer += [(1.0 + v, -0.4)]
            inner = [(0.5, -0.86), (0.82, -0.48)]
            if short:
                outer += [(0.99 + v * 0.5, 0.0), (0.98, 0.18)]
                inner += [(0.93, -0.15), (0.96, 0.18)]
            else:
                outer += [(1.04 + v, 0.4), (1.08 + v, drop / 2 + 0.2), (1.0 + v + (0.12 if drop > 2 else -0.1), drop)]
                inner += [(0.97, 0.4), (0.9, drop / 2 + 0.2), (0.72 + v, drop * 0.98)]
            o, i = np.array(outer) * (s, 1), np.array(inner) * (s, 1)
            a, b = spline([root, *face.edge(o)]), spline([front, *face.skin(i[:2]), *face.edge(i[2:])])
            strands = along(a, b, 110, rng, 0.0 if short else 0.13 if style == "wavy" else face.wave)
            yield tress(face, strands, rng, (strands[0], strands[-1]), 7 if style != "fringe" else 3)
    if style == "fringe":
        over = face.edge([(-0.3, -1.36 - v), (0, -1.4 - v), (0.3, -1.36 - v)])
        edge = face.skin(mirror([(0, -0.38), (0.6, -0.34), (0.88, -0.2)]))
        strands = across(over, edge, 110, (0, -0.1)) + rng.normal(0, 0.02, (110, 1, 2)) * S[:, None] ** 2
        strands[..., 0] += (strands[..., 0] - strands[:, :1, 0]) * 0.3 * np.sin(np.pi * S)
        yield tress(face, strands, rng, (strands[0], strands[-1], spline(over)), 11)


def portrait(face: Face, rng: Generator) -> list[Layer]:
    """All layers, back to front, in page coordinates (0 to 1, y grows downwards)."""
    far = 1 if face.turn > 0 else -1
    layers = [Layer(None), *hair_behind(face, rng), *body(face, rng)]
    layers += [ear(face, far)] if abs(face.turn) < 0.2 else []
    layers += [head(face), ear(face, -far), nose(face), *eye(face, -1, rng), *eye(face, 1, rng)]
    layers += [beard(face, rng)] if face.beard != "none" else []
    layers += [mouth(face)] + ([glasses(face)] if face.glasses != "none" else [])
    return [_placed(face, layer) for layer in (*layers, *hair_in_front(face, rng))]


def _placed(face: Face, layer: Layer) -> Layer:
    angle, pivot = 0.0 if layer.body else face.tilt, np.array([0.0, 1.2])
    rotate = face.scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])

    def place(points: ArrayLike) -> Array:
        return (np.asarray(points) - pivot) @ rotate + pivot * face.scale + (face.x, face.y)

    shades = tuple((*place((x, y)), a * face.scale, b * face.scale, v) for x, y, a, b, v in layer.shades)
    marks = tuple(replace(m, curves=place(m.curves)) for m in layer.marks)
    return replace(layer, shape=None if layer.shape is None else place(layer.shape), marks=marks, shades=shades)
