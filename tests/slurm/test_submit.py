"""`submit`: arguments -> requests -> calls of sbatch; `sbatch` and `scancel` are stand-ins here, the real ones are in
test_cluster."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import Run, write_pairs
from hypothesis import given
from hypothesis import strategies as st

from dist_sketch.core.errors import UserError
from dist_sketch.slurm import doctor, submit

SLURM = Path(__file__).parents[2] / "slurm"
TRAIN = ("train", "--nodes=4", "--gpus-per-node", "8", "shards=s", "out=r", "--train.epochs", "2")
CHAIN = ("chain", "pack", "source=faces", "out=s", "then", "train", "-N2", "out=r", "then", "infer", "out=o")


def test_arguments_are_options_of_sbatch_then_settings_then_options() -> None:
    request = submit.read_request(TRAIN)
    assert request.sbatch == ("--nodes=4", "--gpus-per-node", "8")
    assert request.settings == {"shards": "s", "out": "r"}
    assert request.options == ("--train.epochs", "2")
    assert [request.slurm(n) for n in ("nodes", "gpus-per-node", "cpus-per-task", "requeue", "qos")] == [
        *("4", "8", "8", ""),
        "",
    ]
    assert [request.setting(n) for n in ("out", "requeues", "stage", "procs")] == ["r", "20", "0", ""]
    short = submit.read_request(("train", "-N2", "-c", "4", "-t10", "shards=s", "out=r"))
    assert [short.slurm(n) for n in ("nodes", "cpus-per-task", "time")] == ["2", "4", "10"]


@pytest.mark.parametrize("kind", submit.NEEDED)
def test_a_script_takes_the_settings_that_it_lists(kind: str, tmp_path: Path) -> None:
    """What we read as settings from a script, the script itself takes as arguments, and nothing else."""
    (tmp_path / "dist-sketch").touch(mode=0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NUM_NODES": "1"}

    def source(*arguments: str) -> subprocess.CompletedProcess[str]:
        script = (SLURM / f"{kind}.sbatch").read_text().split("\n# ------", 2)
        (tmp_path / "script").write_text(f'# {script[1]}\n. {SLURM / "common.sh"}\ndeclare -p\necho "$@"')
        command = ["bash", "-u", tmp_path / "script", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=env)

    settings = submit.read_request([kind]).defaults
    assert set(submit.NEEDED[kind]) <= set(settings)
    given = {name: "" if name in ("venv", "modules") else f"a {name}" for name in settings}
    done = source(*(f"{name}={value}" for name, value in given.items()), "--option", "x=y")
    assert done.stdout.endswith("\n--option x=y\n"), done.stderr
    for name, value in given.items():
        assert f'declare -- {name}="{value}"\n' in done.stdout
    defaults = source().stdout
    for name, value in settings.items():
        assert f'declare -- {name}="{value}"\n' in defaults
    done = source("nonsense=1")
    assert (done.returncode, done.stderr.split(":")[:2]) == (2, ["error", " nonsense=1"])
    assert (SLURM / f"{kind}.sbatch").read_text().count(f"slurm/{kind}.sbatch") >= 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "submit (nothing): must be one of pack, train, infer, experiment, chain"),
        (("fly",), "submit fly: must be one of"),
        (("train", "out=r"), "submit train: shards=... is missing"),
        (("train", "shard=s", "out=r"), "submit train: there is no setting shard=; there are shards, out, config,"),
        (("train", "shards=s", "out=r", "more"), "submit train: more: neither a setting (name=value) nor an option"),
        (("chain", "train", "out=r", "then", "pack", "source=f", "out=s"), "submit train: shards=... is missing"),
        (("infer", "merge=1"), "submit infer: out=... is missing"),
        (("train", "--gres=gpu:8", "shards=s", "out=r"), "submit train: --gres: use --gpus-per-node=N; otherwise"),
        (("train", "-G8", "shards=s", "out=r"), "submit train: --gpus: use --gpus-per-node=N"),
        (("train", "shards=s", "out=r", "--dry-run"), "submit train: --dry-run: must stand before the kind"),
        (("train", "--export", "foo=bar", "shards=s"), "submit train: there is no setting foo=; there are shards,"),
        (
            ("chain", "pack", "source=f", "out=s", "then", "train", "-d", "singleton", "out=r"),
            "submit train: --dependency: only the first job of a chain may wait",
        ),
        (
            ("chain", "pack", "source=f", "out=s", "then", "experiment", "out=e", "data=s"),
            "submit experiment: needs shards for its plan",
        ),
    ],
)
def test_mistakes(words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}"):
        submit.read_requests(words)


def test_a_chain_hands_its_paths_on(capsys: pytest.CaptureFixture[str]) -> None:
    made = submit.sbatch_calls(submit.read_requests(CHAIN))
    assert [name for name, _ in made] == ["pack", "train", "infer"]
    submit.submit(made, dry_run=True)
    pack, train, infer = capsys.readouterr().out.splitlines()
    assert pack == f"sbatch --parsable {SLURM / 'pack.sbatch'} source=faces out=s"
    after = "sbatch --parsable '--dependency=afterok:<pack>' --kill-on-invalid-dep=yes -N2"
    assert train == f"{after} {SLURM / 'train.sbatch'} out=r shards=s"
    assert infer.endswith(" out=o run=r input=s")


def test_an_inference_in_parts_is_merged() -> None:
    words = ("infer", "--array=1-4", "--nodes=2", "run=r", "input=s", "out=o", "--batch-size", "4")
    (_, drawn), (_, merged) = submit.sbatch_calls(submit.read_requests(words))
    script = str(SLURM / "infer.sbatch")
    settings = ["run=r", "input=s", "out=o"]
    assert drawn == ["--array=1-4", "--nodes=2", script, *settings, "--batch-size", "4"]
    one = ["--nodes=1", "--gpus-per-node=0", "--job-name=merge"]
    assert merged == [*one, script, *settings, "merge=1"]


def test_packing_in_parts_is_merged_before_the_training() -> None:
    words = ("chain", "pack", "--array=1-4", "source=f", "out=s", "--size", "64", "then", "train", "out=r")
    calls = submit.sbatch_calls(submit.read_requests(words))
    assert [name for name, _ in calls] == ["pack", "merge", "train"]
    script, settings = str(SLURM / "pack.sbatch"), ["source=f", "out=s"]
    assert calls[0][1] == ["--array=1-4", script, *settings, "--size", "64"]
    assert calls[1][1] == ["--nodes=1", "--job-name=merge", script, *settings, "merge=1", "--size", "64"]
    assert calls[2][1] == [str(SLURM / "train.sbatch"), "out=r", "shards=s"]


def test_a_merge_takes_only_common_options() -> None:
    where = ("-A", "me", "--partition=p", "--nodelist=a,b", "--exclusive", "--mem=9G", "--dependency=afterok:7")
    (_, drawn), (_, merged) = submit.sbatch_calls(
        submit.read_requests(("infer", *where, "--array=1-2", "run=r", "input=s", "out=o"))
    )
    assert drawn[:8] == [*where, "--array=1-2"]
    assert merged[:3] == ["--account=me", "--partition=p", "--mem=9G"]
    chained = submit.read_requests(("chain", "pack", "source=f", "out=s", "venv=v", "then", "train", "out=r"))
    assert chained[1].setting("venv") == "v"


def test_an_experiment_is_an_array_of_the_unfinished_trainings(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "experiment",
        "-J",
        "mine",
        "--array=%2",
        "name=sweep",
        f"data={shards}",
        f"out={tmp_path / 'exp'}",
        "--epochs",
        "1",
    ]
    (_, tasks), (_, page) = calls = submit.sbatch_calls(submit.read_requests(words))
    count = sum(line.startswith("dist-sketch train") for line in (tmp_path / "exp/plan.txt").read_text().splitlines())
    assert count > 2
    assert tasks[:4] == ["-J", "mine", "--array=%2", f"--array=1-{count}%2"]
    (plan,) = (w.removeprefix("plan=") for w in tasks if w.startswith("plan="))
    assert (tmp_path / "exp" / plan).read_text() == (tmp_path / "exp" / "plan.txt").read_text()
    submit.submit(calls, dry_run=True)
    assert " '--dependency=afterany:<experiment>' " in capsys.readouterr().out
    assert page[-2:] == ["--epochs", "1"]
    assert not [w for w in page if w.startswith("--array")]
    chosen = submit.sbatch_calls(submit.read_requests([w if "%" not in w else "--array=2" for w in words]))
    assert "--array=2" in chosen[0][1]
    # Tasks that wait read their own plan: a later plan and a dry run leave it alone.
    before = {p.name: p.read_bytes() for p in (tmp_path / "exp").iterdir()}
    submit.sbatch_calls(submit.read_requests([*words, "--seeds", "2"]), write=False)
    assert {p.name: p.read_bytes() for p in (tmp_path / "exp").iterdir()} == before
    submit.sbatch_calls(submit.read_requests([*words, "--seeds", "2"]))
    assert (tmp_path / "exp" / plan).read_bytes() == before[plan]
    assert len(list((tmp_path / "exp").glob("plan-*.txt"))) == 2


@given(st.sets(st.integers(1, 40)))
def test_spans(numbers: set[int]) -> None:
    text = submit.spans(sorted(numbers))
    found = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    assert found == sorted(numbers)
    assert submit.spans([1, 2, 3, 7]) == "1-3,7"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `sbatch` that records its arguments and counts; it refuses arguments with `refused`."""
    (tmp_path / "bin").mkdir()
    log = tmp_path / "log"
    for name, does in {
        "sbatch": 'case "$*" in *refused*) echo "sbatch: error: no such partition" >&2; exit 1;; esac; wc -l < LOG',
        "scancel": "true",
    }.items():
        file = tmp_path / "bin" / name
        file.write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\n{does}\n'.replace("LOG", str(log)))
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return log


