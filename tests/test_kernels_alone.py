"""Each kernel by itself, without graph, planner or library: every byte that it writes, its loops, its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import tirx

from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.core.ir import Array, IntType, Operator, Rescale, TensorType, Window
from hawq_tvm.core.ops import (
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    GlobalAvgPool2d,
    Linear,
    MaxPool2d,
    PadChannels,
    Requantize,
)
from hawq_tvm.core.storage import Storage, pack
from hawq_tvm.core.targets import TARGETS, Target
from hawq_tvm.kernels import CONVERTERS, KERNELS, BuiltKernel, ConvertRequest, Offer, Request

from .accesses import accesses_outside
from .builders import random_integers
from .kernel_requests import node_request, offers_of

S8, U8, S4, S32 = (IntType.parse(text) for text in ("s8", "u8", "s4", "s32"))
LLVM = TARGETS["llvm"]


def channels_last(type: TensorType, frame: tuple[int, int, int, int]) -> Storage:
    return Storage("NHWC", multiple=4 if type.shape[0] < 16 else 16, frame=frame)


def request_of(
    op: Operator, inputs: Sequence[TensorType], output: IntType, *, batch: int = 1, vector_bits: int = 512
) -> Request:
    """A request in which every image may lie channels last, in frames that hold the padding and more."""
    frames = {"x0": (2, 3, 2, 3), "x1": (1, 0, 2, 1), "x2": (0, 1, 1, 0), "y": (1, 2, 0, 0) if batch == 1 else (0,) * 4}

    def storage(name: str, type: TensorType) -> Storage | None:
        return channels_last(type, frames[name]) if len(type.shape) == 3 else None

    return node_request(op, inputs, output, LLVM, storage, batch=batch, vector_bits=vector_bits)


def written(
    built: Mapping[str, BuiltKernel],
    given: Mapping[str, list[Array]],
    writes: Mapping[str, tuple[TensorType, Storage]],
    batch: int,
) -> dict[str, Array]:
    """What each kernel leaves in memory that held something else before; beside it, nothing is touched."""
    functions = {name: kernel.function.with_attr("global_symbol", name) for name, kernel in built.items()}
    library = tvm.compile(tvm.IRModule(functions), target=Machine.resolve(LLVM).tvm_target)
    found = {}
    for name, kernel in built.items():
        type, storage = writes[name]
        size, memory = storage.size_bytes(type, batch), np.full(storage.size_bytes(type, batch) + 512, 0x55, np.uint8)
        start = 128 + -(memory.ctypes.data + 128) % 64  # TVM wants tensors aligned
        output = memory[start : start + size].view(storage.dtype(type)).reshape(storage.shape(type, batch))
        arguments = [tvm.runtime.tensor(array) for array in (*given[name], *kernel.constants)]
        library[name](*arguments, tvm.runtime.from_dlpack(output))
        assert (memory[:start] == 0x55).all(), name
        assert (memory[start + size :] == 0x55).all(), name
        found[name] = output
    return found


def conv(
    channels: int,
    out: int,
    window: Window,
    bits: int,
    *,
    groups: int = 1,
    residual: int = 0,
    lo: int = -90,
    seed: int = 0,
) -> Conv2d:
    rng = np.random.default_rng(seed)
    limit = 1 << (bits - 1)
    factors = rng.integers(0, 2**31, residual) if residual else None
    rescale = Rescale(rng.integers(0, 2**31, out), 40, lo, 110, factors)
    weight = rng.integers(-limit, limit, (out, channels // groups, *window.kernel))
    return Conv2d(weight, bits, rng.integers(-3000, 3000, out), rescale, window, groups)


def image(channels: int, height: int, width: int, dtype: IntType = U8) -> TensorType:
    return TensorType(dtype, (channels, height, width), 1.0)


def linear(features: int, outputs: int, bits: int, residual: int = 0) -> Linear:
    rng = np.random.default_rng(features)
    limit = 1 << (bits - 1)
    factors = rng.integers(0, 2**31, residual) if residual else None
    weight = rng.integers(-limit, limit, (outputs, features))
    return Linear(
        weight, bits, rng.integers(-999, 999, outputs), Rescale(rng.integers(0, 2**31, outputs), 36, -128, 127, factors)
    )


STRIDED = Window((3, 2), (2, 3), (1, 0, 2, 1), (1, 2))
SAME = Window((3, 3), pads=(1, 1, 1, 1))
VALID = Window((2, 3))
CASES: dict[str, tuple[Operator, list[TensorType], IntType, dict[str, int]]] = {
    "convolution": (conv(5, 33, STRIDED, 8), [image(5, 9, 19, S8)], S8, {}),
    "convolution of 4 bits": (conv(5, 33, STRIDED, 4), [image(5, 9, 19)], S8, {}),
    "convolution without padding": (conv(4, 64, VALID, 8, lo=0), [image(4, 6, 17)], U8, {"vector_bits": 256}),
    "dilated in one direction": (
        conv(4, 16, Window((1, 3), pads=(0, 2, 0, 2), dilations=(1, 2)), 8), [image(4, 3, 17)], S8, {},
    ),
    "two tiles a row": (conv(4, 32, SAME, 8), [image(4, 2, 15)], S8, {}),
    "a narrow one": (conv(3, 3, SAME, 4), [image(3, 6, 7)], S8, {"vector_bits": 128}),
    "one vector": (conv(6, 16, SAME, 3), [image(6, 5, 9)], S8, {}),
    "with a residual": (conv(4, 20, SAME, 8, residual=20), [image(4, 6, 6), image(20, 6, 6, S8)], S8, {"batch": 2}),
    "with one residual factor": (conv(4, 20, SAME, 4, residual=1), [image(4, 6, 6), image(20, 6, 6, S8)], S8, {}),
    "pointwise": (conv(20, 32, Window((1, 1), (2, 2)), 8), [image(20, 7, 7)], S8, {"batch": 2}),
    "grouped": (conv(8, 48, SAME, 8, groups=2), [image(8, 5, 6)], S8, {"vector_bits": 256}),
    "grouped, half a vector each": (conv(8, 48, SAME, 8, groups=2), [image(8, 5, 6)], S8, {}),
    "depthwise of two": (conv(2, 2, SAME, 8, groups=2), [image(2, 5, 6)], S8, {}),
    "grouped of 4 bits": (conv(6, 18, SAME, 4, groups=3), [image(6, 5, 6)], S8, {}),
    "groups of one": (conv(6, 12, SAME, 8, groups=6), [image(6, 5, 21)], S8, {}),
    "depthwise": (conv(20, 20, STRIDED, 8, groups=20), [image(20, 9, 19)], S8, {}),
    "depthwise of 4 bits": (conv(32, 32, SAME, 4, groups=32), [image(32, 5, 5, S8)], S8, {"batch": 2}),
    "a clip without zero": (conv(3, 5, SAME, 8, lo=7), [image(3, 5, 5)], S8, {}),
    "linear": (linear(7, 10, 8), [TensorType(U8, (7,), 1.0)], S8, {"batch": 2}),
    "linear of 4 bits": (linear(9, 37, 4), [TensorType(U8, (9,), 1.0)], S8, {}),
    "linear with a residual": (
        linear(9, 33, 8, residual=33), [TensorType(S8, (9,), 1.0), TensorType(U8, (33,), 1.0)], S8, {"batch": 2},
    ),
    "sum": (
        Add(Rescale([2**31 - 1, 3 * 2**28], 32, -128, 100)), [image(5, 4, 6, S8), image(5, 4, 6)], S8, {},
    ),
    "requantize": (Requantize(Rescale([2**31 - 1], 33, -8, 7)), [image(5, 3, 7, S8)], S4, {"batch": 2}),
    "requantize, nothing to fill up": (
        Requantize(Rescale([2**31 - 1], 32, -60, 60)), [image(16, 3, 4, S8)], S8, {},
    ),
    "requantize a vector": (Requantize(Rescale([3], 2, -128, 127)), [TensorType(S8, (9,), 1.0)], S8, {}),
    "concatenation": (
        Concat(Rescale([2**30, 2**29, 2**30 + 3], 30, -128, 127)),
        [image(3, 4, 5, S8), image(6, 4, 5), image(2, 4, 5, S8)], S8, {},
    ),
    "channels of zeros": (PadChannels(3, 2), [image(5, 4, 6, S8)], S8, {"batch": 2}),
    "channels of zeros behind": (PadChannels(0, 12), [image(20, 3, 5)], U8, {}),
    "max pool": (MaxPool2d(Window((3, 2), (2, 2), (1, 0, 1, 1))), [image(5, 9, 8)], U8, {}),
    "max pool of signed": (MaxPool2d(Window((3, 2), (1, 2), (2, 1, 0, 1), (2, 1))), [image(5, 9, 8, S8)], S8, {}),
    "max pool, unpadded": (MaxPool2d(Window((2, 3), (2, 1))), [image(20, 6, 5, S8)], S8, {"batch": 2}),
    "average pool": (
        AvgPool2d(Window((3, 3), (2, 1), (1, 1, 1, 1)), Rescale([[2**27]], 30, -100, 100)),
        [image(5, 7, 6, S8)], S8, {},
    ),
    "average pool by position": (
        AvgPool2d(
            Window((2, 2), (2, 2), (1, 1, 0, 0)),
            Rescale(np.random.default_rng(0).integers(0, 2**30, (4, 3)), 30, 0, 255),
        ),
        [image(4, 7, 6)], U8, {"batch": 2},
    ),
    "average pool, unpadded": (AvgPool2d(Window((2, 3)), Rescale([[2**28]], 31, 3, 99)), [image(3, 4, 5)], U8, {}),
    "global average pool": (GlobalAvgPool2d(Rescale([2**30], 35, 0, 255)), [image(19, 7, 5)], U8, {"batch": 2}),
    "global average pool of signed": (GlobalAvgPool2d(Rescale([2**30], 35, -99, 99)), [image(32, 3, 4, S8)], S8, {}),
}  # fmt: skip
DECLINED = {"a clip without zero", "max pool of signed", "average pool, unpadded", "grouped of 4 bits", "groups of one"}
"""Images that no channels-last kernel takes, though they could lie so."""


@pytest.mark.parametrize("case", CASES)
def test_every_kernel_that_offers_writes_every_byte_as_the_storage_has_it(case: str) -> None:
    op, inputs, output, how = CASES[case]
    request = request_of(op, inputs, output, **how)
    offers = offers_of(request)
    orders = [offer.reads[0].order for offer in offers.values()]
    vector = len(inputs[0].shape) == 1
    assert orders == (["NCHW"] if vector or case in DECLINED else ["NCHW", "NHWC"])
    writes_every_byte(request, offers)


@pytest.mark.parametrize(
    "case",
    [
        name
        for name, (_, inputs, output, _) in CASES.items()
        if name not in DECLINED and len(inputs[0].shape) == 3 and any(x.signed for x in (output, inputs[0].dtype))
    ],
)
def test_signed_values_may_be_stored_with_128_added(case: str) -> None:
    """As a CPU with VNNI has them: zeros, in frames and channels that fill up, are 128 then."""
    op, inputs, output, how = CASES[case]
    request = request_of(op, inputs, output, **how)
    types = dict(zip((*request.node.inputs, "y"), (*inputs, request.node.type), strict=True))
    moved = {
        name: replace(storage, offset=128 if types[name].dtype.signed else 0)
        for name, storage in request.alternatives.items()
    }
    found = offers_of(replace(request, alternatives=moved))
    offers = {name: offer for name, offer in found.items() if offer.reads[0].order == "NHWC"}
    assert len(offers) == 1
    writes_every_byte(request, offers)


def writes_every_byte(request: Request, offers: Mapping[str, Offer]) -> None:
    """Of random integers, by each offer: what the interpreter says, as the storage has it."""
    op, inputs = request.node.op, request.inputs
    values = [random_integers(x, request.batch, seed) for seed, x in enumerate(inputs)]
    expected = op.evaluate(values)
    assert len(np.unique(expected)) > 4, "the case tells something"
    given = {
        name: [pack(v, x, storage) for v, x, storage in zip(values, inputs, offer.reads, strict=True)]
        for name, offer in offers.items()
    }
    type = request.node.type
    built = {name: offer.build() for name, offer in offers.items()}
    for name, kernel in built.items():
        assert accesses_outside(kernel.function) == []
        assert kernel.function.attrs["tirx.noalias"], "or LLVM cannot vectorise what it reads"
        assert not any(extent.endswith(" 0") for nest in loops(kernel.function) for extent in nest.split(" >"))
        if "x8w" in name:
            assert kernel.constants[0].dtype == ("uint8" if "x8w4" in name else "int8"), "four bits stay packed"
    writes = {name: (type, offer.writes) for name, offer in offers.items()}
    found = written(built, given, writes, request.batch)
    for name, offer in offers.items():
        wanted = pack(expected.astype(type.dtype.carrier), type, offer.writes)
        assert found[name].dtype == wanted.dtype
        assert np.array_equal(found[name], wanted), name


@pytest.mark.parametrize("width", [13, 15, 17])
def test_the_last_tile_of_a_row_does_not_reach_past_it(width: int) -> None:
    """Into the frame at the right, which is written before the row is."""
    op, x = conv(4, 32, SAME, 8), image(4, 2, width)
    request = request_of(op, [x], S8)
    framed = Storage("NHWC", multiple=16, frame=(0, 0, 0, 9))
    request = replace(request, alternatives={**request.alternatives, "y": framed})
    (offer,) = declines_of(request, "conv2d_x8w8s32_generic_nhwc")
    assert isinstance(offer, Offer)
    value, type = random_integers(x, 1), request.node.type
    found = written({"y": offer.build()}, {"y": [pack(value, x, offer.reads[0])]}, {"y": (type, framed)}, 1)
    assert np.array_equal(found["y"], pack(op.evaluate([value]).astype(np.int8), type, framed))


def declines_of(request: Request, *names: str) -> list[Offer | str]:
    return [kernel.offer(request) for kernel in KERNELS if kernel.name in names]


LAST, OTHER = Storage("NHWC", multiple=4, frame=(1, 0, 2, 1)), Storage("NHWC", multiple=16, frame=(0, 2, 0, 0))
PLAIN, PLANES = Storage(), Storage(block=4, multiple=4, frame=(2, 0, 1, 1))


@pytest.mark.parametrize(
    ("source", "to"),
    [(PLAIN, LAST), (LAST, PLAIN), (LAST, OTHER), (OTHER, LAST), (PLAIN, PLANES), (PLANES, PLAIN), (PLANES, LAST)],
)
@pytest.mark.parametrize("dtype", [U8, S8])
def test_conversions_write_every_byte_as_the_storage_has_it(source: Storage, to: Storage, dtype: IntType) -> None:
    type, batch = image(7, 5, 6, dtype), 2
    offers = [converter.offer(ConvertRequest(type, source, to, batch, LLVM, 512)) for converter in CONVERTERS]
    (offer,) = (offer for offer in offers if isinstance(offer, Offer))
    assert (offer.reads, offer.writes) == ((source,), to)
    value = random_integers(type, batch)
    found = written(
        {"convert": offer.build()}, {"convert": [pack(value, type, source)]}, {"convert": (type, to)}, batch
    )
    assert np.array_equal(found["convert"], pack(value, type, to))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": Target("moon", "hexagon", "")}, "not for 'hexagon'"),
        ({"to": Storage(frame=(1, 0, 0, 0))}, "not NCHW to NCHW frame 1,0,0,0"),
        ({"source": Storage("NHWC", offset=128)}, r"not NHWC \+128 to NCHW"),
        ({"type": TensorType(U8, (9,), 1.0)}, "copies images of bytes"),
    ],
)
def test_other_conversions_are_declined(changes: dict[str, Any], message: str) -> None:
    request = replace(ConvertRequest(image(7, 5, 6), PLAIN, PLAIN, 1, LLVM, 512), **changes)
    answers = [converter.offer(request) for converter in CONVERTERS]
    assert all(isinstance(answer, str) for answer in answers)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(answers)


# loops


def loops(function: Any) -> list[str]:
    """The loop nests of a function, outermost first, one line a nest of its own; kinds beside the plain ones named."""
    kinds = {
        int(tirx.ForKind.PARALLEL): "parallel ",
        int(tirx.ForKind.VECTORIZED): "vector ",
        int(tirx.ForKind.UNROLLED): "unroll ",
    }
    found: list[str] = []

    def walk(node: Any, outer: list[str]) -> None:
        if isinstance(node, tirx.For):
            walk(node.body, [*outer, f"{kinds.get(int(node.kind), '')}{node.extent}"])
            return
        children = [getattr(node, name, None) for name in ("block", "body", "then_case", "else_case")]
        parts = list(node.seq) if isinstance(node, tirx.SeqStmt) else [child for child in children if child is not None]
        for part in parts:
            walk(part, outer)
        if isinstance(node, tirx.BufferStore):
            found.append(" > ".join(outer))

    walk(function.body, [])
    return found


def counted(lines: Sequence[str]) -> list[str]:
    """The same, neighbours that are alike told once, with their number."""
    return [line if (n := len(list(group))) == 1 else f"{n} x {line}" for line, group in groupby(lines)]


NESTS: list[tuple[Operator, list[TensorType], dict[str, int], str, list[str]]] = [
    (
        conv(32, 48, SAME, 8), [image(32, 15, 15)], {}, "NCHW",
        [
            "parallel 32 > 17 > 18", "parallel 30 > 2 > unroll 8 > unroll 2 > vector 16",
            "parallel 30 > 2 > 32 > 3 > 3 > unroll 8 > unroll 2 > vector 16", "parallel 30 > 2 > 32 > 8",
        ],
    ),
    (
        conv(32, 48, SAME, 8), [image(32, 15, 15)], {}, "NHWC",
        [
            "parallel 16 > 2 > 48", "24 x parallel 16 > 2 > vector 16", "24 x parallel 16 > 2 > 3 > 3 > 32 > vector 16",
            "24 x parallel 16 > 2 > vector 16", "parallel 16 > 17 > 48",
        ],
    ),
    (
        conv(6, 12, SAME, 8, groups=6), [image(6, 5, 21)], {"vector_bits": 256}, "NCHW",
        [
            "6 > 7 > 26", "30 > 3 > unroll 2 > unroll 1 > vector 8",
            "30 > 3 > 1 > 3 > 3 > unroll 2 > unroll 1 > vector 8", "30 > 3 > 2 > 8",
        ],
    ),
    (
        conv(32, 32, SAME, 4, groups=32), [image(32, 5, 5)], {"vector_bits": 256}, "NHWC",
        [
            "12 > 2 > 16", "10 x 12 > 1 > vector 8", "10 x 12 > 1 > 3 > 3 > 1 > vector 8", "10 x 12 > 1 > vector 8",
            "12 > 7 > 16",
        ],
    ),
    (
        linear(2000, 1008, 8), [TensorType(U8, (2000,), 1.0)], {}, "NCHW",
        ["parallel 32 > unroll 2 > vector 16", "parallel 32 > 2000 > unroll 2 > vector 16", "parallel 32 > 32"],
    ),
    (
        linear(7, 10, 8), [TensorType(U8, (7,), 1.0)], {"batch": 2}, "NCHW",
        ["2 > unroll 1 > vector 16", "2 > 7 > unroll 1 > vector 16", "2 > 10"],
    ),
    (
        MaxPool2d(Window((3, 3), (2, 2), (1, 1, 1, 1))), [image(40, 60, 60)], {}, "NCHW",
        ["parallel 40 > 61 > 61", "parallel 40 > 30 > 30 > 3 > 3"],
    ),
    (
        MaxPool2d(Window((3, 3), (2, 2), (1, 1, 1, 1))), [image(40, 60, 60)], {}, "NHWC",
        [
            "parallel 31 > 2 > 48", "parallel 31 > 30 > 3 > vector 16", "parallel 31 > 30 > 3 > 3 > 3 > vector 16",
            "parallel 31 > 30 > 3 > vector 16", "parallel 31 > 32 > 48",
        ],
    ),
    (
        MaxPool2d(Window((2, 2))), [image(20, 6, 5)], {"batch": 2}, "NHWC",
        ["10 > 4 > 1 > vector 32", "10 > 4 > 1 > 2 > 2 > vector 32", "10 > 4 > 1 > vector 32"],
    ),
    (
        MaxPool2d(Window((1, 1))), [image(128, 3, 3)], {"batch": 2}, "NHWC",
        ["6 > 3 > 2 > vector 64", "6 > 3 > 2 > 1 > 1 > vector 64", "6 > 3 > 2 > vector 64"],
    ),
    (
        AvgPool2d(Window((1, 1)), Rescale([[1]], 2, 0, 9)), [image(8, 3, 3)], {"batch": 2, "vector_bits": 128}, "NHWC",
        ["6 > 3 > 2 > vector 4", "6 > 3 > 2 > 1 > 1 > vector 4", "6 > 3 > 2 > vector 4"],
    ),
    (
        AvgPool2d(Window((2, 2), (2, 2)), Rescale([[1]], 2, 0, 255)), [image(40, 60, 60)], {}, "NCHW",
        ["parallel 40 > 30 > 30 > 2 > 2", "parallel 40 > 30 > 30"],
    ),
    (
        GlobalAvgPool2d(Rescale([2**30], 41, 0, 255)), [image(40, 60, 60)], {}, "NCHW",
        ["parallel 40 > 60 > 60", "parallel 40"],
    ),
    (
        GlobalAvgPool2d(Rescale([2**30], 41, 0, 255)), [image(40, 60, 60)], {}, "NHWC",
        ["parallel 3 > vector 16", "parallel 3 > 60 > 60 > vector 16", "parallel 3 > 16"],
    ),
    (
        GlobalAvgPool2d(Rescale([1], 2, 0, 15)), [image(8, 3, 3)], {"vector_bits": 128}, "NHWC",
        ["2 > vector 4", "2 > 3 > 3 > vector 4", "2 > 4"],
    ),
    (Requantize(Rescale([1], 2, 0, 15)), [image(40, 60, 60)], {}, "NCHW", ["parallel 40 > 60 > 60"]),
    (
        Add(Rescale([1, 1], 2, 0, 15)), [image(40, 60, 60)] * 2, {}, "NHWC",
        ["parallel 61 > 2 > 48", "parallel 61 > 60 > 40", "parallel 61 > 60 > 8", "parallel 61 > 62 > 48"],
    ),
    (Concat(Rescale([1, 1], 2, 0, 15)), [image(20, 60, 60)] * 2, {}, "NCHW", ["parallel 40 > 60 > 60"]),
    (PadChannels(8, 12), [image(20, 60, 60)], {}, "NCHW", ["parallel 40 > 60 > 60"]),
    (
        PadChannels(8, 12), [image(20, 60, 60)], {}, "NHWC",
        [
            "parallel 61 > 2 > 48", "parallel 61 > 60 > 8", "parallel 61 > 60 > 20", "parallel 61 > 60 > 12",
            "parallel 61 > 60 > 8", "parallel 61 > 62 > 48",
        ],
    ),
    (PadChannels(0, 3), [image(1, 3, 4)], {"batch": 2}, "NHWC", ["6 > 4 > 1", "6 > 4 > 3"]),
]  # fmt: skip


def result_type(op: Operator) -> IntType:
    return S8 if op.rescale_or_none is not None and op.rescale_or_none.lo < 0 else U8


@pytest.mark.parametrize(("op", "inputs", "how", "order", "expected"), NESTS)
def test_loops_are_nested_cut_and_spread_as_the_kernel_says(
    op: Operator, inputs: list[TensorType], how: dict[str, int], order: str, expected: list[str]
) -> None:
    """Blocks, tiles and vectors change no integer; threads where there is enough to do, and only there."""
    offers = offers_of(request_of(op, inputs, result_type(op), **how))
    (offer,) = (offer for offer in offers.values() if offer.reads[0].order == order)
    assert counted(loops(offer.build().function)) == expected


@pytest.mark.parametrize(
    ("op", "inputs", "few"),
    [
        (conv(10, 10, Window((1, 1)), 8), [image(10, 100, 200)], image(10, 100, 199)),
        (Requantize(Rescale([1], 2, 0, 15)), [image(10, 100, 100)], image(9, 41, 271)),
        (MaxPool2d(Window((1, 1))), [image(10, 100, 100)], image(9, 41, 271)),
        (GlobalAvgPool2d(Rescale([1], 2, 0, 15)), [image(10, 100, 100)], image(9, 41, 271)),
        (AvgPool2d(Window((1, 1)), Rescale([[1]], 2, 0, 15)), [image(10, 100, 100)], image(9, 41, 271)),
        (Concat(Rescale([1], 2, 0, 15)), [image(10, 100, 100)], image(9, 41, 271)),
        (PadChannels(0, 0), [image(10, 100, 100)], image(9, 41, 271)),
    ],
)
def test_threads_from_two_million_products_or_a_hundred_thousand_elements(
    op: Operator, inputs: list[TensorType], few: TensorType
) -> None:
    """The batch counts too."""
    assert op.macs(inputs[0]) in (2_000_000, 0)
    enough, less = inputs, [few]
    half = [replace(x, shape=(x.shape[0], x.shape[1] // 2, x.shape[2])) for x in enough]
    for types, batch, spread in ((enough, 1, True), (less, 1, False), (half, 2, True), (half, 1, False)):
        for offer in offers_of(request_of(op, types, result_type(op), batch=batch)).values():
            assert any("parallel" in nest for nest in loops(offer.build().function)) == spread


@pytest.mark.parametrize(
    ("features", "outputs", "batch", "spread"), [(1000, 1000, 2, True), (1000, 1000, 1, False), (28169, 71, 1, False)]
)
def test_a_linear_layer_is_spread_from_two_million_products(
    features: int, outputs: int, batch: int, spread: bool
) -> None:
    """The last has 1,999,999."""
    op = Linear(np.ones((outputs, features)), 2, np.zeros(outputs), Rescale(np.ones(outputs), 30, -9, 9))
    for offer in offers_of(request_of(op, [TensorType(U8, (features,), 1.0)], S8, batch=batch)).values():
        assert any("parallel" in nest for nest in loops(offer.build().function)) == spread


def test_conversions_are_spread_over_rows() -> None:
    for channels, batch, kind in ((10, 1, "parallel "), (9, 1, ""), (5, 2, "parallel "), (5, 1, "")):
        type = image(channels, 100, 100)
        converter = next(c for c in CONVERTERS if c.name == "convert_generic")
        ways = ((LAST, PLAIN), (PLAIN, LAST))
        back, there = (converter.offer(ConvertRequest(type, *way, batch, LLVM, 512)) for way in ways)
        assert isinstance(back, Offer)
        assert isinstance(there, Offer)
        assert loops(back.build().function) == [f"{kind}{100 * batch} > {channels} > 100"]
        assert f"{kind}{103 * batch} > 100 > {channels}" in loops(there.build().function)
