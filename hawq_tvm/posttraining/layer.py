"""One layer found: its integers and scales, then the slope and the bias of its channels, from what it reads and owes.

The samples pass in pieces, which run side by side. A piece is as large as it is whatever the number of threads, runs on
one of them, and sums are taken in the pieces' order: the same samples give the same integers on any number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add

import numpy as np
import torch
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import weighted
from hawq_tvm.backends.pytorch.threads import iterate_pieces
from hawq_tvm.calibration.corrections import ResultSums, corrections
from hawq_tvm.calibration.moments import ROWS, MomentSums, has_own_moments, outputs_at, patches, positions
from hawq_tvm.calibration.rounding import Levels, Rounded
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.float_ir import FloatNode
from hawq_tvm.core.integerize import check_alive
from hawq_tvm.core.quantizer import FloatArray, LayerWeights
from hawq_tvm.posttraining.solve import Evidence, LayerRounding, live_inputs
from hawq_tvm.settings import RoundingSettings

_MARGIN = 0.3  # of the results' standard deviation: how near to a clip's bound an error may still pass
_CLIPPED = 0.05  # what an error counts that a clip takes away


@dataclass(frozen=True)
class Found:
    """What was found for one layer.

    Attributes:
        integers: int8 [out, ...].
        scales: float64 [out], before the slope.
        slope: float64 [out], by which the scales are multiplied.
        offset: float64 [out], which is added to the bias.
        levels: which integers there are to choose from.
    """

    integers: Tensor
    scales: Tensor
    slope: Tensor
    offset: Tensor
    levels: Levels

    @classmethod
    def of(cls, node: FloatNode, rounded: Rounded) -> Found:
        """A layer without corrections."""
        scales = rounded.scales.flatten()
        integers = rounded.integers.to(torch.int8).reshape(weight_of(node).shape)
        return cls(integers, scales, torch.ones_like(scales), torch.zeros_like(scales), rounded.levels)

    @property
    def weight(self) -> Tensor:
        """The reals that the integers stand for before the slope, float32 [out, ...]."""
        return (self.integers * self.scales.reshape(-1, *(1,) * (self.integers.dim() - 1))).float()

    def bias(self, node: FloatNode) -> Tensor:
        """The bias with its correction, float32 [out]."""
        return (bias_of(node).double() + self.offset).float()

    def deployed(self, node: FloatNode) -> LayerWeights:
        """The layer as it goes into the integer graph."""
        levels, scales = self.levels, (self.scales * self.slope).numpy()
        return LayerWeights(self.integers.numpy(), scales, self.bias(node).numpy(), levels.format.bits, levels.codebook)

    def with_room(self, least: FloatArray, node: FloatNode) -> Found:
        """The same on a coarser grid where a channel's bias would not fit the accumulator; see `least_scales`."""
        deployed = self.deployed(node)
        if (deployed.scales >= least).all():
            return self
        moved = deployed.with_scales(np.maximum(deployed.scales, least))
        scales = torch.from_numpy(np.asarray(moved.scales))
        return replace(self, integers=torch.from_numpy(moved.integers), scales=scales, slope=torch.ones_like(scales))


@dataclass(frozen=True)
class LayerPiece:
    """What a layer reads and owes on some of the samples.

    Attributes:
        reads: float32 [N, ...], its first input as it will be.
        wanted: float32 [N, out, ...], the float network's results before bias, residual and clip.
        residual: of that shape, its residual in the float and in the quantised network; None where it has none.
    """

    reads: Tensor
    wanted: Tensor
    residual: tuple[Tensor, Tensor] | None = None

    @property
    def drift(self) -> Tensor | None:
        """What the layer is to make up for beside its own error: that of its residual."""
        return None if self.residual is None else self.residual[0] - self.residual[1]

    def importance(self, node: FloatNode) -> Tensor:
        """How much each result of a layer with a clip counts: less where the clip takes its error away.

        What lies within the clip counts whole, and so does what lies near it, since rounding may bring it there.
        """
        assert node.clip is not None
        result = self.wanted + beside(bias_of(node), self.wanted)
        if self.residual is not None:
            result += self.residual[0]
        margin = _MARGIN * float(result.std(correction=0))
        near = (result > node.clip.lo - margin) & (result < node.clip.hi + margin)
        return torch.where(near, 1.0, _CLIPPED)

    def got(self, node: FloatNode, found: Found) -> Tensor:
        """The results of the integers, before slope, bias, residual and clip."""
        return weighted(node, self.reads, found.weight, None)


