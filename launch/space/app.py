"""A Gradio app in which people draw the lines of a face and get its portrait; a Space of the Hub starts it as it is.

GENERATOR names another generator: a folder, or user/name on the Hub.
"""

import os

import gradio
from PIL import Image

from dist_sketch import SketchGenerator
from dist_sketch.core.errors import UserError

generator = SketchGenerator.from_pretrained(os.environ.get("GENERATOR", "portrait-256"))


def draw(page: dict | None) -> Image.Image | None:
    """The portrait of what is on the page; None for an empty one."""
    line = page and page["composite"]
    if line is None or (line.mode == "RGBA" and line.getextrema()[3] == (0, 0)):  # nothing on transparent paper
        return None
    try:
        return generator.draw(line, size=512, fit="pad")
    except UserError as error:
        raise gradio.Error(str(error)) from error


with gradio.Blocks(title="Portraits from lines") as app:
    gradio.Markdown("# Portraits from lines\nDraw one face from the front, dark on white, or load such a drawing.")
    with gradio.Row():
        pen = gradio.Brush(default_size=4, colors=["#000000"], color_mode="fixed")
        page = gradio.Sketchpad(label="Lines", type="pil", canvas_size=(512, 512), brush=pen)
        portrait = gradio.Image(label="Portrait", type="pil", format="png", interactive=False)
    page.change(draw, page, portrait, trigger_mode="always_last", show_progress="hidden", api_name="draw")

if __name__ == "__main__":
    app.launch()
