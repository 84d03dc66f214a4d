"""One HTML page of a run, whole in itself: no scripts, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from hawq_tvm.core.specs import LAYER_TIMES
from hawq_tvm.measure.fidelity import RATIOS
from hawq_tvm.runs.artifacts import REPORT
from hawq_tvm.runs.front import render_front
from hawq_tvm.runs.rundir import Run
from hawq_tvm.runs.summary import LayerSummary, RunSummary, summarize
from hawq_tvm.sources.names import shown

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; } th { font-weight: 600; }
.bar { display: inline-block; height: .7rem; background: #4a7db5; vertical-align: middle; }
.error { display: inline-block; height: .7rem; background: #b9cfe4; vertical-align: middle; }
.low { background: #e6f0fa; } .bad { color: #b00020; font-weight: 600; } .good { color: #1b7837; font-weight: 600; }
.remark { color: #8a5a00; }
small { color: #666; }
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
        render_front(summary.front),
        _fidelity(summary),
        _benchmarks(summary),
        "<h2>Where the numbers come from</h2>",
        _table(("what", "source"), ((name, escape(source)) for name, source in summary.sources.items())),
        "<h2>Versions</h2>",
        _table(("package", "version"), ((escape(k), escape(v)) for k, v in summary.versions.items())),
    ]
    head = (
        "<meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
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
    for cost, title, unit in (
        ("size_bytes", "weights", "bytes"),
        ("bops", "bit operations", "a sample"),
        ("latency_us", "layers' kernels, each alone", "us"),
    ):
        value, limit = getattr(totals, cost), totals.limits.get(cost)
        shown = "not measured" if value is None else f"{value:,.0f} {unit}"
        rows.append((title, shown, "none" if limit is None else f"{limit:,.0f} {unit}"))
    if totals.sensitivity is not None:
        rows.append(
            ("predicted rise of the loss", f"{totals.sensitivity:.2e}{_error(totals.sensitivity_error)}", "none")
        )
    for target, size in summary.activation_bytes.items():
        rows.append((f"activation memory, {escape(target)}", f"{size:,} bytes", "none"))
    return _table(("cost", "compiled network", "budget"), rows)


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
    most = max((layer.sensitivity or 0.0 for layer in layers), default=0.0) or 1.0
    names = (
        "layer", "operator", "bits", "output", "weights", "MACs", "bytes", "us alone",
        *(f"us within, {escape(target)}" for target in targets), "accumulator under", "sensitivity",
    )  # fmt: skip
    rows = "".join(_layer(layer, targets, most) for layer in layers)
    table = f"<table><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>{rows}</table>"
    return f"{table}<p><small>{escape(LAYER_TIMES)}. The pale end of a bar is the standard error.</small></p>"


def _layer(layer: LayerSummary, targets: Sequence[str], most: float) -> str:
    times = [layer.latency_us, *(layer.within_us.get(target) for target in targets)]
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
        f"<h2>Signal over error</h2>{_table(names, rows)}<p><small>On {summary.fidelity.samples} samples. "
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
        table = _table(("contender", "median us", "p10", "p90", "times hawq_tvm", "calls", "note"), rows)
        parts.append(
            f"<h2>Latency, {escape(target)}</h2>{table}<p><small>{escape(report.machine)}, {report.threads} threads, "
            f"batch {report.batch}; interleaved, after at most {report.warmup} warm-up calls each; "
            "input already quantised, logits not yet dequantised.</small></p>"
        )
    return "".join(parts)


def _table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>{body}</table>"
