"""The operators of the integer graph, one class a row: shape rule, numpy reference, cost and overflow proof.

Shapes in docstrings count the batch axis, as arrays have it; `TensorType.shape` does not. Convolutions are laid out as
PyTorch and ONNX have them: activations [N, C, H, W], weights [out, in / groups, kh, kw].

The references compute dot products in float64, which is exact here: every partial sum is an integer under 2^31.
To add an operator, see `docs/adding.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from hawq_tvm.core.codebook import WeightFormat, check_codebook, index_bits
from hawq_tvm.core.dyadic import rescale
from hawq_tvm.core.errors import GraphError
from hawq_tvm.core.ir import (
    SILENT_WHERE_NONE,
    Array,
    Bounds,
    Operator,
    Rescale,
    Shape,
    TensorType,
    Window,
    frozen_array,
)


def _one_input(inputs: Sequence[TensorType], rank: int | None = None) -> TensorType:
    if len(inputs) != 1:
        raise GraphError(f"takes one input, got {len(inputs)}")
    if rank is not None and len(inputs[0].shape) != rank:
        raise GraphError(f"takes samples of rank {rank}, got the shape {inputs[0].shape}")
    return inputs[0]


def _check_shape(name: str, array: Array, *allowed: Shape) -> None:
    if array.shape not in allowed:
        raise GraphError(f"{name} must have a shape of {' or '.join(map(str, allowed))}, got {array.shape}")


def _check_narrow(x: TensorType) -> None:
    """Products, maxima and window sums are exact in every back end for inputs of up to 8 bits."""
    if x.dtype.bits > 8:
        raise GraphError(f"takes inputs of up to 8 bits, got {x}; put a requantize before it")


def _check_kept(x: TensorType, output: TensorType) -> None:
    """What moves integers and computes none keeps what they mean."""
    if x.dtype != output.dtype or x.scale != output.scale:
        raise GraphError(f"keeps type and scale, got {x} to {output}")


def windows(x: Array, window: Window, fill: int) -> Array:
    """All windows of an image: [N, C, H, W] to [N, C, OH, OW, kh, kw], a view; `fill` is what the padding holds."""
    top, left, bottom, right = window.pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(padded, window.reach, axis=(2, 3))
    (sy, sx), (dy, dx) = window.strides, window.dilations
    return view[:, :, ::sy, ::sx, ::dy, ::dx]


@dataclass(frozen=True, eq=False)
class WeightedOperator(Operator):
    """What `Conv2d` and `Linear` share: integer weights, an int32 bias and a dyadic rescale with an optional residual.

    Attributes:
        weight: int8, the output channel first; values of `weight_bits` bits.
        weight_bits: 2 to 8; storage follows it, two 4-bit weights a byte.
        bias: int32 [out], at scale weight scale x input scale.
        rescale: one multiplier per output channel.
        codebook: int8 [2^b], ascending: the values that the weights take, which are stored as indexes of b bits and
            computed with as weights of 8 bits; None where weights are stored as they are.
    """

    weight: Array
    weight_bits: int
    bias: Array
    rescale: Rescale
    codebook: Array | None = field(default=None, kw_only=True, metadata=SILENT_WHERE_NONE)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", frozen_array(self.weight, "int8"))
        object.__setattr__(self, "bias", frozen_array(self.bias, "int32"))
        if self.codebook is not None:
            object.__setattr__(self, "codebook", frozen_array(self.codebook, "int8"))

    @property
    def format(self) -> WeightFormat:
        """What weights are stored as."""
        if self.codebook is None:
            return WeightFormat(self.weight_bits)
        return WeightFormat(index_bits(self.codebook), codebook=True)

    @property
    def out_channels(self) -> int:
        return int(self.weight.shape[0])

    @property
    def multipliers(self) -> list[Array]:
        """The multiplier of each output channel and, with a residual, the residual's: int64 [out] each."""
        residual = self.rescale.residual
        rest = [] if residual is None else [np.broadcast_to(residual, (self.out_channels,))]
        return [self.rescale.multiplier, *rest]

    def _result_shape(self, inputs: Sequence[TensorType], shape: Shape) -> Shape:
        expected = 1 if self.rescale.residual is None else 2
        if len(inputs) != expected:
            raise GraphError(f"takes {expected} inputs, got {len(inputs)}")
        if expected == 2 and inputs[1].shape != shape:
            raise GraphError(f"its residual has the shape {inputs[1].shape}, its result {shape}")
        return shape

    def check_parameters(self, inputs: Sequence[TensorType], output: TensorType) -> None:
        super().check_parameters(inputs, output)
        _check_narrow(inputs[0])
        if not 2 <= self.weight_bits <= 8:
            raise GraphError(f"weights have 2 to 8 bits, got {self.weight_bits}")
        limit = 1 << (self.weight_bits - 1)
        if self.weight.size == 0 or self.weight.min() < -limit or self.weight.max() >= limit:
            raise GraphError(f"weights leave the range of {self.weight_bits} bits, {-limit}..{limit - 1}")
        self._check_codebook()
        channels = self.out_channels
        _check_shape("the bias", self.bias, (channels,))
        _check_shape("the multiplier", self.rescale.multiplier, (channels,))
        if self.rescale.residual is not None:
            _check_shape("the residual multiplier", self.rescale.residual, (1,), (channels,))

    def _check_codebook(self) -> None:
        if self.codebook is None:
            return
        try:
            check_codebook(self.codebook)
        except ValueError as error:
            raise GraphError(str(error)) from error
        if self.weight_bits != 8 or not np.isin(self.weight, self.codebook).all():
            raise GraphError("weights in a codebook are computed with as 8 bits, and each is one of its values")

    def accumulator_bounds(self, inputs: Sequence[TensorType]) -> list[int]:
        """The largest magnitude of each output channel's accumulator: interval arithmetic over the actual weights.

        Positive and negative terms are summed apart, so that every partial sum in every order is covered.
        """
        weight = self.weight.reshape(self.out_channels, -1).astype(np.int64)
        bias = self.bias.astype(np.int64)
        at_lo, at_hi = weight * inputs[0].dtype.lo, weight * inputs[0].dtype.hi  # of either sign: every type holds 0
        upper = np.maximum(at_lo, at_hi).sum(axis=1) + bias.clip(min=0)
        lower = np.minimum(at_lo, at_hi).sum(axis=1) + bias.clip(max=0)
        return [int(value) for value in np.maximum(upper, -lower)]

    def bounds(self, inputs: Sequence[TensorType]) -> Bounds:
        """Of `accumulator_bounds`, times the multipliers, with the residual's largest."""
        accumulators = self.accumulator_bounds(inputs)
        residual = [0] * len(accumulators)
        if self.rescale.residual is not None:
            multipliers = np.broadcast_to(self.rescale.residual, (self.out_channels,))
            residual = [int(m) * inputs[1].dtype.magnitude for m in multipliers]
        multipliers_ = [int(m) for m in self.rescale.multiplier]
        sums = [acc * m + res for acc, m, res in zip(accumulators, multipliers_, residual, strict=True)]
        return Bounds.of(max(accumulators), max(sums), self.rescale.shift)

    def _finish(self, accumulator: Array, inputs: Sequence[Array]) -> Array:
        """Bias, residual, rounding, clip; channels on axis 1."""
        shape = (1, -1) + (1,) * (accumulator.ndim - 2)
        total = (accumulator + self.bias.astype(np.int64).reshape(shape)) * self.rescale.multiplier.reshape(shape)
        if self.rescale.residual is not None:
            total += inputs[1].astype(np.int64) * self.rescale.residual.reshape(shape)
        return rescale(total, self.rescale.shift, self.rescale.lo, self.rescale.hi)

    def describe(self) -> str:
        size = ",".join(map(str, self.weight.shape))
        groups = getattr(self, "groups", 1)
        stored = f"s{self.weight_bits}" if self.codebook is None else str(self.format)
        return f"{stored}[{size}]{f' groups {groups}' if groups > 1 else ''} {super().describe()}"


