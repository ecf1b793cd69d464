"""What our self-contained HTML pages share: figures as text, pictures as data URIs, curves as inline SVG."""

import base64
import io
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

Table = dict[str, Any]


# Of scores of the very pairs by which the weights were chosen (checkpoint.choose).
FLATTERED = (
    "draws with those weights of its validations on these pairs that had the lowest KID, which flatters it a little"
)


def render(template: str, **values: Any) -> str:
    """The page that a template of this package makes of `values`, all of them escaped where it is HTML."""
    loader = FileSystemLoader(Path(__file__).with_name("templates"))
    environment = Environment(
        loader=loader, autoescape=template.endswith(".html.j2"), undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"figure": figure, "flat": flat, "breakable": breakable}
    return environment.get_template(template).render(**values)


def breakable(text: str) -> Markup:
    """A name that may go on in the next line after its signs."""
    return Markup(re.sub(r"(?<=[._/])(?=\w)", "<wbr>", str(Markup.escape(text))))


def figure(value: float | None, digits: int) -> str:
    """A figure as text; a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")


def flat(tree: Table, prefix: str = "") -> list[tuple[str, Any]]:
    """The leaves of a nested dict as (dotted key, value)."""
    leaves = []
    for key, value in tree.items():
        leaves += flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(f"{prefix}{key}", value)]
    return leaves


def conjoin(words: list[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def data_uri(folder: Path, name: str, px: int, small: bool) -> str:
    """FOLDER/NAME.{png,jpg} as `embed` gives it."""
    files = (folder / f"{name}{suffix}" for suffix in (".png", ".jpg", ".jpeg"))
    return next((uri for file in files if (uri := embed(file, px, small))), "")


def data_uri_of(png: bytes) -> str:
    """A PNG file's bytes as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def embed(file: Path, px: int, small: bool) -> str:
    """A picture as a WebP data URI of at most `px` pixels a side; empty if it cannot be read.

    `small` compresses strongly, for thumbnails; else nothing is lost up to 256 px.
    """
    try:
        with Image.open(file) as image:
            picture = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    picture.thumbnail((px, px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=not small and px <= 256, quality=60 if small else 92)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
