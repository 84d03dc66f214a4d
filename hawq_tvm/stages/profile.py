"""Float graph + ranges + samples -> how much every layer loses at every candidate width."""

from __future__ import annotations

from typing import Any

from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.given import scales_of
from hawq_tvm.core.hashing import json_sha256
from hawq_tvm.core.reporter import Advance
from hawq_tvm.measure.sensitivity import Alone, Grids, probe_limit, profile_losses, profile_omega
from hawq_tvm.posttraining.alone import round_alone
from hawq_tvm.posttraining.layer_losses import PIECE
from hawq_tvm.posttraining.simulate import input_grids
from hawq_tvm.runs.artifacts import FLOAT_GRAPH, RANGES, SENSITIVITY
from hawq_tvm.sources.data import batches
from hawq_tvm.stages.stage import Stage
from hawq_tvm.stages.work import Work


def profile(work: Work) -> Stage | None:
    """Sensitivities over the calibration samples; None where there is one bit pair to choose from."""
    if not work.has_choice:
        return None
    settings = work.settings
    measures = settings.metric == "loss"
    pairs = settings.pairs(work.layers)
    formats = sorted({pair.format for pair in pairs})
    inputs = sorted({pair.activation for pair in pairs}) if settings.chooses_activations else []

    def make(advance: Advance) -> None:
        weights = _rounded(work, formats, advance)
        ranges = work.artifacts.ranges if inputs else {}
        grids = input_grids(work.artifacts.float_graph, ranges, inputs) if inputs else {}
        table = _losses(work, weights, grids, advance) if measures else _omega(work, weights, grids, advance)
        work.run.write_json(SENSITIVITY, table)

    options: dict[str, Any] = {
        "metric": settings.metric,
        **({"samples": settings.loss_samples} if measures else {"hessian": vars(settings.hessian)}),
        "rounding": vars(settings.rounding),
        "scales": json_sha256(dict(settings.scales)),
        "weight_bits": [str(format) for format in formats],
        "activation_bits": inputs,
        "seed": settings.seed,
        "data": work.data_key,
    }
    title = "measuring what each layer loses" if measures else "estimating the Hessian's trace"
    reads = (FLOAT_GRAPH, RANGES) if inputs else (FLOAT_GRAPH,)
    return Stage("profile", title, make, options, reads=reads, writes=(SENSITIVITY,))


def _rounded(work: Work, formats: list[WeightFormat], advance: Advance) -> Alone:
    """The layers' weights in every format, each rounded as it will be deployed, but on float inputs."""
    graph = work.artifacts.float_graph
    return round_alone(
        graph,
        work.rounding_pieces(),
        formats,
        work.settings.rounding,
        scales={node.name: scales_of(work.settings.scales, node) for node in graph.layers},
        seed=work.settings.seed,
        threads=work.threads,
        progress=lambda done: advance(done, 2 * len(work.layers)),  # the first half
    )


def _omega(work: Work, weights: Alone, grids: Grids, advance: Advance) -> dict[str, Any]:
    hessian = work.settings.hessian
    size = hessian.batch or work.batch_size(hessian.samples)
    macs = sum(layer.macs for layer in work.artifacts.float_graph.layers)
    most = probe_limit(hessian, macs, min(size, hessian.samples))
    return profile_omega(
        work.float_module,
        batches(work.data.calibration, size, limit=hessian.samples),
        weights,
        grids,
        hessian,
        seed=work.settings.seed,
        threads=work.threads,
        progress=lambda done: advance(most + done, 2 * most),
    )


def _losses(work: Work, weights: Alone, grids: Grids, advance: Advance) -> dict[str, Any]:
    count = min(work.settings.loss_samples, len(work.data.calibration))
    return profile_losses(
        work.artifacts.float_graph,
        (batch.images for batch in batches(work.data.calibration, PIECE, limit=count)),
        weights,
        grids,
        corrects_means=work.settings.rounding.bias,
        threads=work.threads,
        progress=lambda done: advance(count + done, 2 * count),
    )
