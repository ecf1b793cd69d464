"""An inference in parts: each input is in one part, and together they give what one job gives."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_sketch.core.errors import UserError
from dist_sketch.core.part import Part
from dist_sketch.inference import parts

ABOUT: dict[str, Any] = {"run": "a", "step": 4, "mode": {"precision": "no"}}


@given(count=st.integers(0, 300), total=st.integers(1, 50))
def test_each_input_is_in_exactly_one_part_and_parts_are_even(count: int, total: int) -> None:
    shares = [Part(k + 1, total).share(count) for k in range(total)]
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["", "3", "0/2", "3/2", "1/0", "a/b", "-1/2", "1/2/3", "1.5/2", "²/3"])
def test_what_is_no_part_is_a_sentence(text: str) -> None:
    with pytest.raises(UserError, match="must be K/N"):
        Part.parse(text)


def state(names: list[tuple[int, str]]) -> dict[str, Any]:
    feature = {64: np.arange(3, dtype=np.float32) / 7}
    rows = {"raw": [(i, {"ssim": 0.1 * i}) for i, _ in names]}
    return {"size": (64, 64), "fid": {"weights": None}, "why": None, "names": names, "rows": rows,
            "features": {"raw": [(i, feature) for i, _ in names]}, "blank": feature if names else None}  # fmt: skip


def test_what_is_saved_is_read_back_to_the_bit(tmp_path: Path) -> None:
    for k in (1, 2, 3):
        assert parts.claim(tmp_path / "out", Part(k, 3), ABOUT)
    states = [[state([(0, "a"), (1, "b")]), state([])], [state([(2, "c")])], [state([])]]
    for k, (own, names) in enumerate(zip(states, (["a", "b"], ["c"], []), strict=True)):
        parts.save(tmp_path / "out", Part(k + 1, 3), names, own)
    about, names, found = parts.load(tmp_path / "out")
    assert about == ABOUT
    assert names == ["a", "b", "c"]
    assert found is not None
    assert repr(found) == repr([s for own in states for s in own])
    assert found[0]["features"]["raw"][0][1][64].dtype == np.float32


def test_a_part_that_is_drawn_is_not_drawn_again(tmp_path: Path) -> None:
    assert parts.claim(tmp_path, Part(1, 2), ABOUT)
    assert parts.claim(tmp_path, Part(1, 2), ABOUT)  # it was killed before it was whole
    parts.save(tmp_path, Part(1, 2), ["a"], None)
    assert not parts.claim(tmp_path, Part(1, 2), ABOUT)
    assert parts.claim(tmp_path, Part(2, 2), ABOUT)


@pytest.mark.parametrize(
    ("other", "named"), [(ABOUT | {"step": 5}, "step"), (ABOUT | {"mode": {}}, "mode"), (ABOUT, "parts")]
)
def test_parts_of_two_inferences_are_not_mixed(tmp_path: Path, other: dict[str, Any], named: str) -> None:
    parts.claim(tmp_path, Part(1, 2), ABOUT)
    with pytest.raises(UserError, match=f"its {named} differ"):
        parts.claim(tmp_path, Part(2, 3 if named == "parts" else 2), other)


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="not an output folder"):
        parts.claim(tmp_path, Part(1, 2), ABOUT)
    (tmp_path / "infer.json").write_text(json.dumps(ABOUT | {"names": []}))  # a whole inference
    assert not parts.claim(tmp_path, Part(1, 2), ABOUT)  # of the same: merged already
    with pytest.raises(UserError, match="another inference"):
        parts.claim(tmp_path, Part(1, 2), ABOUT | {"step": 9})


def test_a_missing_or_damaged_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no parts"):
        parts.load(tmp_path)
    parts.claim(tmp_path, Part(1, 3), ABOUT)
    parts.save(tmp_path, Part(2, 3), ["b"], None)
    with pytest.raises(UserError, match="1/3, 3/3"):
        parts.load(tmp_path)
    for k in (1, 3):
        parts.save(tmp_path, Part(k, 3), [str(k)], None)
    assert parts.load(tmp_path)[1:] == (["1", "b", "3"], None)
    file = parts.file_of(tmp_path, Part(3, 3))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"3-of-3\.pt: is damaged"):
        parts.load(tmp_path)
