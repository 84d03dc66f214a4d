"""Pieces of HTML that the report's parts share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def table(names: Sequence[str], rows: Iterable[Sequence[Any]], *, kind: str = "") -> str:
    """A table that scrolls within itself, where the page is narrower.

    Args:
        names: of the columns.
        rows: cells, escaped.
        kind: ``wide`` keeps the first column in sight, ``prose`` holds sentences, which break.
    """
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class='{f'scroll {kind}'.strip()}' tabindex='0'><table><tr>{head}</tr>{body}</table></div>"
