"""A front as a piece of HTML: a plot that shrinks with the page, and what each step buys."""

from __future__ import annotations

from html import escape

from hawq_tvm.ilp.front import Front
from hawq_tvm.ilp.problem import Quantity

_WIDTH, _HEIGHT, _EDGE = 360, 240, 46

_TITLES: dict[Quantity, tuple[str, float, str]] = {
    "size_bytes": ("weights", 1e3, "kB"),
    "bops": ("bit operations", 1e6, "M"),
    "latency_us": ("kernels", 1.0, "us"),
    "energy_uj": ("energy", 1.0, "uJ"),
    "sensitivity": ("sensitivity", 1.0, ""),
}
_MOST_CHANGES = 3  # layers named in a row of the table


def render_front(front: Front | None) -> str:
    """The plot and the table; nothing where there is no front."""
    if front is None:
        return ""
    second = "accuracy" if any(point.accuracy is not None for point in front.points) else front.axes[1]
    plot = _plot(front, accuracy=second == "accuracy")
    return f"<h2>Front</h2>{plot}<p><small>{escape(front.statement)}.</small></p>{_table(front)}"


def _written(value: float, axis: Quantity) -> str:
    _, unit, name = _TITLES[axis]
    return f"{value / unit:,.4g} {name}".strip()


def _plot(front: Front, *, accuracy: bool) -> str:
    """Points by both quantities; one that is named when it is pointed at."""
    first, second = front.axes
    points = [point for point in front.points if point.accuracy is not None] if accuracy else list(front.points)
    across = [point.totals[first] for point in points]
    up = [point.accuracy or 0.0 if accuracy else point.totals[second] for point in points]
    x0, x1, y0, y1 = min(across), max(across), min(up), max(up)
    marks, line = [], []
    for point, x, y in zip(points, across, up, strict=True):
        left = _EDGE + (_WIDTH - 2 * _EDGE) * ((x - x0) / (x1 - x0) if x1 > x0 else 0.5)
        top = _HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * ((y - y0) / (y1 - y0) if y1 > y0 else 0.5)
        line.append(f"{left:.1f},{top:.1f}")
        words = ", ".join(f"{name} {_written(value, name)}" for name, value in point.totals.items())
        measured = "" if point.accuracy is None else f", top-1 {point.accuracy:.2%}"
        marks.append(f"<circle cx='{left:.1f}' cy='{top:.1f}' r='4'><title>{escape(words + measured)}</title></circle>")
    title_up = "top-1, integers" if accuracy else _TITLES[second][0]
    low, high = (f"{y0:.2%}", f"{y1:.2%}") if accuracy else (_written(y0, second), _written(y1, second))
    bottom, right = _HEIGHT - _EDGE, _WIDTH - _EDGE
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' style='width:100%;max-width:40rem' font-size='11'>"
        f"<path d='M{_EDGE} {_EDGE - 20}V{bottom}H{right + 20}' fill='none' stroke='#888'/>"
        f"<polyline points='{' '.join(line)}' fill='none' stroke='#b9cfe4'/><g fill='#4a7db5'>{''.join(marks)}</g>"
        f"<text x='{_EDGE}' y='{_EDGE - 28}'>{escape(title_up)}: {escape(low)} to {escape(high)}</text>"
        f"<text x='{_EDGE}' y='{bottom + 16}'>{escape(_written(x0, first))}</text>"
        f"<text x='{right}' y='{bottom + 16}' text-anchor='end'>{escape(_written(x1, first))}</text>"
        f"<text x='{_WIDTH / 2}' y='{bottom + 32}' text-anchor='middle'>{escape(_TITLES[first][0])}</text></svg>"
    )


def _table(front: Front) -> str:
    """What each step takes and buys, and the layers that change in it."""
    first, second = front.axes
    rows = []
    for number, step in enumerate(front.steps, 1):
        named = [f"{escape(name)} {a} to {b}" for name, (a, b) in list(step.changes.items())[:_MOST_CHANGES]]
        more = len(step.changes) - len(named)
        layers = f"{'; '.join(named)}{f' and {more} more' if more else ''}"
        cells = (f"{number} to {number + 1}", _written(step.more, first), _written(step.less, second), layers)
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = f"<tr><th>points</th><th>{_TITLES[first][0]} more</th><th>{_TITLES[second][0]} less</th><th>layers</th></tr>"
    return f"<div style='overflow-x:auto'><table>{head}{''.join(rows)}</table></div>" if rows else ""
