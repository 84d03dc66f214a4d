"""VNNI linear layers against the interpreter, byte for byte."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hawq_tvm.core.ir import IntType, Rescale, TensorType
from hawq_tvm.core.ops import Linear
from hawq_tvm.kernels import Request
from hawq_tvm.kernels.dot.linear import MIN_WEIGHTS, Cut
from hawq_tvm.kernels.dot.unit import Unit
from hawq_tvm.kernels.generic.acceptance import UNPACKED_PRICE

from .dot_kernels import (
    UNIT,
    VNNI,
    decline_of,
    dot_request,
    kernel_of,
    offer_of,
    some_variants,
    writes_what_the_interpreter_says,
)

KERNEL = {8: "linear_u8s8s32_avx512vnni", 4: "linear_u8s4s32_avx512vnni"}


def linear_request(
    features: int,
    outputs: int,
    bits: int,
    types: tuple[str, str, str],
    shift: int,
    *,
    residual: int = 0,
    batch: int = 1,
    unit: Unit = VNNI,
) -> Request:
    """Types of the input, the result and the residual; multipliers as large as the proofs allow with that shift."""
    rng, limit, dtype = np.random.default_rng(features), 1 << (bits - 1), IntType.parse(types[1])
    weight = rng.integers(-limit, limit, (outputs, features))
    bound = 256 * int(np.abs(weight).sum(axis=1).max()) + 1000
    most = min(2**31 - 1, max(1, (1 << min(60, 29 + shift)) // bound))
    factors = rng.integers(0, min(2**31, 1 << min(30, 21 + shift)), residual) if residual else None
    rescale = Rescale(rng.integers(0, most, outputs, endpoint=True), shift, dtype.lo, dtype.hi, factors)
    op = Linear(weight, bits, rng.integers(-999, 999, outputs), rescale)
    inputs = [TensorType(IntType.parse(types[0]), (features,), 1.0)]
    if residual:
        inputs.append(TensorType(IntType.parse(types[2]), (outputs,), 1.0))
    return dot_request(op, inputs, dtype, [(0, 0, 0, 0)] * (len(inputs) + 1), batch=batch, unit=unit)


@pytest.mark.parametrize("name", UNIT)
@settings(max_examples=15)
@given(
    features=st.integers(4, 70),
    outputs=st.sampled_from([16, 17, 31, 32, 64, 100, 128, 129, 300]),
    bits=st.sampled_from([2, 4, 5, 8]),
    types=st.tuples(
        st.sampled_from(["u8", "s8", "u4"]), st.sampled_from(["u8", "s8", "s32"]), st.sampled_from(["u8", "s8"])
    ),
    shift=st.sampled_from([1, 20, 32, 33, 41]),
    residual=st.sampled_from(["", "one", "each"]),
    batch=st.integers(1, 5),
)
def test_linear_layers(
    name: str,
    features: int,
    outputs: int,
    bits: int,
    types: tuple[str, str, str],
    shift: int,
    residual: str,
    batch: int,
) -> None:
    factors = {"": 0, "one": 1, "each": outputs}[residual]
    features = max(features, UNIT[name].step)
    request = linear_request(features, outputs, bits, types, shift, residual=factors, batch=batch, unit=UNIT[name])
    writes_what_the_interpreter_says(kernel_of(request, UNIT[name]), request)


@pytest.mark.parametrize("bits", [4, 8])
def test_work_large_enough_for_threads(bits: int) -> None:
    request = linear_request(521, 1000, bits, ("u8", "s32", "u8"), 33)
    assert MIN_WEIGHTS <= 521 * 1000
    assert "T.parallel" in offer_of(KERNEL[bits], request).build().function.script()
    writes_what_the_interpreter_says(KERNEL[bits], request)


@given(features=st.integers(4, 20), outputs=st.integers(16, 300), batch=st.integers(1, 7))
def test_blocks_hold_every_output_and_steps_every_weight_once(features: int, outputs: int, batch: int) -> None:
    request = linear_request(features, outputs, 8, ("u8", "u8", "u8"), 40, batch=batch)
    cut, op = Cut.of(request, VNNI, packed=False), request.node.op
    assert isinstance(op, Linear)
    assert set(cut.channels.ravel().tolist()) == set(range(outputs))
    stream = cut.pack(cut.taps(op.weight)).reshape(cut.blocks, cut.steps, cut.block, 4)
    found = np.zeros((cut.blocks, cut.block, features), np.int64)
    for step in range(cut.steps):
        first = min(4 * step, features - 4)
        found[:, :, first : first + 4] += stream[:, step]
    assert np.array_equal(found, op.weight[cut.channels])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("batch", [1, 4])
def test_every_choice_of_parameters_gives_the_same(bits: int, batch: int) -> None:
    request = linear_request(37, 150, bits, ("u8", "u8", "u8"), 40, batch=batch)
    variants = some_variants(KERNEL[bits], request, 12)
    assert len({tuple(variant.parameters.items()) for variant in variants}) == 12
    for variant in variants:
        writes_what_the_interpreter_says(KERNEL[bits], request, variant=variant)


def test_weights_of_four_bits_can_be_unpacked_for_a_price() -> None:
    request = linear_request(37, 150, 4, ("u8", "u8", "u8"), 40)
    writes_what_the_interpreter_says(KERNEL[8], request)
    packed, unpacked = offer_of(KERNEL[4], request), offer_of(KERNEL[8], request)
    assert (packed.price, unpacked.price) == (1.0, UNPACKED_PRICE)
    assert 2 * packed.build().constants[0].nbytes == unpacked.build().constants[0].nbytes


def test_declines_are_sentences() -> None:
    request = linear_request(9, 20, 8, ("u8", "u8", "u8"), 40)
    assert decline_of(KERNEL[4], request) == "stores weights in 4 bits, these have 8"
    assert "needs avx512bw" in decline_of(KERNEL[8], replace(request, features=frozenset()))
    few = linear_request(9, 15, 8, ("u8", "u8", "u8"), 40)
    assert decline_of(KERNEL[8], few) == "takes at least 4 features and 16 outputs, got 9 and 15"
