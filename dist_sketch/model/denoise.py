"""Noise removal on generated sketches (the paper's sections 3.5.2 and 4.3), calibrated against real training sketches.

Order: gray, filter, shadows. Each part can be switched on and off. Lengths in pixels refer to a side of 128 pixels.
"""

import dataclasses
import math

import numpy as np
import scipy  # it and skimage import their parts when these are used, which takes half a second
import torch
from numpy.typing import NDArray
from skimage import filters, restoration
from torch import Tensor

from dist_sketch.core.config import DenoiseConfig, Filter
from dist_sketch.core.errors import UserError

Array = NDArray[np.float32]
SIDE = 128  # pixel lengths below hold at this side and grow with the image
NEIGHBOURS = np.ones((3, 3), bool)
MARGIN = 2  # width of the border, px, in which a shadow may end abruptly
FADED = 10.0  # gray levels: a tone less than this below the page's is paper
GRAIN = 4.0  # gray levels: a tone more than this above the page's is glare,
GLARE = 0.25  # unless this share of the image is so bright: then `page_tone` found a wrong tone
STEP = 24.0  # gray levels: a larger step within two pixels is an outline
NARROW = 12  # px: up to this width shadows are steep; only a step of nearly half the depth is an outline
TEXTURE = 24.0  # gray levels: a larger interquartile range along the border is hair or hatching
FRINGE = 0.2  # if a larger share of the empty border has marks, the network marks its whole edge


def denoise(image: Tensor, settings: DenoiseConfig) -> Tensor:
    """Removes noise from uint8 (3 or 1, H, W), sides of 16 or more (else UserError); same shape, deterministic."""
    settings.check()
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3) or min(image.shape[1:]) < 16:
        raise UserError(f"denoise: needs a uint8 image (1 or 3, H >= 16, W >= 16), not {image.dtype} {image.shape}")
    if settings == dataclasses.replace(settings, gray=False, filter="none", shadows=False):
        return image
    planes = [_filter(p, settings.filter, settings.strength) for p in planes_of(image, settings.gray)]
    if settings.shadows:
        planes = flatten_page(planes)
    array = np.rint(np.stack(planes).clip(0, 255)).astype(np.uint8)
    return torch.from_numpy(array).to(image.device).expand(image.shape).contiguous()


def planes_of(image: Tensor, gray: bool) -> list[Array]:
    """The channels as float32 [0, 255]; equal channels and gray ones only once."""
    array = image.cpu().numpy().astype(np.float32)
    if len(array) == 1 or (array == array[:1]).all():
        return [array[0]]
    return [np.rint(array[0] * 0.299 + array[1] * 0.587 + array[2] * 0.114)] if gray else list(array)


def _filter(plane: Array, name: Filter, strength: float) -> Array:
    unit = plane / np.float32(255)
    if name == "none" or strength < 1e-6:
        return plane
    if name == "median":
        return despeckle(plane, strength)
    if name == "tv":
        return 255 * restoration.denoise_tv_chambolle(unit, weight=0.05 * strength)
    if name == "nlm":
        return 255 * restoration.denoise_nl_means(
            unit, patch_size=5, patch_distance=5, h=0.06 * strength, fast_mode=True
        )
    # mode "edge": the default pads with black, which darkens the page's edge
    return 255 * restoration.denoise_bilateral(
        unit, win_size=5, sigma_color=0.1 * strength, sigma_spatial=1.5, mode="edge"
    )


def despeckle(plane: Array, strength: float) -> Array:
    """Replaces isolated dark specks by the median around them; specks that touch or are near a larger stroke stay.

    A plain median filter erases lines thinner than half its window. Here a dark pixel counts as noise only if its
    connected component is small, clearly darker, and apart from every larger one, so that broken lines stay.
    """
    scale = max(1.0, min(plane.shape) / SIDE)
    reach = round(2 * scale)
    window = np.ones((2 * reach + 1,) * 2, np.uint8)
    # The median, counted from white: it is `rank.median`'s value in a quarter of the time, because pages are light.
    below = filters.rank.percentile(255 - plane.astype(np.uint8), window, p0=0.5 - 1e-6)
    median: Array = (255 - below).astype(np.float32)
    depth = median - plane
    grain = 1.4826 * float(np.median(np.abs(depth)))  # a robust standard deviation
    ink = depth > max(8.0, 2 * grain)  # with the faint rim, which links a speck to the stroke beside it
    label, count = scipy.ndimage.label(ink, NEIGHBOURS)
    if not count:
        return plane
    names = np.arange(count + 1)
    core = np.where(depth > max(16.0, 3 * grain), label, 0)
    boxes = scipy.ndimage.find_objects(core, count)
    length = np.array([0] + [max(b.stop - b.start for b in box) if box else 0 for box in boxes])
    area, limit = np.bincount(core.ravel(), minlength=count + 1), 6 * strength * scale**2
    small = (length > 0) & (length <= max(1.25 * math.sqrt(limit), 1)) & (area <= limit)
    large = scipy.ndimage.binary_dilation(ink & (area > limit)[label], NEIGHBOURS, iterations=reach)
    own = label[ink]  # only ink, because the functions below sort the pixels they get
    apart = scipy.ndimage.maximum(large[ink], own, names) == 0
    # The corner of a dark area also differs from its median, but it has a dark neighbour that does not.
    around = scipy.ndimage.minimum(scipy.ndimage.minimum_filter(np.where(ink, 255, plane), 3)[ink], own, names)
    alone = (
        around > (scipy.ndimage.maximum(median[ink], own, names) + scipy.ndimage.minimum(plane[ink], own, names)) / 2
    )
    return np.where(ink & (small & apart & alone)[label], median, plane)


