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
from hawq_tvm.kernels.x86.convert import CONVERT_PIXELS

from .accesses import accesses_outside
from .builders import random_integers
from .cpus import HOST
from .x86_kernels import ALL, run_guarded, storage_of


def request_of(
    channels: int, width: int, dtype: str, *, batch: int = 1, height: int = 3, multiple: int = 4
) -> ConvertRequest:
    type = TensorType(IntType.parse(dtype), (channels, height, width), 1.0)
    return ConvertRequest(
        type, Storage(), replace(storage_of(type, (1, 2, 0, 3)), multiple=multiple), batch, HOST.target, 512, ALL
    )


@settings(max_examples=12, deadline=None)
@given(
    channels=st.integers(1, 4),
    width=st.integers(16, 50),
    dtype=st.sampled_from(["u8", "s8", "u4", "s3"]),
    batch=st.integers(1, 2),
    height=st.sampled_from([3, 500]),
    multiple=st.sampled_from([1, 4]),
)
def test_every_byte_is_as_the_storage_has_it(
    channels: int, width: int, dtype: str, batch: int, height: int, multiple: int
) -> None:
    request = request_of(channels, width, dtype, batch=batch, height=height, multiple=multiple)
    offer = CONVERT_PIXELS.offer(request)
    assert isinstance(offer, Offer)
    if not request.features <= HOST.features:
        pytest.skip(f"this machine lacks {', '.join(sorted(request.features - HOST.features))}")
    kernel, value = offer.build(), random_integers(request.type, batch)
    assert accesses_outside(kernel.function) == []
    found = run_guarded(kernel, [value], request.type, request.to, batch)
    assert np.array_equal(found, pack(value, request.type, request.to))


def test_declines_are_sentences() -> None:
    request = request_of(3, 20, "s8")
    few = replace(request, features=frozenset({"avx512f"}))
    assert (
        CONVERT_PIXELS.offer(few)
        == "needs avx512bw and avx512dq and avx512vl, which the CPU compiled for does not have"
    )
    assert CONVERT_PIXELS.offer(request_of(3, 15, "u8")) == "copies 16 pixels at once, a row has 15"
    many = "copies up to 4 channels of bytes to pixels of 4 or as many, not "
    for other in (request_of(5, 20, "u8"), replace(request, source=request.to, to=request.source)):
        assert str(CONVERT_PIXELS.offer(other)).startswith(many)
