"""AMX kernels against the interpreter, byte by byte, with tiles in software and without any; and what they decline."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.core.errors import HawqError
from hawq_tvm.core.float32_rescale import odd_multipliers
from hawq_tvm.core.ir import Array, Graph, IntType, Node, Rescale, TensorType, Window
from hawq_tvm.core.ops import Conv2d, Linear
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.kernels import Offer
from hawq_tvm.kernels.generic.acceptance import UNPACKED_PRICE
from hawq_tvm.kernels.x86.amx_epilogue import Rescaling
from hawq_tvm.kernels.x86.amx_product import Split

from .amx_alone import Case, differences, offer_of
from .builders import one_node_graph
from .soft_tiles import SAPPHIRE_RAPIDS, library, needs_vectors, soft_tiles
from .test_kernels import conv_graph, random_conv

S8, U8, U4, S4, S32 = (IntType.parse(text) for text in ("s8", "u8", "u4", "s4", "s32"))


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    """A convolution and one of the kernels that take it."""
    seed = draw(st.integers(0, 999))
    few = draw(st.booleans())
    channels = draw(st.sampled_from([1, 2, 3, 5, 16] if few else [1, 16, 63, 64, 65, 130]))
    out = draw(st.sampled_from([1, 31, 32, 33, 64, 65, 100]))
    size = draw(st.tuples(st.integers(2, 12), st.integers(2, 21)))
    window = Window(
        draw(st.tuples(st.integers(1, 3), st.integers(1, 4))),
        draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2), (3, 1), (2, 3)])),
        draw(st.tuples(*[st.integers(0, 2)] * 4)),
        draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 2)])),
    )
    bits, residual = draw(st.sampled_from([2, 4, 5, 8])), draw(st.sampled_from([None, "one", "each"]))
    op = with_form(random_conv(channels, out, 1, window, bits, residual, seed), seed)
    x = TensorType(draw(st.sampled_from([U8, S8, U4, S4])), (channels, *size), 1.0)
    output = draw(st.sampled_from([U8, S8, U4, S4]))
    op = replace(op, rescale=replace(op.rescale, lo=output.lo + seed % 2 * output.signed, hi=output.hi - seed // 2 % 2))
    kernel = f"conv2d_x8w{4 if bits <= 4 else 8}s32_amx" + ("_few_channels" if few else "")
    return Case(conv_graph(op, x, output), kernel, draw(st.integers(1, 2)))


def with_form(op: Conv2d, seed: int) -> Conv2d:
    """Multipliers as the integeriser makes them, or any; and shifts for each form of the rounding."""
    shift, multiplier = ((40, 31, 35)[seed % 3], op.rescale.multiplier)
    if seed % 4 < 2:
        multiplier = odd_multipliers(multiplier, shift)
    return replace(op, rescale=replace(op.rescale, multiplier=multiplier, shift=shift))


@st.composite
def batches(draw: st.DrawFn) -> list[Case]:
    """Cases to compile together; those that no kernel may take are left out."""
    cases = []
    for _ in range(6):
        try:
            case = draw(convolutions())
        except HawqError:  # a window that does not fit, or sums that could overflow
            continue
        cases.append(case)
    return cases


@needs_vectors
@settings(max_examples=4, suppress_health_check=list(HealthCheck))
@given(batches())
def test_convolutions(cases: list[Case]) -> None:
    with soft_tiles() as target:
        taken = [case for case in cases if isinstance(offer_of(case, target), Offer)]
        assert differences(taken, target) == {}


@needs_vectors
def test_every_way_through_a_convolution() -> None:
    """Panels, blocks and steps in every number that the loops tell apart, threads among them."""
    same, point = Window((3, 3), pads=(1, 1, 1, 1)), Window((1, 1))
    cases = [
        (64, 64, (9, 9), point, 8),  # one step: the rescale follows each block
        (64, 96, (7, 7), same, 8),  # one tall block
        (192, 70, (7, 7), same, 4),
        (192, 512, (7, 7), point, 4),  # more of a rescale than steps to spread it over
        (64 * 17, 32, (3, 3), point, 8),  # more steps than a rescale has parts
        (128, 96, (6, 9), same, 8),  # an odd number of panels: half a plane is filled up
        (3, 64, (20, 20), Window((7, 7), (2, 2), (3, 3, 3, 3)), 8),  # the first layer of ResNets
        (1, 8, (4, 2), Window((1, 1), (2, 2)), 8),  # one column that anything reads
        (64, 512, (14, 14), same, 8),  # tasks for threads
        (64, 512, (14, 14), same, 4),
        (128, 32, (40, 40), same, 8),  # tasks along the pixels
    ]
    graphs = [
        (
            conv_graph(
                random_conv(channels, out, 1, window, bits, None, 9), TensorType(U8, (channels, *size), 1.0), U8
            ),
            bits,
        )
        for channels, out, size, window, bits in cases
    ]
    with soft_tiles() as target:
        found = [
            Case(graph, f"conv2d_x8w{bits}s32_amx" + ("_few_channels" if graph.input_type.shape[0] < 4 else ""))
            for graph, bits in graphs
        ]
        before = library().soft_products(), library().soft_releases()
        assert differences(found, target) == {}
        assert library().soft_products() > before[0]
        assert library().soft_releases() > before[1] + len(found), "some have more than one task"


@needs_vectors
def test_depthwise_convolutions_on_vectors_read_planes_too() -> None:
    cases = []
    for channels, window, bits, x in (
        (96, Window((3, 3), pads=(1, 1, 1, 1)), 8, U8),
        (70, Window((3, 3), (2, 2), (1, 1, 1, 1)), 8, S8),
        (130, Window((5, 5), pads=(2, 2, 2, 2)), 4, U8),
        (64, Window((3, 2), (1, 2), (1, 0, 0, 1), (1, 2)), 8, S8),
    ):
        op = random_conv(channels, channels, channels, window, bits, None, 3)
        graph = conv_graph(op, TensorType(x, (channels, 9, 13), 1.0), U8)
        cases.append(Case(graph, f"conv2d_depthwise_u8s{bits}s32_avx512vnni", 2))
    with soft_tiles() as target:
        assert differences(cases, target) == {}


@needs_vectors
def test_linear() -> None:
    cases = []
    for features, outputs, bits, batch, x, output in (
        (1, 1, 8, 1, U8, S32), (7, 10, 4, 2, S8, S32), (64, 33, 8, 33, U8, S8), (130, 100, 3, 3, S8, U8),
        (200, 64, 8, 1, U4, S32), (64, 1000, 8, 1, U8, S32),
    ):  # fmt: skip
        rng = np.random.default_rng(features)
        limit = 1 << (bits - 1)
        rescale = Rescale(rng.integers(0, 2**31, outputs), 34, output.lo, output.hi)
        op = Linear(rng.integers(-limit, limit, (outputs, features)), bits, rng.integers(-999, 999, outputs), rescale)
        graph = one_node_graph(op, [TensorType(x, (features,), 1.0)], output)
        cases.append(Case(graph, f"linear_x8w{4 if bits <= 4 else 8}s32_amx", batch))
    op = Linear(rng.integers(-128, 128, (64, 64)), 8, np.ones(64), Rescale([2**29] * 64, 34, -128, 127, [2**31 - 1]))
    graph = one_node_graph(op, [TensorType(U8, (64,), 1.0), TensorType(S8, (64,), 1.0)], S8)
    cases.append(Case(graph, "linear_x8w8s32_amx", 2))
    with soft_tiles() as target:
        assert differences(cases, target) == {}


# rounding


def pointwise(
    weight: Array,
    bias: Array,
    multiplier: Array,
    shift: int,
    *,
    lo: int = 0,
    hi: int = 255,
    residual: Array | None = None,
) -> Conv2d:
    """A convolution of one pixel."""
    rescale = Rescale(multiplier, shift, lo, hi, residual)
    return Conv2d(weight.reshape(*weight.shape, 1, 1), 8, bias, rescale, Window((1, 1)))


def rescaling_of(op: Conv2d, x: IntType, output: IntType) -> Rescaling:
    channels = op.weight.shape[1]
    return Rescaling.choose(
        op, [TensorType(x, (channels, 4, 4), 1.0)], TensorType(output, (op.out_channels, 4, 4), 1.0)
    )


def ones(channels: int) -> Array:
    """Accumulators that are the input, plus the bias."""
    return np.eye(channels, dtype=np.int8)


def spread_bias(channels: int) -> Array:
    """From far below zero to far above."""
    return np.linspace(-(2**23), 2**23, channels).astype(np.int64)


ODD = int(odd_multipliers([2**30 + 12345], 40)[0])
EXTREMES: dict[str, tuple[bool, Conv2d, IntType]] = {
    "float, up to 2^24": (True, pointwise(ones(64), spread_bias(64), np.full(64, ODD), 46), U8),
    "float, a signed result": (True, pointwise(ones(64), spread_bias(64), np.full(64, ODD), 46, lo=-128, hi=127), S8),
    "float, sums beyond 2^24 that are clipped": (
        True, pointwise(ones(64), spread_bias(64) * 8, np.full(64, ODD), 44, hi=15), U4,
    ),
    "float, multipliers of zero": (True, pointwise(ones(64), spread_bias(64), np.zeros(64), 40), U8),
    "float, a shift so small that nothing is rounded": (
        True, pointwise(ones(64), np.arange(-32, 32), np.full(64, 2**20), 20, lo=-128, hi=127), S8,
    ),
    "integers, ties": (False, pointwise(ones(64), np.arange(-128, -64), np.full(64, 2**30), 33, lo=-128, hi=127), S8),
    "integers, biggest multipliers": (False, pointwise(ones(64), spread_bias(64), np.full(64, 2**31 - 1), 46), U8),
    "integers, the greatest shift": (False, pointwise(ones(64), spread_bias(64) * 200, np.full(64, 2**31 - 1), 62), U8),
    "integers, a shift of 30, ties": (False, pointwise(ones(64), np.arange(64), np.full(64, 2**27), 30), U8),
    "integers, a shift of 31, ties": (
        False, pointwise(ones(64), np.arange(-128, -64), np.full(64, 2**30), 31, lo=-128, hi=127), S8,
    ),
    "integers, a shift of 31, biggest multipliers": (
        False, pointwise(ones(64), np.arange(-99, -35), np.full(64, 2**31 - 1), 31), U8,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXTREMES)
def test_the_form_is_the_cheapest_that_is_proved(name: str) -> None:
    in_float32, op, output = EXTREMES[name]
    assert rescaling_of(op, U8, output).in_float32 == in_float32


@needs_vectors
def test_every_form_is_exact_at_its_bounds() -> None:
    """All 256 inputs at 64 biases, so that ties, both clips and the greatest sums are met."""
    cases = []
    for _, op, output in EXTREMES.values():
        cases.append(Case(one_node_graph(op, [TensorType(U8, (64, 16, 16), 1.0)], output), "conv2d_x8w8s32_amx", 2))
    with soft_tiles() as target:
        assert differences(cases, target) == {}


def with_residual(op: Conv2d, x: IntType, residual: IntType, output: IntType) -> Graph:
    """The convolution beside one that makes its residual: the input as it is."""
    shape = (op.weight.shape[1], 16, 16)
    copy = pointwise(ones(64), np.zeros(64), np.full(64, 2**30), 30, lo=residual.lo, hi=residual.hi)
    nodes = (
        Node("branch", copy, ("x",), TensorType(residual, (64, 16, 16), 1.0)),
        Node("layer", op, ("x", "branch"), TensorType(output, (op.out_channels, 16, 16), 1.0)),
    )
    graph = Graph("residual", "x", TensorType(x, shape, 1.0), nodes, "layer")
    graph.check()
    return graph


RESIDUALS: dict[str, Conv2d] = {
    "one factor": pointwise(ones(64), spread_bias(64), np.full(64, 2**31 - 1), 46, residual=np.array([2**31 - 1])),
    "a factor each": pointwise(
        ones(64), np.arange(-32, 32), np.full(64, 2**30), 33, residual=np.arange(64) * 2**24 + 2**30
    ),
    "a shift of 32": pointwise(
        ones(64), np.arange(-32, 32), np.full(64, 2**31 - 1), 32, residual=np.array([2**31 - 1])
    ),
    "a shift of 30": pointwise(
        ones(64), np.arange(-32, 32), np.full(64, 2**31 - 1), 30, residual=np.arange(64) * 2**25
    ),
}


@needs_vectors
def test_residuals_are_exact_at_their_bounds() -> None:
    cases = []
    for op in RESIDUALS.values():
        for residual, output in ((U8, U8), (S8, S8)):
            given = replace(op, rescale=replace(op.rescale, lo=output.lo, hi=output.hi))
            graph = with_residual(given, S8 if residual is S8 else U8, residual, output)
            cases.append(Case(graph, "conv2d_x8w8s32_amx", 2))
    with soft_tiles() as target:
        assert differences(cases, target) == {}


# how work is cut, what is declined, and what is emitted


@given(panels=st.integers(1, 80), blocks=st.integers(1, 200), steps=st.integers(1, 100), batch=st.integers(1, 16))
def test_tasks_hold_every_block_once(panels: int, blocks: int, steps: int, batch: int) -> None:
    split = Split.choose(panels, blocks, steps, batch)
    assert (split.across - 1) * split.panels < panels <= split.across * split.panels
    assert (split.along - 1) * split.blocks < blocks <= split.along * split.blocks
    assert split.tasks * batch <= 2 * 64 + batch


def layer(channels: int = 64, out: int = 64, groups: int = 1, bits: int = 8, **rescale: Any) -> Graph:
    op = random_conv(channels, out, groups, Window((3, 3), pads=(1, 1, 1, 1)), bits, None, 0)
    op = replace(op, rescale=replace(op.rescale, **rescale))
    return conv_graph(op, TensorType(U8, (channels, 8, 8), 1.0), U8)


@pytest.mark.parametrize(
    ("graph", "kernel", "reason"),
    [
        (layer(groups=2), "conv2d_x8w8s32_amx", "2 groups would leave nearly empty"),
        (
            layer(out=40, lo=3),
            "conv2d_x8w8s32_amx",
            "channels that fill up hold zero, which its clip 3..100 leaves out",
        ),
        (layer(), "conv2d_x8w4s32_amx", "stores weights in 4 bits, these have 8"),
        (layer(), "conv2d_x8w8s32_amx_few_channels", "into a column of 64 bytes, not 1 of 64"),
        (layer(), "linear_x8w8s32_amx", "computes linear, not conv2d"),
    ],
)
def test_what_is_declined_is_told(graph: Graph, kernel: str, reason: str) -> None:
    answer = offer_of(Case(graph, kernel), SAPPHIRE_RAPIDS)
    assert isinstance(answer, str)
    assert reason in answer


@needs_vectors
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [(7, 7), (14, 13)])
def test_every_choice_of_parameters_gives_the_same(bits: int, size: tuple[int, int]) -> None:
    """Tall blocks and others, tasks of few and of many panels and blocks."""
    op = with_form(random_conv(65, 100, 1, Window((3, 3), pads=(1, 1, 1, 1)), bits, "one", 3), 3)
    graph = conv_graph(op, TensorType(U8, (65, *size), 1.0), U8)
    case = Case(graph, f"conv2d_x8w{bits}s32_amx")
    with soft_tiles() as target:
        offer = offer_of(case, target)
        assert isinstance(offer, Offer)
        assert offer.parameters["tall"] == (size == (7, 7))
        cases = [replace(case, variant=number) for number in range(len(offer.variants()))]
        assert len(cases) >= 5
        assert differences(cases, target) == {}


@needs_vectors
def test_weights_of_four_bits_can_be_unpacked_for_a_price() -> None:
    """They are worth it nowhere in a ResNet: the stream of weights is halved, or unpacking hides behind the tiles."""
    for size, channels in (((56, 56), 64), ((28, 28), 128), ((14, 14), 256), ((7, 7), 512)):
        op = random_conv(channels, channels, 1, Window((3, 3), pads=(1, 1, 1, 1)), 4, None, 1)
        graph = conv_graph(op, TensorType(U8, (channels, *size), 1.0), U8)
        packed, unpacked = (offer_of(Case(graph, f"conv2d_x8w{bits}s32_amx"), SAPPHIRE_RAPIDS) for bits in (4, 8))
        assert isinstance(packed, Offer)
        assert isinstance(unpacked, Offer)
        assert packed.cost < unpacked.cost
        assert (packed.weight_bits, unpacked.weight_bits, unpacked.price) == (4, 8, UNPACKED_PRICE)
    with soft_tiles() as target:
        small = random_conv(16, 40, 1, Window((3, 3), pads=(1, 1, 1, 1)), 4, None, 1)
        graph = conv_graph(small, TensorType(U8, (16, 6, 6), 1.0), U8)
        assert differences([Case(graph, "conv2d_x8w8s32_amx")], target) == {}


def test_a_cpu_without_tiles_is_told_what_it_lacks() -> None:
    answer = offer_of(
        Case(layer(), "conv2d_x8w8s32_amx"), replace(SAPPHIRE_RAPIDS, attributes={"mcpu": "icelake-server"})
    )
    assert answer == "needs amx-int8 and amx-tile, which the CPU compiled for does not have"
    assert isinstance(offer_of(Case(layer(), "conv2d_x8w8s32_amx"), TARGETS["llvm/portable"]), str)


def test_batches_whose_bytes_leave_32_bits_are_declined() -> None:
    answer = offer_of(Case(layer(), "conv2d_x8w8s32_amx", batch=500_000), SAPPHIRE_RAPIDS)
    assert answer == "addresses bytes by 32 bits, a batch of 500000 takes more"


def assembly(case: Case) -> str:
    """What LLVM makes of a kernel for a CPU with AMX, whichever this one is."""
    offer = offer_of(case, SAPPHIRE_RAPIDS)
    assert isinstance(offer, Offer)
    function = offer.build().function.with_attr("global_symbol", "kernel")
    built = tvm.compile(tvm.IRModule({"kernel": function}), target=Machine.resolve(SAPPHIRE_RAPIDS).tvm_target)
    return str(built.mod.inspect_source("asm"))


@pytest.mark.parametrize(
    ("case", "needed", "absent"),
    [
        (Case(layer(), "conv2d_x8w8s32_amx"), "", "vpmullq"),
        (Case(layer(multiplier=np.full(64, ODD), shift=40), "conv2d_x8w8s32_amx"), "vcvtdq2ps vfmadd", "vpmuldq"),
        (Case(layer(multiplier=np.full(64, 2**31 - 1), shift=40), "conv2d_x8w8s32_amx"), "vpmuldq", "vpmullq"),
        (Case(layer(bits=4, multiplier=np.full(64, ODD), shift=40), "conv2d_x8w4s32_amx"), "vgf2p8affineqb", "vpmullq"),
        (
            Case(with_residual(RESIDUALS["one factor"], U8, U8, U8), "conv2d_x8w8s32_amx"),
            "vpmuldq vpmadd52luq vpmovzxbq", "vpmullq",
        ),
    ],
    ids=["any", "float", "high", "packed", "residual"],
)  # fmt: skip
def test_the_instructions_are_those_that_were_meant(case: Case, needed: str, absent: str) -> None:
    """Tiles and vectors, and no vector that is spilled to the stack."""
    text = assembly(case)
    for word in ("ldtilecfg", "tileloadd", "tdpbusd", "tilestored", "tilerelease", "syscall", "prefetcht1", "vpdpbusd"):
        assert re.search(rf"\b{word}\b", text), word
    for word in needed.split():
        assert word in text
    for word in absent.split():
        assert word not in text
    spills = re.findall(r"vmov[au]p?[sdq]\w*\s+%[zy]mm\d+, -?\d+\(%r[sb]p\)", text)
    assert len(spills) <= 4, spills
