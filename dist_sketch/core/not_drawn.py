"""What a folder is that is no output of an inference, and what to type for one."""

import shlex
from pathlib import Path


def not_drawn(out: Path) -> str:
    """The end of a sentence that begins with the folder's name."""

    def first(run: str = "RUN", source: str = "SHARDS") -> str:
        return f"first: dist-sketch infer --run {run} --input {source} --out OUT; then name OUT"

    here = shlex.quote(str(out))
    if (out / "config.json").is_file():
        what = "an exported generator" if (out / "generator.safetensors").is_file() else "a training run"
        return f"is {what}, not what it has drawn; {first(run=here)}"
    if (out / "manifest.json").is_file():
        return f"holds shards, not what was drawn from them; {first(source=here)}"
    if (out / "plan.txt").is_file():
        return f"is an experiment: its page is {out / 'compare.html'}; or name one of the folders in {out / 'outputs'}"
    if (out.parent / "infer.json").is_file():
        return f"is a part of what was drawn; name {out.parent}"
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        return f"is not what was drawn; {first()}"
    return f"has no infer.json of a finished inference; run `dist-sketch infer ... --out {here}` first"
