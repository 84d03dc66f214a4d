"""The accuracy of a configuration in seconds: the integer network in reals, its weights rounded once for each width.

Each layer's weights are rounded beforehand in every format that a search may ask for, on the float network's values
(`hawq_tvm.posttraining.alone`), so that a configuration only puts them together. The deployed network, whose layers
are rounded on what reaches them, is a little better: `hawq_tvm.posttraining.walk` takes minutes, and this orders
configurations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from hawq_tvm.backends.pytorch.threads import run_pieces
from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.errors import DataError
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.quantizer import LayerWeights, RangeTable
from hawq_tvm.core.specs import BitConfig
from hawq_tvm.posttraining.simulate import SimulatedNetwork

_PIECE_ELEMENTS = 50 * 3 * 32 * 32  # of the inputs of a piece: its values then lie in a core's cache
_FEWEST = 4  # fewer at once were slower again, at 224 x 224


class SimulatedAccuracy:
    """Share of samples on which the integer network is right: an `hawq_tvm.search.resources.Evaluate`."""

    def __init__(
        self,
        graph: FloatGraph,
        ranges: RangeTable,
        weights: Mapping[str, Mapping[WeightFormat, LayerWeights]],
        images: Tensor,
        labels: Tensor,
        *,
        threads: int = 1,
    ) -> None:
        """Look at a network and samples.

        Args:
            graph: from capture.
            ranges: of its values.
            weights: of every layer, in every format that will be asked for.
            images: float32 [N, ...], at least one.
            labels: int64 [N]; the float network's classes where there are no others.
            threads: pieces that run side by side.

        Raises:
            DataError: no samples.
        """
        if not len(images):
            raise DataError("there are no samples to measure accuracy on; give at least one")
        self._graph, self._ranges = graph, ranges
        self._weights = {name: {format: _tensors(one) for format, one in by.items()} for name, by in weights.items()}
        self._pieces = in_pieces(images, labels)
        self._threads = threads

    def network(self, bits: BitConfig) -> SimulatedNetwork:
        """The network at these bits."""
        chosen = {name: self._weights[name][pair.format] for name, pair in bits.layers.items()}
        return SimulatedNetwork(
            self._graph,
            ActivationTypes(self._graph, self._ranges, bits),
            {name: weight for name, (weight, _) in chosen.items()},
            {name: bias for name, (_, bias) in chosen.items()},
        )

    def __call__(self, bits: BitConfig) -> float:
        return share_right(self.network(bits), self._pieces, threads=self._threads)


def in_pieces(images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Samples in the pieces that they are measured in, channels last: fewer of larger images."""
    size = max(_FEWEST, _PIECE_ELEMENTS // max(1, images[0].numel()))
    images = channels_last(images)
    return list(zip(torch.split(images, size), torch.split(labels, size), strict=True))


def share_right(
    network: Callable[[Tensor], Tensor], pieces: Sequence[tuple[Tensor, Tensor]], *, threads: int = 1
) -> float:
    """How many samples a network gives their label.

    Args:
        network: float32 [N, ...] to logits [N, classes].
        pieces: images and labels, side by side.
        threads: pieces that run at once.
    """

    def right(piece: tuple[Tensor, Tensor]) -> int:
        images, labels = piece
        return int((network(images).flatten(1).argmax(1) == labels).sum())

    with torch.no_grad():
        return sum(run_pieces(right, pieces, threads)) / sum(len(labels) for _, labels in pieces)


def _tensors(weights: LayerWeights) -> tuple[Tensor, Tensor]:
    """Weights on their grid and biases, float32."""
    restored, bias = (torch.from_numpy(part.astype(np.float32)) for part in (weights.restored, weights.bias))
    return channels_last(restored), bias


def channels_last(x: Tensor) -> Tensor:
    """The same values; in memory the channels of an image, or of a convolution's weights, lie side by side.

    PyTorch then takes half to two thirds of the time for a network of 224 x 224: its convolutions need not sort their
    inputs, and its max-pools have vectors.
    """
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
