"""Which bits, and why, as pieces of HTML: allocations side by side, and each layer's explanation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from hawq_tvm.ilp.difference import Difference
from hawq_tvm.ilp.explain import Explanation
from hawq_tvm.ilp.problem import Quantity
from hawq_tvm.runs.explanations import REGRET, choices, in_a_row, sentences
from hawq_tvm.runs.html import table
from hawq_tvm.runs.quantities import change_of, number_of, title_of

OWN = "the run's own"


def render_allocations(found: Mapping[str, Difference]) -> str:
    """The run's own bits and each allocation beside them, and what tells these apart; nothing where there is none.

    Args:
        found: by the allocation's name, its difference from the run's own bits.
    """
    if not found:
        return ""
    measures = list(dict.fromkeys(measure for each in found.values() for measure in each.totals))
    titles = [title_of(measure) for measure in measures]
    own = next(iter(found.values())).totals
    rows = [(OWN, "", *(number_of(own[measure][0], measure) if measure in own else "" for measure in measures))]
    for name, each in found.items():
        cells = (_changed(each.totals[measure], measure) if measure in each.totals else "" for measure in measures)
        rows.append((escape(name), f"{len(each.layers)}", *cells))
    parts = [table(("allocation", "layers that differ", *titles), rows, kind="wide")]
    for name, each in found.items():
        if each.layers:
            changes = [
                (
                    escape(row.layer),
                    *map(repr, row.bits),
                    *(
                        change_of(row.changes[measure], measure) if measure in row.changes else ""
                        for measure in measures
                    ),
                )
                for row in each.layers
            ]
            names = ("layer", OWN, escape(name), *titles)
            parts.append(
                f"<details><summary>{escape(name)}: which layers differ, and by how much</summary>"
                f"{table(names, changes, kind='wide')}</details>"
            )
    return f"<h2>Allocations side by side</h2>{''.join(parts)}"


def _changed(pair: tuple[float, float], measure: Quantity) -> str:
    """A total, and by how much it is above or below the first."""
    before, after = pair
    return number_of(after, measure) + (f" ({after / before - 1:+.1%})" if before > 0 and after != before else "")


def render_explanations(found: Sequence[Explanation] | None) -> str:
    """A line a layer, and what there is to say of each where it is opened; nothing where nobody asked."""
    if found is None:
        return ""
    columns = ("layer", "bits", "next would come", "regret", "of the sensitivity", "sure")
    parts = [table(columns, (tuple(map(escape, in_a_row(row))) for row in found), kind="wide")]
    parts += [
        f"<details><summary>{escape(in_a_row(row)[0])}: why {row.bits}</summary>{_explanation(row)}</details>"
        for row in found
    ]
    return f"<h2>Why these bits</h2>{''.join(parts)}<p><small>{escape(REGRET[0].upper() + REGRET[1:])}.</small></p>"


def _explanation(found: Explanation) -> str:
    names, rows = choices(found)
    marked = ((f"<b>{bits}</b>" if bits == repr(found.bits) else bits, *cells) for bits, *cells in rows)
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences(found))
    return f"<ul>{said}</ul>{table(names, marked)}"