def page_tone(plane: Array) -> float:
    """The paper's tone: the commonest light tone, found on the smoothed histogram."""
    counts = np.bincount(np.rint(plane).astype(np.int64).clip(0, 255).ravel(), minlength=256).astype(float)
    light = counts[128:].sum() >= 0.1 * counts.sum()
    mode = 128 * light + int(np.argmax(scipy.ndimage.gaussian_filter1d(counts[128 * light :], 4, mode="reflect")))
    return float(np.median(plane[np.abs(plane - mode) <= 20]))


def flatten_page(planes: list[Array]) -> list[Array]:
    """Gives the page one tone: divides out shadows at its edges, and darkens what is brighter than paper.

    Such bright spots are where a network's output is saturated, and light rows at the edge.
    """
    gray: Array = np.stack(planes).mean(axis=0)
    page = page_tone(gray)
    gain = page / np.maximum(page - _edge_shadow(gray, page), 1.0)
    flat = _without_fringe([(p * gain).astype(np.float32) for p in planes], page - gray * gain)
    return [_without_glare(p) for p in flat]


def _without_glare(plane: Array) -> Array:
    top = page_tone(plane) + GRAIN
    return np.minimum(plane, top) if (plane > top).mean() < GLARE else plane


def _edge_shadow(gray: Array, page: float) -> Array:
    """How much darker than the page the paper's edge is, shape (H, W).

    From each point of the border the tone is followed inwards. It is a shadow only if it fades to the page's tone
    without a step (the outline of a garment) and without texture (hair, hatching). Where ink hides the paper, the
    shadow is interpolated along the border.
    """
    height, width = gray.shape
    scale = max(1.0, min(height, width) / SIDE)
    size = (max(16, round(height / scale)), max(16, round(width / scale)))
    small = _resized(gray, size, "area")
    total = np.zeros(size, np.float32)
    for side in range(4):
        depth = page - np.rot90(small, side)[: max(8, min(size) // 3)]  # axis 0 leads inwards
        beside = np.lib.stride_tricks.sliding_window_view(np.pad(depth, ((0, 0), (4, 4)), mode="edge"), 9, axis=1)
        low, middle, high = np.moveaxis(np.sort(beside, axis=2)[..., (2, 4, 6)], 2, 0)  # percentiles 25, 45, 75
        tone = scipy.ndimage.gaussian_filter1d(middle, 1.0, axis=1, mode="nearest")
        faded = tone < FADED
        end = faded.argmax(axis=0)
        inside = np.arange(len(tone))[:, None] < end
        step = np.zeros_like(tone)
        step[MARGIN:-2] = np.abs(tone[MARGIN:-2] - tone[MARGIN + 2 :])
        outline = np.where(end <= NARROW, np.maximum(STEP, 0.45 * (tone * inside).max(axis=0)), STEP)
        texture = ((high - low) * inside)[MARGIN:].sum(axis=0) / np.maximum(end - MARGIN, 1)
        known = faded.any(axis=0) & ((step * inside).max(axis=0) < outline) & (texture < TEXTURE)
        columns, at = np.arange(known.size), np.flatnonzero(known)
        if not at.size:
            continue
        shade = np.minimum.accumulate(np.maximum(tone, 0), axis=0) * inside
        outside = np.maximum(at[0] - columns, columns - at[-1]).clip(0)  # it fades out beyond the last known point
        rows = [np.interp(columns, at, row[at]) for row in shade]
        np.rot90(total, side)[: len(tone)] += np.array(rows) * np.maximum(1 - outside / len(tone), 0)  # a view
    total = np.minimum(scipy.ndimage.gaussian_filter(total, 0.7, mode="nearest"), np.maximum(page - small, 0))
    return _resized(total, (height, width), "bilinear")


def _without_fringe(planes: list[Array], depth: Array) -> list[Array]:
    """Clears marks in the outermost rows and columns that no ink continues inwards.

    If there are many, the network marks its whole edge: then pixels in front of ink are replaced by that ink, too.

    Args:
        depth: how much darker than the page the planes' mean is, (H, W).
    """
    scale = max(1.0, min(depth.shape) / SIDE)
    margin, reach = round(MARGIN * scale), round(3 * scale)
    planes, tones = [p.copy() for p in planes], [page_tone(p) for p in planes]
    for side in range(4):
        ink = np.rot90(depth, side) > FADED
        inner = scipy.ndimage.maximum_filter1d(ink[margin : 2 * margin].any(axis=0), 2 * reach + 1)
        marks = ink[:margin] & ~inner
        everywhere = marks.any(axis=0).sum() > FRINGE * (~inner).sum()
        for plane, tone in zip(planes, tones, strict=True):
            edge = np.rot90(plane, side)[: margin + 1]  # a view
            edge[:margin][marks] = tone
            if everywhere:
                edge[:margin, inner] = edge[margin, inner]
    return planes


def _resized(plane: Array, size: tuple[int, int], mode: str) -> Array:
    tensor = torch.from_numpy(np.ascontiguousarray(plane, np.float32))[None, None]
    return np.asarray(torch.nn.functional.interpolate(tensor, size, mode=mode)[0, 0].numpy())
