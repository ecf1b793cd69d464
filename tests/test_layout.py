import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run

from dist_sketch import __version__
from dist_sketch.__main__ import COMMANDS, parse, usage

ROOT = Path(__file__).parents[1] / "dist_sketch"
MODULES = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py"))

# A package imports only from itself and from packages before it. `__main__` may import from all of them.
PACKAGES = (
    *("core", "data", "model", "metrics", "inference", "tracking", "training", "reports", "sharing", "experiments"),
    *("bench", "commands", "slurm"),
)


def imported(source: str) -> set[str]:
    """Our modules that a source imports, inside functions too, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            found |= {f"{node.module}.{a.name}" for a in node.names}
    return {name for name in found if name.split(".")[0] == "dist_sketch"}


def test_every_package_has_its_place_and_its_sentence() -> None:
    assert {p.parent.name for p in ROOT.glob("*/__init__.py")} == set(PACKAGES)
    assert {p.name for p in ROOT.glob("*.py")} == {"__init__.py", "__main__.py"}
    for init in ROOT.rglob("*/__init__.py"):
        source = init.read_text(encoding="utf-8")
        text = ast.get_docstring(ast.parse(source)) or ""
        assert text.endswith("."), init
        assert len(text.splitlines()) == 1, init
        assert not imported(source), init


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_between_packages_go_one_way(package: str) -> None:
    allowed = {"__version__", *PACKAGES[: PACKAGES.index(package) + 1]}
    for file in (ROOT / package).rglob("*.py"):
        used = {name.split(".")[1] for name in imported(file.read_text(encoding="utf-8"))}
        assert used <= allowed, f"{file}: {used - allowed}"


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_short_and_say_what_they_do(module: str) -> None:
    text = (ROOT / module).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 400
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--help"], ["train", "--help"], ["pack", "--help"], ["checkpoint", "--help"]),
        *(["checkpoint", "export", "--help"], ["bench", "--help"], ["experiment", "--help"], ["compare", "--help"]),
        *(["--version"], ["nonsense"]),
        *(["infer", "--help"], ["infer", "--run", "portrait-128", "--inptu", "a.png", "--out", "b.png"]),
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
    wrong = arguments == ["nonsense"] or "--inptu" in arguments
    assert done.returncode == (2 if wrong else 0), done.stderr
    assert done.stdout.endswith("HEAVY []\n")


def test_the_module_and_the_console_script_are_the_same(new_cli: Run) -> None:
    script = [str(Path(sys.executable).with_name("dist-sketch"))]
    for arguments in (["--help"], ["train", "--help"], ["nonsense"]):
        one = new_cli(*arguments)
        other = subprocess.run([*script, *arguments], capture_output=True, text=True, timeout=120)
        assert (one.returncode, one.stdout, one.stderr) == (other.returncode, other.stdout, other.stderr)
    empty = new_cli()
    assert (empty.returncode, empty.stdout) == (2, new_cli("--help").stdout)
    assert new_cli("--version").stdout == f"{__version__}\n"


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
