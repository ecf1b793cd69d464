"""Others' words: names, texts of manifests, logs. Whatever they hold, a terminal and a table program only show them."""

import re
from typing import Any

# All that a terminal obeys instead of showing it, but for the line break and the tab; and what turns text around.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """The text with control characters as escapes, so that a terminal does not obey them."""
    return CONTROL.sub(lambda m: m[0].encode("unicode_escape").decode(), text)


def csv_cell(value: Any) -> Any:
    """A value for a CSV file: a text that a table program would compute as a formula gets a quote before it."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value
