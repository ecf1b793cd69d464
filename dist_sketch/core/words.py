"""Others' words: names, texts of manifests, logs. Whatever they hold, a terminal and a table program only show them.

And a time in words.
"""

import re
from typing import Any

# All that a terminal obeys instead of showing it, but for the line break and the tab; and what turns text around.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """The text with control characters as escapes, so that a terminal does not obey them."""
    return CONTROL.sub(lambda m: m[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """`plain`, and without the line breaks and tabs of others, so that no name can look like a message of ours."""
    return re.sub(r"[\t\n\u2028\u2029]", lambda m: m[0].encode("unicode_escape").decode(), plain(text))


def tell(text: str) -> None:
    """Prints one line with others' words in it."""
    print(one_line(text))


def csv_cell(value: Any) -> Any:
    """A value for a CSV file: a text that a table program would compute as a formula gets a quote before it."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


def duration(seconds: float) -> str:
    """A time in the two largest units that it needs: 5 s, 3 min 20 s, 1 h 5 min, 2 d 3 h."""
    whole = max(0, round(seconds))
    for large, small, unit, part in ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= large:
            rest = whole % large // small
            return f"{whole // large} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"
