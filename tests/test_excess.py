"""What pairs of weights have too much for sixteen bits, for every pair there is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hawq_tvm.core.ir import IntType, TensorType, Window
from hawq_tvm.kernels.dot.excess import Excess, excess_of_pairs
from hawq_tvm.kernels.x86.units import pairs_fit

from .dot_kernels import UNIT, kernel_of, offer_of, writes_what_the_interpreter_says
from .test_dot_conv2d import conv, request_for

EVERY_PAIR = np.stack(np.meshgrid(*[np.arange(-128, 128)] * 2), axis=-1).reshape(-1, 2).astype(np.int8)


@pytest.mark.parametrize("largest", [1, 15, 127, 128, 143, 200, 254, 255])
def test_both_shares_of_every_pair_fit(largest: int) -> None:
    excess = excess_of_pairs(EVERY_PAIR, largest)
    left = EVERY_PAIR.astype(np.int64) - excess
    assert np.abs(left).max() <= 128
    assert left.max() <= 127
    assert pairs_fit(excess, largest)
    assert pairs_fit(left.astype(np.int8), largest)
    fits = np.array([pairs_fit(pair, largest) for pair in EVERY_PAIR[::37]])
    assert np.array_equal((excess[::37] == 0).all(axis=1), fits), "nothing is taken off pairs that fit"


def test_steps_of_zeros_are_left_out() -> None:
    blocks = [
        np.array([[0, 0], [1, 2], [0, 3]], np.int8),
        np.zeros((3, 2), np.int8),
        np.array([[4], [0], [0]], np.int8),
    ]
    excess = Excess.of(blocks, np.array([10, 20, 30], np.int32))
    assert excess.stream.tolist() == [[1, 2], [0, 3], [4, 0]]
    assert excess.places.tolist() == [20, 30, 10]
    assert excess.starts.tolist() == [0, 2, 2, 3]
    assert excess.steps == 3
    nothing = Excess.of([np.zeros((2, 4), np.int8)], np.array([5, 6], np.int32))
    assert (nothing.steps, nothing.stream.shape, nothing.places.shape) == (0, (1, 4), (1,)), "a buffer of one element"


@pytest.mark.parametrize("unit", ["avx2", "avx512bw"])
@pytest.mark.parametrize(
    ("out", "groups", "kernel", "stride"), [(48, 1, 3, 1), (16, 1, 1, 2), (40, 2, 3, 2), (8, 1, 2, 1)]
)
@pytest.mark.parametrize("x", ["u8", "s8"])
def test_convolutions_with_few_large_weights(
    unit: str, out: int, groups: int, kernel: int, stride: int, x: str
) -> None:
    """The largest activations against pairs of the largest weights, in some steps of some blocks."""
    op = conv(16, out, Window((kernel, kernel), (stride, stride), (kernel // 2,) * 4), groups=groups, output="s8")
    rng = np.random.default_rng(out)
    weight = rng.integers(-9, 10, op.weight.shape)
    weight[0, :2, 0, 0], weight[-1, 2:4, -1, -1] = 127, -128
    op = replace(op, weight=weight)
    type = TensorType(IntType.parse(x), (16, 5, 9), 1.0)
    request = request_for(op, type, "s8", unit=UNIT[unit])
    name = kernel_of(request, UNIT[unit])
    kernel_function = offer_of(name, request).build()
    assert len(kernel_function.constants) == 6, "stream, further stream, places, starts, bias, multiplier"
    assert "pmadd.ub.sw" in kernel_function.function.script() or "pmaddubs" in kernel_function.function.script()
    writes_what_the_interpreter_says(name, request)
    for value in (type.dtype.hi, type.dtype.lo):
        writes_what_the_interpreter_says(name, request, [np.full((1, *type.shape), value, type.dtype.carrier)])
