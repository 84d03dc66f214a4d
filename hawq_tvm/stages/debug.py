"""Float graph + ranges + bits + rounded weights + samples -> which layers cause the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.integerize import round_to_nearest
from hawq_tvm.core.quantizer import LayerWeights
from hawq_tvm.core.reporter import Advance
from hawq_tvm.measure.debug import Quantised, find_causes
from hawq_tvm.posttraining.layer_losses import PIECE
from hawq_tvm.runs.artifacts import BITS, DEBUG, FLOAT_GRAPH, RANGES
from hawq_tvm.sources.data import batches
from hawq_tvm.sources.names import shown
from hawq_tvm.stages.round import rounded_weights, weights_file
from hawq_tvm.stages.stage import Stage
from hawq_tvm.stages.work import Work


def debug(work: Work) -> Stage:
    """Each layer alone quantised on calibration samples, all but it on as many evaluation samples, labels left aside.

    Where other samples are named than those that calibrated, both are of those, with a word.

    Raises:
        DataError: no samples are at hand.
    """
    calibration, evaluation, most = work.data.calibration, work.data.evaluation, work.settings.loss_samples
    total = min(most, len(calibration)) + min(most, len(evaluation))
    if not work.can_calibrate:
        work.reporter.note("losses are measured on other samples than those that calibrated the run")
    file = weights_file(work)
    if not file:
        work.reporter.note("there are no rounded weights of these bits and ranges; the nearest integers are looked at")

    def make(advance: Advance) -> None:
        found = work.artifacts
        graph = found.float_graph
        types = ActivationTypes(graph, found.ranges, found.bits)
        network = Quantised(
            graph,
            types,
            {**_nearest(graph, types), **rounded_weights(work)},
            rounded=bool(file),
            corrects_means=work.settings.rounding.bias,
        )
        report = find_causes(
            network,
            [batch.images for batch in batches(calibration, PIECE, limit=most)],
            [batch.images for batch in batches(evaluation, PIECE, limit=most)],
            calibrated_on=len(calibration),
            threads=work.threads,
            progress=lambda done: advance(done, total),
        )
        work.run.write_json(DEBUG, replace(report, data=shown(work.data.name)).to_json())

    return Stage(
        "debug",
        "measuring what each layer causes",
        make,
        options={"samples": most, "rounding": vars(work.settings.rounding), "data": work.data_key},
        reads=(FLOAT_GRAPH, RANGES, BITS, *file),
        writes=(DEBUG,),
    )


def _nearest(graph: FloatGraph, types: ActivationTypes) -> Mapping[str, LayerWeights]:
    return {
        node.name: round_to_nearest(node, types.bits.layers[node.name].format, types.reads(node).scale)
        for node in graph.layers
    }
