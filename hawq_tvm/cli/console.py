"""What the command line draws of runs and their costs, on standard output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING

from rich.text import Text

from hawq_tvm.cli.terminal import out, print_table
from hawq_tvm.core.specs import COST_UNITS, LAYER_TIMES, TOTAL_NAMES, counted, written
from hawq_tvm.measure.fidelity import RATIOS
from hawq_tvm.runs.front import price_sentences

if TYPE_CHECKING:
    from hawq_tvm.backends.tvm.records import Tuning
    from hawq_tvm.cli.doctor import Check
    from hawq_tvm.core.specs import CostName, CostTable, LayerCosts
    from hawq_tvm.ilp import Allocation
    from hawq_tvm.ilp.problem import Quantity
    from hawq_tvm.measure.bench import BenchReport
    from hawq_tvm.measure.comparison import Comparison
    from hawq_tvm.measure.debug_report import DebugReport
    from hawq_tvm.measure.fidelity import ValueFidelity
    from hawq_tvm.measure.roofline import Roofline
    from hawq_tvm.measure.verify import VerifyReport
    from hawq_tvm.runs.summary import RunSummary

LOSSES = (
    "losses: mean KL divergence from the float network's results, of a single output the squared difference; its "
    "weights, its input, both: that layer alone is quantised, on calibration samples; all but it: every other layer "
    "is, on samples held out, as is the whole network"
)
"""What stands in the table of causes, for the reader."""

BOUNDS = (
    "us within: its call inside the running network; us at least: its operations at the peak or its bytes at the "
    "bandwidth, whichever takes longer, which bounds it"
)
"""What stands in the table of bounds, for the reader."""

TRUTHS = {"loss": "beside the true rise of the loss", "kl": "beside the result's divergence"}
"""What metrics are held to, for the reader."""


def print_layers(summary: RunSummary) -> None:
    """The table of layers, and the totals with their budgets."""
    targets = list(summary.benchmark)
    has_energy = any(layer.energy_uj is not None for layer in summary.layers)
    within = ["us within"] if len(targets) == 1 else [f"us within {target}" for target in targets]
    rows = [
        (
            layer.name,
            layer.kind,
            layer.bits,
            layer.output,
            f"{layer.parameters:,}",
            f"{layer.size_bytes:,.0f}",
            f"{layer.macs:,}",
            f"{layer.bops:,}",
            _number(layer.latency_us, ".1f"),
            *([_number(layer.energy_uj, ".2f")] if has_energy else []),
            *(_number(layer.within_us.get(target), ".1f") for target in targets),
            _number(layer.sensitivity, ".2e"),
            _number(layer.sensitivity_error, ".0%"),
            *_ratios(layer.fidelity),
            f"2^{max(layer.accumulator_bound, 1).bit_length()}",
        )
        for layer in summary.layers
    ]
    numbers = (
        "weights",
        "bytes",
        "MACs",
        "BOPS",
        "us alone",
        *(["uJ"] if has_energy else []),
        *within,
        "sensitivity",
        "+-",
        "dB alone",
        "dB all",
        "bound",
    )
    spare = ("dB alone", "uJ", "dB all", "+-", "weights", "output", "operator", "MACs", "BOPS", "bound")
    columns = ("layer", "operator", "bits", "output", *numbers)
    print_table(columns, rows, texts=4, spare=[name for name in spare if name in columns])
    if targets and any(layer.latency_us is not None for layer in summary.layers):
        out.print(Text(LAYER_TIMES))
    if summary.fidelity is not None:
        out.print(Text(RATIOS))
    print_storages(summary)
    print_launches(summary)
    print_totals(summary)


def print_storages(summary: RunSummary) -> None:
    """How each compiled library stores every value, conversions marked, and what activations take in all."""
    for target, calls in summary.storages.items():
        rows = [
            (
                f"{call.value} (converted)" if call.conversion else call.value,
                call.storage,
                call.kernel,
                "" if call.tuned is None else _parameters(call.tuned.parameters) or "yes",
                f"{call.size_bytes:,}",
                "" if call.weight_bits is None else f"{call.weight_bits}",
                f"{call.constant_bytes:,}" if call.constant_bytes else "",
            )
            for call in calls
        ]
        names = (f"value on {target}", "storage", "kernel", "tuned", "bytes", "bits a weight", "bytes of constants")
        print_table(names, rows, texts=4, spare=("bits a weight", "bytes of constants", "bytes", "tuned"))
        resident = sum(call.constant_bytes for call in calls)
        out.print(
            Text(
                f"activations on {target}: {summary.activation_bytes[target]:,} bytes after planning; weights, biases "
                f"and multipliers: {resident:,} bytes, as they stay in memory"
            )
        )


def print_launches(summary: RunSummary) -> None:
    """What every call launches on a GPU, what its blocks take, what it is predicted to take, and its instructions."""
    for target, found in summary.launches.items():
        predicted = summary.predictions[target]
        rows = [
            (
                call,
                ", ".join(takes.tensor_core or ()),
                predicted.calls[call].bound,
                f"{predicted.calls[call].us:.1f}",
                "x".join(map(str, takes.grid)),
                f"{prod(takes.block)}",
                f"{takes.registers}",
                f"{takes.shared_bytes:,}",
                f"{takes.spill_bytes:,}",
                f"{takes.stack_bytes:,}",
                f"{takes.blocks_per_sm}",
                f"{takes.occupancy:.0%}",
            )
            for call, takes in ((launch.call, launch.takes) for launch in found)
        ]
        numbers = (
            "us a call",
            "blocks",
            "threads",
            "registers",
            "shared",
            "spilled",
            "local",
            "blocks an SM",
            "occupancy",
        )
        print_table((f"call on {target}", "tensor core", "bound by", *numbers), rows, texts=3)
        out.print(
            Text(
                f"times on {target} are a model's, at {predicted.clock_mhz:,.0f} MHz: {predicted.us:,.1f} us in all; "
                "no device was asked"
            )
        )
        if any(launch.takes.tensor_core is None for launch in found):
            out.print(Text("tensor core instructions were not looked for; pip install nvidia-cuda-nvdisasm"))


def _ratios(found: ValueFidelity | None) -> tuple[str, str]:
    """A layer's signal over error, alone and with all others in integers."""
    return ("", "") if found is None else (_number(found.alone_db, ".0f"), _number(found.accumulated_db, ".0f"))


