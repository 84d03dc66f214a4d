"""Sensitivities + float graph + ranges + samples held out -> which metrics order layers as the loss does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from hawq_tvm.core.errors import DataError, RunError
from hawq_tvm.core.reporter import Advance
from hawq_tvm.measure.comparison import TRUTHS, Measured, compare
from hawq_tvm.measure.losses import RoundedAlone, check_labelled, each_alone, why_no_loss
from hawq_tvm.posttraining.changes import RealNetwork
from hawq_tvm.posttraining.layer_losses import PIECE, SampleLosses, sample_losses
from hawq_tvm.runs.artifacts import COMPARISON, FLOAT_GRAPH, RANGES, sensitivity_file
from hawq_tvm.sources.data import batches
from hawq_tvm.sources.names import shown
from hawq_tvm.sources.samples import Batch
from hawq_tvm.stages.profile import candidate_widths, grids_of, rounded_alone
from hawq_tvm.stages.stage import Stage
from hawq_tvm.stages.work import Work


def comparison(work: Work) -> Stage:
    """Rank correlations of every metric that was profiled with what each layer loses on evaluation samples.

    Raises:
        RunError: no metric was profiled.
        DataError: the samples that calibrated the run are not at hand.
    """
    metrics = work.artifacts.profiled
    if not metrics:
        raise RunError(
            f"{work.run.name} has no sensitivities to compare; make some with hawq-tvm profile MODEL "
            f"-o {work.run.name} --metric omega --metric kl"
        )
    if not work.can_calibrate:
        raise DataError(
            f"the samples that {work.run.name} was profiled with are not at hand, and compare rounds on them and "
            "measures on those held out; add --trust-code where they come from code of yours, or profile again"
        )
    count = min(work.compare_samples, len(work.data.evaluation))
    calibrated = min(work.settings.loss_samples, len(work.data.calibration))
    widths, inputs = candidate_widths(work)
    fewest, fewest_inputs = widths[:1], inputs[:1]
    reads = (FLOAT_GRAPH, *((RANGES,) if inputs else ()), *map(sensitivity_file, metrics))

    def make(advance: Advance) -> None:
        graph = work.artifacts.float_graph
        weights = rounded_alone(work, fewest, lambda done: advance(done, 2 * len(work.layers)))
        pieces = list(batches(work.data.calibration, PIECE, limit=calibrated))
        changes = each_alone(
            graph,
            pieces,
            weights,
            grids_of(work, fewest_inputs),
            corrects_means=work.settings.rounding.bias,
            threads=work.threads,
        )
        held_out = list(batches(work.data.evaluation, PIECE, limit=count))
        if why_no_loss(graph, held_out) is None:
            check_labelled(graph, held_out)
        else:
            held_out = [Batch(piece.images, None) for piece in held_out]
        real = RealNetwork(graph)
        losses = sample_losses(
            real,
            changes,
            held_out,
            reference=real,
            threads=work.threads,
            progress=lambda done: advance(count + done, 2 * count),
        )
        tables = {metric: work.artifacts.sensitivity(metric) for metric in metrics}
        found = compare(tables, work.layers, _measured(losses, work.layers), seed=work.settings.seed)
        work.run.write_json(COMPARISON, replace(found, data=shown(work.data.name)).to_json())

    options = {
        "samples": count,
        "means": calibrated,
        "weight_bits": [str(format) for format in fewest],
        "activation_bits": fewest_inputs,
        "rounding": vars(work.settings.rounding),
        "seed": work.settings.seed,
        "data": work.data_key,
    }
    return Stage(
        "compare", "measuring what each layer loses on other samples", make, options, reads=reads, writes=(COMPARISON,)
    )


def _measured(losses: Mapping[RoundedAlone, SampleLosses], layers: Sequence[str]) -> list[Measured]:
    """The truths, against labels first where there are some."""
    found = []
    for truth in TRUTHS:
        for part, bits in dict.fromkeys((part, bits) for part, _, bits in losses):
            rows = [losses[part, name, bits] for name in layers]
            values = [row.rise if truth == "loss" else row.divergence for row in rows]
            if all(value is not None for value in values):
                matrix = np.stack([value.numpy() for value in values if value is not None])
                found.append(Measured(part, str(bits), truth, matrix))
    return found