def test_a_chain_from_the_command_line(cli: Run, cluster: Path, tmp_path: Path) -> None:
    faces = write_pairs(tmp_path / "faces", 8, 2)
    chain = ["chain", "pack", f"source={faces}", f"out={tmp_path / 's'}", "--size", "64"]
    chain += ["then", "train", "--gpus-per-node=0", f"out={tmp_path / 'r'}"]
    dry = cli("submit", "--dry-run", *chain)
    assert dry.returncode == 0, dry.stderr
    assert f"sbatch --parsable {SLURM / 'pack.sbatch'} source={faces}" in dry.stdout
    assert "dependency=afterok:<pack>" in dry.stdout
    assert f"----- {SLURM / 'train.sbatch'}\n#!/usr/bin/env bash" in dry.stdout
    assert not cluster.exists()

    done = cli("submit", *chain)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("pack: job 1\ntrain: job 2\n")
    noted = cluster.read_text().splitlines()
    assert noted[0] == f"sbatch --parsable {SLURM / 'pack.sbatch'} source={faces} out={tmp_path / 's'} --size 64"
    assert noted[1].startswith("sbatch --parsable --dependency=afterok:1 --kill-on-invalid-dep=yes --gpus-per-node=0 ")

    cluster.unlink()
    refused = cli("submit", *[w.replace("--gpus-per-node=0", "--partition=refused") for w in chain])
    assert refused.returncode == 2
    assert "sbatch refuses train (and job 1 is cancelled): sbatch: error: no such partition" in refused.stderr
    assert cluster.read_text().splitlines()[-1] == "scancel 1"


