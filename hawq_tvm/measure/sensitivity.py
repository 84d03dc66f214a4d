"""How much the loss rises when one layer is rounded: predicted from the Hessian, or measured.

Either way a layer has a value for its weights at each width and one for its input at each width, as `sensitivity.json`
holds them, and a pair of bits costs the sum of two. Weights are judged on the scales and the rounding that they will be
deployed with, on float inputs, as the other layers' bits are not chosen yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import isfinite, prod
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.calibration import TraceEstimate, hutchinson_traces, sensitivities
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.quantizer import LayerWeights
from hawq_tvm.posttraining.fisher import input_sensitivities
from hawq_tvm.posttraining.layer_losses import PIECE, Change, RealNetwork, layer_losses, with_means_of
from hawq_tvm.posttraining.simulate import Grid
from hawq_tvm.settings import HessianSettings
from hawq_tvm.sources.data import check_labels
from hawq_tvm.sources.samples import Batch

Alone = Mapping[str, Mapping[WeightFormat, LayerWeights]]
"""What each layer would be deployed with, by name and format: of `hawq_tvm.posttraining.alone.round_alone`."""

Grids = Mapping[str, Mapping[int, Grid]]
"""What each layer's first input is brought to, by name and width; empty where all candidates have the same bits."""

_FEWEST_PROBES, _MOST_PROBES = 64, 1024
_CHEAP_MACS = 10**11  # multiply-accumulates of the forward passes: about ten seconds of double backwards on two cores


