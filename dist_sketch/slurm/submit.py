"""`dist-sketch submit`: turns its arguments into calls of sbatch for a job, a chain of jobs, an array, an experiment.

The arguments after the kind are those of `sbatch slurm/KIND.sbatch`: options of sbatch, settings as name=value, options
of the `dist-sketch` command.
"""

import hashlib
import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from dist_sketch.commands.experiment import ExperimentCommand, preset
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import find_file, write_atomic

CHAIN, THEN = "chain", "then"
# The settings that each kind of job needs
NEEDED = {
    "pack": ("source", "out"),
    "train": ("shards", "out"),
    "infer": ("run", "input", "out"),
    "experiment": ("data", "out"),
}
# The settings that a job of a chain takes from an earlier job, unless given: setting -> kind and setting of that job
INHERITED = {
    "train": {"shards": ("pack", "out")},
    "infer": {"run": ("train", "out"), "input": ("train", "shards")},
}
ENVIRONMENT = ("venv", "modules")  # settings that a job of a chain takes from an earlier job of any kind
# sbatch's short options that matter here
SHORT = {
    **{"-N": "--nodes", "-n": "--ntasks", "-c": "--cpus-per-task", "-t": "--time", "-a": "--array", "-A": "--account"},
    **{"-d": "--dependency", "-G": "--gpus", "-p": "--partition", "-q": "--qos", "-C": "--constraint"},
    **{"-o": "--output", "-e": "--error", "-D": "--chdir", "-M": "--clusters"},
}
# Variables from which sbatch takes options; they win over the script, the command line wins over them
VARIABLES = {
    **{"--output": "SBATCH_OUTPUT", "--error": "SBATCH_ERROR", "--time": "SBATCH_TIMELIMIT", "--gres": "SBATCH_GRES"},
    **{"--gpus-per-node": "SBATCH_GPUS_PER_NODE", "--gpus": "SBATCH_GPUS", "--gpus-per-task": "SBATCH_GPUS_PER_TASK"},
    **{"--cpus-per-gpu": "SBATCH_CPUS_PER_GPU", "--gpus-per-socket": "SBATCH_GPUS_PER_SOCKET"},
}
# With these options the steps of a job may see only one of its GPUs
GPU_OPTIONS = ("--gres", "--gpus", "--gpus-per-task", "--cpus-per-gpu", "--gpus-per-socket")
# Options that the one-node job after an array (a merge, an experiment's page) takes from the array
COMMON = (
    *("--account", "--partition", "--qos", "--reservation", "--constraint", "--clusters", "--chdir", "--comment"),
    *("--export", "--output", "--error", "--time", "--mem", "--mem-per-cpu", "--mail-type", "--mail-user"),
)
# The long options that are read here; sbatch takes any beginning of a name that fits only one
LONG = (*dict.fromkeys((*SHORT.values(), *GPU_OPTIONS, *COMMON)), "--gpus-per-node", "--ntasks-per-node")


@dataclass(frozen=True)
class Request:
    """The arguments for one script."""

    kind: str
    sbatch: tuple[str, ...]  # options of sbatch
    settings: dict[str, str]  # only those that were given
    options: tuple[str, ...]  # of the dist-sketch command

    @property
    def script(self) -> Path:
        """The script's file."""
        return find_file("slurm", self.kind, ".sbatch")

    @property
    def defaults(self) -> dict[str, str]:
        """The script's settings with their defaults; "" for a default that is read from the environment."""
        block = self.script.read_text(encoding="utf-8").split("settings: name=value", 1)[1].split("\n# ---", 1)[0]
        return dict(re.findall(r"^([a-z]+)=(?:\$\{[^}]*\}|(\S*)) +#", block, re.MULTILINE))

    def setting(self, name: str) -> str:
        """A setting; if it was not given, its default."""
        return (self.defaults | self.settings).get(name, "")

    def slurm(self, name: str) -> str:
        """An option of sbatch: as it was given, or else from the environment, or the script's; "" if none has it."""
        text = self.script.read_text(encoding="utf-8")
        default = re.search(rf"^#SBATCH --{name}=(\S+)$", text, re.MULTILINE)
        outside = os.environ.get(VARIABLES.get(f"--{name}", ""))
        return self.given.get(f"--{name}", outside or (default[1] if default else ""))

    @property
    def given(self) -> dict[str, str]:
        """The options of sbatch by their long names; "" for an option without a value."""
        found: dict[str, str] = {}
        option = ""
        for word in self.sbatch:
            if not word.startswith("-"):
                found[option] = word
                continue
            option, _, value = word.partition("=")
            if word[:2] in SHORT and not word.startswith("--"):
                option, value = SHORT[word[:2]], word[2:].removeprefix("=")
            elif option not in LONG and option.startswith("--"):
                option = next((long for long in LONG if long.startswith(option)), option)
            found[option] = value
        return found


