"""One HTML page of a run, whole in itself: no scripts, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from hawq_tvm.core.specs import LAYER_TIMES, TOTAL_NAMES, counted, written
from hawq_tvm.measure.fidelity import RATIOS
from hawq_tvm.runs.artifacts import REPORT
from hawq_tvm.runs.choices import render_allocations, render_explanations
from hawq_tvm.runs.front import render_front
from hawq_tvm.runs.html import table
from hawq_tvm.runs.rundir import Run
from hawq_tvm.runs.summary import LayerSummary, RunSummary, summarize
from hawq_tvm.sources.names import shown

_STYLE = """
:root { color-scheme: light dark; --text: #222; --page: #fff; --faint: #5c5c5c; --line: #ddd; --row: #e6f0fa;
  --bar: #3d6fa5; --pale: #b9cfe4; --bad: #b00020; --good: #1b6e31; --remark: #7d5100; }
@media (prefers-color-scheme: dark) { :root { --text: #e2e2e2; --page: #16181b; --faint: #a6a6a6; --line: #3a3e44;
  --row: #1d2a38; --bar: #79aee6; --pale: #35506d; --bad: #ff8a94; --good: #79cf8d; --remark: #e5b567; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 84rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--text); background: var(--page); overflow-wrap: break-word; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p, li { max-width: 48rem; } .scroll { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; }
td, th { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
.prose td, .prose th { white-space: normal; text-align: left; vertical-align: top; }
li { margin: .2rem 0; }
td:first-child, th:first-child { text-align: left; } th { font-weight: 600; }
.wide td:first-child, .wide th:first-child { position: sticky; left: 0; background: var(--page); }
.bar, .error { display: inline-block; height: .7rem; vertical-align: middle; }
.bar { background: var(--bar); } .error { background: var(--pale); }
.low td, .wide .low td:first-child { background: var(--row); }
.bad { color: var(--bad); font-weight: 600; } .good { color: var(--good); font-weight: 600; }
.remark { color: var(--remark); }
small { font-size: 13px; color: var(--faint); }
summary { cursor: pointer; padding: .3rem 0; } details { border-bottom: 1px solid var(--line); }
svg { width: 100%; max-width: 30rem; height: auto; font-size: 13px; fill: var(--text); }
svg path { fill: none; stroke: var(--faint); } svg polyline { fill: none; stroke: var(--pale); stroke-width: 2; }
svg circle { fill: var(--bar); }
"""


def write_report(run: Run, path: Path) -> None:
    """Write the page into a run; it names `path`, where the run will lie."""
    page = render_report(replace(summarize(run), path=shown(path)))
    run.write(REPORT, lambda file: file.write_text(page))


def render_report(summary: RunSummary) -> str:
    """The page.

    Args:
        summary: of the run.

    Returns:
        HTML text.
    """
    parts = [
        f"<h1>{escape(summary.model)}</h1>",
        f"<p>Weights: {escape(summary.weights)}. Samples: {escape(summary.data)}.</p>",
        _outcome(summary),
        "<h2>Costs</h2>",
        _costs(summary),
        "<h2>Layers</h2>",
        _layers(summary),
        render_allocations(summary.allocations),
        render_explanations(summary.explanations),
        render_front(summary.front),
        _fidelity(summary),
        _benchmarks(summary),
        "<h2>Where the numbers come from</h2>",
        table(("what", "source"), ((name, escape(source)) for name, source in summary.sources.items()), kind="prose"),
        "<h2>Versions</h2>",
        table(("package", "version"), ((escape(k), escape(v)) for k, v in summary.versions.items())),
    ]
    head = (
        "<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>hawq_tvm: {escape(summary.model)}</title><style>{_STYLE}</style>"
    )
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def render_card(summary: RunSummary) -> str:
    """A run as a piece of HTML that stands by itself, as notebooks show an object.

    Args:
        summary: of the run.

    Returns:
        HTML text, everything of the run's own escaped.
    """
    bits = [layer.bits for layer in summary.layers]
    rows: list[Sequence[str]] = [
        ("layers", ", ".join(f"{bits.count(pair)} {pair}" for pair in sorted(set(bits)))),
        ("weights", f"{summary.totals.size_bytes:,.0f} bytes{_within(summary, 'size_bytes')}"),
        ("bit operations", f"{summary.totals.bops:,} a sample{_within(summary, 'bops')}"),
    ]
    if summary.accuracy is not None:
        rows.append(("accuracy", escape(str(summary.accuracy))))
    for target, report in summary.verification.items():
        rows.append((f"verified, {escape(target)}", escape(str(report).splitlines()[0])))
    for target, bench in summary.benchmark.items():
        peers = ", ".join(f"{item.name} {bench.ratio(item.name):.2f} times that" for item in bench.contenders[1:])
        first = bench.contenders[0]
        rows.append((f"latency, {escape(target)}", escape(f"{first.median_us:,.1f} us; {peers}")))
        rows += [("", escape(f"{item.name}: {item.note}")) for item in bench.contenders if item.note is not None]
    rows += [("", f"<b>{escape(note)}</b>") for note in summary.notes]
    rows += [("", escape(remark)) for remark in summary.remarks]
    rows.append(("files", f"<code>{escape(summary.path)}</code>"))
    cells = "".join(
        f"<tr><th style='text-align:left'>{name}</th><td style='text-align:left'>{text}</td></tr>"
        for name, text in rows
    )
    head = f"<b>{escape(summary.model)}</b> on {escape(summary.data)}, integers alone"
    return f"<div><p>{head}</p><table>{cells}</table></div>"


def _within(summary: RunSummary, cost: str) -> str:
    """A cost's budget, behind its number; nothing where there is none."""
    limit = summary.totals.limits.get(cost)
    return "" if limit is None else f" of {limit:,.0f}"


def _outcome(summary: RunSummary) -> str:
    lines = []
    if summary.accuracy is not None:
        lines.append(escape(str(summary.accuracy)))
    for target, report in summary.verification.items():
        kind = "good" if report.ok else "bad"
        lines.append(f"{escape(target)}: <span class='{kind}'>{escape(str(report))}</span>")
    lines += [f"<span class='remark'>{escape(remark)}</span>" for remark in summary.remarks]
    lines += [f"<span class='bad'>{escape(note)}</span>" for note in summary.notes]
    return "".join(f"<p>{line}</p>" for line in lines)


def _costs(summary: RunSummary) -> str:
    totals = summary.totals
    rows: list[Sequence[str]] = []
    for cost, (title, unit) in TOTAL_NAMES.items():
        value, limit = getattr(totals, cost), totals.limits.get(cost)
        shown = "not known" if value is None else f"{written(value)} {unit}"
        if cost in totals.borders:
            shown += f", {written(totals.borders[cost])} of it between layers"
        rows.append((title, shown, "none" if limit is None else f"{written(limit)} {unit}"))
    if totals.sensitivity is not None:
        rows.append(
            ("predicted rise of the loss", f"{totals.sensitivity:.2e}{_error(totals.sensitivity_error)}", "none")
        )
    for target, size in summary.activation_bytes.items():
        rows.append((f"activation memory, {escape(target)}", f"{size:,} bytes", "none"))
    prices = "".join(f"<p>{escape(sentence[0].upper() + sentence[1:])}.</p>" for sentence in summary.prices)
    return table(("cost", "compiled network", "budget"), rows, kind="prose") + prices


def _error(error: float | None) -> str:
    """A relative error as it stands behind a number; nothing where it is not known."""
    return "" if error is None else f" &plusmn; {error:.0%}"


def _bar(omega: float | None, error: float | None, most: float) -> str:
    """A sensitivity as a number and a bar, whose pale end is its standard error."""
    if omega is None:
        return ""
    width = 80 * max(omega, 0.0) / most
    pale = min(width * (error or 0.0), 80.0)
    bars = (
        f"<span class='bar' style='width:{width:.1f}px'></span><span class='error' style='width:{pale:.1f}px'></span>"
    )
    return f"{omega:.2e}{_error(error)} {bars}"


def _layers(summary: RunSummary) -> str:
    layers, targets = summary.layers, list(summary.benchmark)
    has_energy = any(layer.energy_uj is not None for layer in layers)
    most = max((layer.sensitivity or 0.0 for layer in layers), default=0.0) or 1.0
    names = (
        "layer", "operator", "bits", "output", "weights", "MACs", "bytes", "us alone", *(["uJ"] if has_energy else []),
        *(f"us within, {escape(target)}" for target in targets), "accumulator under", "sensitivity",
    )  # fmt: skip
    rows = "".join(_layer(layer, targets, most, has_energy) for layer in layers)
    head = "".join(f"<th>{name}</th>" for name in names)
    found = f"<div class='scroll wide'><table><tr>{head}</tr>{rows}</table></div>"
    return f"{found}<p><small>{escape(LAYER_TIMES)}. The pale end of a bar is the standard error.</small></p>"


def _layer(layer: LayerSummary, targets: Sequence[str], most: float, has_energy: bool) -> str:
    times = [
        layer.latency_us,
        *([layer.energy_uj] if has_energy else []),
        *(layer.within_us.get(target) for target in targets),
    ]
    cells = (
        escape(layer.name),
        escape(layer.kind),
        layer.bits,
        escape(layer.output),
        f"{layer.parameters:,}",
        f"{layer.macs:,}",
        f"{layer.size_bytes:,.0f}",
        *("" if microseconds is None else f"{microseconds:.1f}" for microseconds in times),
        f"2^{max(layer.accumulator_bound, 1).bit_length()}",
        _bar(layer.sensitivity, layer.sensitivity_error, most),
    )
    kind = "low" if layer.bits.startswith(("w2", "w3", "w4")) else ""
    return f"<tr class='{kind}'>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _fidelity(summary: RunSummary) -> str:
    """Every value's signal over error, that of pools, sums and concatenations too; nothing where none was measured."""
    if summary.fidelity is None:
        return ""

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    rows = (
        (
            escape(value.name),
            escape(value.kind),
            str(value.bits) if value.weight_bits is None else f"{value.bits}, weights {value.weight_bits}",
            *(
                number(ratio, ".1f")
                for ratio in (value.accumulated_db, value.alone_db, value.inputs_db, value.weights_db, value.output_db)
            ),
            f"{value.clipped:.3%}",
            number(value.range_use, ".0%"),
            number(value.effective_bits, ".1f"),
            f"{value.channel_spread:,.0f}",
        )
        for value in summary.fidelity.values
    )
    names = (
        "value", "operator", "bits", "dB all", "dB alone", "by inputs", "by weights", "by result", "clipped",
        "range used", "bits used", "channels apart",
    )  # fmt: skip
    return (
        f"<h2>Signal over error</h2>{table(names, rows, kind='wide')}<p><small>On {summary.fidelity.samples} samples. "
        f"{escape(RATIOS)}. By inputs, by weights, by result: were only they rounded. Bits used: by the 99.9% of the "
        "elements of least magnitude. Channels apart: the strongest over the weakest.</small></p>"
    )


def _benchmarks(summary: RunSummary) -> str:
    parts = []
    for target, report in summary.benchmark.items():
        rows = (
            (
                escape(item.name),
                f"{item.median_us:,.1f}",
                f"{item.p10_us:,.1f}",
                f"{item.p90_us:,.1f}",
                f"{report.ratio(item.name):.2f}",
                f"{item.runs:,}",
                f"<span class='remark'>{escape(item.note or '')}</span>",
            )
            for item in report.contenders
        )
        times = table(("contender", "median us", "p10", "p90", "times hawq_tvm", "calls", "note"), rows)
        parts.append(
            f"<h2>Latency, {escape(target)}</h2>{times}<p><small>{escape(report.machine)}, "
            f"{counted(report.threads, 'thread')}, batch {report.batch}; interleaved, after at most "
            f"{report.warmup} warm-up calls each; input already quantised, logits not yet dequantised.</small></p>"
        )
    return "".join(parts)
