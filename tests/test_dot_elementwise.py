"""The free-standing sum and requantize against the interpreter, byte for byte."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hawq_tvm.core.float32_rescale import odd_multipliers
from hawq_tvm.core.ir import Array, IntType, Operator, Rescale, TensorType
from hawq_tvm.core.ops import Add, Requantize
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels import Request

from .dot_kernels import UNIT, X86, Frame, decline_of, dot_request, offer_of, writes_what_the_interpreter_says

NAMES = {2: "add", 1: "requantize"}
TYPES = st.sampled_from(["u8", "s8", "u4", "s5"])
FRAMES = st.sampled_from([(0, 0, 0, 0), (1, 0, 2, 3), (0, 2, 1, 0)])


def operator(inputs: int, output: str, shift: int, *, odd: bool = False, seed: int = 0) -> Operator:
    """Multipliers as large as the proofs allow with that shift."""
    most = min(2**31 - 1, (1 << min(60, 29 + shift)) // 512)
    values = np.random.default_rng(seed).integers(0, most, inputs, endpoint=True)
    dtype = IntType.parse(output)
    rescale = Rescale(odd_multipliers(values, shift) if odd else values, shift, dtype.lo, dtype.hi)
    return Add(rescale) if inputs == 2 else Requantize(rescale)


def pairs_of_extremes(types: list[TensorType], batch: int) -> list[Array]:
    """The least and the largest values, each with each."""
    values = []
    for number, x in enumerate(types):
        image = np.full((batch, *x.shape), x.dtype.hi)
        image[..., number :: number + 2] = x.dtype.lo
        values.append(image.astype(x.dtype.carrier))
    return values


@pytest.mark.parametrize("name", X86)
@settings(max_examples=15)
@given(
    inputs=st.integers(1, 2), channels=st.sampled_from([13, 16, 17, 32, 40, 64, 90]),
    size=st.tuples(st.integers(1, 5), st.integers(2, 9)), types=st.tuples(TYPES, TYPES, TYPES),
    frames=st.tuples(FRAMES, FRAMES, FRAMES), shift=st.sampled_from([1, 12, 32, 33, 40]), odd=st.booleans(),
    batch=st.integers(1, 2), seed=st.integers(0, 99),
)  # fmt: skip
def test_sums_and_requantizes(
    name: str, inputs: int, channels: int, size: tuple[int, int], types: tuple[str, str, str],
    frames: tuple[Frame, Frame, Frame], shift: int, odd: bool, batch: int, seed: int,
) -> None:  # fmt: skip
    op = operator(inputs, types[-1], shift, odd=odd, seed=seed)
    given = [TensorType(IntType.parse(dtype), (channels, *size), 1.0) for dtype in types[:inputs]]
    request = dot_request(op, given, IntType.parse(types[-1]), frames[-inputs - 1 :], batch=batch, unit=UNIT[name])
    writes_what_the_interpreter_says(f"{NAMES[inputs]}_{name}", request)
    writes_what_the_interpreter_says(f"{NAMES[inputs]}_{name}", request, pairs_of_extremes(given, batch))


@pytest.mark.parametrize("inputs", [1, 2])
@pytest.mark.parametrize("dtype", ["u8", "s8"])
def test_in_planes(inputs: int, dtype: str) -> None:
    op, x = operator(inputs, dtype, 33), TensorType(IntType.parse(dtype), (70, 4, 5), 1.0)
    request = dot_request(op, [x] * inputs, x.dtype, [(0, 0, 0, 0)] * (inputs + 1), batch=2)
    planes = {
        name: Storage(block=64, multiple=64, frame=(number, 0, 2, 3 - number), offset=128 if x.dtype.signed else 0)
        for number, name in enumerate(request.alternatives)
    }
    writes_what_the_interpreter_says(f"{NAMES[inputs]}_avx512vnni", replace(request, alternatives=planes))


@pytest.mark.parametrize("inputs", [1, 2])
def test_work_large_enough_for_threads(inputs: int) -> None:
    x = TensorType(IntType.parse("u8"), (64, 40, 40), 1.0)
    request = dot_request(operator(inputs, "u8", 33), [x] * inputs, x.dtype, [(1, 1, 1, 1)] * (inputs + 1))
    assert "T.parallel" in offer_of(f"{NAMES[inputs]}_avx512vnni", request).build().function.script()
    writes_what_the_interpreter_says(f"{NAMES[inputs]}_avx512vnni", request)


def test_other_storages_are_declined() -> None:
    x = TensorType(IntType.parse("u8"), (32, 4, 5), 1.0)
    request: Request = dot_request(operator(2, "u8", 33), [x, x], x.dtype, [(0, 0, 0, 0)] * 3)
    storages = {**request.alternatives, "x1": Storage("NHWC", multiple=16, offset=128)}
    assert decline_of("add_avx512vnni", replace(request, alternatives=storages)) == (
        "reads and writes unsigned bytes, signed values at +128, not u8 in NHWC/16 +128"
    )
