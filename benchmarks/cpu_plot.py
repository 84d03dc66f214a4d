"""Bars of `benchmarks.cpu_peers` as an SVG, which needs no library: one panel a case, the shorter the better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

from hawq_tvm.core.specs import counted

_WIDTH, _BAR, _GAP, _TITLE = 760, 16, 5, 34  # pixels
_NAMES, _VALUES = 210, 150  # left and right of the bars
_OURS, _INT8, _FP32 = "#1f6f4a", "#4878a8", "#b8b8b8"


def draw_bars(results: Mapping[str, Any]) -> str:
    """The plot of what `benchmarks.cpu_peers` writes."""
    parts, y = [], 44
    machine = results["machine"]["cpu"]
    for case in results["cases"]:
        threads = counted(case["threads"], "thread")
        parts.append(_text(10, y + 14, f"{case['network']}, batch {case['batch']}, {threads}", bold=True))
        y += _TITLE - 10
        longest = max(row["median_ms"] for row in case["rows"])
        for row in case["rows"]:
            width = (_WIDTH - _NAMES - _VALUES) * row["median_ms"] / longest
            parts.append(_text(_NAMES - 8, y + 12, row["engine"], anchor="end"))
            parts.append(
                f'<rect x="{_NAMES}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{_colour(row["engine"])}"/>'
            )
            parts.append(_text(_NAMES + width + 6, y + 12, f"{row['median_ms']:.2f} ms ({row['ratio']:.2f} x)"))
            y += _BAR + _GAP
        y += _TITLE - 18
    head = _text(10, 22, f"fp32 image to logits, median; {machine}, {results['date'][:10]}", bold=True)
    body = "\n".join([head, *parts])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" viewBox="0 0 {_WIDTH} {y}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _colour(engine: str) -> str:
    if engine.startswith("hawq_tvm"):
        return _OURS
    return _INT8 if "INT8" in engine else _FP32


def _text(x: float, y: float, words: str, *, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}"{weight}>{escape(words)}</text>'
