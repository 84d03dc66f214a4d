"""What is left of every value in integers, beside the float network, on a few evaluation samples."""

from __future__ import annotations

from hawq_tvm.core.reporter import Advance
from hawq_tvm.measure.sqnr import measure_fidelity
from hawq_tvm.runs.artifacts import FIDELITY, FLOAT_GRAPH, MODEL
from hawq_tvm.sources.data import batches
from hawq_tvm.stages.stage import Stage
from hawq_tvm.stages.work import Work

_SAMPLES = 32  # every value has thousands of elements in each, and its ratio settles to a tenth of a dB
_LEAST_SAMPLES = 8
_MACS = 1 << 36  # over all samples: 16 of ResNet-50, some ten seconds on one core
_BATCH = 4


def fidelity(work: Work) -> Stage | None:
    """Signal to noise of every value, and a word where it falls off; None where no samples are at hand."""
    if not work.has_data:
        return None
    macs = sum(layer.macs for layer in work.artifacts.float_graph.layers)
    affordable = max(_LEAST_SAMPLES, min(_SAMPLES, _MACS // max(macs, 1)))
    total = min(affordable, len(work.data.evaluation))

    def make(advance: Advance) -> None:
        found = measure_fidelity(
            work.artifacts.float_graph,
            work.artifacts.graph,
            (batch.images for batch in batches(work.data.evaluation, work.batch_size(_BATCH), limit=total)),
            progress=lambda done: advance(done, total),
        )
        work.run.write_json(FIDELITY, found.to_json())
        for warning in found.warnings:
            work.reporter.note(warning)

    return Stage(
        "fidelity",
        "comparing each layer's integers with float",
        make,
        options={"data": work.data_key, "samples": total},
        reads=(FLOAT_GRAPH, MODEL),
        writes=(FIDELITY,),
    )
