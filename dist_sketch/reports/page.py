"""What the self-contained HTML pages share: rendering, numbers as text, pictures as data URIs."""

import base64
import hashlib
import io
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from dist_sketch.core.config import Config, items
from dist_sketch.core.fileio import flat
from dist_sketch.core.words import duration, plain
from dist_sketch.data.image_files import BadImage, read_image
from dist_sketch.metrics.definitions import BASELINES, METRICS, OPTIMISTIC

SPLITS = {"val": "validation", "train": "training", "test": "test"}
TEMPLATES = Path(__file__).with_name("templates")
VARIANT_FOLDERS = {"raw": "raw", "denoised": "sketch"}  # folders of an output that hold the drawings


def render(template: str, **values: Any) -> str:
    """Fills a template of this package; in HTML templates every value is escaped. An HTML page needs `scripts`, too."""
    return _environment(template.endswith(".html.j2")).get_template(template).render(**values)


def scripts(*more: str) -> dict[str, str]:
    """The code of an HTML page, and its hash: the browser runs nothing else there.

    Args:
        more: files of the templates' folder, beside those of every page.
    """
    code = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in ("viewer.js", "tables.js", *more))
    return {"code": Markup(code), "code_hash": f"sha256-{_base64(hashlib.sha256(code.encode()).digest())}"}


@cache
def _environment(autoescape: bool) -> Environment:
    """Reads and compiles each template once: a page of many runs fills some of them a thousand times."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=shown if autoescape else None,
    )
    for function in (number, duration, flat, conjoin, breakable, glued, escape_markdown, embed):
        environment.filters[function.__name__] = function
    environment.globals |= {"METRICS": METRICS, "BASELINES": BASELINES, "SPLITS": SPLITS, "OPTIMISTIC": OPTIMISTIC}
    return environment


def shown(value: Any) -> Any:
    """Others' words on a page: nothing in them turns the text around or is invisible."""
    return plain(value) if type(value) is str else value


def breakable(name: str) -> Markup:
    """A name in which the browser may break the line after ".", "_" and "/"."""
    return Markup(re.sub(r"(?<=[._/])(?=\w)", "<wbr>", str(Markup.escape(plain(name)))))


def glued(text: str) -> str:
    """A sentence in which the browser does not break the line within a value such as "1.2 ± 0.3" or "5 %"."""
    return re.sub(r" (?=±|%|‰)|(?<=±) ", "\N{NO-BREAK SPACE}", text)


def escape_markdown(value: Any) -> str:
    """A value as text on one line, in which no character has a meaning in Markdown."""
    text = " ".join(plain(str(value)).split())
    for letter in "\\|*`[]":
        text = text.replace(letter, "\\" + letter)
    return text.replace("<", "&lt;")


def changed(settings: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, value, default) of each setting of a run that differs from the default."""
    defaults = dict(items(Config()))
    return [(k, v, defaults.get(k)) for k, v in flat(settings) if k not in defaults or v != defaults[k]]


def number(value: float | None, digits: int, sign: Literal["+", "-"] = "-") -> str:
    """A number as text, with `sign` "+" also with the sign of positive ones; None is a dash."""
    return "–" if value is None else f"{value:{sign},.{digits}f}".replace("-", "−")


def conjoin(words: list[str]) -> str:
    """Joins words as in "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def find_picture(folder: Path, name: str, px: int, small: bool) -> str:
    """Embeds FOLDER/NAME.png, .jpg or .jpeg; empty if none of them can be read."""
    files = (folder / f"{name}{suffix}" for suffix in (".png", ".jpg", ".jpeg"))
    return next((uri for file in files if (uri := embed(file, px, small))), "")


def embed(file: Path, px: int, small: bool = False) -> str:
    """A picture as a WebP data URI of at most `px` pixels a side; empty if it cannot be read.

    Up to 256 px the compression is lossless, but with `small` it is strong, for thumbnails.
    """
    try:
        picture = read_image(file).convert("RGB")
    except BadImage:
        return ""
    picture.thumbnail((px, px), Image.Resampling.LANCZOS)
    return data_uri(picture, "webp", lossless=not small and px <= 256, quality=60 if small else 92)


def data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    """The picture as a data URI; `options` are Pillow's for this kind of file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{_base64(buffer.getvalue())}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
