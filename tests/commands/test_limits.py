"""Numbers on the command line that could be written and then not be read again: a sentence before anything is done."""

import sys
from pathlib import Path

import pytest

from dist_sketch.__main__ import main
from dist_sketch.core.config import DenoiseConfig
from dist_sketch.core.errors import UserError
from dist_sketch.core.part import Part


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("shard-mb", v) for v in ("1e308", "inf", "1e20")),
        *(("shard-count", v) for v in ("9" * 20, "9" * 400)),
        ("skip-bad", "9" * 20),
        *(("track.timeout-s", v) for v in ("nan", "inf", "-1", "0", "1e300")),
        ("track.log-interval-steps", "9" * 20),
    ],
)
def test_pack_takes_no_number_that_cannot_be_read_again(
    option: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["dist-sketch", "pack", str(tmp_path), "--out", str(out), f"--{option}={value}"])
    with pytest.raises(SystemExit) as e:
        main()
    assert e.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {option.replace('-', '_')} = ")
    assert not out.exists()


@pytest.mark.parametrize(
    "text", ["1/99999999999999", "1/1000001", "99999999/99999999", f"1/{'9' * 5000}", "2/1", "0/1"]
)
def test_a_part_of_more_than_can_be_read_again_is_a_sentence(text: str) -> None:
    with pytest.raises(UserError, match=r"^--part .*: must be K/N with K from 1 to N, .* at most 1,000,000"):
        Part.parse(text)


@pytest.mark.parametrize("strength", [1e300, 1001.0, -1.0, float("nan"), float("inf")])
def test_a_strength_that_cannot_be_read_again_is_a_sentence(strength: float) -> None:
    with pytest.raises(UserError, match=r"^denoise.strength = .*: must be from 0 .nothing. to 1000"):
        DenoiseConfig(filter="bilateral", strength=strength).check()
