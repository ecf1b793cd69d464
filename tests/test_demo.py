"""launch/demo.sh with stand-ins for the commands that it starts."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from dist_sketch.__main__ import parse

DEMO = Path(__file__).parents[1] / "launch" / "demo.sh"


def test_the_demo_s_second_start_goes_on_for_more_epochs(tmp_path: Path) -> None:
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    for name in ("python", "accelerate", "dist-sketch"):
        (commands / name).write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/starts"\n')
        (commands / name).chmod(0o755)
    for file in ("pyproject.toml", ".venv/.demo-installed"):
        (tmp_path / file).touch()
    (tmp_path / "launch").mkdir()
    shutil.copy(DEMO, tmp_path / "launch")
    done = subprocess.run(["bash", tmp_path / "launch/demo.sh"], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    lines = [line.split(" -m dist_sketch ") for line in (tmp_path / "starts").read_text().splitlines()]
    starts: list[Any] = [
        parse(line[1].split()).__self__  # type: ignore[attr-defined]
        for line in lines
        if line[1:] and line[1].startswith("train ")
    ]
    assert [start.settings.train.epochs for start in starts] == [8, 16]
    assert all(start.grow for start in starts)  # else the second one keeps the length of the first
