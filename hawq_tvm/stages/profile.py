"""Float graph + samples -> the Hessian's trace and Omega of every layer."""

from __future__ import annotations

from hawq_tvm.core.reporter import Advance
from hawq_tvm.measure.costing import probe_limit, profile_sensitivity
from hawq_tvm.runs.artifacts import FLOAT_GRAPH, SENSITIVITY
from hawq_tvm.sources.data import batches
from hawq_tvm.stages.stage import Stage
from hawq_tvm.stages.work import Work


def profile(work: Work) -> Stage | None:
    """Sensitivities over the calibration samples; None where there is one bit pair to choose from."""
    if not work.has_choice:
        return None
    settings, hessian = work.settings, work.settings.hessian
    widths = sorted({pair.weight for pair in settings.pairs(work.layers)})

    def make(advance: Advance) -> None:
        size = hessian.batch or work.batch_size(hessian.samples)
        macs = sum(layer.macs for layer in work.artifacts.float_graph.layers)
        most = probe_limit(hessian, macs, min(size, hessian.samples))
        table = profile_sensitivity(
            work.float_module,
            batches(work.data.calibration, size, limit=hessian.samples),
            widths,
            hessian,
            seed=settings.seed,
            progress=lambda done: advance(done, most),
        )
        work.run.write_json(SENSITIVITY, table)

    options = {"hessian": vars(hessian), "weight_bits": widths, "seed": settings.seed, "data": work.data_key}
    title = "estimating the Hessian's trace"
    return Stage("profile", title, make, options, reads=(FLOAT_GRAPH,), writes=(SENSITIVITY,))
