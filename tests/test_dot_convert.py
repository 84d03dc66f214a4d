"""Images into pixels of four bytes, against `pack`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hawq_tvm.core.ir import IntType, TensorType
from hawq_tvm.core.storage import Storage, pack
from hawq_tvm.kernels import ConvertRequest, Offer
from hawq_tvm.kernels.dot.convert import pixel_converter
from hawq_tvm.kernels.dot.unit import Unit

from .accesses import accesses_outside
from .builders import random_integers
from .cpus import machine_of
from .dot_kernels import UNIT, VNNI, run_guarded, skip_unless_runnable, storage_of


def request_of(
    channels: int, width: int, dtype: str, *, batch: int = 1, height: int = 3, unit: Unit = VNNI
) -> ConvertRequest:
    type, machine = TensorType(IntType.parse(dtype), (channels, height, width), 1.0), machine_of(unit.name)
    storage = replace(storage_of(type, (1, 2, 0, 3), unit), multiple=4)
    return ConvertRequest(type, Storage(), storage, batch, machine.target, machine.vector_bits, machine.features)


@pytest.mark.parametrize("name", UNIT)
@settings(max_examples=8)
@given(
    channels=st.integers(1, 4),
    width=st.integers(16, 50),
    dtype=st.sampled_from(["u8", "s8", "u4", "s3"]),
    batch=st.integers(1, 2),
    height=st.sampled_from([3, 500]),
)
def test_every_byte_is_as_the_storage_has_it(
    name: str, channels: int, width: int, dtype: str, batch: int, height: int
) -> None:
    request, machine = request_of(channels, width, dtype, batch=batch, height=height, unit=UNIT[name]), machine_of(name)
    offer = pixel_converter(UNIT[name]).offer(request)
    assert isinstance(offer, Offer)
    skip_unless_runnable(machine)
    kernel, value = offer.build(), random_integers(request.type, batch)
    assert accesses_outside(kernel.function) == []
    found = run_guarded(kernel, [value], request.type, request.to, batch, machine)
    assert np.array_equal(found, pack(value, request.type, request.to))


def test_declines_are_sentences() -> None:
    convert = pixel_converter(VNNI).offer
    request = request_of(3, 20, "s8")
    few = replace(request, features=frozenset({"avx512f"}))
    assert (
        convert(few)
        == "needs avx512bw and avx512dq and avx512vl and avx512vnni, which the CPU compiled for does not have"
    )
    assert convert(request_of(3, 15, "u8")) == "copies 16 pixels at once, a row has 15"
    many = "copies up to 4 channels of bytes to pixels of 4 or as many, not "
    for other in (request_of(5, 20, "u8"), replace(request, source=request.to, to=request.source)):
        assert str(convert(other)).startswith(many)
