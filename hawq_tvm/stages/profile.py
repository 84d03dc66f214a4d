"""Float graph + ranges + samples -> how much every layer loses at every candidate width, by each metric asked for.

Each metric is a stage of its own, so that one more is added without the others being made again, and a run that was cut
off has kept those that were done; the two that probe for long go on within theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, cast

from torch import Tensor

from hawq_tvm.calibration import Progress
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.given import scales_of
from hawq_tvm.core.hashing import file_sha256, json_sha256
from hawq_tvm.core.reporter import Advance
from hawq_tvm.measure.curvature import Curved, probe_limit, profile_eigenvalue, profile_omega, samples_at_once
from hawq_tvm.measure.information import FisherMetric, profile_fisher
from hawq_tvm.measure.losses import MeasuredMetric, profile_measured
from hawq_tvm.measure.sensitivity import Alone, Grids
from hawq_tvm.posttraining.alone import round_alone
from hawq_tvm.posttraining.layer_losses import PIECE
from hawq_tvm.posttraining.simulate import input_grids
from hawq_tvm.runs.artifacts import FLOAT_GRAPH, RANGES, sensitivity_file
from hawq_tvm.runs.probes import Probes
from hawq_tvm.settings import METRICS
from hawq_tvm.sources.data import batches
from hawq_tvm.sources.samples import Batch
from hawq_tvm.stages.stage import Stage, Step
from hawq_tvm.stages.work import Work

_Count = Callable[[int, int], None]

_Make = Callable[[Work, Alone, Grids, Probes, _Count], Mapping[str, Any]]

_PROBES = ("samples", "batch", "target_error", "max_probes")
_POWERS = ("samples", "batch", "target_error", "max_iterations")
_SAMPLES = ("samples",)


def _profile(metric: str, work: Work) -> Stage | None:
    """Sensitivities over the calibration samples; None where nobody asks, or there is one bit pair to choose from."""
    settings = work.settings
    if not work.has_choice or metric not in settings.profiled:
        return None
    title, make_table, decides = _METRICS[metric]
    formats, inputs = candidate_widths(work)
    options: dict[str, Any] = {
        "metric": metric,
        **({name: getattr(settings.hessian, name) for name in decides} or {"samples": settings.loss_samples}),
        "rounding": vars(settings.rounding),
        "scales": json_sha256(dict(settings.scales)),
        "weight_bits": [str(format) for format in formats],
        "activation_bits": inputs,
        "seed": settings.seed,
        "data": work.data_key,
    }
    reads = (FLOAT_GRAPH, RANGES) if inputs else (FLOAT_GRAPH,)

    def make(advance: Advance) -> None:
        weights = rounded_alone(work, formats, lambda done: advance(done, 2 * len(work.layers)))  # the first half
        probes = Probes(work.run, metric, {**options, "files": [file_sha256(work.run.file(name)) for name in reads]})
        second = partial(_second_half, advance)
        table = make_table(work, weights, grids_of(work, inputs), probes, second)
        work.run.write_json(sensitivity_file(metric), table)
        probes.clear()

    return Stage(f"profile {metric}", title, make, options, reads=reads, writes=(sensitivity_file(metric),))


def _second_half(advance: Advance, done: int, of: int) -> None:
    advance(of + done, 2 * of)


profiles: tuple[Step, ...] = tuple(partial(_profile, metric) for metric in METRICS)
"""One step a metric."""


def candidate_widths(work: Work) -> tuple[list[WeightFormat], list[int]]:
    """The formats that weights may have, and the bits of activations where candidates differ in them, ascending."""
    pairs = work.settings.pairs(work.layers)
    inputs = sorted({pair.activation for pair in pairs}) if work.settings.chooses_activations else []
    return sorted({pair.format for pair in pairs}), inputs


def grids_of(work: Work, widths: list[int]) -> Grids:
    """What every layer's input is brought to at each of some widths."""
    return input_grids(work.artifacts.float_graph, work.artifacts.ranges, widths) if widths else {}


