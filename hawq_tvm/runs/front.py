"""A front as a piece of HTML: a plot that shrinks with the page, and what each step buys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from html import escape
from math import log

from hawq_tvm.core.specs import Bits
from hawq_tvm.ilp.front import Front, Step
from hawq_tvm.ilp.problem import ShadowPrice
from hawq_tvm.runs.html import table
from hawq_tvm.runs.quantities import amount_of, name_of, number_of, tick_of, title_of

_WIDTH, _HEIGHT = 360, 270  # of the plot: on a telephone a unit of it is about a pixel
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 30, 46  # of its margins
_TICKS = 4
_DECADES = 30.0  # from the least to the greatest, above which an axis is logarithmic

_MOST_CHANGES = 3  # layers named in a row of the table


def render_front(front: Front | None) -> str:
    """The plot and the table; nothing where there is no front."""
    if front is None:
        return ""
    second = "accuracy" if any(point.accuracy is not None for point in front.points) else front.axes[1]
    plot = _plot(front, accuracy=second == "accuracy")
    said = "".join(
        f"<p>{escape(text[0].upper() + text[1:])}.</p>" for text in (front.statement, worth(front)) if text is not None
    )
    return f"<h2>Front</h2>{plot}{said}{_table(front)}"


def _plot(front: Front, *, accuracy: bool) -> str:
    """Points by both quantities; one that is named when it is pointed at."""
    first, second = front.axes
    points = [point for point in front.points if point.accuracy is not None] if accuracy else list(front.points)
    across = [point.totals[first] for point in points]
    up = [point.accuracy or 0.0 if accuracy else point.totals[second] for point in points]
    x0, x1, y0, y1 = min(across), max(across), min(up), max(up)
    is_log = not accuracy and y0 > 0 and y1 > _DECADES * y0
    marks, line = [], []
    for point, x, y in zip(points, across, up, strict=True):
        left = _LEFT + (_WIDTH - _LEFT - _RIGHT) * _place(x, x0, x1, False)
        top = _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * _place(y, y0, y1, is_log)
        line.append(f"{left:.1f},{top:.1f}")
        words = ", ".join(f"{name} {amount_of(value, name)}" for name, value in point.totals.items())
        measured = "" if point.accuracy is None else f", top-1 {point.accuracy:.2%}"
        marks.append(f"<circle cx='{left:.1f}' cy='{top:.1f}' r='4'><title>{escape(words + measured)}</title></circle>")
    up_title = "top-1 of the integer network" if accuracy else title_of(second) + (", logarithmic" if is_log else "")
    form = (lambda value: f"{value:.1%}") if accuracy else (lambda value: tick_of(value, second))
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    label = escape(f"{up_title} over {title_of(first)}")
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='{label}'>"
        f"<path d='M{_LEFT} {_TOP - 6}V{bottom}H{right + 6}'/>"
        f"<polyline points='{' '.join(line)}'/><g>{''.join(marks)}</g>"
        f"<text x='4' y='16'>{escape(up_title)}</text>"
        f"{_up_ticks(y0, y1, is_log, form)}{_across_ticks(x0, x1, lambda value: tick_of(value, first))}"
        f"<text x='{(_LEFT + right) / 2}' y='{_HEIGHT - 6}' text-anchor='middle'>{escape(title_of(first))}</text></svg>"
    )


def _place(value: float, low: float, high: float, is_log: bool) -> float:
    """Where a value lies between two, 0 to 1."""
    if high == low:
        return 0.5
    return log(value / low) / log(high / low) if is_log else (value - low) / (high - low)


def _ticks(low: float, high: float, is_log: bool) -> list[tuple[float, float]]:
    """Values at even distances on the axis, and where they lie between the two, 0 to 1."""
    if high == low:
        return [(low, 0.5)]
    shares = [tick / (_TICKS - 1) for tick in range(_TICKS)]
    return [(low * (high / low) ** at if is_log else low + (high - low) * at, at) for at in shares]


def _up_ticks(low: float, high: float, is_log: bool, form: Callable[[float], str]) -> str:
    span, bottom = _HEIGHT - _TOP - _BOTTOM, _HEIGHT - _BOTTOM
    return "".join(
        f"<path d='M{_LEFT - 4} {bottom - span * at:.1f}h4'/>"
        f"<text x='{_LEFT - 7}' y='{bottom - span * at + 4:.1f}' text-anchor='end'>{escape(form(value))}</text>"
        for value, at in _ticks(low, high, is_log)
    )


def _across_ticks(low: float, high: float, form: Callable[[float], str]) -> str:
    span, bottom = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _BOTTOM
    return "".join(
        f"<path d='M{_LEFT + span * at:.1f} {bottom}v4'/>"
        f"<text x='{_LEFT + span * at:.1f}' y='{bottom + 18}' text-anchor='{'end' if at == 1 else 'middle'}'>"
        f"{escape(form(value))}</text>"
        for value, at in _ticks(low, high, False)
    )


def _table(front: Front) -> str:
    """The points, then what each step takes and buys, and the layers that change in it."""
    if not front.steps:
        return ""
    measured = any(point.accuracy is not None for point in front.points)
    totals = [name for name in front.points[0].totals if all(name in point.totals for point in front.points)]
    points = (
        (
            f"{number}",
            *(number_of(point.totals[name], name) for name in totals),
            *(["" if point.accuracy is None else f"{point.accuracy:.2%}"] if measured else []),
        )
        for number, point in enumerate(front.points, 1)
    )
    head = ("point", *map(title_of, totals), *(["top-1"] if measured else []))
    steps = "".join(f"<li>{escape(text)}</li>" for text in step_sentences(front))
    return f"{table(head, points, kind='wide')}<h3>What each step buys</h3><ul>{steps}</ul>"


def step_sentences(front: Front) -> list[str]:
    """What each step takes and buys, and the layers that change in it."""
    return [f"{_bought(front, number, step)}: {changed(step.changes)}" for number, step in enumerate(front.steps, 1)]


def price_sentences(prices: Iterable[ShadowPrice]) -> list[str]:
    """What a round amount more of each budget that binds buys, and the layers that change for it."""
    found = []
    for price in prices:
        share = f" ({price.less / price.sensitivity:.1%} of it)" if price.sensitivity > 0 else ""
        more, less = amount_of(price.more, price.cost), amount_of(price.less, "sensitivity")
        found.append(
            f"{name_of(price.cost)} binds: {more} more buys {less} less sensitivity{share}: {changed(price.changes)}"
        )
    return found


def changed(changes: Mapping[str, tuple[Bits, Bits]]) -> str:
    """The first layers that change, and from what to what."""
    named = [f"{name} {a} to {b}" for name, (a, b) in list(changes.items())[:_MOST_CHANGES]]
    more = len(changes) - len(named)
    return f"{', '.join(named)}{f' and {more} more' if more else ''}"


def _bought(front: Front, number: int, step: Step) -> str:
    first, second = front.axes
    fewer, buys = ("fewer" if second == "bops" else "less"), ("buy" if first == "bops" else "buys")
    less = f"{amount_of(step.less, second)} {fewer} {name_of(second)}"
    return f"from point {number} to {number + 1}, {amount_of(step.more, first)} more {name_of(first)} {buys} {less}"


def worth(front: Front) -> str | None:
    """Where a unit of the first quantity buys most of the second and where least, a sentence; None of two points."""
    steps = list(enumerate(front.steps, 1))
    if len(steps) < 2:
        return None
    most, least = (pick(steps, key=lambda item: item[1].price) for pick in (max, min))
    return f"A unit buys most and least in these steps: {_bought(front, *most)}; {_bought(front, *least)}"
