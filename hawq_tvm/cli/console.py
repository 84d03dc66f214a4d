"""What the command line draws: progress on standard error, tables on standard output."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from hawq_tvm.core.reporter import Advance, Reporter

if TYPE_CHECKING:
    from hawq_tvm.cli.doctor import Check
    from hawq_tvm.core.specs import CostTable
    from hawq_tvm.ilp import Allocation
    from hawq_tvm.measure.bench import BenchReport
    from hawq_tvm.measure.verify import VerifyReport
    from hawq_tvm.runs.summary import RunSummary

_WIDE = 200  # columns where there is no terminal to fit

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDE)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class ConsoleReporter(Reporter):
    """Bars while stages run and a line when each is done; silent where standard error is not a terminal."""

    @contextmanager
    def stage(self, title: str, *, timing: bool = False) -> Iterator[Advance]:
        if not err.is_terminal:
            yield lambda done, total: None
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        started = time.perf_counter()
        with Progress(*columns, console=err, transient=True, auto_refresh=not timing) as progress:
            task = progress.add_task(title, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total, refresh=timing)
        err.print(Text(f"  {title}  {time.perf_counter() - started:.1f} s", style="dim"))

    def skipped(self, title: str) -> None:
        if err.is_terminal:
            err.print(Text(f"  {title}  done before", style="dim"))

    def note(self, text: str) -> None:
        err.print(Text(text))


def print_json(data: Any) -> None:
    """JSON alone on standard output."""
    print(json.dumps(data, indent=1))


def print_error(message: str) -> None:
    """One sentence on standard error."""
    err.print(Text("error: ", style="bold red") + Text(message))


def print_layers(summary: RunSummary) -> None:
    """The table of layers, and the totals with their budgets."""
    table = Table(box=None, header_style="bold")
    for name, justify in (
        ("layer", "left"),
        ("operator", "left"),
        ("bits", "left"),
        ("output", "left"),
        ("weights", "right"),
        ("bytes", "right"),
        ("MACs", "right"),
        ("BOPS", "right"),
        ("us", "right"),
        ("Omega", "right"),
        ("bound", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for layer in summary.layers:
        table.add_row(
            layer.name,
            layer.kind,
            layer.bits,
            Text(layer.output),
            f"{layer.parameters:,}",
            f"{layer.size_bytes:,.0f}",
            f"{layer.macs:,}",
            f"{layer.bops:,}",
            "" if layer.latency_us is None else f"{layer.latency_us:.1f}",
            "" if layer.sensitivity is None else f"{layer.sensitivity:.2e}",
            f"2^{max(layer.accumulator_bound, 1).bit_length()}",
        )
    out.print(table)
    print_storages(summary)
    print_totals(summary)


def print_storages(summary: RunSummary) -> None:
    """How each compiled library stores every value, conversions marked, and what activations take in all."""
    for target, calls in summary.storages.items():
        table = Table(box=None, header_style="bold")
        for name in ("value", "storage", "bytes", "kernel"):
            table.add_column(name, justify="right" if name == "bytes" else "left")
        for call in calls:
            name = f"{call.value} (converted)" if call.conversion else call.value
            table.add_row(name, call.storage, f"{call.size_bytes:,}", call.kernel)
        out.print(table)
        out.print(Text(f"activations on {target}: {summary.activation_bytes[target]:,} bytes after planning"))


def print_totals(summary: RunSummary) -> None:
    """What the compiled network costs, beside its budgets."""
    totals = summary.totals
    for cost, title, unit in (
        ("size_bytes", "weights", "bytes"),
        ("bops", "bit operations", "a sample"),
        ("latency_us", "kernels of all layers", "us"),
    ):
        value, limit = getattr(totals, cost), totals.limits.get(cost)
        if value is not None:
            bounded = "" if limit is None else f", budget {limit:,.0f}: {'met' if value <= limit else 'EXCEEDED'}"
            out.print(Text(f"{title}: {value:,.0f} {unit}{bounded}"))
    for note in summary.notes:
        out.print(Text(note, style="bold red"))


def print_outcome(summary: RunSummary) -> None:
    """Accuracy, verification and latency of a run, and where its files lie."""
    bits = [layer.bits for layer in summary.layers]
    counts = ", ".join(f"{bits.count(pair)} layers {pair}" for pair in sorted(set(bits)))
    out.print(Text(f"{summary.model} on {summary.data}: {counts}", style="bold"))
    print_totals(summary)
    if summary.accuracy is not None:
        out.print(Text(f"accuracy: {summary.accuracy}"))
    for report in summary.verification.values():
        print_verification(report)
    for bench in summary.benchmark.values():
        print_benchmark(bench)
    out.print(Text(f"files: {summary.path}/ (start with report.html)"))


def print_verification(report: VerifyReport) -> None:
    out.print(Text(f"verified: {report}", style="green" if report.ok else "bold red"))


def print_benchmark(report: BenchReport, *, layers: bool = False) -> None:
    """Latencies beside each other, and each layer's where asked for."""
    title = f"latency on {report.machine}, {report.threads} threads, batch {report.batch}, target {report.target}"
    table = Table(box=None, header_style="bold", title=title, title_justify="left")
    for name in ("contender", "median us", "p10", "p90", "times hawq_tvm"):
        table.add_column(name, justify="left" if name == "contender" else "right")
    for item in report.contenders:
        numbers = (f"{value:,.1f}" for value in (item.median_us, item.p10_us, item.p90_us))
        table.add_row(item.name, *numbers, f"{report.ratio(item.name):.2f}")
    out.print(table)
    if layers:
        detail = Table(box=None, header_style="bold")
        for name in ("layer", "kernel", "median us"):
            detail.add_column(name, justify="right" if name == "median us" else "left")
        for name, microseconds in report.layers_us.items():
            detail.add_row(name, report.kernels.get(name, ""), f"{microseconds:.1f}")
        out.print(detail)