def read_request(arguments: Sequence[str]) -> Request:
    """Reads KIND [options of sbatch] [name=value ...] [options of the command].

    Raises:
        UserError: there is no such kind or setting, or an option stands in the wrong place.
    """
    kind, *rest = arguments or [""]
    if kind not in NEEDED:
        raise UserError(f"submit {kind or '(nothing)'}: must be one of {', '.join(NEEDED)}, {CHAIN}")
    is_setting = re.compile("[a-z_]+=").match
    sbatch = tuple(itertools.takewhile(lambda word: not is_setting(word), rest))
    given = list(itertools.takewhile(is_setting, rest[len(sbatch) :]))
    options = tuple(rest[len(sbatch) + len(given) :])
    settings = dict(word.split("=", 1) for word in given)
    request = Request(kind, sbatch, settings, options)
    known = request.defaults
    unknown = [name for name in settings if name not in known]
    ours = [o for o in options if o in ("--dry-run", "--force") and (o, kind) != ("--force", "pack")]
    gpus = [option for option in GPU_OPTIONS if option in request.given]
    gpus += [VARIABLES[option] for option in GPU_OPTIONS if os.environ.get(VARIABLES[option])]
    if unknown:
        hint = "; options of sbatch are written --name=value" if sbatch else ""
        problem = f"there is no setting {unknown[0]}=; there are {', '.join(known)}{hint}"
    elif options and not options[0].startswith("--"):
        problem = f"{options[0]}: neither a setting (name=value) nor an option (--name)"
    elif ours:
        problem = f"{ours[0]}: must stand before the kind, as in submit {ours[0]} {kind} ..."
    elif gpus and kind != "pack":
        problem = f"{gpus[0]}: use --gpus-per-node=N; otherwise the job's steps may see only one of the GPUs"
    else:
        return request
    raise UserError(f"submit {kind}: {problem}")


def read_requests(arguments: Sequence[str]) -> list[Request]:
    """Reads one job, or those of `chain A ... then B ...`, each with the settings that it takes from earlier ones.

    Raises:
        UserError: as `read_request`; a setting that a job needs is missing; the jobs make no chain.
    """
    groups: list[list[str]] = [[]]
    is_chain = list(arguments[:1]) == [CHAIN]
    for word in arguments[1:] if is_chain else arguments:
        if is_chain and word == THEN:
            groups.append([])
        else:
            groups[-1].append(word)
    found: list[Request] = []
    for group in groups:
        request = read_request(group)
        kind, settings = request.kind, request.settings
        for earlier in reversed(found):
            for name, (its_kind, its_name) in INHERITED.get(kind, {}).items():
                if earlier.kind == its_kind and its_name in earlier.settings and not settings.get(name):
                    settings[name] = earlier.settings[its_name]
            for name in ENVIRONMENT:
                if name in earlier.settings:
                    settings.setdefault(name, earlier.settings[name])
        if found and "--dependency" in request.given:
            raise UserError(f"submit {kind}: --dependency: only the first job of a chain may wait for other jobs")
        if kind == "experiment" and any(r.kind == "pack" for r in found):
            raise UserError("submit experiment: needs shards for its plan; pack them first, not in the same chain")
        only_merges = kind == "infer" and request.setting("merge") == "1" and not request.slurm("array")
        needed = ("out",) if only_merges else NEEDED[kind]
        missing = [name for name in needed if not settings.get(name)]
        if missing:
            raise UserError(f"submit {kind}: {missing[0]}=... is missing")
        found.append(request)
    return found