@dataclass(frozen=True)
class _Seen:
    """What a layer is given.

    Attributes:
        live: bool [C], which channels are not always 0.
        halves: sums over the even pieces (0) and the odd ones (1), where sums decide anything.
    """

    live: Tensor
    halves: Mapping[int, MomentSums] = field(default_factory=dict)

    def __add__(self, other: _Seen) -> _Seen:
        halves = dict(self.halves)
        for half, sums in other.halves.items():
            halves[half] = halves[half] + sums if half in halves else sums
        return _Seen(self.live | other.live, halves)

    def evidence(self, *, centred: bool) -> Evidence | None:
        """The moments of all pieces, and of each half where there are two."""
        if not self.halves:
            return None
        parts = tuple(sums.moments(centred=centred) for sums in self.halves.values())
        whole = reduce(add, self.halves.values()).moments(centred=centred)
        return Evidence(whole, (parts[0], parts[1]) if len(parts) == 2 else None)


class LayerSearch:
    """Finds one layer, at one width or at several."""

    def __init__(
        self, node: FloatNode, pieces: Sequence[LayerPiece], settings: RoundingSettings, *, seed: int, threads: int
    ) -> None:
        """Look at a layer.

        Args:
            node: with weights.
            pieces: of the samples.
            settings: how its weights are rounded.
            seed: of the choice of output positions.
            threads: pieces that run side by side.

        Raises:
            CalibrationError: weights or biases that are not finite; a layer of zeros.
        """
        check_alive(node)
        self._node = node
        self._pieces = pieces
        self._settings = settings
        self._seed = seed
        self._threads = threads
        self._seen: dict[bool, _Seen] = {}

    def find(self, format: WeightFormat, scales: FloatArray | None = None) -> Found:
        """Integers and corrections.

        Args:
            format: of the weights.
            scales: float64 [out], given ones, taken as they are; None where they are to be found.
        """
        rounding = LayerRounding(self._node, format, self._settings, scales=scales, threads=self._threads)
        seen = self._look(closely=rounding.needs_moments)
        evidence = seen.evidence(centred=self._settings.bias)  # else the weights have to see to the means
        found = Found.of(self._node, rounding.solve(live_inputs(self._node, seen.live), evidence))
        slope = self._settings.slope and scales is None
        if not (slope or self._settings.bias):
            return found
        sums = reduce(add, self._results(found))
        factor, offset = corrections(sums, slope=slope, bias=self._settings.bias)
        return replace(found, slope=factor, offset=offset)

    def _look(self, *, closely: bool) -> _Seen:
        """See what the layer is given, once for all widths."""
        if closely not in self._seen:
            rows = ROWS // sum(len(piece.reads) for piece in self._pieces) if closely else None
            numbered = enumerate(self._pieces)
            parts = iterate_pieces(lambda item: self._look_at(item[1], item[0], rows), numbered, self._threads)
            self._seen[closely] = reduce(add, parts)
        return self._seen[closely]

    def _look_at(self, piece: LayerPiece, index: int, rows: int | None) -> _Seen:
        """One piece; `rows` positions a sample, None for no moments."""
        node = self._node
        live = (piece.reads != 0).transpose(0, 1).flatten(1).any(1)
        if rows is None:
            return _Seen(live)
        at = positions(node, rows, np.random.default_rng((self._seed, index)))
        drift = piece.drift
        wanted = piece.wanted if drift is None else piece.wanted + drift
        x, y = patches(node, piece.reads, at), outputs_at(node, wanted, at)
        if has_own_moments(node):
            return _Seen(live, {index % 2: MomentSums.of_each(x, y, outputs_at(node, piece.importance(node), at))})
        return _Seen(live, {index % 2: MomentSums.of(x, y)})

    def _results(self, found: Found) -> Iterator[ResultSums]:
        node = self._node

        def sums(piece: LayerPiece) -> ResultSums:
            return ResultSums.of(piece.wanted, piece.got(node, found), piece.drift)

        return iterate_pieces(sums, self._pieces, self._threads)


def weight_of(node: FloatNode) -> Tensor:
    """A layer's weight, float32 [out, ...]."""
    assert node.weight is not None
    return torch.from_numpy(node.weight)


def beside(values: Tensor, results: Tensor) -> Tensor:
    """A value for each channel, [out], in the shape in which it stands beside results [N, out, ...]."""
    return values.reshape(-1, *(1,) * (results.dim() - 2))


def bias_of(node: FloatNode) -> Tensor:
    """A layer's bias, float32 [out]."""
    assert node.bias is not None
    return torch.from_numpy(node.bias)
