"""Storages: what is packed comes back, and padding holds what the contract says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawq_tvm.core.errors import GraphError
from hawq_tvm.core.ir import Array, IntType, TensorType
from hawq_tvm.core.storage import Storage, pack, unpack

from .builders import random_integers

U8, S8, U4, S4, S32 = (IntType.parse(text) for text in ("u8", "s8", "u4", "s4", "s32"))


@st.composite
def stored_types(draw: st.DrawFn) -> tuple[TensorType, Storage]:
    """Any storage with a type that it can hold."""
    order = draw(st.sampled_from(["NCHW", "NHWC"]))
    block = draw(st.sampled_from([1, 4, 16])) if order == "NCHW" else 1
    multiple = block * draw(st.integers(1, 3))
    frame = draw(st.tuples(*[st.integers(0, 3)] * 4))
    bits = draw(st.sampled_from([4, 8, 32]))
    if bits == 32:
        dtype = S32
    else:
        dtype = IntType(draw(st.integers(2, bits)), draw(st.booleans()))
    offset = 0
    if bits < 32 and dtype.signed and draw(st.booleans()):
        offset = -dtype.lo + draw(st.integers(0, (1 << bits) - 1 - (dtype.hi - dtype.lo)))
    shape = draw(st.tuples(st.integers(1, 19), st.integers(1, 5), st.integers(1, 5)))
    return TensorType(dtype, shape, 1.0), Storage(order, block, multiple, frame, bits, offset)


def values_of_stored(stored: Array, type: TensorType, storage: Storage) -> Array:
    """Every element's value as [N, C, H, W], padding included, by other means than `unpack`: one loop."""
    top, left, bottom, right = storage.frame
    channels = storage.channels(type)
    height, width = type.shape[1] + top + bottom, type.shape[2] + left + right
    found = np.empty((len(stored), channels, height, width), np.int64)
    signed = type.dtype.signed and not storage.offset
    for n, c, h, w in np.ndindex(*found.shape):
        index = [n, h, w, c] if storage.order == "NHWC" else [n, c, h, w]
        if storage.block > 1:
            index = [n, c // storage.block, h, w, c % storage.block]
        if storage.bits == 4:
            byte = int(stored[(*index[:-1], index[-1] // 2)])
            nibble = byte >> 4 if index[-1] % 2 else byte & 15
            element = nibble - 16 if signed and nibble > 7 else nibble
        else:
            element = int(stored[tuple(index)])
        found[n, c, h, w] = element - storage.offset
    return found


@given(stored_types(), st.integers(1, 2), st.integers(0, 99))
def test_unpack_is_the_inverse_and_padding_is_zero(case: tuple[TensorType, Storage], batch: int, seed: int) -> None:
    type, storage = case
    x = random_integers(TensorType(type.dtype, (batch, *type.shape), 1.0), 1, seed)[0]
    stored = pack(x, type, storage)
    assert stored.shape == storage.shape(type, batch)
    assert stored.nbytes == storage.size_bytes(type, batch)
    back = unpack(stored, type, storage)
    assert back.dtype == x.dtype
    assert np.array_equal(back, x)
    every = values_of_stored(stored, type, storage)
    top, left, _, _ = storage.frame
    channels, height, width = type.shape
    assert np.array_equal(every[:, :channels, top : top + height, left : left + width], x)
    every[:, :channels, top : top + height, left : left + width] = 0
    assert not every.any(), "the frame and the channels that fill up hold the value zero"


@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from([4, 8]))
def test_vectors_have_channels_that_fill_up(features: int, multiple: int, bits: int) -> None:
    type = TensorType(S4, (features,), 1.0)
    storage = Storage(multiple=multiple, bits=bits)
    x = random_integers(TensorType(S4, (2, features), 1.0), 1)[0] if features > 1 else np.array([[-8], [7]], np.int8)
    stored = pack(x, type, storage)
    channels = -(-features // multiple) * multiple
    assert stored.shape == (2, -(-channels // 2) if bits == 4 else channels)
    assert np.array_equal(unpack(stored, type, storage), x)


def test_the_canonical_storage_is_the_array_itself() -> None:
    for dtype in (U8, S8, U4, S4, S32):
        type = TensorType(dtype, (3, 4, 5), 1.0)
        x = random_integers(type, 2)
        stored = pack(x, type, Storage.canonical(type))
        assert stored.dtype == x.dtype
        assert np.array_equal(stored, x)


def test_four_bit_neighbours_share_a_byte_the_first_in_its_low_half() -> None:
    x = np.array([[[[1, -2, 3]]]], np.int8)
    assert pack(x, TensorType(S4, (1, 1, 3), 1.0), Storage(bits=4)).tolist() == [[[[0xE1, 0x03]]]]


def test_signed_values_are_stored_with_an_offset() -> None:
    type, storage = TensorType(S8, (1, 1, 2), 1.0), Storage("NHWC", multiple=2, frame=(0, 1, 0, 0), offset=128)
    stored = pack(np.array([[[[-128, 127]]]], np.int8), type, storage)
    assert stored.dtype == np.uint8
    assert stored.tolist() == [[[[128, 128], [0, 128], [255, 128]]]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"order": "CHWN"}, "an order of"),
        ({"bits": 5}, "bits of"),
        ({"block": 4}, "whole blocks, got block 4 in 1"),
        ({"block": 0}, "whole blocks"),
        ({"order": "NHWC", "block": 4, "multiple": 4}, "channels last lie together"),
        ({"frame": (0, 0, -1, 0)}, "four sizes of at least 0"),
        ({"frame": (1, 1)}, "four sizes of at least 0"),
        ({"bits": 32, "offset": 1}, "stored as they are"),
    ],
)
def test_fields_that_contradict_one_another(fields: dict[str, object], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Storage(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dtype", "storage", "message"),
    [
        (U8, Storage(bits=4), r"u8 in NCHW 4 bits would store 0 to 255, which leave 0\.\.15"),
        (S8, Storage(offset=1), "would store -127 to 128"),
        (U8, Storage(offset=1), "would store 1 to 256"),
        (S32, Storage(), "would store"),
    ],
)
def test_values_that_do_not_fit(dtype: IntType, storage: Storage, message: str) -> None:
    type = TensorType(dtype, (1, 2, 2), 1.0)
    with pytest.raises(GraphError, match=message):
        pack(np.zeros((1, 1, 2, 2), np.int64), type, storage)


def test_what_only_images_have_is_refused_for_vectors() -> None:
    for storage in (Storage("NHWC"), Storage(frame=(0, 0, 0, 1)), Storage(block=2, multiple=2)):
        with pytest.raises(GraphError, match="only images"):
            storage.check(TensorType(U8, (4,), 1.0))


def test_an_array_that_was_packed_otherwise_is_refused() -> None:
    type, storage = TensorType(U8, (3, 2, 2), 1.0), Storage("NHWC")
    for array in (np.zeros((1, 3, 2, 2), np.uint8), np.zeros((1, 2, 2, 3), np.int8)):
        with pytest.raises(GraphError, match="was it packed otherwise"):
            unpack(array, type, storage)


@given(stored_types())
def test_json_keeps_everything(case: tuple[TensorType, Storage]) -> None:
    _, storage = case
    assert Storage.from_json(json.loads(json.dumps(storage.to_json()))) == storage