def test_nothing_is_submitted_that_would_fail(cli: Run, cluster: Path, shards: Path, tmp_path: Path) -> None:
    words = ("train", "--nodes=3", "--gpus-per-node=1", f"shards={shards}", f"out={tmp_path / 'r'}")
    refused = cli("submit", *words)
    assert refused.returncode == 2
    assert "1 check(s) failed, nothing is submitted" in refused.stderr
    assert not cluster.exists()
    assert cli("doctor", *words).returncode == 2
    assert cli("submit", "--force", *words).returncode == 0
    assert cluster.read_text().startswith("sbatch --parsable --nodes=3")


def checks(*words: object) -> dict[str, doctor.Check]:
    found = [c for request in submit.read_requests([str(w) for w in words]) for c in doctor.check(request, [])]
    return {c.what: c for c in found}


def test_what_doctor_sees_of_a_training(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    good = ("train", "--nodes=2", "--gpus-per-node=h100:2", f"shards={shards}", f"out={tmp_path / 'r'}")
    found = checks(*good)
    assert {c.state for c in found.values()} <= {"good", "note"}
    assert found["ranks"].found == "4 rank(s) on 2 node(s); global batch 8, 2 per rank"
    assert found["shards"].found.startswith(f"{shards}: every hash is right (train ")
    assert "8 CPU(s) per node for 4 process(es)" in found["CPUs"].found
    assert found["W&B"].found == "offline; dist-sketch sync afterwards"
    # 16,456,899 + 375,617 weights with two means of Adam's, 4 bytes each, 4 checkpoints
    assert found["disk"].found.startswith("3 checkpoints take 0.8 GB, ")
    assert checks(*good, "--data.workers", 9)["CPUs"].state == "note"
    assert checks(*good, "--data.batch-size", 4000)["settings"].found.endswith("only 13 pairs; use 13 or less")
    assert checks(*good, "--train.accumulate", 3)["settings"].state == "bad"
    assert checks("train", "--ntasks-per-node=8", *good[1:])["ranks"].state == "bad"
    assert checks(good[0], "--time=1:2:3:4", *good[1:])["time"].state == "bad"
    tar = next(shards.glob("*.tar"))
    content = tar.read_bytes()
    try:
        tar.write_bytes(content[:-600] + b"x" + content[-599:])
        assert checks(*good)["shards"].state == "bad"
        tar.unlink()
        assert f"{tar.name}: is missing" in checks(*good)["shards"].found
    finally:
        tar.write_bytes(content)


def test_doctor_estimates_from_the_run_s_own_log(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "r"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "speed/step_s": 3600.0}\n')
    words = ("--time=1:00:00", f"shards={shards}", f"out={run}", "--data.batch-size", 1, "--train.epochs", 10)
    found = checks("train", *words)["time"]
    steps = int(found.found.split()[0])
    assert found.state == "bad"
    assert found.found.endswith(f": {steps}.0 h, {steps} leg(s) of 1:00:00; requeues=20 allow 21")
    assert checks("train", *words[:3], "requeues=1000", *words[3:])["time"].state == "good"


def test_what_doctor_sees_of_the_others(shards: Path, tmp_path: Path) -> None:
    faces = write_pairs(tmp_path / "faces", 3, 0)
    out = f"out={tmp_path / 'o'}"
    assert checks("pack", f"source={faces}", out)["source"].found == "3 pairs"
    assert checks("pack", f"source={tmp_path / 'no'}", out)["source"].state == "bad"
    for name in ("trainA", "trainB", "photo", "sketch"):
        shutil.copytree(faces / "train_line", tmp_path / "two" / name)
    two = f"source={tmp_path / 'two'}"
    assert "--layout NAME" in checks("pack", two, out)["source"].found
    assert checks("pack", two, out, "--layout", "A-B")["source"].found == "3 pairs"
    assert checks("pack", two, out, "--layout", "nonsense")["options"].state == "bad"
    found = checks("infer", f"run={tmp_path / 'no'}", f"input={shards}", out)
    assert (found["run"].state, found["shards"].state) == ("bad", "good")
    found = checks("experiment", "name=paper", f"data={shards}", out, "--only", "table2")
    assert re.fullmatch(r"\d+ training\(s\)", found["plan"].found)
    assert checks("experiment", f"data={tmp_path / 'no'}", out)["plan"].state == "bad"
    assert checks("pack", f"source={faces}", "out=/proc/no")["output"].state == "bad"
    infer = (f"run={tmp_path / 'no'}", f"input={shards}", out)
    for array, state in (("1-8%2", "good"), ("0-7", "bad"), ("3", "bad")):
        assert checks("infer", f"--array={array}", *infer)["array"].state == state
        assert checks("pack", f"--array={array}", f"source={faces}", out)["array"].state == state
    assert checks("infer", "--array=3", *infer[:2], "parts=8", out)["array"].state == "note"
    assert checks("infer", *infer, "--batch-size", "4")["options"].state == "good"
    assert checks("infer", *infer, "--nonsense")["options"].state == "bad"
    assert checks("pack", f"source={faces}", out, "--size", "64", "--nodes=2")["options"].state == "bad"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--nodes=2-4",), "error: --nodes=2-4: must be a number"),
        (("--cpus-per-task=8K",), "error: --cpus-per-task=8K: must be a number"),
        (("procs=x",), "error: procs=x: must be a number"),
        (("requeues=x",), "error: requeues=x: must be a number"),
    ],
)
def test_arguments_that_are_no_numbers_are_an_error(
    cli: Run, shards: Path, words: tuple[str, ...], sentence: str
) -> None:
    sbatch, settings = ([w for w in words if w.startswith("-") is dashed] for dashed in (True, False))
    done = cli("doctor", "train", *sbatch, f"shards={shards}", "out=[/x]", *settings)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"{sentence} from ")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("4:30", 270), ("04:00:00", 14400), ("2-12", 216000), ("1-2:30", 95400), ("1-0:0:5", 86405)],
)
def test_time_limits(text: str, seconds: float) -> None:
    assert doctor.seconds(text) == seconds
    assert doctor.seconds("UNLIMITED") == doctor.seconds("0") == float("inf")


