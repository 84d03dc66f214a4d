"""AMX's storages and operands, by numpy alone: a table of offsets and an order of weights are every convolution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hawq_tvm.core.errors import GraphError
from hawq_tvm.core.ir import Array, Graph, IntType, Rescale, TensorType, Window
from hawq_tvm.core.ops import Conv2d, windows
from hawq_tvm.core.storage import Storage, pack
from hawq_tvm.kernels.packing import unpack_nibbles
from hawq_tvm.kernels.x86.amx_operands import (
    Interleaved,
    Operand,
    Phases,
    by_phases,
    in_place,
    of_few_channels,
    of_samples,
)
from hawq_tvm.kernels.x86.amx_storages import BLOCK_PIXELS, Plane, blocked
from hawq_tvm.kernels.x86.amx_weights import pack_weight

from .builders import integers_of, one_node_graph, random_integers

U8 = IntType.parse("u8")

WINDOWS = st.builds(
    Window,
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 3)),
)


def convolution(channels: int, out: int, size: tuple[int, int], window: Window, seed: int) -> Graph:
    """A graph of one convolution; examples whose window does not fit are none."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(-128, 128, (out, channels, *window.kernel))
    op = Conv2d(weight, 8, np.zeros(out), Rescale(np.ones(out), 30, 0, 255), window)
    try:
        return one_node_graph(op, [TensorType(U8, (channels, *size), 1.0)], U8)
    except GraphError:
        assume(False)
        raise


def sums(operand: Operand, memory: Array, weight: Array, pixels: int) -> Array:
    """What the product of matrices is, from a sample's bytes: int64 [pixels, out]; every read must lie inside."""
    packed = pack_weight(weight, operand, packed=False)  # [panels, steps, 2, 16, 16, 4]
    right = packed.transpose(1, 3, 5, 0, 2, 4).reshape(operand.steps, 64, -1).astype(np.int64)
    assert operand.reach(pixels)[0] >= 0
    assert operand.reach(pixels)[1] <= operand.sample_bytes == memory.size
    at = operand.offsets[:, None, None] + np.arange(pixels)[:, None] * operand.pixel_bytes + np.arange(64)
    return np.einsum("kpb,kbc->pc", memory[at].astype(np.int64), right)[:, : len(weight)]


def expected_sums(graph: Graph, x: Array) -> Array:
    """[C, H, W]."""
    op = graph.node("layer").op
    assert isinstance(op, Conv2d)
    views = windows(x.astype(np.int64), op.window, 0)[0]
    return np.einsum("chwij,ocij->ohw", views, op.weight.astype(np.int64))


def of_image(flat: Array, plane: Plane) -> Array:
    """Sums of all pixels of a plane, counted along its rows, as [out, height, width]."""
    rows = np.zeros((plane.height * plane.pitch, flat.shape[1]), np.int64)
    rows[: min(len(flat), len(rows))] = flat[: len(rows)]
    return rows.reshape(plane.height, plane.pitch, -1)[:, : plane.width].transpose(2, 0, 1)


def phases_copied(stored: Array, phases: Phases, source: Plane) -> Array:
    """The copy of one sample that `by_phases` describes, by slices; `stored` is [planes, rows, pitch, 64]."""
    to, (sy, sx) = phases.plane, phases.strides
    image = stored[:, source.above : source.above + source.height, : min(source.width, phases.columns)]
    copied = np.zeros((len(phases.phases), len(stored), to.rows, to.pitch, 64), np.uint8)
    for index, (p, q) in enumerate(phases.phases):
        part = image[:, p::sy, q::sx][:, : to.rows - to.above]
        copied[index, :, to.above : to.above + part.shape[1], : part.shape[2]] = part
    return copied.reshape(-1)


def interleaved_copy(x: Array, to: Interleaved) -> Array:
    """The copy of one sample, [C, H, W], that `of_few_channels` describes."""
    copied = np.zeros((to.groups, to.pitch, to.rows, to.channels), np.uint8)
    for row in range(x.shape[1]):
        group, line = to.above + row // to.rows, row % to.rows
        if group < to.groups:
            copied[group, : to.columns, line, : len(x)] = x[:, row, : to.columns].T
    return copied.reshape(-1)


