"""The rows and the table of `benchmarks.cpu_peers`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cpu_engines import Engine
from benchmarks.runs import markdown
from benchmarks.turns import Outcome
from hawq_tvm.backends.tvm.host import cpu_name
from hawq_tvm.core.specs import counted
from hawq_tvm.measure.ceilings import Ceilings


@dataclass(frozen=True)
class Row:
    """An engine in one case.

    Attributes:
        engine: its name.
        median_ms: of the undisturbed calls; so are the next two.
        min_ms: the fastest.
        spread: what separates the tenth percentile from the ninetieth, as a share of the median.
        calls: how many were undisturbed, which alone are counted.
        disturbed: how many were not.
        ratio: its median, times the first engine's.
        ratio_of_minima: the same of the fastest calls.
        share_of_peak: of the INT8 peak; None where none was measured.
        share_of_bandwidth: of the read bandwidth, if it read its weights once.
        lost: share of all its calls' time in which it waited for a core.
        about: what it said of itself.
    """

    engine: str
    median_ms: float
    min_ms: float
    spread: float
    calls: int
    disturbed: int
    ratio: float
    ratio_of_minima: float
    share_of_peak: float | None
    share_of_bandwidth: float
    lost: float
    about: dict[str, Any]


def make_rows(outcome: Outcome, engines: Sequence[Engine], macs: int, weights: int, ceilings: Ceilings) -> list[Row]:
    """What the table shows of each engine that ran.

    Args:
        outcome: of the run.
        engines: those that were started.
        macs: multiply-accumulates of a call.
        weights: how many the network has.
        ceilings: of as many threads.
    """
    first = next(iter(outcome.timings.values()))
    bandwidth = min(ceilings.read_gbs.values())
    rows = []
    for engine in engines:
        if engine.name not in outcome.timings:
            continue
        timing = outcome.timings[engine.name]
        gops = 2 * macs / timing.median_ms / 1e6
        rows.append(
            Row(
                engine.name,
                timing.median_ms,
                timing.min_ms,
                timing.spread,
                timing.calls,
                timing.disturbed,
                timing.median_ms / first.median_ms,
                timing.min_ms / first.min_ms,
                None if ceilings.peak_gops is None else gops / ceilings.peak_gops,
                weights * engine.weight_bytes / timing.median_ms / 1e6 / bandwidth,
                timing.lost,
                dict(outcome.about[engine.name]),
            )
        )
    return rows


def table(case: dict[str, Any]) -> str:
    """A case as Markdown."""
    ceilings = case["ceilings"]
    peaks = ", ".join(f"{name} {value:,.0f} GOPS" for name, value in ceilings["gops"].items())
    reads = ", ".join(f"{int(size) / 1e6:.0f} MB {value:.0f} GB/s" for size, value in ceilings["read_gbs"].items())
    names = (
        "engine",
        "median ms",
        "min",
        "spread",
        "calls",
        "disturbed",
        "times ours",
        "of minima",
        "peak",
        "bandwidth",
        "waited",
    )
    cells = [
        [
            row["engine"],
            f"{row['median_ms']:.2f}",
            f"{row['min_ms']:.2f}",
            f"{row['spread']:.0%}",
            str(row["calls"]),
            str(row["disturbed"]),
            f"{row['ratio']:.2f}",
            f"{row['ratio_of_minima']:.2f}",
            "" if row["share_of_peak"] is None else f"{row['share_of_peak']:.0%}",
            f"{row['share_of_bandwidth']:.0%}",
            f"{row['lost']:.1%}",
        ]
        for row in case["rows"]
    ]
    threads = counted(case["threads"], "thread")
    if ceilings["hand_over_ns"] is not None:
        reads += (
            f"; from core to core {ceilings['hand_over_ns']:.0f} ns, behind all calls {case['hand_over_after']:.0f}"
        )
    return (
        f"\n{case['network']}, batch {case['batch']}, {threads}, {cpu_name()}; peaks: {peaks}; reads of {reads}; "
        f"other processes took {case['foreign']:.0%} of the machine\n\n{markdown(names, cells)}"
    )
