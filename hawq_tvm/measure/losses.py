"""Sensitivities that are measured: one layer rounded alone, and what becomes of its result, or of the network's.

    kl      KL(p || q) of the network's result, p of the float network       needs no labels
    loss    rise of the cross-entropy against the labels                     may be below 0
    sqnr    sum of squared errors over sum of squares of the layer's result  10^(-dB / 10)

`kl` is the mean of `loss` over labels drawn from the float network's own result, so it has the same aim and far less
noise.

Source: the divergence as a sensitivity, ZeroQ (Cai et al., arXiv 2001.00281); the ratio of signal to noise, Lin,
Talathi, Annapureddy (arXiv 1511.06393).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any, Literal

import numpy as np
import torch

from hawq_tvm.calibration import Estimate
from hawq_tvm.core.errors import SensitivityError
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.quantizer import LayerWeights
from hawq_tvm.measure.sensitivity import Alone, Grids, LayerSensitivity, sensitivity_table
from hawq_tvm.posttraining.changes import Change, RealNetwork
from hawq_tvm.posttraining.fisher import Width
from hawq_tvm.posttraining.layer_losses import SampleLosses, layer_noise, sample_losses, with_means_of
from hawq_tvm.sources.data import check_labels, numbered
from hawq_tvm.sources.samples import Batch

MeasuredMetric = Literal["kl", "loss", "sqnr"]

Part = Literal["weights", "inputs"]

RoundedAlone = tuple[Part, str, Width]
"""What is rounded alone: which part of which layer, to how many bits or into which format."""

_METHODS: Mapping[MeasuredMetric, str] = {
    "kl": "the mean KL divergence of the network's result with one layer's weights rounded alone",
    "loss": "the mean rise of the cross-entropy against the labels with one layer's weights rounded alone",
    "sqnr": "error over signal of each layer's result with its weights rounded alone",
}
_INPUTS = ", plus that with its input alone"


def profile_measured(
    metric: MeasuredMetric,
    graph: FloatGraph,
    batches: Iterable[Batch],
    weights: Alone,
    grids: Grids,
    *,
    corrects_means: bool = True,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """What every layer's weights alone and its input alone cost, measured.

    Args:
        metric: what is measured.
        graph: from capture.
        batches: pieces of calibration samples, kept while this runs; with labels for ``loss``.
        weights: at every candidate width.
        grids: of the inputs at every candidate width.
        corrects_means: whether biases make up for what a rounded input does to a channel's mean, as rounding does.
        threads: pieces that run side by side.
        progress: called with the number of samples done.

    Raises:
        DataError: a label that the network has no class for.
        SensitivityError: no samples or one, or no labels for ``loss``.
    """
    pieces, real = list(batches), RealNetwork(graph)
    if metric == "loss":
        check_labelled(graph, pieces)
    changes = each_alone(graph, pieces, weights, grids, corrects_means=corrects_means, threads=threads)
    estimates: dict[RoundedAlone, Estimate]
    if metric == "sqnr":
        noise = layer_noise(real, changes, pieces, threads=threads, progress=progress)
        estimates = {key: Estimate.ratio_of(error, signal) for key, (error, signal) in noise.items()}
    else:
        losses = sample_losses(real, changes, pieces, reference=real, threads=threads, progress=progress)
        estimates = {key: Estimate.mean_of(_of_metric(metric, found)) for key, found in losses.items()}
    count = sum(len(piece.images) for piece in pieces)
    return sensitivity_table(
        metric,
        f"measured on {count} calibration samples: {_METHODS[metric]}" + (_INPUTS if grids else ""),
        {
            name: LayerSensitivity(
                {format: estimates["weights", name, format] for format in row},
                {bits: estimates["inputs", name, bits] for bits in grids.get(name, {})},
            )
            for name, row in weights.items()
        },
        samples=count,
    )


def _of_metric(metric: MeasuredMetric, found: SampleLosses) -> torch.Tensor:
    if metric == "kl":
        return found.divergence
    assert found.rise is not None  # `check_labelled` saw to it
    return found.rise


def why_no_loss(graph: FloatGraph, pieces: Sequence[Batch]) -> str | None:
    """Why there is no loss to take against labels; None where there is."""
    if prod(graph.by_name[graph.output].shape) == 1:
        return "the network has a single output"
    return "the samples have no labels" if any(piece.labels is None for piece in pieces) else None


def check_labelled(graph: FloatGraph, pieces: Sequence[Batch]) -> None:
    """Refuse samples that no loss can be taken against.

    Raises:
        DataError: a label that the network has no class for.
        SensitivityError: there are none, or the network has a single output.
    """
    why = why_no_loss(graph, pieces)
    if why is not None:
        raise SensitivityError(
            f"{why}, and the loss is cross-entropy against labels; take --metric kl, which compares with the float "
            "network's result instead"
        )
    classes = prod(graph.by_name[graph.output].shape)
    for first, piece in numbered(pieces):
        check_labels(piece, classes, first=first)


def each_alone(
    graph: FloatGraph,
    pieces: Sequence[Batch],
    weights: Alone,
    grids: Grids,
    *,
    corrects_means: bool,
    threads: int,
) -> dict[RoundedAlone, Change]:
    """The float network's changes: each layer's weights alone, and its input alone, at every width.

    Args:
        graph: from capture.
        pieces: of the samples that means are corrected on.
        weights: at every candidate width.
        grids: of the inputs at every candidate width.
        corrects_means: whether biases make up for what a rounded input does to a channel's mean, as rounding does.
        threads: pieces that run side by side.
    """
    real = RealNetwork(graph)
    inputs: dict[RoundedAlone, Change] = {
        ("inputs", name, bits): Change(name, reads=grid) for name, row in grids.items() for bits, grid in row.items()
    }
    if corrects_means:
        inputs = with_means_of(real, real, inputs, lambda: (piece.images for piece in pieces), threads=threads)
    rounded: dict[RoundedAlone, Change] = {
        ("weights", name, bits): rounded_alone(name, found)
        for name, row in weights.items()
        for bits, found in row.items()
    }
    return {**rounded, **inputs}


def rounded_alone(layer: str, found: LayerWeights) -> Change:
    """A layer with the weights that it is deployed with."""
    return Change(layer, torch.from_numpy(found.restored.astype(np.float32)), torch.from_numpy(found.bias))
