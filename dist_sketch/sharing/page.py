"""A trained generator as one HTML page on which people draw: it needs no server and no network.

The page holds the generator (ONNX), the runtime (onnxruntime-web, WebAssembly in one thread), the strokes
(perfect-freehand) and the code in `templates/`. What is large is compressed with gzip and unpacked in the browser.
"""

import base64
import gzip
import hashlib
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dist_sketch import __version__
from dist_sketch.core.config import to_dict
from dist_sketch.core.errors import UserError
from dist_sketch.model.pretrained import PAGE as PAGE
from dist_sketch.model.pretrained import SketchGenerator
from dist_sketch.reports.page import shown
from dist_sketch.sharing import onnx_file, runtime
from dist_sketch.sharing.runtime import FREEHAND, ONNXRUNTIME

TEMPLATES = Path(__file__).with_name("templates")
PAGE_CODE = ("strokes.js", "pictures.js", "drawing.js", "app.js", "saving.js")  # in this order
WORKER_CODE = ("denoise.js", "worker.js")
SVG = "{http://www.w3.org/2000/svg}"
KEYS = {
    "p": "pen",
    "e": "eraser, and back to the pen",
    "[ ]": "thinner, thicker",
    "z": "undo",
    "y": "redo",
    "x": "both sides of the face, or one",
    "m": "mirror the drawing",
    "c": "clean sheet",
    "f": "begin with an example",
    "t": "trace a photograph",
    "o": "open a picture of lines",
    "s": "save or send",
    "?": "this help",
}


def to_html(
    model: SketchGenerator,
    name: str,
    *,
    compact: bool,
    packages: Path | None = None,
    runtime_url: str | None = None,
    generator: bytes | None = None,
) -> str:
    """The page.

    Args:
        model: as `SketchGenerator.load` returns it.
        name: of the run or export that the generator comes from.
        compact: the weights are stored in 8 bits, as in an export with `compact`.
        packages: a folder with the JavaScript packages; None: the user's cache, filled by npm.
        runtime_url: the address of the folder `dist` of onnxruntime-web; the page loads it from there, so it is small
            and needs the network.
        generator: the ONNX file, if it was made already.

    Raises:
        UserError: a package is missing, the address cannot be used, or ONNX's packages are missing.
    """
    address = None if runtime_url is None else _folder_address(runtime_url)
    freehand = runtime.files_of(FREEHAND, packages)
    script, wasm = ONNXRUNTIME.files
    packed = {"generator": _packed(generator or onnx_file.to_bytes(model, compact))}
    if address is None:
        files = runtime.files_of(ONNXRUNTIME, packages)
        packed |= {"script": _packed(files[script]), "wasm": _packed(files[wasm])}
    style, code = _read("page.css"), _strokes_code(freehand) + "".join(map(_read, PAGE_CODE))
    network = {
        "size": model.size,
        "channels": model.config.data.channels,
        "denoise": to_dict(model.denoise),
        "from": address,
        **({} if address is None else {"script": script.removeprefix("dist/")}),
    }
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            policy=_policy(style, code, address),
            style=Markup(style),
            code=Markup(code),
            settings={"size": model.size, "network": network, "worker": "".join(map(_read, WORKER_CODE))},
            packed=packed,
            faces=[_face(path) for path in sorted((TEMPLATES / "faces").glob("*.svg"))],
            name=name,
            size=model.size,
            parameters=sum(p.numel() for p in model.parameters()),
            facts={key: model.saved["facts"].get(key) for key in ("data", "license", "pairs", "began_with")},
            address=address,
            keys=KEYS,
            parts=_parts(freehand["LICENSE"].decode()),
            version=__version__,
        )
    )


def _environment() -> Environment:
    """Every value is escaped, and nothing in others' words is invisible or turns the text around."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=shown,
    )


def _folder_address(url: str) -> str:
    """The address with a slash at its end; a semicolon or a space would end the rule that allows it."""
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.netloc or not url.isascii() or set(url) & set(" ;,'\"<>?#\\"):
        raise UserError(
            f"--runtime-url {url}: must be the address of a folder, such as https://example.org/onnxruntime-web/dist/ "
            f"with the files of onnxruntime-web {ONNXRUNTIME.version}"
        )
    return url.rstrip("/") + "/"


def _policy(style: str, code: str, address: str | None) -> str:
    """What the browser lets the page do (Content-Security-Policy): nothing but this, and no connection."""
    site = "" if address is None else f" {address}"
    rules = {
        "default-src": "'none'",
        "script-src": f"{_hash(code)} blob: 'wasm-unsafe-eval'{site}",
        "worker-src": "blob:",
        "style-src": _hash(style),
        "img-src": "blob: data:",
        "connect-src": site.strip() or "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{rule} {value}" for rule, value in rules.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _packed(data: bytes) -> Markup:
    """The same bytes for the same data, at any time."""
    return Markup(base64.b64encode(gzip.compress(data, 9, mtime=0)).decode())


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _strokes_code(freehand: dict[str, bytes]) -> str:
    """perfect-freehand's module, which writes into `exports`, as the function that our code calls."""
    module = freehand["dist/cjs/index.js"].decode().partition("//# sourceMappingURL")[0]
    return (
        f"const {{ getStroke }} = (() => {{\nconst module = {{ exports: {{}} }};\nconst exports = module.exports;\n"
        f"{module}\nreturn module.exports;\n}})();\n"
    )


def _face(path: Path) -> dict[str, Any]:
    """An example: its title and its strokes, which the page shows and reads."""
    drawing = ET.parse(path).getroot()
    strokes = [(p.attrib["d"], p.attrib["stroke-width"]) for p in drawing.iter(f"{SVG}path")]
    template = Markup('<path stroke-width="{1}" d="{0}"/>')
    return {"title": drawing.findtext(f"{SVG}title"), "paths": Markup("").join(template.format(*s) for s in strokes)}


def _parts(freehand_license: str) -> list[dict[str, str]]:
    """What is inside the page that others wrote, with their licences."""
    conditions = _read("mit.txt")
    return [
        {
            "title": f"dist_sketch {__version__} (MIT)",
            "text": f"MIT License\n\nCopyright (c) The dist_sketch authors\n\n{conditions}",
        },
        {
            "title": f"onnxruntime-web {ONNXRUNTIME.version} (MIT)",
            "text": f"MIT License\n\nCopyright (c) Microsoft Corporation. All rights reserved.\n\n{conditions}\n"
            "It contains parts by others, named with their licences at https://github.com/microsoft/onnxruntime/blob/"
            f"v{ONNXRUNTIME.version}/ThirdPartyNotices.txt",
        },
        {"title": f"perfect-freehand {FREEHAND.version} (MIT)", "text": freehand_license.strip()},
    ]