def print_costs(table: CostTable) -> None:
    """Every layer's costs at every candidate pair, and where the numbers come from."""
    pairs = sorted({bits for layer in table.layers for bits in layer.choices})
    grid = Table(box=None, header_style="bold")
    grid.add_column("layer")
    for name in ("weights", "MACs", *(f"Omega {bits}" for bits in pairs), *(f"us {bits}" for bits in pairs)):
        grid.add_column(name, justify="right")
    for layer in table.layers:
        costs = [layer.choices.get(bits) for bits in pairs]
        omegas = ("" if cost is None else f"{cost.sensitivity:.2e}" for cost in costs)
        times = ("" if cost is None or cost.latency_us is None else f"{cost.latency_us:.1f}" for cost in costs)
        grid.add_row(layer.name, f"{layer.parameters:,}", f"{layer.macs:,}", *omegas, *times)
    out.print(grid)
    for name, source in table.sources.items():
        out.print(Text(f"{name}: {source}"))


def print_allocation(result: Allocation) -> None:
    """The chosen bits, and what they cost within which limits."""
    for name, bits in result.bits.layers.items():
        out.print(Text(f"{bits}  {name}"))
    out.print(Text(f"sensitivity: {result.sensitivity:.6g} ({result.solver}, {result.seconds:.3f} s)"))
    for cost, value in result.costs.items():
        limit = result.limits.get(cost)
        out.print(Text(f"{cost}: {value:,.0f}" + ("" if limit is None else f", budget {limit:,.0f}")))


def print_checks(checks: list[Check]) -> None:
    """The doctor's findings."""
    for check in checks:
        mark, style = ("ok", "green") if check.ok else (("MISSING", "bold red") if check.needed else ("-", "dim"))
        out.print(Text(f"{mark:>7}  ", style=style) + Text(f"{check.name}: {check.detail}"))
