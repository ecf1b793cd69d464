"""Faces that were drawn by hand as strokes, the page's examples and tests/freehand_faces, and their renderer."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[2]
FOLDERS = (ROOT / "dist_sketch/sharing/templates/faces", ROOT / "tests/freehand_faces")
FACES = sorted((face for folder in FOLDERS for face in folder.glob("*.svg")), key=lambda face: face.name)
SIDE = 512  # of the page, in the unit of all coordinates
FINER = 4  # drawn so much larger, then reduced, for smooth edges
STEPS = np.linspace(0, 1, 25)[:, None]  # along a curve


def render(svg: Path, size: int = SIDE) -> Image.Image:
    """The strokes of a file as a gray image of `size` x `size`.

    Known are black paths of the commands M, L and C (absolute) with round ends and a stroke-width, on a white page.
    """
    scale = FINER * size / SIDE
    page = Image.new("L", (FINER * size, FINER * size), 255)
    draw = ImageDraw.Draw(page)
    for path in ET.parse(svg).iter("{http://www.w3.org/2000/svg}path"):
        points, radius = _points(path.attrib["d"]) * scale, float(path.attrib["stroke-width"]) * scale / 2
        draw.line([tuple(p) for p in points], 0, round(2 * radius))
        for x, y in points:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), 0)
    return page.resize((size, size), Image.Resampling.BOX)


def _points(path: str) -> np.ndarray:
    """Points along a path, (N, 2)."""
    points: list[np.ndarray] = []
    for command, numbers in re.findall(r"([MLC])([^MLC]*)", path):
        corners = np.array(re.findall(r"-?[\d.]+", numbers), float).reshape(-1, 2)
        if command != "C":
            points += list(corners)
            continue
        for first, second, end in corners.reshape(-1, 3, 2):
            t, start = STEPS, points[-1]
            curve = (1 - t) ** 3 * start + 3 * t * (1 - t) ** 2 * first + 3 * t**2 * (1 - t) * second + t**3 * end
            points += list(curve[1:])
    return np.stack(points)