@dataclass(frozen=True, eq=False)
class Conv2d(WeightedOperator):
    """Convolution, grouped or depthwise as `groups` says; weight int8 [out, in / groups, kh, kw]."""

    kind = "conv2d"
    window: Window
    groups: int = 1

    @property
    def depthwise(self) -> bool:
        """Whether each output channel reads the input channel of its number alone."""
        return 1 < self.groups == self.out_channels and self.weight.shape[1] == 1

    def output_shape(self, inputs: Sequence[TensorType]) -> Shape:
        if not inputs or len(inputs[0].shape) != 3:
            raise GraphError("takes an input of shape [C, H, W]")
        channels, height, width = inputs[0].shape
        if self.weight.shape[2:] != self.window.kernel:
            raise GraphError(f"its weight {self.weight.shape} does not fit its window {self.window}")
        if channels != self.weight.shape[1] * self.groups or self.out_channels % self.groups:
            raise GraphError(f"its weight {self.weight.shape} in {self.groups} groups does not fit {channels} channels")
        return self._result_shape(inputs, (self.out_channels, *self.window.output_size(height, width)))

    def evaluate(self, inputs: Sequence[Array]) -> Array:
        groups, out_per_group = self.groups, self.out_channels // self.groups
        weight = self.weight.reshape(groups, out_per_group, -1).astype(np.float64)
        views = windows(inputs[0], self.window, fill=0)
        samples, _, height, width = views.shape[:4]
        accumulator = np.empty((samples, self.out_channels, height, width), np.int64)
        for index in range(samples):  # one at a time, since patches are kernel-size times as large as the image
            patches = views[index].transpose(0, 3, 4, 1, 2).reshape(groups, -1, height * width)
            accumulator[index] = (weight @ patches.astype(np.float64)).reshape(-1, height, width)
        return self._finish(accumulator, inputs)

    def macs(self, output: TensorType) -> int:
        return prod(output.shape) * prod(self.weight.shape[1:])


