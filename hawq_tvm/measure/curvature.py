"""Sensitivities from the Hessian of the loss: its mean trace (HAWQ-V2, HAWQ-V3) and its top eigenvalue (HAWQ).

The loss is cross-entropy against the labels, or against the network's own predictions where samples have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.calibration import (
    Eigenvalue,
    Estimate,
    Progress,
    TraceEstimate,
    hutchinson_traces,
    mean_trace,
    top_eigenvalue,
    top_eigenvalues,
)
from hawq_tvm.calibration.hessian import Loss
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.errors import SensitivityError
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.measure.sensitivity import Alone, Grids, LayerSensitivity, fewest, sensitivity_table, squared_errors
from hawq_tvm.posttraining.fisher import Fisher, fisher_information
from hawq_tvm.posttraining.input_curvature import input_curvatures
from hawq_tvm.settings import HessianSettings
from hawq_tvm.sources.data import check_labels, numbered
from hawq_tvm.sources.samples import Batch

_FEWEST_PROBES, _MOST_PROBES = 64, 1024
_CHEAP_MACS = 10**11  # multiply-accumulates of the forward passes: about ten seconds of double backwards on two cores

_GRAPH_BYTES = 2 << 30  # that one batch's graph of gradients may take
_KEPT = 6  # tensors that such a graph keeps for each value of the network; 4.3 were seen on a ResNet-50


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


def samples_at_once(graph: FloatGraph) -> int:
    """How many samples are differentiated twice at once, so that memory does not grow with the image or the network.

    Args:
        graph: from capture.
    """
    values = prod(graph.input_shape) + sum(prod(node.shape) for node in graph)
    return max(1, _GRAPH_BYTES // (4 * _KEPT * values))


@dataclass(frozen=True)
class Curved:
    """The loss over some samples, to be differentiated twice.

    Attributes:
        network: the float graph.
        batches: samples, each with the labels that the loss is taken against.
        labelled: whether these are the samples' own.
    """

    network: FloatModule
    batches: tuple[tuple[Tensor, Tensor], ...]
    labelled: bool

    @classmethod
    def over(cls, network: FloatModule, batches: Iterable[Batch]) -> Curved:
        """The loss over these samples.

        Raises:
            DataError: a label that the network has no class for.
            SensitivityError: a network with one output, whose cross-entropy is always 0.
        """
        classes = prod(network.graph.by_name[network.graph.output].shape)
        if classes == 1:
            raise SensitivityError(
                "the network has a single output, whose cross-entropy is 0 and has no second derivative to speak of; "
                "take a metric that measures, --metric kl or sqnr"
            )
        found, labelled = list[tuple[Tensor, Tensor]](), True
        for first, batch in numbered(batches):
            check_labels(batch, classes, first=first)
            labels = batch.labels
            if labels is None:
                labelled = False
                with torch.no_grad():
                    labels = network(batch.images).flatten(1).argmax(1)
            found.append((batch.images, labels))
        return cls(network, tuple(found), labelled)

    @property
    def counts(self) -> list[int]:
        """Samples of each batch."""
        return [len(images) for images, _ in self.batches]

    @property
    def losses(self) -> list[Loss]:
        """A function of the weights for each batch, the mean loss over its samples."""
        return [partial(self._loss, images, labels) for images, labels in self.batches]

    def _loss(self, images: Tensor, labels: Tensor, at: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.network(images, weights=at).flatten(1), labels)

    def __str__(self) -> str:
        target = "labels" if self.labelled else "the network's own predictions"
        return f"{sum(self.counts)} samples, cross-entropy against {target}"


def profile_omega(
    loss: Curved,
    weights: Alone,
    grids: Grids,
    settings: HessianSettings,
    *,
    seed: int = 0,
    threads: int = 1,
    done: Tensor | None = None,
    keep: Callable[[Tensor], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Hessian trace and Omega of every layer, of its weights and of its input.

    Args:
        loss: over calibration samples.
        weights: at every candidate width.
        grids: of the inputs at every candidate width.
        settings: when to stop; see `probe_limit`.
        seed: of the probes and of the labels that are drawn.
        threads: samples that run side by side where inputs are looked at.
        done: probes that an earlier call kept.
        keep: is given the probes after every round; see `hutchinson_traces`.
        progress: called with the number of double backwards done.

    Raises:
        SensitivityError: no samples, or a Hessian that cannot be computed or is 0.
    """
    graph, counts = loss.network.graph, loss.counts
    errors, trained = squared_errors(graph, weights), loss.network.weights()
    most = probe_limit(settings, sum(node.macs for node in graph.layers), max(counts, default=1))
    traces = hutchinson_traces(
        loss.losses,
        trained,
        samples=counts,
        target_error=settings.target_error,
        max_probes=max(2, most // max(1, len(counts))),
        order={name: _per_weight(row, trained[name].numel()) for name, row in errors.items()} or None,
        seed=seed,
        done=done,
        keep=keep,
        progress=None if progress is None else lambda made: progress(made * len(counts)),
    )
    _check_curved(trace.trace or trace.standard_error for trace in traces.values())
    inputs = _fisher_inputs(loss, grids, seed, threads)
    return sensitivity_table(
        "omega",
        f"mean Hessian trace x ||Q(W) - W||^2 of the weights as they are rounded (Hutchinson, {loss})"
        + (", plus the Fisher information's (g . (Q(x) - x))^2 of the input" if grids else ""),
        {
            name: LayerSensitivity(
                {bits: mean_trace(trace) * error for bits, error in errors.get(name, {}).items()},
                inputs.get(name, {}),
                order=trace.mean,
                facts={
                    "mean_trace": trace.mean,
                    "trace": trace.trace,
                    "standard_error": trace.standard_error,
                    "probes": trace.probes,
                    "parameters": trace.parameters,
                },
            )
            for name, trace in traces.items()
        },
        note=_unsure_traces(traces, settings.target_error, len(counts)),
        batches=len(counts),
        probes_per_batch=max(trace.probes for trace in traces.values()),
        target_error=settings.target_error,
        converged=sum(trace.relative_error <= settings.target_error for trace in traces.values()),
    )


def _per_weight(errors: Mapping[WeightFormat, float], parameters: int) -> float:
    """What a unit of the trace weighs in Omega a weight at the fewest bits: the order that a size budget goes by."""
    return errors[fewest(errors)] / parameters**2


def _fisher_inputs(loss: Curved, grids: Grids, seed: int, threads: int) -> dict[str, dict[int, Estimate]]:
    if not grids:
        return {}
    batches = (Batch(images, None) for images, _ in loss.batches)
    found: Mapping[tuple[str, str], Fisher] = fisher_information(
        loss.network, {}, grids, batches, seed=seed, threads=threads
    )
    return {
        name: {bits: Estimate.mean_of(found["inputs", name].forms[bits]) for bits in row} for name, row in grids.items()
    }


def _check_curved(curvatures: Iterable[float]) -> None:
    if not any(curvatures):
        raise SensitivityError(
            "the Hessian is 0 in every layer: the loss does not bend at these weights, as where the network is sure of "
            "all its answers to the last bit; take a metric that measures, --metric kl or sqnr"
        )


def _unsure_traces(traces: Mapping[str, TraceEstimate], target: float, batches: int) -> str | None:
    """What to do about estimates that did not converge; None where all did."""
    errors = {name: trace.relative_error for name, trace in traces.items() if trace.relative_error > target}
    if not errors:
        return None
    worst = max(errors, key=lambda name: errors[name])
    made = batches * max(trace.probes for trace in traces.values())
    return (
        f"the sensitivities of {len(errors)} of {len(traces)} layers are uncertain by more than {target:.0%}, that of "
        f"'{worst}' by {errors[worst]:.0%}; raise --hessian-probes (HessianSettings.max_probes) above the "
        f"{made} made, four times as many halve the errors"
    )


def profile_eigenvalue(
    loss: Curved,
    weights: Alone,
    grids: Grids,
    settings: HessianSettings,
    *,
    seed: int = 0,
    done: Progress | None = None,
    keep: Callable[[Progress], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """The Hessian's top eigenvalue and HAWQ's Omega of every layer, of its weights and of its input.

    Args:
        loss: over calibration samples.
        weights: at every candidate width.
        grids: of the inputs at every candidate width.
        settings: when to stop.
        seed: of the starts.
        done: where an earlier call had come.
        keep: is given where it stands after every round; see `top_eigenvalues`.
        progress: called with the number of rounds done.

    Raises:
        SensitivityError: no samples, or a Hessian that cannot be computed or is 0.
    """
    found = top_eigenvalues(
        loss.losses,
        loss.network.weights(),
        samples=loss.counts,
        target_error=settings.target_error,
        max_iterations=settings.max_iterations,
        seed=seed,
        done=done,
        keep=keep,
        progress=progress,
    )
    _check_curved(top.value for top in found.values())
    errors = squared_errors(loss.network.graph, weights)
    inputs = _input_bounds(loss, grids, settings, seed)
    return sensitivity_table(
        "eigenvalue",
        f"top Hessian eigenvalue x ||Q(W) - W||^2 of the weights as they are rounded (power iteration, {loss})"
        + (", plus each sample's top eigenvalue x |Q(x) - x|^2 of the input" if grids else ""),
        {
            name: LayerSensitivity(
                {bits: top_eigenvalue(top) * error for bits, error in errors.get(name, {}).items()},
                inputs.get(name, {}),
                order=top.magnitude / top.parameters,
                facts={
                    "eigenvalue": top.value,
                    "residual": top.residual,
                    "iterations": top.iterations,
                    "parameters": top.parameters,
                },
            )
            for name, top in found.items()
        },
        note=_unsure_eigenvalues(found, settings),
        batches=len(loss.counts),
        target_error=settings.target_error,
        converged=sum(top.relative_error <= settings.target_error for top in found.values()),
    )


def _input_bounds(loss: Curved, grids: Grids, settings: HessianSettings, seed: int) -> dict[str, dict[int, Estimate]]:
    """Of each input the mean over samples; its error that of the mean, and what power iteration may be off by."""
    if not grids:
        return {}
    found = input_curvatures(
        loss.network,
        grids,
        loss.batches,
        target_error=settings.target_error,
        max_iterations=settings.max_iterations,
        seed=seed,
    )

    def estimate(bounds: Tensor, residuals: Tensor) -> Estimate:
        mean = Estimate.mean_of(bounds)
        return Estimate(mean.value, mean.error + float(residuals.mean()))

    return {
        name: {bits: estimate(curvature.bounds, curvature.residuals) for bits, curvature in row.items()}
        for name, row in found.items()
    }


def _unsure_eigenvalues(found: Mapping[str, Eigenvalue], settings: HessianSettings) -> str | None:
    """What to do about eigenvalues that did not converge; None where all did."""
    errors = {name: top.relative_error for name, top in found.items() if top.relative_error > settings.target_error}
    if not errors:
        return None
    worst = max(errors, key=lambda name: errors[name])
    return (
        f"the top eigenvalues of {len(errors)} of {len(found)} layers may be off by more than "
        f"{settings.target_error:.0%}, that of '{worst}' by {errors[worst]:.0%}; raise --power-iterations "
        f"(HessianSettings.max_iterations) above {settings.max_iterations}"
    )
