"""TIR functions whose loops are written out, and what they take."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.ir import Array, Shape, TensorType
from hawq_tvm.core.storage import Storage

Parameter = tuple[str, Shape, str]
"""Name, shape and dtype of a buffer that a function takes."""


def stored_parameter(name: str, type: TensorType, storage: Storage, batch: int) -> Parameter:
    """A value in memory."""
    return name, storage.shape(type, batch), storage.dtype(type)


def constant_parameters(constants: Sequence[Array]) -> list[Parameter]:
    """What a function is given beside its inputs, named by number."""
    return [(f"constant{i}", array.shape, str(array.dtype)) for i, array in enumerate(constants)]


def function(parameters: Sequence[Parameter], body: Callable[..., None], *, anywhere: Collection[str] = ()) -> Any:
    """A PrimFunc of explicit loops, or of one kernel launch.

    Args:
        parameters: in the order of the arguments.
        body: emits the loops, or the launch; gets the buffers.
        anywhere: names of buffers that may begin at any of their elements, not at a cache line alone.
    """
    with IRBuilder() as builder, T.prim_func():
        T.func_attr({"tirx.noalias": True})
        buffers = [
            T.arg(name, T.buffer(shape, dtype, align=np.dtype(dtype).itemsize if name in anywhere else -1))
            for name, shape, dtype in parameters
        ]
        with T.sblock("root"):
            body(*buffers)
    return builder.get()
