"""Made the files beside it, with dist_sketch as it was at commit 46104b7: python tests/old_files/make.py

To make them anew, check that commit out into a folder and let PYTHONPATH name it; the files here are replaced.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# Of the training; the networks are those of `support.narrow`
OPTIONS = (
    *("--generator.width", "8", "--generator.detail", "8", "--generator.noise", "1", "--generator.ema", "0.9"),
    *("--data.batch-size", "2", "--data.workers", "0", "--train.precision", "no", "--train.no-validate-fid"),
    *("--train.sample-interval-epochs", "0", "--checkpoint.keep", "1"),
    *("--track.wandb", "off", "--track.log-interval-steps", "1"),
)
COMMAND = "import sys; from support.narrow import narrow; narrow(); from dist_sketch.__main__ import main; main()"


def run(*arguments: str) -> None:
    path = os.pathsep.join([str(HERE.parent), os.environ["PYTHONPATH"]])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    env["WANDB_MODE"] = "disabled"
    subprocess.run([sys.executable, "-c", COMMAND, *arguments], cwd=HERE, env=env, check=True)


def main() -> None:
    for folder in (p for p in HERE.iterdir() if p.is_dir()):
        shutil.rmtree(folder)
    run("synth", "pairs", "--count", "4", "--val", "2", "--size", "64")
    run("pack", "pairs", "--out", "shards", "--size", "64")
    train = ("train", "--data.shards", "shards", *OPTIONS, "--out")
    run(*train, "run", "--train.epochs", "2")
    run("checkpoint", "export", "run", "--out", "export")
    run("checkpoint", "export", "run", "--out", "compact", "--compact")
    run("infer", "--run", "run", "--input", "shards", "--out", "out")
    run("infer", "--run", "compact", "--input", "shards", "--out", "drawn")
    (HERE / "drawn/raw").rename(HERE / "compact-raw")
    shutil.copytree(HERE / "run", HERE / "longer")
    run(*train, "longer", "--train.epochs", "3")
    (HERE / "longer/metrics.jsonl").rename(HERE / "longer.jsonl")
    for folder in ("pairs", "longer", "drawn"):
        shutil.rmtree(HERE / folder)
    (HERE / "run/.lock").unlink()
    for file in (HERE / "run/config.json", HERE / "out/infer.json"):  # as if it had been made elsewhere
        file.write_text(file.read_text().replace(str(HERE), "/old"))


if __name__ == "__main__":
    main()
