"""Brief quantisation-aware fine-tuning: what HAQ's reward measures a configuration after.

The integer network in reals (`hawq_tvm.posttraining.simulate`) with gradients: values and weights lie on their grids
on the way forward, and on the way back each grid passes gradients as the clip at its ends does (the straight-through
estimator). Scales of weights follow their largest magnitude; those of activations stay as they were calibrated.

Source: HAQ (arXiv 1811.08886), section 4, and its published search: one epoch of SGD, learning rate 0.001, momentum
0.9, weight decay 4e-5. Bengio, Leonard, Courville, Estimating or propagating gradients through stochastic neurons
(arXiv 1308.3432).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, pi
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import run_nodes
from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.float_ir import WEIGHTED, FloatGraph, FloatNode
from hawq_tvm.core.quantizer import LayerWeights, RangeTable, cluster_weight, quantize_weight, weight_scales
from hawq_tvm.core.specs import BitConfig
from hawq_tvm.posttraining.simulate import Grid, SimulatedNetwork
from hawq_tvm.search.simulated import in_pieces, share_right

Samples = tuple[Tensor, Tensor]
"""Images float32 [N, ...] and labels int64 [N]."""


@dataclass(frozen=True)
class FinetuneSettings:
    """HAQ's brief fine-tuning.

    Attributes:
        epochs: passes over the training samples.
        batch: samples of a step.
        rate: SGD's learning rate.
        momentum: its momentum.
        weight_decay: its weight decay.
        schedule: whether the rate stays, or falls to 0 along half a cosine, as in HAQ's last fine-tuning.
    """

    epochs: int = 1
    batch: int = 128
    rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 4e-5
    schedule: Literal["constant", "cosine"] = "constant"


class FinetunedAccuracy:
    """Accuracy after a brief fine-tuning: an `hawq_tvm.search.resources.Evaluate`."""

    def __init__(
        self,
        graph: FloatGraph,
        ranges: RangeTable,
        training: Samples,
        validation: Samples,
        settings: FinetuneSettings | None = None,
        *,
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        """Look at a network and samples.

        Args:
            graph: from capture.
            ranges: of its values.
            training: what is trained on.
            validation: what accuracy is measured on.
            settings: of the training; None for HAQ's.
            seed: of the order of the training samples, the same for every configuration.
            threads: pieces of the validation that run side by side.
        """
        self._graph, self._ranges = graph, ranges
        self._training, self._settings = training, settings or FinetuneSettings()
        self._pieces = in_pieces(*validation)
        self._seed, self._threads = seed, threads

    def tuned(self, bits: BitConfig) -> TrainableNetwork:
        """The network at these bits, fine-tuned from the float network's weights."""
        network = TrainableNetwork(self._graph, ActivationTypes(self._graph, self._ranges, bits))
        fine_tune(network, self._training, self._settings, seed=self._seed)
        return network

    def __call__(self, bits: BitConfig) -> float:
        return share_right(self.tuned(bits), self._pieces, threads=self._threads)


class TrainableNetwork:
    """An integer network in reals whose weights and biases take gradients through its grids.

    Attributes:
        weights: float32 by layer, in reals; what is computed with lies on their grid.
        biases: float32 [out] by layer.
    """

    def __init__(self, graph: FloatGraph, types: ActivationTypes) -> None:
        """Begin at the float network's weights.

        Args:
            graph: from capture.
            types: of its values.
        """
        self._types = types
        self.weights = _parameters({node.name: node.weight for node in graph.layers})
        self.biases = _parameters({node.name: node.bias for node in graph.layers})
        self._network = SimulatedNetwork(graph, types, self.weights, self.biases, bring=passed)

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.weights.values(), *self.biases.values()]

    def deployed(self) -> dict[str, LayerWeights]:
        """Every layer's integers, scales and biases as they are now, for the integeriser."""
        found = {}
        for name, pair in self._types.bits.layers.items():
            weight, bias = self.weights[name].detach().numpy(), self.biases[name].detach().numpy()
            scales = weight_scales(weight, pair.format.carried_bits)
            if pair.codebook:
                integers, codebook = cluster_weight(weight, scales, pair.weight)
                found[name] = LayerWeights(integers, scales, bias, pair.weight, codebook)
            else:
                integers = quantize_weight(weight, scales, pair.weight)
                found[name] = LayerWeights(integers, scales, bias, pair.weight)
        return found

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of real inputs, float32 [N, ...] both."""
        return run_nodes(self._network.graph, self._network.start(x), self._node)

    def _node(self, node: FloatNode, inputs: list[Tensor]) -> Tensor:
        weighted = node.kind in WEIGHTED
        weight = on_grid(self.weights[node.name], self._types.bits.layers[node.name].format) if weighted else None
        return self._network.node(node, inputs, weight)


def passed(grid: Grid, x: Tensor) -> Tensor:
    """`x` on a grid; gradients pass where it lies within the grid's ends."""
    within = x.clamp(grid.lo * grid.scale, grid.hi * grid.scale)
    return within + (grid.nearest(x.detach()) - within).detach()


def on_grid(weight: Tensor, format: WeightFormat) -> Tensor:
    """Weights [out, ...] at the nearest multiples of their channel's max-abs scale, or the nearest of their codebook.

    Gradients pass unchanged. A codebook is chosen anew each time, as HAQ moves its centroids after each step.
    """
    with torch.no_grad():
        largest = weight.flatten(1).abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny)
        scale = (largest / format.limit).view(-1, *(1,) * (weight.dim() - 1))
        if format.codebook:
            codes, _ = cluster_weight(weight.numpy(), scale.double().flatten().numpy(), format.bits)
            nearest = torch.from_numpy(codes).float().mul_(scale)
        else:
            nearest = (weight / scale).add_(0.5).floor_().clamp_(-format.limit, format.limit).mul_(scale)
    return weight + (nearest - weight).detach()


def fine_tune(network: TrainableNetwork, samples: Samples, settings: FinetuneSettings, *, seed: int = 0) -> None:
    """Train a network in place by SGD on the cross-entropy of its labels.

    Args:
        network: whose weights and biases change.
        samples: images and labels; the last of them that fill no batch are left out of an epoch.
        settings: of the training.
        seed: of the order.
    """
    images, labels = samples
    generator = torch.Generator().manual_seed(seed)
    size = min(settings.batch, len(images))
    optimizer = torch.optim.SGD(
        network.parameters, settings.rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    steps = len(images) // size
    for epoch in range(settings.epochs):
        order = torch.randperm(len(images), generator=generator)
        for step, batch in enumerate(order[: steps * size].view(-1, size)):
            if settings.schedule == "cosine":
                done = (epoch * steps + step) / (settings.epochs * steps)
                optimizer.param_groups[0]["lr"] = settings.rate * (1 + cos(pi * done)) / 2
            loss = F.cross_entropy(network(images[batch]).flatten(1), labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def _parameters(arrays: Mapping[str, object]) -> dict[str, Tensor]:
    """Float32 copies that take gradients."""
    return {
        name: torch.tensor(array, dtype=torch.float32, requires_grad=True)
        for name, array in arrays.items()
        if array is not None
    }