@settings(max_examples=100)
@given(
    channels=st.sampled_from([1, 3, 12, 16, 64, 65, 130]),
    out=st.sampled_from([1, 33]),
    size=st.tuples(st.integers(1, 12), st.integers(1, 19)),
    window=WINDOWS,
    seed=st.integers(0, 99),
)
def test_every_source_gives_the_sums_of_the_convolution(
    channels: int, out: int, size: tuple[int, int], window: Window, seed: int
) -> None:
    graph = convolution(channels, out, size, window, seed)
    node, type = graph.node("layer"), graph.input_type
    storages = blocked(graph)
    assume("x" in storages and "layer" in storages)
    x = random_integers(type, 1, seed)
    expected = expected_sums(graph, x)
    plane, source = Plane.of(node.type, storages["layer"]), Plane.of(type, storages["x"])
    pixels = plane.blocks * BLOCK_PIXELS
    assert isinstance(node.op, Conv2d)
    stored = pack(x, type, storages["x"])
    phases = by_phases(window, type.shape, plane)
    given = [(phases.operand, phases_copied(stored[0], phases, source))]
    if window.strides == (1, 1):
        given.append((in_place(window, type.shape, source), stored.reshape(-1)))
    few = of_few_channels(window, type.shape, plane)
    if few is not None:
        given.append((few.operand, interleaved_copy(x[0], few)))
    for operand, memory in given:
        assert np.array_equal(of_image(sums(operand, memory, node.op.weight, pixels), plane), expected)


@given(st.sampled_from([1, 3, 16, 20, 65]), st.integers(1, 4))
def test_few_channels_are_those_whose_column_fits_64_bytes(channels: int, stride: int) -> None:
    window = Window((3, 3), (stride, 1))
    found = of_few_channels(window, (channels, 9, 9), Plane(7, 7, 9))
    stored = max(4, 1 << (channels - 1).bit_length())
    assert (found is not None) == (stored * stride <= 64)
    if found is not None:
        assert found.column_bytes == stored * stride


@given(features=st.integers(1, 200), batch=st.integers(1, 70))
def test_samples_are_pixels(features: int, batch: int) -> None:
    rng = np.random.default_rng(features)
    x, weight = rng.integers(0, 256, (batch, features)), rng.integers(-128, 128, (5, features))
    operand = of_samples(features, batch)
    memory = np.zeros((operand.steps, -(-batch // 32) * 32, 64), np.uint8)
    filled = np.zeros((batch, operand.steps * 64), np.uint8)
    filled[:, :features] = x
    memory[:, :batch] = filled.reshape(batch, operand.steps, 64).transpose(1, 0, 2)
    found = sums(operand, memory.reshape(-1), weight.astype(np.int8), memory.shape[1])
    assert np.array_equal(found[:batch], x @ weight.T)


def test_packed_weights_are_the_same_bytes_two_by_two() -> None:
    operand = of_samples(100, 1)
    weight = np.random.default_rng(0).integers(-8, 8, (40, 100)).astype(np.int8)
    whole, packed = (pack_weight(weight, operand, packed=packed) for packed in (False, True))
    assert packed.nbytes * 2 == whole.nbytes
    low, high = unpack_nibbles(packed)
    assert np.array_equal(np.stack([low, high], axis=-2).reshape(-1), whole.reshape(-1))


# storages over a whole network


@pytest.mark.parametrize("name", ["Residual", "Concat", "Mobile", "Pools"])
def test_every_window_finds_its_zeros_and_values_that_meet_have_one_pitch(name: str) -> None:
    graph = integers_of(name)
    storages, types = blocked(graph), graph.types
    planes = {value: Plane.of(types[value], storage) for value, storage in storages.items()}
    narrow = {value for value, type in types.items() if type.dtype.bits <= 8 and len(type.shape) == 3}
    assert set(storages) == {value for value in narrow if types[value].shape[1:] != (1, 1)}
    for value, storage in storages.items():
        assert storage == Storage(
            block=64, multiple=64, frame=storage.frame, offset=128 if types[value].dtype.signed else 0
        )
        assert planes[value].blocks * BLOCK_PIXELS <= planes[value].pixels - planes[value].start
    for node in graph:
        window = getattr(node.op, "window", None)
        x = planes.get(node.inputs[0])
        if window is None or x is None:
            continue
        top, left, bottom, right = window.pads
        assert x.pitch >= x.width + max(left, right)
        assert x.start >= top * x.pitch + left
        assert x.below >= bottom
        if isinstance(node.op, Conv2d) and node.name in planes:
            for other in (*node.inputs[1:], *(node.inputs[:1] if window.strides == (1, 1) else ())):
                assert planes[other].pitch == planes[node.name].pitch


def test_a_chain_of_windows_without_padding_keeps_one_pitch() -> None:
    """Each row gets shorter, and the zeros to its right wider."""
    first = one_node_graph(
        Conv2d(np.ones((3, 3, 3, 3)), 8, np.zeros(3), Rescale([1] * 3, 30, 0, 255), Window((3, 3))),
        [TensorType(U8, (3, 9, 9), 1.0)],
        U8,
        name="first",
    ).node("first")
    op = Conv2d(np.ones((3, 3, 1, 3)), 8, np.zeros(3), Rescale([1] * 3, 30, 0, 255), Window((1, 3)))
    second = type(first)("second", op, ("first",), TensorType(U8, (3, 7, 5), 1.0))
    graph = Graph("chain", "x", TensorType(U8, (3, 9, 9), 1.0), (first, second), "second")
    graph.check()
    assert {name: storage.frame[3] for name, storage in blocked(graph).items()} == {"x": 0, "first": 2, "second": 4}
