"""The float graph's own rules, on graphs of a few nodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawq_tvm.core.float_ir import Clip, FloatNode
from hawq_tvm.core.ir import Window

from .float_graphs import INFINITE, POINT, RELU, conv, graph, node

bounds = st.floats(-9, 9)


@given(first=st.builds(Clip, bounds, bounds), second=st.builds(Clip, bounds, bounds), value=st.floats(-20, 20))
def test_a_clip_after_another_is_one_clip(first: Clip, second: Clip, value: float) -> None:
    """Bounds that cross too: the upper one decides, as PyTorch has it."""

    def applied(clip: Clip, x: float) -> float:
        return min(max(x, clip.lo), clip.hi)

    assert applied(second.after(first), value) == applied(second, applied(first, value))
    assert second.after(None) is second


def test_multiply_accumulates_are_counted_for_weights_alone() -> None:
    wide = node("a", "conv2d", "x", shape=(6, 5, 7), weight=np.zeros((6, 2, 3, 4), np.float32))
    assert wide.macs == 6 * 5 * 7 * 2 * 3 * 4
    assert wide.groups == 1
    assert node("b", "linear", "x", shape=(5,), weight=np.zeros((5, 9), np.float32)).macs == 45
    assert node("c", "affine", "x", weight=np.ones(4, np.float32)).macs == 0, "folded away, or a part of its layer"
    assert node("d", "add", "x", "a").macs == 0
    assert node("e", "conv2d", "x").macs == 0


def test_who_reads_what() -> None:
    net = graph(
        conv("a", "x"), node("pool", "max_pool2d", "a"), conv("b", "pool"), node("twice", "add", "b", "b"),
        node("flat", "flatten", "twice", shape=(144,)),
    )  # fmt: skip
    assert [n.name for n in net] == ["a", "pool", "b", "twice", "flat"]
    assert [n.name for n in net.layers] == ["a", "b"]
    assert net.by_name["pool"] is net.nodes[1]
    assert net.shapes == {"x": (4, 6, 6), **dict.fromkeys(["a", "pool", "b", "twice"], (4, 6, 6)), "flat": (144,)}
    users = {name: [user.name for user in found] for name, found in net.users.items()}
    assert users == {"x": ["a"], "a": ["pool"], "pool": ["b"], "b": ["twice", "twice"], "twice": ["flat"], "flat": []}
    assert [net.source(name) for name in ("x", "a", "pool", "flat")] == ["x", "a", "a", "twice"]


def affine(factor: float, offset: float | None) -> FloatNode:
    bias = None if offset is None else np.array([offset, 1, 1, 1], np.float32)
    return node("n", "affine", "relu", weight=np.array([1, 1, 1, factor], np.float32), bias=bias)


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (node("n", "max_pool2d", "relu"), True),
        (node("n", "max_pool2d", "raw"), False),
        (node("n", "add", "relu", "relu"), True),
        (node("n", "add", "relu", "raw"), False),
        (node("n", "add", "raw", "x"), False),
        (node("n", "add", "relu", "raw", clip=RELU), True),
        (conv("n", "relu"), False),
        (conv("n", "relu", clip=RELU), True),
        (conv("n", "raw", clip=Clip(0.0, 0.0)), True),
        (conv("n", "raw", clip=Clip(-1.0, 1.0)), False),
        (node("n", "clip", "relu", clip=Clip(-1.0, 6.0)), True),
        (node("n", "clip", "relu", clip=Clip(-2.0, -1.0)), False),
        (node("n", "clip", "relu", clip=Clip(0.0, -1.0)), False),
        (node("n", "clip", "raw", clip=Clip(-INFINITE, 6.0)), False),
        (affine(0.5, 0.5), True),
        (affine(0.0, 0.0), True),
        (affine(-0.5, 0.5), False),
        (affine(0.5, -0.5), False),
        (affine(0.5, None), False),
        (node("n", "affine", "raw", weight=np.ones(4, np.float32), bias=np.ones(4, np.float32)), False),
    ],
)
def test_which_values_cannot_be_negative(last: FloatNode, expected: bool) -> None:
    net = graph(conv("raw", "x"), conv("relu", "x", clip=RELU), last)
    known = net.nonnegative()
    assert (known["x"], known["raw"], known["relu"]) == (False, False, True)
    assert known["n"] is expected


def ties(*nodes: FloatNode) -> tuple[tuple[str, ...], ...]:
    return graph(*nodes).tied_groups()


def test_layers_that_read_one_value_are_tied_through_views() -> None:
    net = [
        conv("a", "x"),
        node("p", "max_pool2d", "a"),
        conv("b", "p"),
        conv("c", "a"),
        conv("d", "b"),
        conv("e", "d", "c"),
    ]
    assert ties(*net) == (("b", "c"),), "d and e read values of their own; a residual is not what is tied"


NORMALISATION = conv("norm", "x", groups=4)


def test_a_normalisation_of_the_input_is_a_part_of_its_layer() -> None:
    assert ties(NORMALISATION, conv("first", "norm"), conv("last", "first")) == (("norm", "first"),)
    assert ties(NORMALISATION, conv("a", "norm"), conv("b", "norm")) == (("norm", "a", "b"),)
    assert ties(NORMALISATION, node("sum", "add", "norm", "norm"), conv("a", "sum")) == (), "no layer reads it"


@pytest.mark.parametrize(
    "other",
    [
        conv("norm", "x"),
        conv("norm", "x", groups=2),
        conv("norm", "x", groups=4, window=Window((1, 1), (2, 2))),
        conv("norm", "x", groups=4, window=Window((3, 1), pads=(1, 0, 1, 0))),
        conv("norm", "x", groups=4, window=Window((1, 3), pads=(0, 1, 0, 1))),
        conv("norm", "x", "x", groups=4),
        node("norm", "conv2d", "x", window=POINT),
        node("norm", "linear", "x", weight=np.ones((1, 1, 1, 1), np.float32), window=POINT),
    ],
    ids=["dense", "grouped", "strided", "tall", "broad", "residual", "empty", "linear"],
)
def test_other_layers_are_tied_to_nothing(other: FloatNode) -> None:
    assert ties(other, conv("first", "norm")) == ()


def test_a_normalisation_further_on_is_a_layer_like_others() -> None:
    inner = conv("inner", "first", groups=4)
    assert ties(conv("first", "x"), inner, conv("last", "inner")) == ()


def apart(values: Sequence[object]) -> bool:
    return len(set(values)) == len(values)


def test_nodes_and_graphs_are_equal_to_themselves_alone() -> None:
    """They hold arrays, whose equality is an array: what is compared and hashed is the object."""
    assert apart([conv("a", "x"), conv("a", "x")])
    one = conv("a", "x")
    assert apart([graph(one), graph(one)])
