"""The oracle: the integer graph run in plain numpy, and the two float steps that stand outside it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.core.errors import DataError
from hawq_tvm.core.ir import Array, Graph, TensorType


def check_batch(x: Array, expected: TensorType, what: str = "the input") -> None:
    """Raise `DataError` unless `x` is a batch of samples of the expected shape.

    Args:
        x: [N, ...] of any dtype.
        expected: the type of one sample.
        what: how the message names `x`.
    """
    if x.shape[1:] != expected.shape:
        wanted = ", ".join(map(str, expected.shape))
        raise DataError(f"{what} has the shape {tuple(x.shape)}, expected [N, {wanted}]")


NOT_FINITE = "the input holds NaN or infinity; clean it before it is quantised"

_PIECE = 16384
"""Elements that are quantised together: their float64 copy stays in a core's second cache."""


def quantize_input(x: NDArray[np.floating], type: TensorType) -> Array:
    """Turn real inputs into the graph's integers: ``clip(floor(x / scale + 1/2), lo, hi)`` in float64.

    Args:
        x: float32 or float64 [N, ...], finite.
        type: the graph's `input_type`.

    Returns:
        int8 or uint8 of the shape of `x`.

    Raises:
        DataError: a wrong shape, or NaN or infinity in `x`.
    """
    check_batch(x, type)
    if not np.isfinite(x).all():
        raise DataError(NOT_FINITE)
    source = np.ascontiguousarray(x).reshape(-1)
    integers = np.empty(source.shape, type.dtype.carrier)
    scratch = np.empty(_PIECE)
    for start in range(0, source.size, _PIECE):
        piece = source[start : start + _PIECE]
        scaled = scratch[: piece.size]
        scaled[:] = piece
        scaled /= type.scale
        scaled += 0.5
        np.floor(scaled, out=scaled)
        integers[start : start + _PIECE] = np.clip(scaled, type.dtype.lo, type.dtype.hi, out=scaled)
    return integers.reshape(x.shape)


def dequantize_output(y: Array, type: TensorType) -> NDArray[np.float32]:
    """Turn the graph's last integers into logits: ``y * scale``.

    Args:
        y: integers [N, ...].
        type: the graph's `output_type`.

    Returns:
        float32 of the shape of `y`.
    """
    return (y.astype(np.float64) * type.scale).astype(np.float32)


def run(graph: Graph, x: Array) -> dict[str, Array]:
    """Run the graph on integers and keep every value.

    Args:
        graph: a checked graph.
        x: [N, ...] in the carrier dtype of the graph's input.

    Returns:
        Every value's integers in its carrier dtype, by name, the input's first.

    Raises:
        DataError: a wrong shape or dtype, or integers out of the input type's range.
    """
    check_integers(x, graph.input_type)
    values: dict[str, Array] = {graph.input_name: x}
    for node in graph:
        values[node.name] = node.op.evaluate([values[name] for name in node.inputs]).astype(node.type.dtype.carrier)
    return values


def check_integers(x: Array, expected: TensorType) -> None:
    """Raise `DataError` unless `x` is a batch of integers of the expected type: what the overflow proofs assume.

    Args:
        x: [N, ...] of any dtype.
        expected: the type of one sample.
    """
    check_batch(x, expected)
    if x.dtype != np.dtype(expected.dtype.carrier):
        raise DataError(f"the input has dtype {x.dtype}, expected {expected.dtype.carrier}; see quantize_input")
    if expected.dtype.bits != 8 and x.size and (x.min() < expected.dtype.lo or x.max() > expected.dtype.hi):
        raise DataError(f"the input holds {x.min()}..{x.max()}, more than {expected.dtype} can")