def _number(value: float | None, form: str) -> str:
    """A number as text; nothing where it is not known."""
    return "" if value is None else format(value, form)


def print_totals(summary: RunSummary) -> None:
    """What the compiled network costs, beside its budgets."""
    totals = summary.totals
    for cost in TOTAL_NAMES:
        value = getattr(totals, cost)
        if value is not None:
            out.print(Text(_total(cost, value, totals.borders.get(cost), totals.limits.get(cost))))
    for remark in summary.remarks:
        out.print(Text(remark, style="yellow"))
    for note in summary.notes:
        out.print(Text(note, style="bold red"))


def _total(cost: CostName, value: float, between: float | None, limit: float | None) -> str:
    """What a network costs in all, what of it lies between layers, and whether its budget is met."""
    title, unit = TOTAL_NAMES[cost]
    border = f", {written(between)} of it between layers" if between else ""
    budget = "" if limit is None else f", budget {written(limit)}: {'met' if value <= limit else 'EXCEEDED'}"
    return f"{title}: {written(value)} {unit}{border}{budget}"


def print_outcome(summary: RunSummary) -> None:
    """Accuracy, verification and latency of a run, and where its files lie."""
    bits = [layer.bits for layer in summary.layers]
    counts = ", ".join(f"{counted(bits.count(pair), 'layer')} {pair}" for pair in sorted(set(bits)))
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
    """Latencies beside each other, with what speaks against them, and each layer's where asked for."""
    out.print(Text(f"latency on {report.where}", style="italic"))
    rows = []
    for item in report.contenders:
        numbers = (f"{value:,.1f}" for value in (item.median_us, item.p10_us, item.p90_us))
        rows.append(
            (
                item.name,
                *numbers,
                f"{report.ratio(item.name):.2f}",
                f"{item.runs:,}",
                (item.note or "").partition(":")[0],
            )
        )
    print_table(("contender", "median us", "p10", "p90", "times hawq_tvm", "calls", "note"), rows)
    for item in report.contenders:
        if item.note is not None:
            out.print(Text(f"{item.name}: {item.note}", style="yellow"))
    if layers and not report.layers_us:
        out.print(Text("a layer's time within the network is not told over RPC; hawq-tvm profile --device times each"))
    elif layers:
        kernels = [
            (name, report.kernels.get(name, ""), f"{microseconds:.1f}")
            for name, microseconds in report.layers_us.items()
        ]
        print_table(("layer", "kernel", "us within"), kernels, texts=2)
        out.print(Text(LAYER_TIMES))


