from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_sketch.core.errors import UserError
from dist_sketch.core.expression import MOST_CHARACTERS, Expression

ROW: dict[str, Any] = {"style": 1, "smile": False, "source": "cufs", "hair color": 2, "age": 3.5, "lost": None}


def value(text: str, row: dict[str, Any] = ROW) -> Any:
    return Expression(text, "data.where")(row)


@pytest.mark.parametrize(
    "text",
    [
        "style == 1",
        "1 == style and not smile",
        "style != 2 or source == 'other'",
        "0 <= style < 2 < age <= 3.5",
        "(style > 5 or smile == false) and source in ('cufs', \"fs2k\")",
        "style not in [0, 2, -1]",
        'label("hair color") >= 2',
        "not smile",
        "smile == 0",
        "style == true",
        "style > -1",
        "style",
        "source >= 'b'",
        "style ==\n1",
        "style == 1 if source == 'cufs' else age < 0",
        # A comparison with a label that the pair lacks is false, whichever it is.
        *("not lost", "not lost == 1", "not lost != 1", "not lost < 1", "not lost in (1, 2)", "not lost not in (1, 2)"),
    ],
)
def test_what_is_true_of_a_pair(text: str) -> None:
    assert Expression(text, "data.where").holds(ROW) is True
    assert Expression(f"not ({text})", "data.where").holds(ROW) is False


def test_values() -> None:
    assert value("3 if source == 'cufs' else 1") == 3
    assert value("3 if source == 'fs2k' else 0.5 if style == 1 else 1") == 0.5
    assert (value("age"), value("lost"), value("-2")) == (3.5, None, -2)
    assert list(Expression("style == 1 and not label('hair color') or style", "").names) == ["style", "hair color"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("style = 1", "is no expression over labels (invalid syntax; equal is ==)"),
        ("style ==", "is no expression over labels (invalid syntax); examples: style == 1"),
        ("", "is no expression over labels"),
        ("(" * 300, "is no expression over labels"),
        ("style == 1\0", "is no expression over labels"),
        ("__import__('os').system('true')", "cannot have \"__import__('os').system('true')\" in it"),
        ("style.__class__", "cannot have 'style.__class__' in it"),
        ("[x for x in (1,)]", "cannot have"),
        ("style + 1", "cannot have 'style + 1' in it"),
        ("9 ** 9 ** 9 == 1", "cannot have '9 ** 9 ** 9' in it"),
        ("-style", "cannot have '-style' in it"),
        ("label(style)", "cannot have"),
        ("label('a', 'b')", "cannot have"),
        ("style == None", "cannot have 'None' in it"),
        ("f'{style}'", "cannot have"),
        ("(style := 2)", "cannot have"),
        ("lambda: 1", "cannot have"),
        ("source in 'cufs'", "'in' needs a list of values"),
        ("style in ()", "'in' needs a list of values"),
        ("style is 1", "compare with =="),
        ("not " * 60 + "smile", "is nested more than 20 deep"),
        ("style.a" + ".a" * 400, "cannot have"),
        ("style" + " " * MOST_CHARACTERS, f"has more than {MOST_CHARACTERS:,} characters"),
    ],
)
def test_anything_else_is_refused_with_a_sentence(text: str, said: str) -> None:
    with pytest.raises(UserError) as e:
        Expression(text, "data.where")
    assert str(e.value).startswith("data.where = ")
    assert said in str(e.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("style == '1'", "compares the number 1 with the text '1'"),
        ("source < 3", "compares the text 'cufs' with the number 3"),
        ("style in (2, 'a', 1)", "compares the number 1 with the text 'a'"),
        ("source", "takes the text 'cufs' for true or false; compare it with something"),
        ("style == 1 and source", "takes the text 'cufs' for true or false"),
    ],
)
def test_texts_and_numbers_are_not_mixed_up(text: str, said: str) -> None:
    with pytest.raises(UserError) as e:
        Expression(text, "data.where").holds(ROW)
    assert str(e.value).startswith(f"data.where = {text!r}: {said}")


NUMBERS = st.sampled_from(["a", "b", "0", "1", "2", "-1", "0.5", "True"])
ORDERS, MEMBERS = st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), st.sampled_from(["in", "not in"])
COMPARED = st.builds("{} {} {}".format, NUMBERS, ORDERS, NUMBERS) | st.builds(
    "{} {} ({}, {})".format, NUMBERS, MEMBERS, NUMBERS, NUMBERS
)
CONDITIONS = st.recursive(
    COMPARED,
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or"]), inner)
        | st.builds("(not {})".format, inner)
        | st.builds("({} if {} else {})".format, inner, inner, inner)
    ),
    max_leaves=8,
)


@given(CONDITIONS, st.integers(0, 2), st.sampled_from([0, 1, 2, 0.5, True]))
def test_it_means_what_python_means(text: str, a: int, b: Any) -> None:
    assert Expression(text, "").holds({"a": a, "b": b}) == bool(eval(text, {"a": a, "b": b}))


@given(st.text(st.sampled_from("ab12 ()[]{}'\"=<>!-+*.,:;\\\n#@%~^&|notidelabrf"), max_size=40))
def test_no_text_is_more_than_refused(text: str) -> None:
    with suppress(UserError):
        found = Expression(text, "data.where")
        found.holds(dict.fromkeys(found.names, 1))
