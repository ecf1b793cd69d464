"""From words to calls of sbatch: a job, a chain of them, an array, an experiment.

The words after the kind are those of `sbatch slurm/KIND.sbatch`: sbatch's options, settings as name=value, options of
the `dist-sketch` command.
"""

import hashlib
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import find_file, write_atomic

JobKind = Literal["pack", "train", "infer", "experiment"]


KINDS: tuple[JobKind, ...] = ("pack", "train", "infer", "experiment")


CHAIN, THEN = "chain", "then"


# sbatch's short options that we look at
SHORT = {
    **{"-N": "--nodes", "-n": "--ntasks", "-c": "--cpus-per-task", "-t": "--time", "-a": "--array", "-A": "--account"},
    **{"-d": "--dependency", "-G": "--gpus", "-p": "--partition", "-q": "--qos", "-C": "--constraint"},
    **{"-o": "--output", "-e": "--error", "-D": "--chdir", "-M": "--clusters"},
}


# GPUs asked for otherwise do not reach the job's steps whole
GPUS = ("--gres", "--gpus", "--gpus-per-task", "--cpus-per-gpu", "--gpus-per-socket")


# What a job on one node, for the page or the whole of some parts, takes over
COMMON = (
    *("--account", "--partition", "--qos", "--reservation", "--constraint", "--clusters", "--chdir", "--comment"),
    *("--export", "--output", "--error", "--time", "--mem", "--mem-per-cpu", "--mail-type", "--mail-user"),
)


# What a job of a chain takes over from those before it, if it does not say it itself
INHERITS: dict[JobKind, dict[str, tuple[JobKind, str]]] = {
    "pack": {},
    "train": {"shards": ("pack", "out")},
    "experiment": {},
    "infer": {"run": ("train", "out"), "input": ("train", "shards")},
}


ENVIRONMENT = ("venv", "modules")  # these, too, whatever the kind


NEEDED: dict[JobKind, tuple[str, ...]] = {
    "pack": ("source", "out"),
    "train": ("shards", "out"),
    "infer": ("run", "input", "out"),
    "experiment": ("data", "out"),
}


@dataclass(frozen=True)
class Request:
    """What the user wants of one script."""

    kind: JobKind
    sbatch: tuple[str, ...]  # options
    settings: dict[str, str]  # that were given
    options: tuple[str, ...]  # of the dist-sketch command

    @property
    def script(self) -> Path:
        """The script's file."""
        return find_file("slurm", self.kind, ".sbatch")

    def setting(self, name: str) -> str:
        """A setting, or the script's default."""
        return self.settings.get(name, _defaults(self.script).get(name, ""))

    def slurm(self, name: str) -> str:
        """An option of sbatch, or the script's default; "" if neither says it."""
        text = self.script.read_text(encoding="utf-8")
        found = dict(re.findall(r"^#SBATCH (--[a-z-]+)(?:=(\S+))?$", text, re.MULTILINE))
        return str((found | dict(self.given)).get(f"--{name}", ""))

    @property
    def given(self) -> list[tuple[str, str]]:
        """The options of sbatch, by their long names, each with its value."""
        found: list[tuple[str, str]] = []
        for word in self.sbatch:
            option, _, value = word.partition("=")
            if not word.startswith("-") and found:
                found[-1] = (found[-1][0], word)
            elif word[:2] in SHORT and not word.startswith("--"):
                found.append((SHORT[word[:2]], word[2:].removeprefix("=")))
            else:
                found.append((option, value))
        return found


def _defaults(script: Path) -> dict[str, str]:
    """The settings of a script."""
    block = script.read_text(encoding="utf-8").split("settings: name=value", 1)[1].split("\nwhile ", 1)[0]
    return dict(re.findall(r"^([a-z]+)=(?:\$\{[^}]*\}|(\S*)) +#", block, re.MULTILINE))