def sbatch_calls(requests: Sequence[Request], *, write: bool = True) -> list[tuple[str, list[str]]]:
    """The names of the jobs to submit, in order, and their arguments for sbatch.

    An array is followed by a job on one node that joins its results: a merge, or the page of an experiment.

    Args:
        write: write the plans of experiments, which the tasks of an array read.
    """
    calls: list[tuple[str, list[str]]] = []
    for request in requests:
        script = [str(request.script), *(f"{name}={value}" for name, value in request.settings.items())]
        one_node = [f"{option}={value}" for option, value in request.given.items() if option in COMMON]
        one_node += ["--nodes=1"] if request.kind == "pack" else ["--nodes=1", "--gpus-per-node=0"]
        if request.kind == "experiment":
            array, plan = _array(request, write=write)
            if array:  # sbatch takes the last --array
                calls.append(("experiment", [*request.sbatch, f"--array={array}", *script, f"plan={plan}"]))
            calls.append(("page", [*one_node, "--job-name=page", *script, *request.options]))
            continue
        in_parts = request.kind in ("pack", "infer") and bool(request.slurm("array"))
        if in_parts and "merge=1" in script:  # the tasks make the parts; the merge is a job of its own
            script.remove("merge=1")
        calls.append((request.kind, [*request.sbatch, *script, *request.options]))
        if in_parts:
            # What is drawn says itself how; a merge of packed parts needs the settings of the shards.
            options = request.options if request.kind == "pack" else ()
            calls.append(("merge", [*one_node, "--job-name=merge", *script, "merge=1", *options]))
    return calls


def _array(request: Request, *, write: bool) -> tuple[str, str]:
    """The unfinished tasks of an experiment, as --array wants them ("" if there are none), and the name of their plan.

    The user may choose the tasks, or only how many may run at once (`--array=%4`). Each array has its own plan file:
    its tasks may start, or be requeued, when a new plan has been written.
    """
    from dist_sketch.experiments import planning

    plan, given = experiment_command(request).plan(), request.slurm("array")
    name = f"plan-{hashlib.sha256(plan.text().encode()).hexdigest()[:8]}.txt"
    if write:
        planning.write(plan)
        write_atomic(plan.out / name, plan.text())
    if given and not given.startswith("%"):
        return given, name
    missing = spans([i for i, run in enumerate(plan.runs, 1) if not run.drawn()])
    return missing and missing + given, name


def experiment_command(request: Request) -> ExperimentCommand:
    """The command `dist-sketch experiment` with the arguments of a request.

    Raises:
        UserError: there is no such experiment, or a setting is wrong.
    """
    words = [request.setting("name"), "--data", request.setting("data"), "--out", request.setting("out")]
    words += request.options
    return tyro.cli(ExperimentCommand, prog="dist-sketch experiment", args=words, default=preset(words))


def spans(numbers: Sequence[int]) -> str:
    """Numbers as SLURM lists them: 1, 2, 3, 7 -> 1-3,7."""
    found: list[list[int]] = []
    for n in numbers:
        if found and n == found[-1][-1] + 1:
            found[-1][1:] = [n]
        else:
            found.append([n])
    return ",".join("-".join(map(str, span)) for span in found)


def submit(calls: Sequence[tuple[str, list[str]]], *, dry_run: bool = False) -> None:
    """Submits jobs, each to start after the one before it, and prints their ids; in a dry run only prints the calls.

    Raises:
        UserError: sbatch refuses a job; those before it are cancelled.
    """
    ids: list[str] = []
    for i, (name, arguments) in enumerate(calls):
        command = ["sbatch", "--parsable", *arguments]
        if ids:
            # A page is made even if some trainings failed.
            relation = "afterany" if calls[i - 1][0] == "experiment" else "afterok"
            command[2:2] = [f"--dependency={relation}:{ids[-1]}", "--kill-on-invalid-dep=yes"]
        if dry_run:
            print(shlex.join(command))
            ids.append(f"<{name}>")
            continue
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError as e:
            raise UserError("there is no sbatch here: run this on a login node of a SLURM cluster") from e
        if done.returncode:
            if ids:
                subprocess.run(["scancel", *ids])
            cancelled = f" (and job {', '.join(ids)} is cancelled)" if ids else ""
            raise UserError(f"sbatch refuses {name}{cancelled}: {done.stderr.strip()}\n  {shlex.join(command)}")
        sys.stderr.write(done.stderr)  # a site's own messages
        ids.append(done.stdout.strip().partition(";")[0])
        print(f"{name}: job {ids[-1]}", flush=True)
