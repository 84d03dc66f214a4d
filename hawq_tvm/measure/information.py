"""Sensitivities from the Fisher information: the empirical one's mean trace (FIT), and the true one's quadratic form.

`hawq_tvm.posttraining.fisher` has the equations. Both need first derivatives alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any, Literal

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.calibration import Estimate
from hawq_tvm.core.errors import SensitivityError
from hawq_tvm.measure.sensitivity import Alone, Grids, LayerSensitivity, moves_of, sensitivity_table
from hawq_tvm.posttraining.fisher import DRAWS, Fisher, Width, fisher_information
from hawq_tvm.sources.data import check_labels, numbered
from hawq_tvm.sources.samples import Batch

FisherMetric = Literal["fisher", "fisher-form"]

_METHODS: Mapping[FisherMetric, str] = {
    "fisher": "mean trace of the empirical Fisher information x ||Q(W) - W||^2 of the weights as they are rounded "
    "(FIT, cross-entropy against labels",
    "fisher-form": "the Fisher information's (g . (Q(W) - W))^2 of the weights as they are rounded "
    "(cross-entropy against labels drawn from the network's result",
}
_INPUTS: Mapping[FisherMetric, str] = {
    "fisher": ", plus each sample's |g|^2 |Q(x) - x|^2 / n of the input",
    "fisher-form": ", plus (g . (Q(x) - x))^2 of the input",
}


def profile_fisher(
    metric: FisherMetric,
    network: FloatModule,
    batches: Iterable[Batch],
    weights: Alone,
    grids: Grids,
    *,
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """The Fisher information of every layer under its changes, of its weights and of its input.

    Args:
        metric: which of the two.
        network: the float graph.
        batches: calibration samples, with labels for ``fisher``.
        weights: at every candidate width.
        grids: of the inputs at every candidate width.
        seed: of the labels that are drawn.
        threads: samples that run side by side.
        progress: called with the number of samples done.

    Raises:
        DataError: a label that the network has no class for.
        SensitivityError: no samples or one, no labels, or gradients that are all 0.
    """
    classes = prod(network.graph.by_name[network.graph.output].shape)
    if classes == 1:
        raise SensitivityError(
            "the network has a single output, whose cross-entropy is always 0, and so is its Fisher information; "
            "take a metric that measures, --metric kl or sqnr"
        )

    def checked() -> Iterable[Batch]:
        for first, batch in numbered(batches):
            check_labels(batch, classes, first=first)
            yield batch

    found = fisher_information(
        network,
        moves_of(network.graph, weights),
        grids,
        checked(),
        draws=None if metric == "fisher" else DRAWS,
        seed=seed,
        threads=threads,
        progress=progress,
    )
    if not any(float(fisher.traces.sum()) for fisher in found.values()):
        raise SensitivityError(
            "the gradient of the loss is 0 in every layer, as where the network is sure of all its answers to the last "
            "bit; take a metric that measures, --metric kl or sqnr"
        )
    samples = len(next(iter(found.values())).traces)
    return sensitivity_table(
        metric,
        f"{_METHODS[metric]}, {samples} samples)" + (_INPUTS[metric] if grids else ""),
        {
            name: LayerSensitivity(
                {format: _estimate(metric, found["weights", name], format) for format in row},
                {bits: _estimate(metric, found["inputs", name], bits) for bits in grids.get(name, {})},
                order=float(found["weights", name].traces.mean()),
            )
            for name, row in weights.items()
        },
        samples=samples,
    )


def _estimate(metric: FisherMetric, fisher: Fisher, width: Width) -> Estimate:
    return Estimate.mean_of((fisher.lengths if metric == "fisher" else fisher.forms)[width])