def read(words: Sequence[str]) -> Request:
    """Reads KIND [sbatch's options] [name=value ...] [options of the command].

    Raises:
        UserError: there is no such kind or setting, or a needed one is missing.
    """
    kind, *rest = words or [""]
    if kind not in KINDS:
        raise UserError(f"submit {kind or '(nothing)'}: must be one of {', '.join(KINDS)}, {CHAIN}")
    known = _defaults(find_file("slurm", kind, ".sbatch"))
    is_setting = [bool(re.match(r"[a-z_]+=", word)) for word in rest]
    first = is_setting.index(True) if True in is_setting else len(rest)
    last = next((i for i in range(first, len(rest)) if not is_setting[i]), len(rest))
    settings = dict(word.split("=", 1) for word in rest[first:last])
    request = Request(kind, tuple(rest[:first]), settings, tuple(rest[last:]))
    problem = _problem(request, known)
    if problem:
        raise UserError(f"submit {kind}: {problem}")
    return request


def _problem(request: Request, known: dict[str, str]) -> str:
    """What is wrong with the words; "" if nothing is."""
    strange = [name for name in request.settings if name not in known]
    if strange:
        hint = "; an option of sbatch is written --name=value" if request.sbatch else ""
        return f"there is no setting {strange[0]}=; there are {', '.join(known)}{hint}"
    options = request.options
    if options and not options[0].startswith("--"):
        return f"{options[0]}: neither a setting (name=value) nor an option (--name)"
    ours = [o for o in options if o in ("--dry-run", "--force") and (o, request.kind) != ("--force", "pack")]
    if ours:
        return f"{ours[0]}: stands before the kind, as in submit {ours[0]} {request.kind} ..."
    gpus = [option for option, _ in request.given if option in GPUS]
    if gpus and request.kind != "pack":
        return f"{gpus[0]}: say --gpus-per-node=N; of GPUs asked for otherwise the job's steps may see only one"
    return ""


def requests(words: Sequence[str]) -> list[Request]:
    """One job's request, or those of `chain A ... then B ...`, each with what it takes over from those before it.

    Raises:
        UserError: as `read`; a setting that a job needs is missing.
    """
    groups: list[list[str]] = [[]]
    chained = list(words[:1]) == [CHAIN]
    for word in words[1:] if chained else words:
        if chained and word == THEN:
            groups.append([])
        else:
            groups[-1].append(word)
    found: list[Request] = []
    for group in groups:
        request = read(group)
        for name, (kind, other) in INHERITS[request.kind].items():
            before = [r for r in found if r.kind == kind and other in r.settings]
            if before and not request.settings.get(name):
                request.settings[name] = before[-1].settings[other]
        for name in ENVIRONMENT:
            before = [r for r in found if name in r.settings]
            if before and name not in request.settings:
                request.settings[name] = before[-1].settings[name]
        if found and "--dependency" in dict(request.given):
            raise UserError(f"submit {request.kind}: --dependency: of a chain, only its first job may wait for others")
        if request.kind == "experiment" and any(r.kind == "pack" for r in found):
            raise UserError("submit experiment: its plan needs the shards; pack them first, in a job of its own")
        merging = request.kind == "infer" and request.setting("merge") == "1"
        missing = [n for n in NEEDED[request.kind] if not request.settings.get(n) and not (merging and n != "out")]
        if missing:
            raise UserError(f"submit {request.kind}: {missing[0]}=... is missing")
        found.append(request)
    return found


class SbatchCall(NamedTuple):
    """A call of sbatch."""

    name: str
    words: list[str]  # after `sbatch --parsable`
    after: int | None = None  # the job before it, by its number in the list
    relation: str = "afterok"