@dataclass(frozen=True, eq=False)
class Linear(WeightedOperator):
    """Matrix product with [N, in]; weight int8 [out, in]."""

    kind = "linear"

    def output_shape(self, inputs: Sequence[TensorType]) -> Shape:
        if not inputs or inputs[0].shape != self.weight.shape[1:]:
            raise GraphError(f"its weight {self.weight.shape} does not fit an input {inputs}")
        return self._result_shape(inputs, (self.out_channels,))

    def evaluate(self, inputs: Sequence[Array]) -> Array:
        product = inputs[0].astype(np.float64) @ self.weight.astype(np.float64).T
        return self._finish(product.astype(np.int64), inputs)

    def macs(self, output: TensorType) -> int:
        return prod(self.weight.shape)


@dataclass(frozen=True, eq=False)
class Requantize(Operator):
    """One value at another scale, width or clip: a free-standing ReLU, or 8 bits made 4; one multiplier [1]."""

    kind = "requantize"
    rescale: Rescale

    def output_shape(self, inputs: Sequence[TensorType]) -> Shape:
        return _one_input(inputs).shape

    def check_parameters(self, inputs: Sequence[TensorType], output: TensorType) -> None:
        super().check_parameters(inputs, output)
        _check_shape("the multiplier", self.rescale.multiplier, (1,))

    def evaluate(self, inputs: Sequence[Array]) -> Array:
        total = inputs[0].astype(np.int64) * self.rescale.multiplier
        return rescale(total, self.rescale.shift, self.rescale.lo, self.rescale.hi)

    def bounds(self, inputs: Sequence[TensorType]) -> Bounds:
        magnitude = inputs[0].dtype.magnitude
        return Bounds.of(magnitude, magnitude * int(self.rescale.multiplier[0]), self.rescale.shift)