@pytest.mark.parametrize("more", [(), ("merge=1",), ("parts=2", "merge=1")])
def test_the_merge_is_a_job_of_its_own(more: tuple[str, ...]) -> None:
    words = ("infer", "--array=1-2", "run=r", "input=s", "out=o", *more)
    (kind, drawn), (then, merged) = submit.sbatch_calls(submit.read_requests(words))
    assert (kind, then) == ("infer", "merge")
    assert "merge=1" not in drawn
    assert merged[-1] == "merge=1"
    with pytest.raises(UserError, match=r"run=\.\.\. is missing"):
        submit.read_requests(("infer", "--array=1-2", "out=o", "merge=1"))


@pytest.mark.parametrize(
    ("option", "states"),
    [
        ("--output=logs/%j.log", ["bad"]),
        ("--error=logs/%j.log", ["bad"]),
        ("--output=%x-%j.log", []),
        ("--output=%x/%j.log", ["note"]),
    ],
)
def test_doctor_sees_that_a_log_has_no_folder(
    option: str, states: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (request,) = submit.read_requests(("pack", option, "source=s", "out=o"))
    found = [line for line in doctor.check(request, []) if line.what == "log"]
    assert [line.state for line in found] == states
    (tmp_path / "logs").mkdir()
    assert not [line for line in doctor.check(request, []) if line.what == "log" and line.state == "bad"]


def test_doctor_refuses_an_array_of_trainings_into_one_folder(shards: Path, tmp_path: Path) -> None:
    for option, bad in (("--array=0-3", True), ("--nodes=1", False)):
        (request,) = submit.read_requests(("train", option, f"shards={shards}", f"out={tmp_path / 'r'}"))
        found = [line for line in doctor.check(request, []) if line.what == "array"]
        assert [line.state for line in found] == ["bad"] * bad


@pytest.mark.parametrize(
    ("words", "env", "what", "sentence"),
    [
        (["--chdir=nowhere"], {}, "chdir", "--chdir=nowhere: there is no such folder"),
        (["-Dnowhere"], {}, "chdir", "--chdir=nowhere: there is no such folder"),
        (["--outp=missing/x.log"], {}, "log", "--output: missing is missing"),
        (["--err", "missing/x.log"], {}, "log", "--error: missing is missing"),
        ([], {"SBATCH_OUTPUT": "missing/x.log"}, "log", "--output: missing is missing"),
        ([], {"SBATCH_ERROR": "missing/x.log"}, "log", "--error: missing is missing"),
        ([], {"SBATCH_ARRAY_INX": "1-2"}, "array", "SBATCH_ARRAY_INX makes an array of every job"),
        (["--arr=1-2"], {}, "array", "--array=1-2: all tasks would train into"),
        ([], {"SBATCH_TIMELIMIT": "soon"}, "time", "--time=soon: is not a time"),
        (["--time=-5"], {}, "time", "--time=-5: is not a time"),
        (["--time=1:2:3:4"], {}, "time", "--time=1:2:3:4: is not a time"),
    ],
)
def test_doctor_reads_options_as_sbatch_does(
    words: list[str], env: dict[str, str], what: str, sentence: str, shards: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    found = checks("train", *words, f"shards={shards}", "out=r")[what]
    assert found.state == "bad"
    assert found.found.startswith(sentence)


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_TIMELIMIT", "7")
    assert submit.read_request(["train", "shards=s"]).slurm("time") == "7"
    assert submit.read_request(["train", "--time=8", "shards=s"]).slurm("time") == "8"
    monkeypatch.setenv("SBATCH_GRES", "gpu:2")
    with pytest.raises(UserError, match="submit train: SBATCH_GRES: use --gpus-per-node"):
        submit.read_request(["train", "shards=s"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--nodes=0"], "--nodes=0: must be a number from 1"),
        (["--nodes=2-4"], "--nodes=2-4: must be a number"),
        (["--gpus-per-node=h100"], "--gpus-per-node=h100: must be a number"),
        (["--gpus-per-node=h100:x"], "--gpus-per-node=x: must be a number"),
        (["--cpus-per-task=0"], "--cpus-per-task=0: must be a number from 1"),
        (["procs=0"], "procs=0: must be a number from 1"),
        (["requeues=many"], "requeues=many: must be a number from 0"),
    ],
)
def test_doctor_names_numbers_that_are_none(words: list[str], sentence: str, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}"):
        checks("train", *sorted([*words, f"shards={shards}", f"out={tmp_path / 'r'}"]))  # options of sbatch come first


@pytest.mark.parametrize("limit", ["0", "0:00", "0-0", "UNLIMITED"])
def test_a_job_without_a_limit_of_time(limit: str, shards: Path, tmp_path: Path) -> None:
    """To SLURM, a limit of 0 is none."""
    found = checks("train", f"--time={limit}", f"shards={shards}", f"out={tmp_path / 'r'}")["time"]
    assert (found.state, found.found) == ("note", f"--time={limit}: no limit, as far as the partition allows it")


@pytest.mark.parametrize(
    ("array", "parts", "state"),
    [
        ("1-4", "", "good"),
        ("1-4%2", "4", "good"),
        ("2,4", "4", "note"),
        ("1-5", "4", "bad"),
        ("2-4", "", "bad"),
        ("1-2000000", "", "bad"),
    ],
)
def test_doctor_reads_the_array_of_an_inference(array: str, parts: str, state: str, shards: Path) -> None:
    words = [f"parts={parts}"] * bool(parts)
    assert checks("infer", f"--array={array}", "run=r", f"input={shards}", "out=o", *words)["array"].state == state


@pytest.mark.parametrize("array", ["1-99999999999", "abc", "1-", "1-4%", "1" * 50 + "x", "-4"])
def test_an_array_that_slurm_cannot_count_is_refused(array: str, shards: Path) -> None:
    with pytest.raises(UserError, match=r"^--array="):
        checks("infer", f"--array={array}", "run=r", f"input={shards}", "out=o")


def test_an_array_has_no_more_tasks_than_the_plan(shards: Path, tmp_path: Path) -> None:
    words = ["name=paper", f"data={shards}", f"out={tmp_path / 'e'}", "--only", "table2"]
    assert "array" not in checks("experiment", "--array=1", *words)
    assert checks("experiment", "--array=1-99", *words)["array"].state == "bad"


@pytest.mark.parametrize("words", [["--track.wandb"], ["--track.wandb="]])
def test_an_option_without_its_value_is_named(words: list[str], shards: Path) -> None:
    found = checks("infer", "run=r", f"input={shards}", "out=o", *words)
    assert found["options"].state == "bad"


def test_doctor_sees_where_tracking_goes(shards: Path, tmp_path: Path) -> None:
    for words in (["--track.wandb", "online"], ["--track.wandb=online"]):
        assert checks("infer", "run=r", f"input={shards}", "out=o", *words)["W&B"].found == "online"
    (tmp_path / "quiet.toml").write_text('[track]\nwandb = "off"\n')
    words = [f"shards={shards}", f"out={tmp_path / 'r'}", f"config={tmp_path / 'quiet.toml'}"]
    assert checks("train", *words)["W&B"].found == "off"
    assert checks("train", *words, "--track.wandb", "online")["W&B"].found == "online"
    words = ["name=paper", f"data={shards}", f"out={tmp_path / 'e'}", "--only", "table2"]
    assert checks("experiment", *words, "--track.wandb", "off")["W&B"].found == "off"


def test_doctor_needs_no_temporary_folder(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(doctor.tempfile, "gettempdir", none)
    assert checks("train", f"shards={shards}", f"out={tmp_path / 'r'}")["output"].state != "bad"
