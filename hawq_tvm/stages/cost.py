"""Sensitivities, bytes, BOPS and microseconds of every layer at every bit pair -> cost table."""

from __future__ import annotations

from typing import Any

from hawq_tvm.backends.tvm.chosen import Candidates
from hawq_tvm.backends.tvm.devices.kernel_times import time_on_device
from hawq_tvm.backends.tvm.host import cpu_name
from hawq_tvm.backends.tvm.latency import LatencyTable, measure_latency, predict_latency
from hawq_tvm.core.reporter import Advance
from hawq_tvm.core.specs import BitConfig
from hawq_tvm.measure.costing import cost_table, read_latency_table
from hawq_tvm.measure.simulated import on_accelerator
from hawq_tvm.runs.artifacts import COSTS, FLOAT_GRAPH, RANGES, sensitivity_file
from hawq_tvm.settings import SIMULATED
from hawq_tvm.stages.stage import Stage
from hawq_tvm.stages.work import Work


def cost(work: Work) -> Stage:
    """The cost table; kernels are timed, predicted or simulated where a latency is asked for and no table is given."""
    settings = work.settings
    pairs = settings.pairs(work.layers)
    path = settings.latency_table
    table = None if path is None else read_latency_table(path, work.layers)
    stored = work.as_stored(BitConfig({}))
    predicted = settings.latency_from == "model"
    device = settings.device if settings.device is not None and not settings.device.is_this_cpu else None
    simulated = settings.latency_from in SIMULATED
    measured = settings.wants_latency and table is None and not predicted and not simulated
    ours = measured or predicted

    def latency(advance: Advance) -> LatencyTable | None:
        if not ours:
            return table
        found = work.artifacts
        candidates = Candidates(found.float_graph, found.ranges, pairs, work.as_stored, settings.batch)
        if predicted:
            return predict_latency(candidates, work.target)
        if device is not None:
            note = work.reporter.note
            return time_on_device(
                candidates, work.target, device, threads=settings.threads, progress=advance, note=note
            )
        return measure_latency(candidates, work.target, threads=work.threads, progress=advance)

    def make(advance: Advance) -> None:
        result = cost_table(
            work.artifacts.float_graph,
            pairs,
            sensitivity=work.artifacts.sensitivity(settings.metric) if work.has_choice else None,
            latency=latency(advance),
            caution=settings.caution,
        )
        if simulated:
            result = on_accelerator(result, work.artifacts.float_graph, settings.latency_from)
        work.run.write_json(COSTS, result.to_json())

    column: Any = table and table.to_json()
    if ours:
        column = f"model of {work.target.name}" if predicted else work.target.name
    if simulated:
        column = settings.latency_from
    options: dict[str, Any] = {
        "pairs": [repr(pair) for pair in pairs],
        "caution": settings.caution if work.has_choice else None,
        "latency": column,
        "batch": settings.batch if ours else None,
        "threads": (work.threads if device is None else settings.threads) if measured else None,
        "residual": stored.residual if ours else None,
        "stored": dict(stored.stored) if ours else None,
        "machine": (cpu_name() if device is None else str(device)) if measured else None,
    }
    reads = (FLOAT_GRAPH, RANGES, *([sensitivity_file(settings.metric)] if work.has_choice else []))
    title = "timing every layer's kernels" if measured else "counting bytes and BOPS"
    return Stage("cost", title, make, options, reads, writes=(COSTS,), timing=measured)