@dataclass(frozen=True, eq=False)
class Add(Operator):
    """Free-standing sum of two values of one shape; multipliers [2], one rounding for both."""

    kind = "add"
    rescale: Rescale

    def output_shape(self, inputs: Sequence[TensorType]) -> Shape:
        if len(inputs) != 2 or inputs[0].shape != inputs[1].shape:
            raise GraphError(f"takes two inputs of one shape, got {list(inputs)}")
        return inputs[0].shape

    def check_parameters(self, inputs: Sequence[TensorType], output: TensorType) -> None:
        super().check_parameters(inputs, output)
        _check_shape("the multiplier", self.rescale.multiplier, (2,))

    def evaluate(self, inputs: Sequence[Array]) -> Array:
        first, second = (x.astype(np.int64) * m for x, m in zip(inputs, self.rescale.multiplier, strict=True))
        return rescale(first + second, self.rescale.shift, self.rescale.lo, self.rescale.hi)

    def bounds(self, inputs: Sequence[TensorType]) -> Bounds:
        magnitudes = [x.dtype.magnitude for x in inputs]
        total = sum(size * int(m) for size, m in zip(magnitudes, self.rescale.multiplier, strict=True))
        return Bounds.of(max(magnitudes), total, self.rescale.shift)


@dataclass(frozen=True, eq=False)
class Concat(Operator):
    """Values side by side along the channel axis, each rescaled to the one scale; multipliers [inputs]."""

    kind = "concat"
    rescale: Rescale

    def output_shape(self, inputs: Sequence[TensorType]) -> Shape:
        if not inputs or any(x.shape[1:] != inputs[0].shape[1:] for x in inputs):
            raise GraphError(f"takes inputs that differ in channels alone, got {list(inputs)}")
        return (sum(x.shape[0] for x in inputs), *inputs[0].shape[1:])

    def check_parameters(self, inputs: Sequence[TensorType], output: TensorType) -> None:
        super().check_parameters(inputs, output)
        _check_shape("the multiplier", self.rescale.multiplier, (len(inputs),))

    def evaluate(self, inputs: Sequence[Array]) -> Array:
        totals = [x.astype(np.int64) * m for x, m in zip(inputs, self.rescale.multiplier, strict=True)]
        return rescale(np.concatenate(totals, axis=1), self.rescale.shift, self.rescale.lo, self.rescale.hi)

    def bounds(self, inputs: Sequence[TensorType]) -> Bounds:
        sizes = [x.dtype.magnitude for x in inputs]
        products = [size * int(m) for size, m in zip(sizes, self.rescale.multiplier, strict=True)]
        return Bounds.of(max(sizes), max(products), self.rescale.shift)


@dataclass(frozen=True, eq=False)
class MaxPool2d(Operator):
    """Largest integer of each window; scale and type stay. The padding never wins."""

    kind = "max_pool2d"
    window: Window

    def output_shape(self, inputs: Sequence[TensorType]) -> Shape:
        channels, height, width = _one_input(inputs, rank=3).shape
        window, sizes = self.window, self.window.output_size(height, width)
        if any(pad >= window.kernel[axis % 2] for axis, pad in enumerate(window.pads)):
            raise GraphError(f"a window {window} pads as much as its kernel or more; pad less")
        if not window.sees_input(height, width):
            raise GraphError(f"a window {window} lies wholly in the padding of an input of {height}x{width}")
        return (channels, *sizes)

    def check_parameters(self, inputs: Sequence[TensorType], output: TensorType) -> None:
        _check_narrow(inputs[0])
        _check_kept(inputs[0], output)

    def evaluate(self, inputs: Sequence[Array]) -> Array:
        lowest = int(np.iinfo(inputs[0].dtype).min)
        return np.asarray(windows(inputs[0], self.window, fill=lowest).max(axis=(4, 5)), np.int64)

    def bounds(self, inputs: Sequence[TensorType]) -> None:
        return None


@dataclass(frozen=True, eq=False)
class AvgPool2d(Operator):
    """Integer sum of each window, then one dyadic that divides too.

    Multipliers are [1, 1], or [OH, OW] where windows at the border count fewer elements.
    """

    kind = "avg_pool2d"
    window: Window
    rescale: Rescale

    def output_shape(self, inputs: Sequence[TensorType]) -> Shape:
        channels, height, width = _one_input(inputs, rank=3).shape
        return (channels, *self.window.output_size(height, width))

    def check_parameters(self, inputs: Sequence[TensorType], output: TensorType) -> None:
        super().check_parameters(inputs, output)
        _check_narrow(inputs[0])
        if self.window.dilations != (1, 1):
            raise GraphError(f"takes no dilation, got {self.window.dilations}")
        _check_shape("the multiplier", self.rescale.multiplier, (1, 1), output.shape[1:])

    def evaluate(self, inputs: Sequence[Array]) -> Array:
        sums = windows(inputs[0], self.window, fill=0).sum(axis=(4, 5), dtype=np.int64)
        return rescale(sums * self.rescale.multiplier, self.rescale.shift, self.rescale.lo, self.rescale.hi)

    def bounds(self, inputs: Sequence[TensorType]) -> Bounds:
        accumulator = prod(self.window.kernel) * inputs[0].dtype.magnitude
        return Bounds.of(accumulator, accumulator * int(self.rescale.multiplier.max()), self.rescale.shift)


