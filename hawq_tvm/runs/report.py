"""One HTML page of a run, whole in itself: no scripts, nothing fetched."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from hawq_tvm.runs.artifacts import REPORT
from hawq_tvm.runs.rundir import Run
from hawq_tvm.runs.summary import LayerSummary, RunSummary, summarize

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; } th { font-weight: 600; }
.bar { display: inline-block; height: .7rem; background: #4a7db5; vertical-align: middle; }
.low { background: #e6f0fa; } .bad { color: #b00020; font-weight: 600; } .good { color: #1b7837; font-weight: 600; }
small { color: #666; }
"""


def write_report(run: Run, path: Path) -> None:
    """Write the page into a run; it names `path`, where the run will lie."""
    page = render_report(replace(summarize(run), path=os.fspath(path)))
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
        _layers(summary.layers),
        _benchmarks(summary),
        "<h2>Where the numbers come from</h2>",
        _table(("what", "source"), ((name, escape(source)) for name, source in summary.sources.items())),
        "<h2>Versions</h2>",
        _table(("package", "version"), ((escape(k), escape(v)) for k, v in summary.versions.items())),
    ]
    head = f"<meta charset='utf-8'><title>hawq_tvm: {escape(summary.model)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _outcome(summary: RunSummary) -> str:
    lines = []
    if summary.accuracy is not None:
        lines.append(escape(str(summary.accuracy)))
    for target, report in summary.verification.items():
        kind = "good" if report.ok else "bad"
        lines.append(f"{escape(target)}: <span class='{kind}'>{escape(str(report))}</span>")
    lines += [f"<span class='bad'>{escape(note)}</span>" for note in summary.notes]
    return "".join(f"<p>{line}</p>" for line in lines)


def _costs(summary: RunSummary) -> str:
    totals = summary.totals
    rows: list[Sequence[str]] = []
    for cost, title, unit in (
        ("size_bytes", "weights", "bytes"),
        ("bops", "bit operations", "a sample"),
        ("latency_us", "layers' kernels", "us"),
    ):
        value, limit = getattr(totals, cost), totals.limits.get(cost)
        shown = "not measured" if value is None else f"{value:,.0f} {unit}"
        rows.append((title, shown, "none" if limit is None else f"{limit:,.0f} {unit}"))
    for target, size in summary.activation_bytes.items():
        rows.append((f"activation memory, {escape(target)}", f"{size:,} bytes", "none"))
    return _table(("cost", "compiled network", "budget"), rows)


def _layers(layers: Sequence[LayerSummary]) -> str:
    most = max((layer.sensitivity or 0.0 for layer in layers), default=0.0) or 1.0
    rows = []
    for layer in layers:
        omega = layer.sensitivity
        bar = "" if omega is None else f"{omega:.2e} <span class='bar' style='width:{80 * omega / most:.1f}px'></span>"
        latency = "" if layer.latency_us is None else f"{layer.latency_us:.1f}"
        cells = (
            escape(layer.name),
            layer.kind,
            layer.bits,
            escape(layer.output),
            f"{layer.parameters:,}",
            f"{layer.macs:,}",
            f"{layer.size_bytes:,.0f}",
            latency,
            f"2^{max(layer.accumulator_bound, 1).bit_length()}",
            bar,
        )
        rows.append((cells, "low" if layer.bits.startswith(("w2", "w3", "w4")) else ""))
    names = (
        "layer",
        "operator",
        "bits",
        "output",
        "weights",
        "MACs",
        "bytes",
        "us",
        "accumulator under",
        "sensitivity",
    )
    body = "".join(f"<tr class='{kind}'>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for cells, kind in rows)
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>{body}</table>"


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
            )
            for item in report.contenders
        )
        table = _table(("contender", "median us", "p10", "p90", "times hawq_tvm"), rows)
        parts.append(
            f"<h2>Latency, {escape(target)}</h2>{table}<p><small>{escape(report.machine)}, {report.threads} threads, "
            f"batch {report.batch}; interleaved, {report.contenders[0].runs} calls each after {report.warmup} warm-up "
            "calls; input already quantised, logits not yet dequantised.</small></p>"
        )
    return "".join(parts)


def _table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>{body}</table>"
