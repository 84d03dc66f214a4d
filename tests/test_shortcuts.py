"""Shortcuts of option A: what users write is captured, rounds nothing, takes no bits, is equal in every back end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hawq_tvm.backends.onnx.io import to_onnx
from hawq_tvm.backends.onnx.runner import OnnxRuntimeModule
from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.backends.pytorch.integer_module import IntegerModule
from hawq_tvm.core import interpreter
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.quantizer import Range
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.frontend.capture import capture

from .builders import captured, compiled, integer_samples, integers_of, ranges_of, same


@dataclass(frozen=True)
class Shape:
    """An image, and how a shortcut makes it smaller and gives it channels."""

    channels: int
    before: int
    after: int
    height: int
    width: int
    strides: tuple[int, int]


SHAPES = st.builds(
    Shape,
    channels=st.integers(1, 9),
    before=st.integers(0, 5),
    after=st.integers(0, 5),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)


class OptionA(nn.Module):
    """A convolution beside a shortcut; with a ReLU before them, or signed values."""

    def __init__(self, shape: Shape, signed: bool) -> None:
        super().__init__()
        self.shape, self.signed = shape, signed
        out = shape.before + shape.channels + shape.after
        self.stem = nn.Conv2d(2, shape.channels, 1)
        self.conv = nn.Conv2d(shape.channels, out, 3, shape.strides, 1)

    def forward(self, x: Tensor) -> Tensor:
        (down, right), shape = self.shape.strides, self.shape
        x = self.stem(x) if self.signed else F.relu(self.stem(x))
        return self.conv(x) + F.pad(x[:, :, ::down, ::right], (0, 0, 0, 0, shape.before, shape.after))


@settings(max_examples=6)
@given(SHAPES, st.booleans(), st.integers(0, 99))
def test_any_shortcut_is_captured_and_equal_in_every_back_end(shape: Shape, signed: bool, seed: int) -> None:
    torch.manual_seed(seed)
    network = OptionA(shape, signed).eval()
    x = torch.randn(3, 2, shape.height, shape.width)
    graph = capture(network, x)
    with torch.no_grad():
        torch.testing.assert_close(FloatModule(graph)(x), network(x), rtol=1e-4, atol=1e-5)
    assert [node.name for node in graph.layers] == ["stem", "conv"]
    ranges = {"x": Range(-3.0, 3.0), **{node.name: Range(-2.0, 2.5) for node in graph}}
    bits = {name: Bits.parse("w4a4") for name in ("stem", "conv")}
    integers = integerize(graph, ranges, BitConfig(bits))
    values = interpreter.quantize_input(x.numpy(), integers.input_type)
    expected = interpreter.run(integers, values)
    for storages in ("canonical", "channels_last"):
        with TemporaryDirectory() as folder:
            module = compiled(integers, Path(folder), storages=storages)
            assert same(expected, module.values(values)) == []
    assert same(expected, IntegerModule(integers).run(values)) == []
    assert same(expected, OnnxRuntimeModule(to_onnx(integers)).run(values)) == []


SPELLINGS = {
    "a pad": lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)),
    "a constant pad": lambda x: nn.ConstantPad3d((0, 0, 0, 0, 2, 2), 0.0)(x[..., ::2, ::2]),
    "negative starts": lambda x: F.pad(x[:, :, -12::2, -12::2], (0, 0, 0, 0, 2, 2)),
    "ends that leave nothing out": lambda x: F.pad(x[:, :, 0:11:2, :12:2], (0, 0, 0, 0, 2, 2)),
    "a pool and zeros": lambda x: torch.cat([F.avg_pool2d(x, 1, 2), torch.zeros_like(x[:, :, ::2, ::2])], 1),
    "a pool and nothing of itself": lambda x: torch.cat((F.avg_pool2d(x, 1, 2), F.avg_pool2d(x, 1, 2).mul(0)), 1),
    "zeros on both sides": lambda x: (lambda y: torch.cat([y * 0, y, y * 0.0], 1))(x[:, :, ::2, ::2]),
}


class Spelling(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = SPELLINGS[self.name](self.conv(x))
        return made


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_becomes_two_nodes(name: str) -> None:
    network, x = Spelling(name).eval(), torch.randn(2, 3, 12, 12)
    graph = capture(network, x)
    assert [node.kind for node in graph] == ["conv2d", "max_pool2d", "pad_channels"]
    with torch.no_grad():
        assert torch.equal(FloatModule(graph)(x), network(x))


def test_zeros_beside_several_values() -> None:
    class Joined(Spelling):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return torch.cat([y * 0, y, F.relu(y), torch.zeros_like(y)], 1)

    network, x = Joined("").eval(), torch.randn(2, 3, 12, 12)
    graph = capture(network, x)
    assert [(node.kind, node.channel_pads) for node in graph][-2:] == [("concat", None), ("pad_channels", (4, 4))]
    with torch.no_grad():
        assert torch.equal(FloatModule(graph)(x), network(x))


def test_a_subsample_that_something_else_reads_stays() -> None:
    class Twice(Spelling):
        def forward(self, x: Tensor) -> Tensor:
            rows = self.conv(x)[:, :, ::2]
            return torch.cat([rows[:, :, ::3], rows[:, :, ::3] + 1], 1)

    graph = capture(Twice("").eval(), torch.randn(2, 3, 12, 12))
    pools = [node for node in graph if node.kind == "max_pool2d"]
    assert [(pool.inputs, pool.window.strides) for pool in pools if pool.window] == [
        (("conv",), (2, 1)), (("max_pool2d",), (3, 1)), (("max_pool2d",), (3, 1)),
    ]  # fmt: skip


def test_a_shortcut_copies_the_integers_that_it_is_given() -> None:
    """At the residual's 8 bits, whatever the layers beside it have."""
    graph = integers_of("Padded", ("w4a4",))
    values = interpreter.run(graph, integer_samples(graph))
    first, second = (node for node in graph if node.op.kind == "pad_channels")
    pooled = graph.node(first.inputs[0])
    assert (first.type.dtype.bits, first.type.scale) == (8, graph.node("stem").type.scale)
    assert np.array_equal(values[first.name][:, 1:6], values["stem"][:, :, ::2, ::2])
    assert np.array_equal(values[pooled.name], values["stem"][:, :, ::2, ::2])
    assert not values[second.name][:, 8:].any()


def test_a_shortcut_is_given_no_bits_and_ties_nothing() -> None:
    graph = captured("Padded")
    assert [layer.name for layer in graph.layers] == ["stem", "down1", "down2", "fc"]
    assert graph.tied_groups() == ()
    assert graph.source(graph.by_name["down1"].inputs[1]) == "stem"
    assert set(ranges_of("Padded")) >= {"stem", "down1", "down2"}
