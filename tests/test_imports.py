import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run

from dist_sketch import __version__
from dist_sketch.__main__ import COMMANDS, parse, usage

PACKAGE = Path(__file__).parent.parent / "dist_sketch"
MODULES = sorted(p.stem for p in PACKAGE.glob("*.py"))

# A module imports only from modules to its left.
ORDER = (
    *(
        "errors",
        "fileio",
        "stop",
        "logs",
        "after",
        "leg",
        "config",
        "ranks",
        "pixels",
        "recipe",
        "person",
        "portrait",
        "synth",
        "pack",
        "stage",
        "node",
        "loader",
    ),
    *("networks", "losses", "conditional", "step", "compact", "checkpoint", "wandb_log", "track"),
    *(
        "denoise",
        "inception",
        "metrics",
        "hub",
        "validation",
        "calibration",
        "tracked",
        "inputs",
        "parts",
        "finish",
        "infer",
        "progress",
        "resolve",
        "place",
        "train",
        "train_cli",
        "page",
        "error_map",
        "report",
        "card",
        "checkpoint_cli",
        "sync",
        "pack_cli",
        "infer_cli",
    ),
    *(
        "compare_read",
        "compare_scores",
        "compare_tables",
        "compare_runs",
        "compare_text",
        "compare_plot",
        "compare_faces",
        "compare",
        "compare_cli",
    ),
    *("experiment_preset", "experiment_plan", "experiment_run", "experiment_measure", "experiment_claims"),
    *("experiment_page", "experiment", "submit", "doctor", "submit_cli"),
    *(
        "measure",
        "baseline",
        "bench_step",
        "bench_loader",
        "bench_infer",
        "bench_metrics",
        "bench_scaling",
        "bench_start",
        "bench",
    ),
    *("__main__",),
)


def imported(module: str, source: str | None = None) -> set[str]:
    """Our modules that `module` imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source or (PACKAGE / f"{module}.py").read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ("dist_sketch." if node.level else "") + (node.module or "")
            base = base.rstrip(".")
            names = [f"{base}.{a.name}" if base == "dist_sketch" else base for a in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "dist_sketch":
                found.add(rest.split(".")[0] or "__init__")
    return found - {"__version__"}


def test_the_search_sees_every_form_of_import() -> None:
    source = """
import os, dist_sketch.pack
from dist_sketch import loader, __version__
from dist_sketch.step import Step
def f():
    from . import train
    from .report import build
    import dist_sketch
"""
    assert imported("", source) == {"pack", "loader", "step", "train", "report", "__init__"}


def test_each_module_has_its_place() -> None:
    assert set(MODULES) - {"__init__"} == set(ORDER)
    assert imported("config") == {"errors", "fileio"}
    assert imported("__init__") == set()


@pytest.mark.parametrize("module", ORDER)
def test_imports_go_one_way(module: str) -> None:
    assert imported(module) <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_short_and_say_what_they_do(module: str) -> None:
    text = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 400
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--help"], ["train", "--help"], ["pack", "--help"], ["checkpoint", "--help"]),
        *(["checkpoint", "export", "--help"], ["bench", "--help"], ["experiment", "--help"], ["compare", "--help"]),
        *(["--version"], ["nonsense"]),
    ],
)
def test_help_is_quick(arguments: list[str]) -> None:
    script = """
import sys
from dist_sketch import __main__
sys.argv[0] = "dist-sketch"
try:
    __main__.main()
finally:
    heavy = {"torch", "accelerate", "numpy", "PIL", "wandb", "matplotlib", "skimage", "webdataset"} & set(sys.modules)
    print("HEAVY", sorted(heavy))
"""
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == (2 if arguments == ["nonsense"] else 0), done.stderr
    assert done.stdout.endswith("HEAVY []\n")


def test_the_module_and_the_console_script_are_the_same(cli: Run) -> None:
    script = [str(Path(sys.executable).with_name("dist-sketch"))]
    for arguments in (["--help"], ["train", "--help"], ["nonsense"]):
        one = cli(*arguments)
        other = subprocess.run([*script, *arguments], capture_output=True, text=True, timeout=120)
        assert (one.returncode, one.stdout, one.stderr) == (other.returncode, other.stdout, other.stderr)
    assert (cli().returncode, cli().stdout) == (2, cli("--help").stdout)
    assert cli("--version").stdout == f"{__version__}\n"


def test_help_names_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    commands = [line.split()[0] for line in usage().splitlines() if line.startswith("  ")]
    assert commands == list(COMMANDS)
    assert {"synth", "pack", "verify", "train", "checkpoint", "infer", "evaluate", "report", "weights"} <= set(commands)
    for command in commands:
        with pytest.raises(SystemExit) as e:
            parse([command, "--help"])
        assert e.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: dist-sketch {command} ")


def test_an_unknown_command_is_a_sentence(cli: Run) -> None:
    done = cli("trian")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: trian: there is no such command; there are synth, pack, verify, train, ")
    assert len(done.stderr.splitlines()) == 1
