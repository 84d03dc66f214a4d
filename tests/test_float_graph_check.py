"""`FloatGraph.check`, rule by rule: what each kind of node must be, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from hawq_tvm.core.errors import GraphError
from hawq_tvm.core.float_ir import MOST_ELEMENTS, Clip, FloatGraph, FloatNode
from hawq_tvm.core.ir import Window

X = (4, 5, 7)
NAN = float("nan")


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def conv(out: int = 6, groups: int = 1, kernel: tuple[int, int] = (3, 2), **fields: Any) -> dict[str, Any]:
    weight = ones(out, 4 // groups, *kernel)
    return {"weight": weight, "bias": ones(out), "window": Window(kernel), "groups": groups, **fields}


def checked(kind: str, *inputs: tuple[int, ...], shape: tuple[int, ...], **fields: Any) -> None:
    """Check a graph whose last node is of that kind and reads values of those shapes."""
    first, *others = inputs or (X,)
    names, nodes = ["x"], list[FloatNode]()
    for number, other in enumerate(others):
        weight = ones(int(np.prod(other)), int(np.prod(first)))  # any shape that is no image is made by a linear
        if len(other) == 1:
            nodes += [FloatNode(f"flat{number}", "flatten", ("x",), (weight.shape[1],))]
            nodes += [FloatNode(f"in{number}", "linear", (f"flat{number}",), other, weight, ones(len(weight)))]
        else:
            kernel = (first[1] - other[1] + 1, first[2] - other[2] + 1)
            made = ones(other[0], first[0], *kernel)
            nodes += [FloatNode(f"in{number}", "conv2d", ("x",), other, made, ones(other[0]), Window(kernel))]
        names.append(f"in{number}")
    nodes.append(FloatNode("y", kind, tuple(names), shape, **fields))
    FloatGraph("g", "x", first, tuple(nodes), "y").check()


GOOD: dict[str, tuple[str, tuple[tuple[int, ...], ...], tuple[int, ...], dict[str, Any]]] = {
    "a convolution": ("conv2d", (X,), (6, 3, 6), conv()),
    "in groups": ("conv2d", (X,), (6, 3, 6), conv(groups=2)),
    "with a residual": ("conv2d", (X, (6, 3, 6)), (6, 3, 6), conv()),
    "a linear layer": ("linear", ((4,),), (3,), {"weight": ones(3, 4), "bias": ones(3)}),
    "a sum": ("add", (X, X), X, {}),
    "values side by side": ("concat", (X, (2, 5, 7), (3, 5, 7)), (9, 5, 7), {}),
    "one value": ("concat", (X,), X, {}),
    "flat": ("flatten", (X,), (140,), {}),
    "a clip": ("clip", (X,), X, {"clip": Clip(0, 6)}),
    "a pool": ("max_pool2d", (X,), (4, 3, 6), {"window": Window((3, 2))}),
    "averages": ("avg_pool2d", (X,), (4, 3, 6), {"window": Window((3, 2)), "counts": ones(3, 6) / 2}),
    "channels of zeros": ("pad_channels", (X,), (9, 5, 7), {"channel_pads": (2, 3)}),
    "channels of zeros behind": ("pad_channels", (X,), (7, 5, 7), {"channel_pads": (0, 3)}),
    "one average": ("global_avg_pool2d", (X,), (4, 1, 1), {}),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_stands(name: str) -> None:
    kind, inputs, shape, fields = GOOD[name]
    checked(kind, *inputs, shape=shape, **fields)
    with pytest.raises(GraphError, match=re.escape(f"node 'y' ({kind}) makes {shape} and is said to make (1, 1)")):
        checked(kind, *inputs, shape=(1, 1), **fields)


BAD: dict[str, tuple[str, tuple[tuple[int, ...], ...], dict[str, Any], str]] = {
    "a clip from NaN": ("clip", (X,), {"clip": Clip(NAN, 1)}, "it clips to Clip(lo=nan, hi=1)"),
    "a clip to NaN": ("clip", (X,), {"clip": Clip(0, NAN)}, "it clips to Clip(lo=0, hi=nan)"),
    "no bounds": ("clip", (X,), {}, "it has no bounds"),
    "another kind": ("pad", (X,), {}, "it is of no known kind; known are conv2d, linear, add, concat"),
    "no channels": ("pad_channels", (X,), {}, "it adds channels None"),
    "fewer channels": ("pad_channels", (X,), {"channel_pads": (2, -1)}, "it adds channels (2, -1), expected two"),
    "two for one": ("flatten", (X, X), {}, "it reads 2 values"),
    "one for two": ("add", (X,), {}, "it reads 1 values"),
    "three for two": ("add", (X, X, X), {}, "it reads 3 values"),
    "three for a layer": ("conv2d", (X, (6, 3, 6), (6, 3, 6)), conv(), "it reads 3 values"),
    "another residual": ("conv2d", (X, (5, 3, 6)), conv(), "it adds (5, 3, 6) to a result of (6, 3, 6)"),
    "a sum of two shapes": ("add", (X, (2, 5, 7)), {}, "it joins values of the shapes [(4, 5, 7), (2, 5, 7)]"),
    "rows that differ": ("concat", (X, (2, 4, 7)), {}, "it joins values of the shapes"),
    "a last one that differs": ("concat", (X, (2, 5, 7), (2, 5, 6)), {}, "it joins values of the shapes"),
    "no window": ("max_pool2d", (X,), {}, "it has no window"),
    "a pool of vectors": ("max_pool2d", ((4,),), {"window": Window((1, 1))}, "it takes [C, H, W], got (4,)"),
    "no counts": ("avg_pool2d", (X,), {"window": Window((3, 2))}, "its counts is none, expected float32 (3, 6)"),
    "counts of 0": ("avg_pool2d", (X,), {"window": Window((3, 2)), "counts": np.eye(3, 6, dtype=np.float32)},
                    "its counts are not all above 0"),
    "counts that are turned": ("avg_pool2d", (X,), {"window": Window((3, 2)), "counts": ones(6, 3)},
                               "its counts is float32 (6, 3), expected float32 (3, 6)"),
    "no weight": ("conv2d", (X,), conv(weight=None), "its weight is none, expected float32"),
    "no numbers": ("conv2d", (X,), conv(weight=ones(0, 4, 3, 2)), "its weight is float32 (0, 4, 3, 2)"),
    "double precision": ("conv2d", (X,), conv(weight=np.ones((6, 4, 3, 2))), "its weight is float64 (6, 4, 3, 2)"),
    "one NaN": ("conv2d", (X,), conv(bias=np.array([1, 1, NAN, 1, 1, 1], np.float32)), "its bias holds NaN"),
    "too few biases": ("conv2d", (X,), conv(bias=ones(5)), "its bias is float32 (5,), expected float32 (6,)"),
    "another kernel": ("conv2d", (X,), conv(window=Window((2, 3))), "its weight (6, 4, 3, 2) does not fit its window"),
    "no window of a layer": ("conv2d", (X,), conv(window=None), "does not fit its window None"),
    "five axes": ("conv2d", (X,), conv(weight=ones(6, 4, 3, 2, 1)), "does not fit its window"),
    "other channels": ("conv2d", (X,), conv(weight=ones(6, 3, 3, 2)), "in 1 groups does not fit 4 channels"),
    "groups that cut a channel": ("conv2d", (X,), conv(out=6, groups=4), "in 4 groups does not fit 4 channels"),
    "no groups": ("conv2d", (X,), conv(weight=ones(6, 4, 3, 2)) | {"groups": 0}, "in 0 groups does not fit"),
    "a linear layer on an image": ("linear", (X,), {"weight": ones(3, 4), "bias": ones(3)},
                                   "its weight (3, 4) does not fit an input of (4, 5, 7)"),
    "a linear layer of three axes": ("linear", ((4, 2),), {"weight": ones(3, 4, 2), "bias": ones(3)},
                                     "its weight (3, 4, 2) does not fit an input of (4, 2)"),
    "other features": ("linear", ((4,),), {"weight": ones(3, 5), "bias": ones(3)},
                       "its weight (3, 5) does not fit an input of (4,)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name: str) -> None:
    kind, inputs, fields, message = BAD[name]
    with pytest.raises(GraphError, match=re.escape(f"node 'y' ({kind}): ") + ".*" + re.escape(message)):
        checked(kind, *inputs, shape=(1,), **fields)


@pytest.mark.parametrize("shape", [(), (0,), (4, -1, 7), (MOST_ELEMENTS + 1,), (2, 1 << 31)])
def test_sizes_that_are_none(shape: tuple[int, ...]) -> None:
    message = re.escape(f"has the shape {shape}, expected 1 to 2,147,483,648 elements a sample")
    with pytest.raises(GraphError, match=f"value 'x' {message}"):
        FloatGraph("g", "x", shape, (), "x").check()
    with pytest.raises(GraphError, match=f"value 'y' {message}"):
        checked("flatten", X, shape=shape)


def test_the_largest_size_stands() -> None:
    FloatGraph("g", "x", (MOST_ELEMENTS,), (), "x").check()


@pytest.mark.parametrize("kind", ["conv2d", "concat", "flatten"])
def test_a_node_reads_something(kind: str) -> None:
    with pytest.raises(GraphError, match=re.escape(f"node 'y' ({kind}): it reads 0 values")):
        FloatGraph("g", "x", X, (FloatNode("y", kind, (), X),), "y").check()