def print_roofline(found: Roofline) -> None:
    """Every call beside the least that it can take on this machine, and why it has no better kernel."""
    rows = []
    for call in found.calls:
        share = found.share(call)
        rows.append(
            (
                call.name,
                call.kernel,
                call.writes,
                call.bound_by,
                "" if call.tuned is None else _parameters(call.tuned) or "yes",
                f"{call.us:.1f}",
                f"{call.floor_us:.1f}",
                f"{call.gops:,.0f}" if call.macs else "",
                _number(share, ".0%"),
                "" if call.weight_bits is None else f"{call.weight_bits}",
                f"{call.weight_bytes / 1e3:,.1f}",
                f"{call.activation_bytes / 1e3:,.1f}",
            )
        )
    names = ("layer", "kernel", "writes", "bound by", "tuned", "us within", "us at least", "GOPS", "of peak")
    print_table((*names, "bits a weight", "kB constants", "kB activations"), rows, texts=5)
    peaks = ", ".join(f"{name} {gops:,.0f} GOPS" for name, gops in found.ceilings.gops.items()) or "not measured"
    reads = ", ".join(f"{size / 1e6:.1f} MB {gbs:.0f} GB/s" for size, gbs in found.ceilings.read_gbs.items())
    threads = counted(found.ceilings.threads, "thread")
    hand_over = found.ceilings.hand_over_ns
    reads += "" if hand_over is None else f"; from core to core {hand_over:.0f} ns"
    out.print(Text(f"measured with {threads}: peak of {peaks}; reading {reads}"))
    if found.share_of_peak is not None:
        out.print(Text(f"layers with weights reach {found.share_of_peak:.0%} of the {found.ceilings.strongest} peak"))
    out.print(Text(BOUNDS))
    for reason, layers in found.declines.items():
        more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
        out.print(Text(f"{', '.join(layers[:3])}{more}: not by {reason}"))


def print_tuning(found: Tuning) -> None:
    """What each distinct layer is computed by from now on, and what that gains."""
    rows = [
        (row.layer, row.kernel, _parameters(row.parameters), f"{row.untuned_us:.1f}", f"{row.us:.1f}", f"{row.timed}")
        for row in found.layers.values()
    ]
    names = ("layer", "kernel", "parameters", "us untuned", "us tuned", "ways timed")
    print_table(names, rows, texts=3)
    out.print(
        Text(
            f"{counted(len(rows), 'distinct layer')} on {found.cpu}, {counted(found.threads, 'thread')}: "
            f"{found.untuned_us:,.1f} us untuned, {found.us:,.1f} us tuned"
        )
    )


def _parameters(parameters: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in parameters.items())


def print_causes(report: DebugReport) -> None:
    """Layers by what they cost, and what to try."""
    rows = [
        (
            layer.name,
            layer.bits,
            f"{layer.parameters:,}",
            f"{layer.macs:,}",
            *(f"{loss:.2e}" for loss in (layer.weights, layer.input, layer.both, layer.without)),
        )
        for layer in report.layers
    ]
    print_table(("layer", "bits", "weights", "MACs", "its weights", "its input", "both", "all but it"), rows, texts=2)
    rounded = "" if report.rounded else ", nearest integers"
    named = f" of {report.data}" if report.data else ""
    out.print(Text(f"the whole network loses {report.loss:.3g} on {report.held_out} samples{named}{rounded}"))
    out.print(Text(LOSSES))
    for sentence in report.advice:
        out.print(Text(sentence, style="yellow"))


