"""Names of licences, as the Hugging Face Hub writes them in a card's first lines."""

import re

KNOWN = (
    *("mit", "apache-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "wtfpl", "zlib", "cc0-1.0"),
    *("cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0"),
    *("cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "gpl-2.0", "gpl-3.0"),
    *("lgpl-3.0", "agpl-3.0", "mpl-2.0", "odbl", "pddl", "openrail"),
)


def hub_name(text: str | None) -> str:
    """The Hub's name for a licence as a recipe states it; other: it has none; unknown: not stated."""
    words = re.sub(r"\s+licen[cs]e$", "", re.split(r"[(,;:]", text or "not stated")[0].strip().lower())
    name = "unknown" if words == "not stated" else re.sub(r"\s+", "-", words)
    return name if name in (*KNOWN, "unknown") else "other"