def jobs(found: Sequence[Request], *, write: bool = True) -> list[SbatchCall]:
    """What is submitted, in order; an array has a second job, for the whole of its parts.

    Args:
        write: the plans of experiments, which their tasks read.
    """
    made: list[SbatchCall] = []
    for request in found:
        before = len(made) - 1 if made else None
        settings = [f"{name}={value}" for name, value in request.settings.items()]
        script, options = [str(request.script), *settings], list(request.options)
        if request.kind == "experiment":
            array, plan = _array(request, write=write)
            if array:
                tasks = [*_without_array(request), f"--array={array}", *script, f"plan={plan}"]
                made.append(SbatchCall("experiment", tasks, before))
                before = len(made) - 1
            page = [*_for_one_node(request), "--job-name=page"]
            made.append(SbatchCall("page", [*page, *script, *options], before, "afterany" if array else "afterok"))
            continue
        made.append(SbatchCall(request.kind, [*request.sbatch, *script, *options], before))
        if request.kind == "infer" and request.slurm("array"):
            merge = [*_for_one_node(request), "--job-name=merge"]
            made.append(SbatchCall("merge", [*merge, *script, "merge=1"], len(made) - 1))
    return made


def _without_array(request: Request) -> list[str]:
    kept: list[str] = []
    for option, value in request.given:
        if option != "--array":
            kept += [option] if not value else [f"{option}={value}"] if option.startswith("--") else [option, value]
    return kept


def _for_one_node(request: Request) -> list[str]:
    return [f"{o}={v}" for o, v in request.given if o in COMMON] + ["--nodes=1", "--gpus-per-node=0"]


def _array(request: Request, *, write: bool) -> tuple[str, str]:
    """The tasks of an experiment that are not done ("" if there are none), as --array wants them; their plan's file.

    The user may give them by himself, or (`--array=%4`) how many may run at once. An array has a plan of its own: the
    tasks that wait or are requeued read it later, when another one may have been made.
    """
    from dist_sketch.experiments import planning

    plan, given = plan_of(request), request.slurm("array")
    name = f"plan-{hashlib.sha256(plan.text().encode()).hexdigest()[:8]}.txt"
    if write:
        planning.write(plan)
        write_atomic(plan.out / name, plan.text())
    if given and not given.startswith("%"):
        return given, name
    missing = spans([i for i, job in enumerate(plan.jobs, 1) if not job.drawn()])
    return missing and missing + given, name


def plan_of(request: Request) -> Any:
    """The plan of an experiment; writes nothing.

    Raises:
        UserError: as `dist-sketch experiment`.
    """
    from dist_sketch.commands import experiment

    words = [request.setting("name"), "--data", request.setting("data"), "--out", request.setting("out")]
    words += request.options
    given: Any = tyro.cli(
        experiment.ExperimentCommand, prog="dist-sketch experiment", args=words, default=experiment.preset(words)
    )
    return given.plan()


def spans(numbers: Sequence[int]) -> str:
    """Numbers as SLURM lists them: 1, 2, 3, 7 -> 1-3,7."""
    found: list[list[int]] = []
    for n in numbers:
        if found and n == found[-1][1] + 1:
            found[-1][1] = n
        else:
            found.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def submit(made: Sequence[SbatchCall]) -> list[str]:
    """Gives the jobs to sbatch, each to start after the one that it needs; returns their ids.

    Raises:
        UserError: sbatch refuses one; those before it are cancelled.
    """
    ids: list[str] = []
    for job in made:
        words = command(job, ids)
        try:
            done = subprocess.run(words, capture_output=True, text=True)
        except FileNotFoundError as e:
            raise UserError("there is no sbatch here: call this on a login node of a SLURM cluster") from e
        if done.returncode:
            if ids:
                subprocess.run(["scancel", *ids])
            gone = f" (and job {', '.join(ids)} is cancelled)" if ids else ""
            raise UserError(f"sbatch refuses {job.name}{gone}: {done.stderr.strip()}\n  {shlex.join(words)}")
        sys.stderr.write(done.stderr)  # sites say things there
        ids.append(done.stdout.strip().partition(";")[0])
    return ids


def command(job: SbatchCall, ids: Sequence[str]) -> list[str]:
    """The call of sbatch; `ids` of the jobs before it."""
    words = ["sbatch", "--parsable"]
    if job.after is not None:
        words += [f"--dependency={job.relation}:{ids[job.after]}", "--kill-on-invalid-dep=yes"]
    return [*words, *job.words]
