"""What rows of taps leave over: when it is gathered, and that weights meet the bytes that are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawq_tvm.core.ir import Graph, IntType, Node, TensorType, Window
from hawq_tvm.kernels.dot.conv2d import pixels_save_steps
from hawq_tvm.kernels.dot.cut import Cut, steps_of
from hawq_tvm.kernels.dot.rests import Rests

from .dot_kernels import UNIT, VNNI
from .test_dot_conv2d import conv, request_for


@given(rows=st.integers(1, 9), run=st.integers(5, 32), width=st.integers(1, 40), name=st.sampled_from(sorted(UNIT)))
def test_it_is_gathered_where_that_saves_steps(rows: int, run: int, width: int, name: str) -> None:
    unit = UNIT[name]
    moved_left = rows * -(-run // unit.step)
    steps = steps_of(rows, run, width, unit)
    if unit.step != 4 or width < unit.lanes:
        assert steps == moved_left
    else:
        assert steps == min(moved_left, rows * (run // 4) + -(-rows * (run % 4) // 4))


@given(rows=st.integers(2, 9), run=st.integers(5, 32).filter(lambda run: run % 4 > 0))
def test_weights_lie_row_by_row_and_then_what_is_left_over(rows: int, run: int) -> None:
    rests = Rests(rows, run % 4)
    runs = np.arange(1, 2 * rows * run + 1).reshape(2, rows, run).astype(np.int16)
    packed = rests.pack(runs)
    whole = run - rests.size
    assert packed.shape == (2, rows * whole + 4 * rests.words)
    for row in range(rows):
        assert np.array_equal(packed[:, row * whole : (row + 1) * whole], runs[:, row, :whole])
        left_over = packed[:, rows * whole + row * rests.size :][:, : rests.size]
        assert np.array_equal(left_over, runs[:, row, whole:])
    assert not packed[:, rows * run :].any(), "the rest of the last word weighs nothing"


@pytest.mark.parametrize(
    ("kernel", "channels", "steps"),
    [(7, 3, 37), (3, 3, 7), (5, 3, 19), (3, 1, None), (3, 4, None), (11, 3, None)],
)
def test_the_stems_of_networks(kernel: int, channels: int, steps: int | None) -> None:
    """Three bytes a pixel where the reader takes fewer steps so, and its rows are short enough to be written out."""
    op = conv(channels, 64, Window((kernel, kernel), (2, 2), (kernel // 2,) * 4))
    x = TensorType(IntType.parse("u8"), (channels, 64, 64), 1.0)
    request = request_for(op, x, "u8")
    graph = Graph("g", "x0", x, (Node("y", op, ("x0",), request.node.type),), "y")
    assert pixels_save_steps(graph, "x0", VNNI) == (steps is not None)
    if steps is not None:
        assert steps_of(kernel, kernel * channels, 32, VNNI) == steps


def test_pixels_that_nothing_reads_are_filled_up() -> None:
    """As a network's result of three channels: vectors of them are written."""
    op, x = conv(16, 3, Window((3, 3), pads=(1, 1, 1, 1))), TensorType(IntType.parse("u8"), (16, 8, 8), 1.0)
    node = Node("y", op, ("x",), TensorType(x.dtype, (3, 8, 8), 1.0))
    for unit in UNIT.values():
        assert not pixels_save_steps(Graph("g", "x", x, (node,), "y"), "y", unit)


def test_a_task_is_a_row_of_outputs_and_none_is_a_row_of_the_frame() -> None:
    """So that every task brings its share of the next panel closer."""
    x = TensorType(IntType.parse("u8"), (16, 7, 7), 1.0)
    request = request_for(conv(16, 32, Window((1, 1))), x, "u8", extra=(1, 1, 2, 1), batch=3)
    assert Cut.of(request, VNNI, packed=False).rows == 3 * 7
