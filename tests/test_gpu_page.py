"""`gpu.sh` and its page, without a GPU: the parts are played by a script, and the figures are made up."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_page
import pytest
import torch

TESTS = Path(__file__).parent
MACHINE = {
    "gpu": "Some GPU",
    "gpus": 1,
    "memory_gb": 80.0,
    "torch": "2.11.0",
    "cuda": "12.8",
    "cudnn": 9,
    "python": "3",
}


def figure(name: str, value: float, unit: str = "ms", ratio: float = 9.0) -> dict[str, Any]:
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "baseline": 1.0,
        "baseline_name": "paper's step",
        "ratio": ratio,
    }


PORTRAIT = [figure("a step, bf16", 4.5), figure("GPU idle", 8.0, "%")]
PAPER = [
    *(figure("a step, bf16", 5.0, ratio=7.5), figure("GPU idle", 12.0, "%")),
    *(figure("batch 8, bf16", 900, "images/s", 7.0), figure("batch 8, bf16: share of the limit", 90, "TFLOP/s", 0.2)),
    *(figure("batch 128, bf16: share of the limit", 300, "TFLOP/s", 0.45), figure("batch 128, bf16: a step", 80.0)),
]


def log_of_a_run(run: Path, seconds_a_step: float, validation_s: float, steps: int = 40) -> None:
    """A run that validates every ten steps; its log has a line every five."""
    run.mkdir(parents=True)
    rows, now = [], 1000.0
    for step in range(1, steps + 1):
        now += seconds_a_step
        if step % 5 == 0:
            rows.append({"kind": "train", "step": step, "time": now, "speed/step_s": seconds_a_step})
        if step % 10 == 0:
            now += validation_s
            rows.append({"kind": "val", "step": step, "time": now})
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "train", "st'  # it was killed while it wrote
    (run / "metrics.jsonl").write_text(text)


# ---------------------------------------------------------------- the page


def held(quick: bool = False, **benches: list[dict[str, Any]]) -> list[tuple[float | None, bool | None]]:
    rows = {"step-portrait": benches.get("portrait", []), "step-paper": benches.get("paper", [])}
    return [(t.value, t.holds) for t in gpu_page.targets(rows, {"projected_s": 170.0}, quick)]


def test_targets_hold_or_not_or_were_not_measured() -> None:
    expected = [(4.5, True), (7.5, False), (45.0, True), (8.0, True), (12.0, False), (170.0, True)]
    assert held(portrait=PORTRAIT, paper=PAPER) == expected
    assert held(quick=True, portrait=PORTRAIT, paper=PAPER) == [(value, None) for value, _ in expected]
    assert held() == [(None, None)] * 5 + [(170.0, True)]


def test_a_training_is_projected_with_its_validations(tmp_path: Path) -> None:
    assert gpu_page.training(tmp_path) is None
    log_of_a_run(tmp_path / "run", 0.01, 0.5)
    found = gpu_page.training(tmp_path / "run")
    assert found is not None
    assert (found["steps"], found["validations"]) == (40, 4)
    assert found["steps_per_s"] == pytest.approx(100)
    # from step 5 to step 40: 35 steps and 4 validations
    assert found["projected_s"] == pytest.approx((35 * 0.01 + 4 * 0.5) / 35 * 13_200)
    log_of_a_run(tmp_path / "short", 0.01, 0.5, steps=9)
    short = gpu_page.training(tmp_path / "short")
    assert short is not None
    assert short["projected_s"] is None


def test_tests_are_counted_also_if_they_were_cut_off() -> None:
    log = (
        "tests/a.py::one[cpu-None] PASSED [ 5%]\ntests/a.py::two FAILED [10%]\ntests/a.py::three SKIPPED (why) [15%]\n"
    )
    log += "tests/a.py::four ERROR [20%]\ntests/a.py::five "
    assert gpu_page.tests(log) == {"passed": 1, "skipped": 1, "failed": ["tests/a.py::two", "tests/a.py::four"]}
    # as pytest-xdist prints it
    log = "tests/a.py::one[cpu] \n[gw0] [ 20%] PASSED tests/a.py::one[cpu] \n[gw3] [100%] FAILED tests/a.py::two \n"
    assert gpu_page.tests(log) == {"passed": 1, "skipped": 0, "failed": ["tests/a.py::two"]}
    assert gpu_page.tests("") == {"passed": 0, "skipped": 0, "failed": []}


def test_nothing_but_the_machine_still_makes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "machine.json").write_text(json.dumps(MACHINE))
    (tmp_path / "infer.json").write_text('{"figures": [')  # cut off
    assert gpu_page.show(tmp_path, quick=False) == 0
    assert capsys.readouterr().out.count("not measured") == 6
    assert json.loads((tmp_path / "gpu.json").read_text())["figures"]["infer"] == []


def test_without_a_gpu_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_page.machine(tmp_path, quick=False) == 2
    assert "finds no GPU here" in capsys.readouterr().err
    assert gpu_page.machine(tmp_path, quick=True) == 0
    assert f"torch {torch.__version__}" in capsys.readouterr().out


# ---------------------------------------------------------------- the script

# Plays `python`: only the page is the real one. Each call is noted.
PYTHON = f"""#!/bin/bash
here=$(dirname "$0") all="$*"
printf '%s\\n' "$all" >> "$here/calls"
json=${{all##*--json }}
case "$all" in
  *"gpu_page.py machine"*) cp "$here/machine.json" "$3"; echo "Some GPU; torch 2.11.0" ;;
  *gpu_page.py*) exec {sys.executable} "$@" ;;
  *"-m pytest"*) printf 'tests/test_gpu.py::%s\\n' "one PASSED" "two FAILED"; echo "assert 1 == 2"; exit 1 ;;
  *"--preset portrait"*) cp "$here/portrait.json" "$json" ;;
  *"bench step"*) cp "$here/paper.json" "$json" ;;
  *" pack "*) echo "this takes too long"; exec sleep "$SLEEP" ;;
  *"bench infer"* | *"bench loader"*) echo '{{"figures": [], "notes": []}}' > "$json" ;;
  *" train "*) cp -r "$here/run" "$9"; exit 75 ;;