@dataclass(frozen=True, eq=False)
class GlobalAvgPool2d(Operator):
    """Integer sum of each channel, then one dyadic; [N, C, H, W] to [N, C, 1, 1]; one multiplier [1]."""

    kind = "global_avg_pool2d"
    rescale: Rescale

    def output_shape(self, inputs: Sequence[TensorType]) -> Shape:
        return (_one_input(inputs, rank=3).shape[0], 1, 1)

    def check_parameters(self, inputs: Sequence[TensorType], output: TensorType) -> None:
        super().check_parameters(inputs, output)
        _check_shape("the multiplier", self.rescale.multiplier, (1,))

    def evaluate(self, inputs: Sequence[Array]) -> Array:
        sums = inputs[0].sum(axis=(2, 3), keepdims=True, dtype=np.int64)
        return rescale(sums * self.rescale.multiplier, self.rescale.shift, self.rescale.lo, self.rescale.hi)

    def bounds(self, inputs: Sequence[TensorType]) -> Bounds:
        accumulator = prod(inputs[0].shape[1:]) * inputs[0].dtype.magnitude
        return Bounds.of(accumulator, accumulator * int(self.rescale.multiplier[0]), self.rescale.shift)


@dataclass(frozen=True, eq=False)
class Flatten(Operator):
    """[N, C, H, W] to [N, C * H * W]; type and scale stay."""

    kind = "flatten"

    def output_shape(self, inputs: Sequence[TensorType]) -> Shape:
        return (prod(_one_input(inputs).shape),)

    def check_parameters(self, inputs: Sequence[TensorType], output: TensorType) -> None:
        _check_kept(inputs[0], output)

    def evaluate(self, inputs: Sequence[Array]) -> Array:
        return inputs[0].reshape(len(inputs[0]), prod(inputs[0].shape[1:])).astype(np.int64)

    def bounds(self, inputs: Sequence[TensorType]) -> None:
        return None


@dataclass(frozen=True, eq=False)
class PadChannels(Operator):
    """Channels of zeros before and after those of an image; type and scale stay.

    [N, C, H, W] to [N, before + C + after, H, W]. No type has a zero-point, so the integer 0 is the real 0, and nothing
    is rounded.
    """

    kind = "pad_channels"
    before: int
    after: int

    def output_shape(self, inputs: Sequence[TensorType]) -> Shape:
        channels, height, width = _one_input(inputs, rank=3).shape
        if min(self.before, self.after) < 0:
            raise GraphError(f"adds no fewer than 0 channels, got {self.before} before and {self.after} after")
        return self.before + channels + self.after, height, width

    def check_parameters(self, inputs: Sequence[TensorType], output: TensorType) -> None:
        _check_kept(inputs[0], output)

    def evaluate(self, inputs: Sequence[Array]) -> Array:
        return np.pad(inputs[0].astype(np.int64), ((0, 0), (self.before, self.after), (0, 0), (0, 0)))

    def bounds(self, inputs: Sequence[TensorType]) -> None:
        return None

    def describe(self) -> str:
        return f"{self.before} before {self.after} after"


OPS: dict[str, type[Operator]] = {
    op.kind: op
    for op in (
        Conv2d,
        Linear,
        Requantize,
        Add,
        Concat,
        MaxPool2d,
        AvgPool2d,
        GlobalAvgPool2d,
        Flatten,
        PadChannels,
    )
}
"""Every operator by its name."""
