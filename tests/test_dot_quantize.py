"""Real inputs into a network's integers, in canonical order and as pixels, against `quantize_input` and `pack`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hawq_tvm.core.input_steps import LARGEST, exact_multiplication, input_steps
from hawq_tvm.core.interpreter import NOT_FINITE, dequantize_output, quantize_input
from hawq_tvm.core.ir import IntType, TensorType
from hawq_tvm.core.storage import Storage, pack
from hawq_tvm.kernels import BuiltKernel, Converter, ConvertRequest, Offer
from hawq_tvm.kernels.dot.quantize import pixel_quantizer
from hawq_tvm.kernels.dot.unit import Unit
from hawq_tvm.kernels.generic.quantize import QUANTIZE_GENERIC, build_dequantize

from .accesses import accesses_outside
from .builders import random_integers
from .cpus import HOST, lacking, machine_of
from .dot_kernels import UNIT, VNNI, run_guarded, storage_of

QUANTIZE_PIXELS = pixel_quantizer(VNNI)


def reals_of(type: TensorType, batch: int, seed: int) -> NDArray[np.float32]:
    """Normal noise; among it every step, the float right below it, and the ends of all floats."""
    random = np.random.default_rng(seed)
    x = random.normal(0, type.dtype.hi * type.scale, (batch, *type.shape)).astype(np.float32)
    steps = input_steps(type)
    special = np.concatenate([steps, np.nextafter(steps, -LARGEST), [LARGEST, -LARGEST, 0.0, -0.0, 1e-45]])
    special = random.permutation(special.astype(np.float32))[: x.size]
    x.reshape(-1)[random.permutation(x.size)[: special.size]] = special
    return x


def request_of(
    channels: int,
    width: int,
    dtype: str,
    *,
    scale: float = 0.0186,
    batch: int = 1,
    height: int = 3,
    unit: Unit = VNNI,
    multiple: int = 4,
) -> ConvertRequest:
    type, machine = TensorType(IntType.parse(dtype), (channels, height, width), scale), machine_of(unit.name)
    storage = replace(storage_of(type, (1, 2, 0, 3), unit), multiple=multiple)
    return ConvertRequest(type, Storage(), storage, batch, machine.target, machine.vector_bits, machine.features)


def built(converter: Converter, request: ConvertRequest) -> BuiltKernel:
    offer = converter.offer(request)
    assert isinstance(offer, Offer), offer
    absent = lacking(machine_of(VNNI.name)) if converter is QUANTIZE_PIXELS else []
    if absent:
        pytest.skip(f"this machine lacks {', '.join(absent)}")
    kernel = offer.build()
    assert accesses_outside(kernel.function) == []
    return kernel


@pytest.mark.parametrize("name", UNIT)
@settings(max_examples=8)
@given(
    channels=st.integers(1, 4),
    width=st.integers(16, 50),
    dtype=st.sampled_from(["u8", "s8", "u4", "s3"]),
    scale=st.floats(1e-6, 1e6) | st.sampled_from([49.0, 0.5, 4.76171875 / 127, 4 / 127]),
    batch=st.integers(1, 2),
    height=st.sampled_from([3, 500]),
    multiple=st.sampled_from([1, 4]),
    seed=st.integers(0, 99),
)
def test_pixels_are_quantised_and_stored(
    name: str, channels: int, width: int, dtype: str, scale: float, batch: int, height: int, multiple: int, seed: int
) -> None:
    unit, machine = UNIT[name], machine_of(name)
    request = request_of(channels, width, dtype, scale=scale, batch=batch, height=height, unit=unit, multiple=multiple)
    assume(exact_multiplication(request.type) is not None)
    x = reals_of(request.type, batch, seed)
    offer = pixel_quantizer(unit).offer(request)
    assert isinstance(offer, Offer), offer
    if lacking(machine):
        pytest.skip(f"this machine lacks {', '.join(lacking(machine))}")
    kernel = offer.build()
    assert accesses_outside(kernel.function) == []
    found = run_guarded(kernel, [x], request.type, request.to, batch, machine)
    assert np.array_equal(found, pack(quantize_input(x, request.type), request.type, request.to))


@settings(max_examples=8)
@given(
    shape=st.sampled_from([(3, 5, 7), (10,), (1, 1, 1), (3, 200, 200), (4097,)]),
    dtype=st.sampled_from(["u8", "s8", "u4", "s3"]),
    scale=st.floats(1e-6, 1e6) | st.sampled_from([49.0, 1e-40, 1e38]),
    batch=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_canonical_integers_are_quantised(
    shape: tuple[int, ...], dtype: str, scale: float, batch: int, seed: int
) -> None:
    type = TensorType(IntType.parse(dtype), shape, scale)
    request = ConvertRequest(type, Storage(), Storage(), batch, HOST.target, 512, HOST.features)
    x = np.clip(reals_of(replace(type, scale=1.0), batch, seed).astype(np.float64) * scale, -LARGEST, LARGEST)
    x = x.astype(np.float32)
    kernel = built(QUANTIZE_GENERIC, replace(request, features=frozenset()))
    found = run_guarded(kernel, [x], type, Storage(), batch, HOST)
    with np.errstate(over="ignore"):
        assert np.array_equal(found, quantize_input(x, type))


@settings(max_examples=8)
@given(dtype=st.sampled_from(["s32", "u8", "s4"]), scale=st.floats(1e-9, 1e3), batch=st.integers(1, 3))
def test_logits_are_multiplied_in_float64(dtype: str, scale: float, batch: int) -> None:
    type = TensorType(IntType.parse(dtype), (37,), scale)
    kernel = build_dequantize(type, batch)
    assert accesses_outside(kernel.function) == []
    y = random_integers(type, batch)
    found = compiled(kernel)(y, np.empty(y.shape, np.float32))
    assert np.array_equal(found, dequantize_output(y, type))


def compiled(kernel: BuiltKernel) -> Any:
    """A kernel as a function of an input and an array to write; gives the latter back."""
    function = kernel.function.with_attr("global_symbol", "kernel")
    library = tvm.compile(tvm.IRModule({"kernel": function}), target=HOST.tvm_target)

    def call(x: Any, y: Any) -> Any:
        output = tvm.runtime.tensor(y)
        library["kernel"](tvm.runtime.tensor(x), output)
        return output.numpy()

    return call


@pytest.mark.parametrize("converter", [QUANTIZE_PIXELS, QUANTIZE_GENERIC], ids=lambda item: item.name)
def test_what_is_not_finite_is_refused_wherever_it_is(converter: Converter) -> None:
    request = request_of(3, 20, "s8", height=2000)
    if converter is QUANTIZE_GENERIC:
        request = replace(request, to=Storage())
    call = compiled(built(converter, request))
    x, y = reals_of(request.type, 1, 0), np.zeros(request.to.shape(request.type, 1), request.to.dtype(request.type))
    for value in (np.nan, np.inf, -np.inf):
        for place in (0, 17, x.size // 2, x.size - 1):
            wrong = x.copy()
            wrong.reshape(-1)[place] = value
            with pytest.raises(ValueError, match=NOT_FINITE):
                call(wrong, y)
    call(x, y)


def test_declines_are_sentences() -> None:
    request = request_of(3, 20, "s8")
    few = replace(request, features=frozenset({"avx512f"}))
    assert (
        QUANTIZE_PIXELS.offer(few)
        == "needs avx512bw and avx512dq and avx512vl and avx512vnni, which the CPU compiled for does not have"
    )
    assert QUANTIZE_PIXELS.offer(request_of(3, 15, "u8")) == "copies 16 pixels at once, a row has 15"
    tiny = request_of(3, 20, "s8", scale=1e-40)
    assert QUANTIZE_PIXELS.offer(tiny) == "multiplies by 1 / scale, which is not proved to divide by 1e-40"
    assert str(QUANTIZE_GENERIC.offer(request)).startswith("quantises into NCHW, not into NHWC/4 frame")
