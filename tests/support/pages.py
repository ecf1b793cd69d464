"""Reads our HTML pages as a browser would."""

import base64
import hashlib
import re
from html.parser import HTMLParser


class Parsed(HTMLParser):
    """Tags with their attributes, the visible text with single spaces, and the tables as rows of cells."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self._open: list[str] = []
        self._words: list[str] = []
        self.tables: list[list[list[str]]] = []
        self._in_cell = False
        self.feed(html)
        self.text = re.sub(r"\s+", " ", "".join(self._words))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True
        if tag != "wbr":
            self._add(" ")

    def handle_endtag(self, tag: str) -> None:
        self._open.append("")
        self._in_cell &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("style", "script"):
            self._add(data)

    def _add(self, data: str) -> None:
        self._words.append(data)
        if self._in_cell:
            cells = self.tables[-1][-1]
            cells[-1] = f"{cells[-1]}{data}".lstrip()


def assert_only_our_script_runs(html: str) -> None:
    """The browser runs one script, the one whose hash the page's policy allows."""
    (code,) = re.findall(r"<script>(.*?)</script>", html, flags=re.S)
    assert sum(tag == "script" and "type" not in attributes for tag, attributes in Parsed(html).tags) == 1
    (policy,) = (a["content"] for tag, a in Parsed(html).tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert "default-src 'none'" in policy


def assert_self_contained(html: str) -> None:
    """Nothing on the page is loaded from anywhere."""
    assert not re.findall(r"(?:src|href|url|action|data)\s*[=(]\s*[\"']?\s*(?:https?:|//|file:)", html)
    for tag, attributes in Parsed(html).tags:
        assert tag not in ("link", "iframe", "object", "embed")
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), (tag, attributes)
    assert set(re.findall(r"https?://[^\s\"'<]+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
