"""Functions that a GPU runs: their parameters, and a thread for each word of the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.ir import Array
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.cuda.storages import Stored, stored_values
from hawq_tvm.kernels.cuda.values import Place, Value, int32, when
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.generic.functions import Parameter, constant_parameters, function, stored_parameter
from hawq_tvm.kernels.interface import BuiltKernel, Request

BLOCK = 128
"""Threads of a block: four warps, one for each scheduler of a multiprocessor."""

Body = Callable[[Sequence[Value], Sequence[Any], Value, Place], Sequence[Expr]]
"""Gets the inputs, the constants' buffers, the result and where the thread's first element lies. Gives the thread's
integers, as int32, one a lane of the result."""


def stored_parameters(
    inputs: Sequence[Stored], constants: Sequence[Array], output: Stored, batch: int
) -> list[Parameter]:
    """What a function of these inputs, constants and result takes, in the order of `BuiltKernel`."""
    return [
        *(stored_parameter(f"x{i}", *stored, batch) for i, stored in enumerate(inputs)),
        *constant_parameters(constants),
        stored_parameter("y", *output, batch),
    ]


def node_by_words(
    request: Request, reads: tuple[Storage, ...], writes: Storage, body: Body, constants: Sequence[Array] = ()
) -> BuiltKernel:
    """The kernel of a node in which each thread computes one word of the result: see `thread_a_word`.

    Args:
        request: the node.
        reads: how each input is stored.
        writes: how the result is stored.
        body: a thread's work.
        constants: what the kernel is given beside the inputs.
    """
    inputs, output = stored_values(request, reads, writes)
    return thread_a_word(inputs, constants, output, request.batch, body)


def thread_a_word(
    inputs: Sequence[Stored], constants: Sequence[Array], output: Stored, batch: int, body: Body
) -> BuiltKernel:
    """A kernel in which each thread computes one word of the result, or one element where the result is canonical.

    Channels that fill up are computed like others and set to zero.

    Args:
        inputs: type and storage of each.
        constants: what the kernel is given beside them.
        output: type and storage of the result.
        batch: samples.
        body: a thread's work.
    """
    types = [type for type, _ in inputs]
    storages = [storage for _, storage in inputs]

    def launch(*buffers: Any) -> None:
        count = len(inputs)
        y = Value.of(buffers[-1], *output)
        values = [Value.of(*given) for given in zip(buffers[:count], types, storages, strict=True)]
        height, width = y.size
        runs = y.storage.channels(y.type) // y.lanes
        threads = batch * height * width * runs
        grid = -(-threads // BLOCK)
        with T.launch_thread("blockIdx.x", grid) as block, T.launch_thread("threadIdx.x", BLOCK) as thread:
            task = T.bind(block * BLOCK + thread)
            with T.If(task < threads), T.Then():
                at = _place(task, runs, y)
                run = body(values, buffers[count:-1], y, at)
                y.store_run([_filled(value, at[1] + lane, y) for lane, value in enumerate(run)], *at)

    return BuiltKernel(function(stored_parameters(inputs, constants, output, batch), launch), tuple(constants))


def _place(task: Expr, runs: int, y: Value) -> Place:
    """Sample, first channel, row and column of a thread: neighbours write neighbouring memory."""
    height, width = y.size
    if y.storage.order == "NHWC":
        pixel, c = task // runs, task % runs * y.lanes
        return pixel // (height * width), c, pixel // width % height, pixel % width
    return task // (runs * height * width), task // (height * width) % runs, task // width % height, task % width


def _filled(value: Expr, channel: Expr, y: Value) -> Expr:
    """Zero in channels that are none of the value's."""
    channels = y.type.shape[0]
    return value if y.storage.channels(y.type) == channels else when(channel < int32(channels), value)
