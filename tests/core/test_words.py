"""Others' words on a terminal, and what opens others' pictures."""

import ast
from pathlib import Path

import pytest

from dist_sketch.core.words import one_line, tell

ROOT = Path(__file__).parents[2] / "dist_sketch"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Zoë 東京", "Zoë 東京"),
        ("a\nerror: all is lost", r"a\nerror: all is lost"),
        ("a\tb\rc\u2028d\u2029e", r"a\tb\rc\u2028d\u2029e"),
        ("\x1b]0;title\x07\x9b", r"\x1b]0;title\x07\x9b"),
    ],
)
def test_a_name_is_shown_on_one_line(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert one_line(text) == shown
    tell(text)
    assert capsys.readouterr().out == shown + "\n"


@pytest.mark.parametrize("module", sorted(p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py")))
def test_the_formats_of_pictures_are_named_wherever_one_is_opened(module: str) -> None:
    """Else Pillow starts Ghostscript on an EPS."""
    calls = (n for n in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))) if isinstance(n, ast.Call))
    opens = [call for call in calls if ast.unparse(call.func) == "Image.open"]
    assert all("formats" in {keyword.arg for keyword in call.keywords} for call in opens)
