"""Tables of a document, put where the document marks their place."""

from __future__ import annotations

import re
from pathlib import Path


def fill(document: Path, parts: dict[str, str]) -> None:
    """Put each part between ``<!-- NAME -->`` and ``<!-- end of NAME -->``, in place of what is there.

    Raises:
        ValueError: a part has no place in the document.
    """
    text = document.read_text()
    for name, part in parts.items():
        place = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end of {re.escape(name)} -->)", re.DOTALL)
        if not place.search(text):
            raise ValueError(f"{document} has no place for {name!r}")
        text = place.sub(lambda found, part=part: f"{found[1]}\n{part.strip()}\n\n{found[2]}", text)  # type: ignore[misc]
    document.write_text(text)