def rounded_alone(work: Work, formats: list[WeightFormat], progress: Callable[[int], None] | None = None) -> Alone:
    """The layers' weights in every format, each rounded as it will be deployed, but on float inputs.

    One metric after the other asks for them, and then what measures accuracy, so they are found once.
    """
    if work.rounded_alone is None:
        graph = work.artifacts.float_graph
        work.rounded_alone = round_alone(
            graph,
            work.rounding_pieces(),
            formats,
            work.settings.rounding,
            scales={node.name: scales_of(work.settings.scales, node) for node in graph.layers},
            seed=work.settings.seed,
            threads=work.threads,
            progress=progress,
        )
    return work.rounded_alone


def _derived_batches(work: Work) -> Iterator[Batch]:
    """The samples of the metrics that differentiate, as many at once as memory is meant for."""
    hessian = work.settings.hessian
    size = hessian.batch or min(hessian.samples, samples_at_once(work.artifacts.float_graph))
    return batches(work.data.calibration, size, limit=hessian.samples)


def _omega(work: Work, weights: Alone, grids: Grids, probes: Probes, advance: _Count) -> Mapping[str, Any]:
    loss = Curved.over(work.float_module, _derived_batches(work))
    macs = sum(layer.macs for layer in work.artifacts.float_graph.layers)
    most = probe_limit(work.settings.hessian, macs, max(loss.counts, default=1))

    def keep(probed: Tensor) -> None:
        probes.keep({"probed": probed})

    return profile_omega(
        loss,
        weights,
        grids,
        work.settings.hessian,
        seed=work.settings.seed,
        threads=work.threads,
        done=(probes.found or {}).get("probed"),
        keep=keep,
        progress=lambda done: advance(done, most),
    )


def _eigenvalue(work: Work, weights: Alone, grids: Grids, probes: Probes, advance: _Count) -> Mapping[str, Any]:
    hessian, kept = work.settings.hessian, probes.found

    def keep(progress: Progress) -> None:
        probes.keep({"found": progress.found, **{str(layer): v for layer, v in progress.vectors.items()}})

    done = None
    if kept is not None:
        done = Progress(kept.pop("found"), {layer: kept[str(layer)] for layer in sorted(map(int, kept))})
    return profile_eigenvalue(
        Curved.over(work.float_module, _derived_batches(work)),
        weights,
        grids,
        hessian,
        seed=work.settings.seed,
        done=done,
        keep=keep,
        progress=lambda done: advance(done, hessian.max_iterations),
    )


def _fisher(
    work: Work, weights: Alone, grids: Grids, probes: Probes, advance: _Count, metric: str
) -> Mapping[str, Any]:
    count = min(work.settings.hessian.samples, len(work.data.calibration))
    return profile_fisher(
        cast(FisherMetric, metric),
        work.float_module,
        _derived_batches(work),
        weights,
        grids,
        seed=work.settings.seed,
        threads=work.threads,
        progress=lambda done: advance(done, count),
    )


def _measured(
    work: Work, weights: Alone, grids: Grids, probes: Probes, advance: _Count, metric: str
) -> Mapping[str, Any]:
    count = min(work.settings.loss_samples, len(work.data.calibration))
    return profile_measured(
        cast(MeasuredMetric, metric),
        work.artifacts.float_graph,
        batches(work.data.calibration, PIECE, limit=count),
        weights,
        grids,
        corrects_means=work.settings.rounding.bias,
        threads=work.threads,
        progress=lambda done: advance(done, count),
    )


_METRICS: Mapping[str, tuple[str, _Make, tuple[str, ...]]] = {
    "omega": ("estimating the Hessian's trace", _omega, _PROBES),
    "eigenvalue": ("iterating to the Hessian's top eigenvalues", _eigenvalue, _POWERS),
    "fisher": ("averaging squared gradients", partial(_fisher, metric="fisher"), _SAMPLES),
    "fisher-form": ("averaging squared gradients along each change", partial(_fisher, metric="fisher-form"), _SAMPLES),
    "kl": ("measuring how far each layer moves the result", partial(_measured, metric="kl"), ()),
    "loss": ("measuring what each layer loses", partial(_measured, metric="loss"), ()),
    "sqnr": ("measuring each layer's signal over error", partial(_measured, metric="sqnr"), ()),
}
"""By metric: its title, what makes it, and which settings of the Hessian decide it; none for what is measured."""