esac
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A copy of the script beside no environment of its own, and a `python` that plays all parts."""
    (tmp_path / "tests").mkdir()
    for name in ("gpu.sh", "gpu_page.py"):
        shutil.copy(TESTS / name, tmp_path / "tests" / name)
    folder = tmp_path / "bin"
    log_of_a_run(folder / "run", 0.01, 0.01)
    for name, rows in (("portrait", PORTRAIT), ("paper", PAPER)):
        (folder / f"{name}.json").write_text(json.dumps({"figures": rows, "notes": [{"text": f"our step: {name}"}]}))
    (folder / "machine.json").write_text(json.dumps(MACHINE))
    (folder / "python").write_text(PYTHON)
    (folder / "python").chmod(0o755)
    return tmp_path / "tests" / "gpu.sh"


def run(script: Path, *words: object, sleep_s: float = 0) -> subprocess.CompletedProcess[str]:
    path = f"{script.parents[1] / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "SLEEP": str(sleep_s)}
    command = ["bash", str(script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)


def test_a_part_that_fails_or_is_cut_off_stops_no_other(script: Path, tmp_path: Path) -> None:
    done = run(script, "--out", tmp_path / "out", "--seconds", 80, sleep_s=60)  # of which it may take 8
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("Some GPU; torch 2.11.0")
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    ends = {name: part["ended"] for name, part in found["parts"].items()}
    assert ends == {
        **{"synth": "done", "pack": "cut off", "step-portrait": "done", "step-paper": "done"},
        **{"train": "stopped and saved", "tests": "failed", "infer": "done", "loader": "done"},
    }
    assert found["tests"]["failed"] == ["tests/test_gpu.py::two"]
    assert [t["holds"] for t in found["targets"]] == [True, False, True, True, False, True]
    assert found["machine"] == MACHINE
    for text in (
        "assert 1 == 2",
        "this takes too long",
        "step-paper: our step: paper",
        "settings: over the batch size",
    ):
        assert text in done.stdout
    calls = (tmp_path / "bin" / "calls").read_text()
    assert f"train --config portrait --data.shards {tmp_path}/out/shards" in calls
    assert f"pack {tmp_path}/out/pairs --out {tmp_path}/out/shards --size 128" in calls


def test_shards_that_are_given_are_trained_on(script: Path, tmp_path: Path) -> None:
    (tmp_path / "my shards").mkdir()
    (tmp_path / "my shards" / "manifest.json").write_text("{}")
    done = run(script, "--out", tmp_path / "out", "--shards", tmp_path / "my shards", "--quick")
    assert "pack" not in json.loads((tmp_path / "out" / "gpu.json").read_text())["parts"], done.stderr
    calls = (tmp_path / "bin" / "calls").read_text()
    assert f"--data.shards {tmp_path}/my shards --out" in calls
    assert "bench infer --quick" in calls
    again = run(script, "--out", tmp_path / "out")
    assert again.returncode == 2
    assert "holds the results of an earlier call" in again.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--fast"], "--fast is not an option"),
        (["--out"], "--out needs a value"),
        (["--seconds", "2m"], "--seconds 2m: must be a whole number above 0"),
        (["--shards", "/nowhere"], "--shards /nowhere: holds no manifest.json"),
        (["--wheels", "/nowhere"], "--wheels /nowhere: holds no wheels"),
    ],
)
def test_a_wrong_option_is_a_sentence(script: Path, words: list[str], sentence: str) -> None:
    done = run(script, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_has_nothing_to_say() -> None:
    done = subprocess.run(["shellcheck", TESTS / "gpu.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
