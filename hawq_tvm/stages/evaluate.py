"""Accuracy of the float and the integer network on the evaluation samples."""

from __future__ import annotations

from dataclasses import replace

from hawq_tvm.backends.pytorch.integer_module import IntegerModule
from hawq_tvm.core.reporter import Advance
from hawq_tvm.measure.evaluate import measure_accuracy
from hawq_tvm.runs.artifacts import ACCURACY, FLOAT_GRAPH, MODEL
from hawq_tvm.sources.data import batches
from hawq_tvm.sources.names import shown
from hawq_tvm.stages.stage import Stage
from hawq_tvm.stages.work import Work

_PIECE = 8  # samples that one thread runs at once: more of them leave its cache


def evaluate(work: Work) -> Stage | None:
    """Both networks' accuracy; None, with a word, where no samples are at hand."""
    if not work.has_data:
        work.reporter.note("the run's samples are not at hand; accuracy is not measured")
        return None

    def make(advance: Advance) -> None:
        total = len(work.data.evaluation)
        result = measure_accuracy(
            work.float_module,
            IntegerModule(work.artifacts.graph),
            batches(work.data.evaluation, work.batch_size(_PIECE)),
            threads=work.threads,
            progress=lambda done: advance(done, total),
        )
        named = replace(result, data=shown(work.data.name), note=work.data.note)
        work.run.write_json(ACCURACY, named.to_json())

    options = {"data": work.data_key}
    return Stage("evaluate", "measuring accuracy", make, options, reads=(FLOAT_GRAPH, MODEL), writes=(ACCURACY,))