def probe_limit(settings: HessianSettings, macs: int, batch: int) -> int:
    """Double backwards at which probing stops anyway: what the settings say, or as many as are cheap.

    Counted in work, not in time, so that the same network is probed alike on every machine.

    Args:
        settings: its `max_probes`, where it says any.
        macs: multiply-accumulates a sample.
        batch: samples differentiated at once.
    """
    if settings.max_probes:
        return settings.max_probes
    return min(max(_CHEAP_MACS // max(1, macs * batch), _FEWEST_PROBES), _MOST_PROBES)


def profile_omega(
    network: FloatModule,
    batches: Iterable[Batch],
    weights: Alone,
    grids: Grids,
    settings: HessianSettings,
    *,
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Hessian trace and Omega of every layer, of its weights and of its input, as `sensitivity.json` holds them.

    The loss is cross-entropy against the labels, or against the network's own predictions where samples have none.

    Args:
        network: the float graph.
        batches: calibration samples.
        weights: at every candidate width.
        grids: of the inputs at every candidate width.
        settings: when to stop; see `probe_limit`.
        seed: of the probes and of the labels that are drawn.
        threads: pieces that run side by side where inputs are looked at.
        progress: called with the number of double backwards done.

    Raises:
        DataError: a label that the network has no class for.
    """
    classes = prod(network.graph.by_name[network.graph.output].shape)
    losses: list[Callable[[Mapping[str, Tensor]], Tensor]] = []
    counts, images, labelled = list[int](), list[Tensor](), True
    for batch in batches:
        check_labels(batch, classes, first=sum(counts))
        labels = batch.labels
        if labels is None:
            labelled = False
            with torch.no_grad():
                labels = network(batch.images).flatten(1).argmax(1)

        def loss(at: Mapping[str, Tensor], x: Tensor = batch.images, y: Tensor = labels) -> Tensor:
            return F.cross_entropy(network(x, weights=at).flatten(1), y)

        losses.append(loss)
        counts.append(len(batch.images))
        images.append(batch.images)
    most = probe_limit(settings, sum(node.macs for node in network.graph.layers), max(counts, default=1))
    traces = hutchinson_traces(
        losses,
        network.weights(),
        samples=counts,
        target_error=settings.target_error,
        max_probes=max(2, most // max(1, len(losses))),
        seed=seed,
        progress=None if progress is None else lambda done: progress(done * len(losses)),
    )
    omega = sensitivities(_squared_errors(network.graph, weights), traces)
    pieces = (piece for batch in images for piece in torch.split(batch, PIECE))
    inputs = input_sensitivities(network, grids, pieces, seed=seed, threads=threads) if grids else {}
    target = "labels" if labelled else "the network's own predictions"
    return {
        "metric": "omega",
        "method": f"mean Hessian trace x ||Q(W) - W||^2 of the weights as they are rounded (Hutchinson, all layers "
        f"jointly, {sum(counts)} samples, cross-entropy against {target})"
        + (", plus the Fisher information's (g . (Q(x) - x))^2 of the input" if grids else ""),
        "batches": len(losses),
        "probes_per_batch": next(iter(traces.values())).probes,
        "target_error": settings.target_error,
        "converged": sum(trace.relative_error <= settings.target_error for trace in traces.values()),
        "note": _uncertainty(traces, settings.target_error, len(losses)),
        "layers": {
            name: {
                "mean_trace": trace.mean,
                "trace": trace.trace,
                "standard_error": trace.standard_error,
                "relative_error": trace.relative_error if isfinite(trace.relative_error) else None,
                "parameters": trace.parameters,
                **_by_width("weights", omega[name]),
                **(_by_width("inputs", inputs[name]) if grids else {}),
            }
            for name, trace in traces.items()
        },
    }


def _squared_errors(graph: FloatGraph, weights: Alone) -> dict[str, dict[WeightFormat, float]]:
    """``||Q(W) - W||^2`` of every layer at every width."""
    trained = {node.name: node.weight for node in graph.layers if node.weight is not None}
    return {
        name: {bits: float(np.square(found.restored - trained[name]).sum()) for bits, found in row.items()}
        for name, row in weights.items()
    }


def _by_width(part: str, values: Mapping[int, float] | Mapping[WeightFormat, float]) -> dict[str, dict[str, float]]:
    return {part: {str(bits): value for bits, value in values.items()}}


def _uncertainty(traces: Mapping[str, TraceEstimate], target: float, batches: int) -> str | None:
    """What to do about estimates that did not converge; None where all did."""
    errors = {name: trace.relative_error for name, trace in traces.items() if trace.relative_error > target}
    if not errors:
        return None
    worst = max(errors, key=lambda name: errors[name])
    double_backwards = batches * traces[worst].probes
    return (
        f"the sensitivities of {len(errors)} of {len(traces)} layers are uncertain by more than {target:.0%}, that of "
        f"'{worst}' by {errors[worst]:.0%}; raise --hessian-probes (HessianSettings.max_probes) above the "
        f"{double_backwards} made, four times as many halve the errors"
    )


_Change = tuple[Literal["weights", "inputs"], str, int | WeightFormat]
"""What is rounded alone: which part of which layer, to how many bits or into which format."""


def profile_losses(
    graph: FloatGraph,
    samples: Iterable[Tensor],
    weights: Alone,
    grids: Grids,
    *,
    corrects_means: bool = True,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """The measured loss of every layer's weights alone and of its input alone, as `sensitivity.json` holds them.

    Args:
        graph: from capture.
        samples: float32 [N, ...] pieces of calibration samples, kept while this runs.
        weights: at every candidate width.
        grids: of the inputs at every candidate width.
        corrects_means: whether biases make up for what a rounded input does to a channel's mean, as rounding does.
        threads: pieces that run side by side.
        progress: called with the number of samples done.
    """
    pieces, real = list(samples), RealNetwork(graph)
    inputs: dict[_Change, Change] = {
        ("inputs", name, bits): Change(name, reads=grid) for name, row in grids.items() for bits, grid in row.items()
    }
    if corrects_means:
        inputs = with_means_of(real, real, inputs, lambda: pieces, threads=threads)
    rounded: dict[_Change, Change] = {
        ("weights", name, bits): rounded_alone(name, found)
        for name, row in weights.items()
        for bits, found in row.items()
    }
    losses = layer_losses(real, {**rounded, **inputs}, pieces, reference=real, threads=threads, progress=progress)
    layers: dict[str, dict[str, dict[str, float]]] = {name: {} for name in weights}
    for (part, name, bits), loss in losses.items():
        layers[name].setdefault(part, {})[str(bits)] = loss
    count = sum(map(len, pieces))
    return {
        "metric": "loss",
        "method": f"measured on {count} calibration samples: the mean KL divergence of the network's result with one "
        "layer's weights rounded alone" + (", plus that with its input alone" if grids else ""),
        "samples": count,
        "note": None,
        "layers": layers,
    }


def rounded_alone(layer: str, found: LayerWeights) -> Change:
    """A layer with the weights that it is deployed with."""
    return Change(layer, torch.from_numpy(found.restored.astype(np.float32)), torch.from_numpy(found.bias))
