"""Channels that never change: they are found, they leave who reads them, and no batch norm spoils the rest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.backends.pytorch.integer_module import IntegerModule
from hawq_tvm.calibration import make_observer, observe_ranges
from hawq_tvm.core.float_ir import Clip, FloatGraph, FloatNode
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.ir import Window
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.frontend.capture import capture
from hawq_tvm.frontend.constant_channels import fold_constant_channels
from hawq_tvm.frontend.passes import MOST_ROW_GROWTH, expand_affines, fold_affines_forward

from .dead_channels import DEAD_CHANNELS, make, noise
from .float_graphs import RELU, SHAPE, conv, graph, linear, node

PADDED = Window((3, 3), pads=(1, 1, 1, 1))


def dead_conv(name: str, *inputs: str, bias: float, channel: int = 1, **fields: object) -> FloatNode:
    """A convolution whose output channel never changes."""
    layer = conv(name, *inputs, **fields)
    weight, offset = layer.weight.copy(), layer.bias.copy()
    weight[channel], offset[channel] = 0.0, bias
    return replace(layer, weight=weight, bias=offset)


def results(network: FloatGraph, seed: int = 0) -> torch.Tensor:
    """What a graph computes of noise, its affines as what they become where nothing takes them."""
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return FloatModule(expand_affines(network))(x)


def columns_kept(network: FloatGraph, name: str) -> list[bool]:
    """Which input channels a layer still has weights for."""
    weight = network.by_name[name].weight
    return list(np.abs(weight).reshape(*weight.shape[:2], -1).max(axis=(0, 2)) > 0)


ALL_BUT_ONE = [True, False, True, True]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("network", DEAD_CHANNELS, ids=lambda network: network.__name__)
def test_a_dead_channel_costs_nothing_at_8_bits(network: type[nn.Module], seed: int) -> None:
    """From 0 to 18 dB it was, with every layer equal in all executors."""
    built, x = make(network, seed), noise()
    captured = capture(built, x[:4])
    module = FloatModule(captured)
    ranges = observe_ranges(lambda batch, tap: module(batch, tap=tap), [x], make_observer("percentile"))
    bits = BitConfig.uniform(tuple(layer.name for layer in captured.layers), Bits(8, 8))
    with torch.no_grad():
        expected = built(x).double()
        got = IntegerModule(integerize(captured, ranges, bits))(x).double()
    sqnr = 10 * torch.log10(expected.square().sum() / (expected - got).square().sum())
    assert sqnr >= 38.0


# which channels are found


@pytest.mark.parametrize(
    "between",
    [
        (),
        (node("y", "max_pool2d", "dead", window=Window((1, 1))),),
        (node("y", "clip", "dead", clip=Clip(0.0, 6.0)),),
        (node("y", "add", "dead", "dead"),),
        (node("y", "avg_pool2d", "dead", window=Window((1, 1)), counts=np.ones((6, 6), np.float32)),),
        (node("a", "concat", "dead", "dead", shape=(8, 6, 6)), conv("b", "dead"), node("y", "add", "dead", "dead")),
    ],
    ids=lambda nodes: nodes[-1].kind if nodes else "next to it",
)
def test_a_channel_that_is_always_0_is_followed(between: tuple[FloatNode, ...]) -> None:
    last = between[-1].name if between else "dead"
    before = graph(dead_conv("dead", "x", bias=-3.0, clip=RELU), *between, conv("read", last, window=PADDED))
    after = fold_constant_channels(before)
    assert columns_kept(before, "read") == [True] * 4
    assert columns_kept(after, "read") == ALL_BUT_ONE
    assert torch.equal(results(after), results(before))
    assert np.array_equal(after.by_name["read"].bias, before.by_name["read"].bias)


def test_concatenations_and_vectors_keep_their_order() -> None:
    join = node("join", "concat", "one", "two", shape=(8, 6, 6))
    flat = node("flat", "flatten", "join", shape=(288,))
    before = graph(
        dead_conv("one", "x", bias=0.0, channel=3), dead_conv("two", "x", bias=0.0, channel=0), join, flat,
        linear("read", "flat", features=288),
    )  # fmt: skip
    after = fold_constant_channels(before)
    assert np.flatnonzero(~np.array(columns_kept(after, "read"))).tolist() == list(range(3 * 36, 5 * 36))
    torch.testing.assert_close(results(after), results(before))


def test_channels_of_zeros_are_known() -> None:
    pad = node("pad", "pad_channels", "dead", shape=(7, 6, 6), channel_pads=(1, 2))
    read = conv("read", "pad", weight=np.ones((4, 7, 1, 1), np.float32))
    before = graph(dead_conv("dead", "x", bias=-1.0, clip=RELU), pad, read)
    after = fold_constant_channels(before)
    assert columns_kept(after, "read") == [False, True, False, True, True, False, False]
    torch.testing.assert_close(results(after), results(before))


def test_a_global_pool_keeps_what_never_changes() -> None:
    gap = node("gap", "global_avg_pool2d", "dead", shape=(4, 1, 1))
    flat = node("flat", "flatten", "gap", shape=(4,))
    before = graph(dead_conv("dead", "x", bias=2.0), gap, flat, linear("read", "flat"))
    after = fold_constant_channels(before)
    assert columns_kept(after, "read") == ALL_BUT_ONE
    torch.testing.assert_close(results(after), results(before))


def test_a_number_other_than_0_folds_into_the_bias_where_nothing_is_padded() -> None:
    before = graph(dead_conv("dead", "x", bias=2.0), conv("read", "dead"))
    after = fold_constant_channels(before)
    assert columns_kept(after, "read") == ALL_BUT_ONE
    expected = before.by_name["read"].bias + 2.0 * before.by_name["read"].weight[:, 1, 0, 0]
    assert after.by_name["read"].bias == pytest.approx(expected)
    torch.testing.assert_close(results(after), results(before))
    padded = graph(dead_conv("dead", "x", bias=2.0), conv("read", "dead", window=PADDED))
    assert columns_kept(fold_constant_channels(padded), "read") == [True] * 4, "at the border it reads zeros"


def test_a_pool_that_pads_changes_what_is_not_0() -> None:
    def pooled(bias: float) -> FloatGraph:
        pool = node("pool", "avg_pool2d", "dead", window=PADDED, counts=np.full((6, 6), 9, np.float32))
        return graph(dead_conv("dead", "x", bias=bias), pool, conv("read", "pool"))

    assert columns_kept(fold_constant_channels(pooled(0.0)), "read") == ALL_BUT_ONE
    assert columns_kept(fold_constant_channels(pooled(1.0)), "read") == [True] * 4


def test_groups_and_residuals_are_told_apart() -> None:
    before = graph(
        dead_conv("dead", "x", bias=0.0), conv("grouped", "dead", groups=4), conv("again", "grouped"),
        dead_conv("sum", "x", "again", bias=0.0), conv("read", "sum"),
    )  # fmt: skip
    after = fold_constant_channels(before)
    assert not after.by_name["grouped"].weight[1].any()
    assert columns_kept(after, "again") == ALL_BUT_ONE, "a depthwise layer gives its bias there"
    assert columns_kept(after, "read") == [True] * 4, "the sum's other operand is alive"
    torch.testing.assert_close(results(after), results(before))


def test_a_layer_is_left_some_weights() -> None:
    reader = conv("read", "dead", weight=np.float32([0, 1, 0, 0] * 4).reshape(4, 4, 1, 1))
    after = fold_constant_channels(graph(dead_conv("dead", "x", bias=0.0), reader))
    assert np.array_equal(after.by_name["read"].weight, reader.weight)


@given(
    seed=st.integers(0, 2**32 - 1),
    kinds=st.lists(st.sampled_from(["conv", "padded", "depthwise", "relu", "add", "affine"]), min_size=1, max_size=6),
)
def test_the_function_stays(seed: int, kinds: list[str]) -> None:
    generator = np.random.default_rng(seed)
    nodes: list[FloatNode] = []
    for index, kind in enumerate(kinds):
        name, last = f"n{index}", nodes[-1].name if nodes else "x"
        alive = generator.integers(0, 2, 4).astype(np.float32)
        constants = {"bias": generator.integers(-1, 2, 4).astype(np.float32)}
        if kind == "relu":
            nodes.append(node(name, "clip", last, clip=RELU))
        elif kind == "add":
            nodes.append(node(name, "add", last, nodes[int(generator.integers(len(nodes)))].name if nodes else "x"))
        elif kind == "affine":
            nodes.append(node(name, "affine", last, weight=alive, **constants))
        else:
            groups, window = 4 if kind == "depthwise" else 1, PADDED if kind == "padded" else Window((1, 1))
            weight = generator.normal(size=(4, 4 // groups, *window.kernel)).astype(np.float32)
            weight *= alive.reshape(-1, 1, 1, 1)
            nodes.append(conv(name, last, groups=groups, window=window, weight=weight, **constants))
    before = graph(*nodes, conv("read", nodes[-1].name))
    after = fold_constant_channels(before)
    torch.testing.assert_close(results(after), results(before), rtol=1e-4, atol=1e-4)


# where an affine folds forward


def normalised(factors: list[float], *, groups: int = 1, weight: np.ndarray | None = None) -> FloatGraph:
    """A sum, an affine on it, and the convolution that reads that."""
    affine = node("bn", "affine", "sum", weight=np.float32(factors), bias=np.float32([1, 2, 3, 4]))
    reader = conv("read", "bn", groups=groups)
    reader = reader if weight is None else replace(reader, weight=weight.astype(np.float32))
    return graph(node("sum", "add", "x", "x"), affine, reader)


EVEN = np.where(np.eye(4, dtype=bool), 1.0, -0.9).reshape(4, 4, 1, 1)


@pytest.mark.parametrize(
    ("factors", "folds"),
    [
        ([1, 1, 1, 1], True),
        ([-4, 5, 6, -5], True),
        ([0, 0, 0, 5], True),  # factors of 0 leave no weights, and so set no scale
        ([1, 316, 316, 316], False),  # most channels are dead
        ([1, 1, 316, 1], False),
        ([1, -316, 1, 1], False),
        ([0, 0, 1, 316], False),
    ],
)
def test_an_affine_folds_forward_where_its_factors_lie_together(factors: list[float], folds: bool) -> None:
    before = normalised(factors, weight=EVEN)
    after = fold_affines_forward(before)
    assert ("bn" not in after.by_name) == folds
    torch.testing.assert_close(results(after), results(before), rtol=1e-4, atol=1e-3)


def test_a_few_weak_channels_do_not_keep_it() -> None:
    """Rounding their weights costs little."""
    affine = node("bn", "affine", "x", weight=np.float32([0.001, 0.01, *[1] * 14]), bias=np.zeros(16, np.float32),
                  shape=(16, 6, 6))  # fmt: skip
    reader = conv("read", "bn", weight=np.ones((4, 16, 1, 1), np.float32))
    before = FloatGraph("net", "x", (16, 6, 6), (affine, reader), "read")
    assert "bn" not in fold_affines_forward(before).by_name


def test_the_limit_is_on_the_growth_of_the_rows() -> None:
    flat = np.ones((4, 4, 1, 1))
    assert "bn" not in fold_affines_forward(normalised([1, 1, 1, MOST_ROW_GROWTH], weight=flat)).by_name
    assert "bn" in fold_affines_forward(normalised([1, 1, 1, 1.01 * MOST_ROW_GROWTH], weight=flat)).by_name


def test_it_folds_where_the_weights_make_up_for_its_factors() -> None:
    weight = EVEN / np.array([1, 1, 1, 316]).reshape(1, 4, 1, 1)
    assert "bn" not in fold_affines_forward(normalised([1, 1, 1, 316], weight=weight)).by_name


def test_depthwise_rows_have_scales_of_their_own() -> None:
    assert "bn" not in fold_affines_forward(normalised([1, 1, 316, 1], groups=4)).by_name


def test_on_a_vector_it_folds_whatever_it_costs() -> None:
    affine = node("bn", "affine", "flat", shape=(4,), weight=np.float32([1, 1, 1, 316]), bias=np.zeros(4, np.float32))
    gap = node("gap", "global_avg_pool2d", "x", shape=(4, 1, 1))
    before = graph(gap, node("flat", "flatten", "gap", shape=(4,)), affine, linear("read", "bn"))
    assert "bn" not in fold_affines_forward(before).by_name
