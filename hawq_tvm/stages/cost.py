"""Sensitivities, bytes, BOPS and microseconds of every layer at every bit pair -> cost table."""

from __future__ import annotations

from typing import Any

from hawq_tvm.backends.tvm.host import cpu_name
from hawq_tvm.backends.tvm.latency import LatencyTable, measure_latency
from hawq_tvm.core.reporter import Advance
from hawq_tvm.core.specs import BitConfig
from hawq_tvm.measure.costing import cost_table, read_latency_table
from hawq_tvm.runs.artifacts import COSTS, FLOAT_GRAPH, RANGES, SENSITIVITY
from hawq_tvm.stages.stage import Stage
from hawq_tvm.stages.work import Work


def cost(work: Work) -> Stage:
    """The cost table; kernels are timed where a latency is asked for and no table of them is given."""
    settings = work.settings
    pairs = settings.pairs(work.layers)
    path = settings.latency_table
    table = None if path is None else read_latency_table(path, work.layers)
    stored = work.as_stored(BitConfig({}))
    measured = settings.wants_latency and table is None

    def measure(advance: Advance) -> LatencyTable:
        return measure_latency(
            work.artifacts.float_graph,
            work.artifacts.ranges,
            {pair: work.as_stored(BitConfig.uniform(work.layers, pair)) for pair in pairs},
            work.target,
            batch=settings.batch,
            threads=work.threads,
            progress=advance,
        )

    def make(advance: Advance) -> None:
        result = cost_table(
            work.artifacts.float_graph,
            pairs,
            sensitivity=work.artifacts.sensitivity if work.has_choice else None,
            latency=measure(advance) if measured else table,
        )
        work.run.write_json(COSTS, result.to_json())

    options: dict[str, Any] = {
        "pairs": [repr(pair) for pair in pairs],
        "latency": work.target.name if measured else table and table.to_json(),
        "batch": settings.batch if measured else None,
        "threads": work.threads if measured else None,
        "residual": stored.residual if measured else None,
        "stored": dict(stored.stored) if measured else None,
        "machine": cpu_name() if measured else None,
    }
    reads = (FLOAT_GRAPH, RANGES, SENSITIVITY) if work.has_choice else (FLOAT_GRAPH, RANGES)
    title = "timing every layer's kernels" if measured else "counting bytes and BOPS"
    return Stage("cost", title, make, options, reads, writes=(COSTS,), timing=measured)