def print_comparison(report: Comparison) -> None:
    """Metrics by how far they order layers as the loss does, and which to trust."""
    for part, truth in dict.fromkeys((row.part, row.truth) for row in report.rows):
        rows = [row for row in report.rows if (row.part, row.truth) == (part, truth)]
        cells = [
            (
                row.metric,
                *(
                    f"{value:.2f} ({low:.2f} to {high:.2f})"
                    for value, (low, high) in (
                        (row.spearman, row.spearman_interval),
                        (row.kendall, row.kendall_interval),
                    )
                ),
                "*" if row.trusted else "",
            )
            for row in rows
        ]
        itself = report.itself[f"{part} {truth}"]
        out.print(Text(f"{part} at {rows[0].bits} bits, {TRUTHS[truth]}; two halves agree {itself:.2f}", style="bold"))
        print_table(("metric", "Spearman (95 %)", "Kendall (95 %)", "best"), cells)
    out.print(Text(f"{report.layers} layers, each alone, on {report.samples} evaluation samples of {report.data}"))
    for sentence in report.advice:
        out.print(Text(sentence, style="yellow"))


def print_costs(table: CostTable) -> None:
    """Every layer's costs at every candidate pair, a table for each quantity, and where the numbers come from."""
    pairs = sorted({bits for layer in table.layers for bits in layer.choices})
    names = tuple(map(repr, pairs))

    def cells(layer: LayerCosts, quantity: Quantity, form: str) -> Iterator[str]:
        costs = (layer.choices.get(pair) for pair in pairs)
        return (_number(None if cost is None else getattr(cost, quantity), form) for cost in costs)

    rows = [
        (
            layer.name,
            f"{layer.parameters:,}",
            f"{layer.macs:,}",
            *cells(layer, "sensitivity", ".2e"),
            _number(layer.sensitivity_error, ".0%"),
        )
        for layer in table.layers
    ]
    print_table(("sensitivity of layer", "weights", "MACs", *names, "+-"), rows, spare=("MACs", "weights"))
    measured: tuple[tuple[CostName, str, str], ...] = (("latency_us", "us alone", ".1f"), ("energy_uj", "uJ", ".3g"))
    for cost, title, form in measured:
        if any(getattr(each, cost) is not None for layer in table.layers for each in layer.choices.values()):
            rows = [(layer.name, *cells(layer, cost, form)) for layer in table.layers]
            print_table((f"{title} of layer", *names), rows)
    _print_borders(table)
    for name, source in table.sources.items():
        out.print(Text(f"{name}: {source}"))


def _print_borders(table: CostTable) -> None:
    """What lies between layers costs at most, where it costs anything, and what runs there."""
    found = [
        (border, cost, max(getattr(each, cost) for each in border.costs.values()))
        for border in table.borders
        for cost in COST_UNITS
        if border.costs
    ]
    rows = [
        (f"{border.first} to {border.second}", f"{written(most)} {COST_UNITS[cost]}", border.source)
        for border, cost, most in found
        if most
    ]
    if rows:
        columns = ("between layers", "costs at most", "what runs there")
        print_table(columns, rows, wraps=True, spare=columns[2:])


def print_allocation(result: Allocation, between: Mapping[CostName, float]) -> None:
    """The chosen bits, and what they cost within which limits, what lies between layers among it."""
    for name, bits in result.bits.layers.items():
        out.print(Text(f"{bits}  {name}"))
    out.print(Text(f"chosen by {result.bits.origin}"))
    error = "" if result.sensitivity_error is None else f" +- {result.sensitivity_error:.0%}"
    proof = ", optimal" if result.proved else "" if result.gap is None else f", optimal within {result.gap:.2%}"
    how = f"{result.solver}, {result.seconds:.3f} s{proof}"
    out.print(Text(f"sensitivity: {result.sensitivity:.3g}{error} ({how})"))
    for cost, value in result.costs.items():
        out.print(Text(_total(cost, value, between.get(cost), result.limits.get(cost))))
    for sentence in price_sentences(result.prices):
        out.print(Text(sentence))


def print_checks(checks: list[Check]) -> None:
    """The doctor's findings."""
    for check in checks:
        mark, style = ("ok", "green") if check.ok else (("MISSING", "bold red") if check.needed else ("-", "dim"))
        out.print(Text(f"{mark:>7}  ", style=style) + Text(f"{check.name}: {check.detail}"))
