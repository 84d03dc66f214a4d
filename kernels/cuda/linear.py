"""Matrix product with a batch of vectors, the simple exact form: a thread for each output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.gpu_model import Prediction
from hawq_tvm.core.ops import Linear
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.cuda.acceptance import canonical
from hawq_tvm.kernels.cuda.conv2d import finish, per_channel
from hawq_tvm.kernels.cuda.costs import simple_cost
from hawq_tvm.kernels.cuda.launch import node_by_words
from hawq_tvm.kernels.cuda.registers import accumulators
from hawq_tvm.kernels.cuda.values import Place, Value
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Request


def _build(request: Request, reads: tuple[Storage, ...], writes: Storage) -> BuiltKernel:
    op = request.node.op
    assert isinstance(op, Linear)
    features = op.weight.shape[1]
    # Features outermost, so that neighbouring threads read neighbouring weights.
    constants = [np.ascontiguousarray(op.weight.T), *per_channel(op, op.out_channels)]

    def body(inputs: Sequence[Value], given: Sequence[Any], y: Value, at: Place) -> list[Expr]:
        (n, c, h, w), (weights, bias, *multipliers) = at, given
        total = accumulators(1, 0)
        T.buffer_store(total, bias[c], [0])
        with T.serial(features) as feature:
            product = inputs[0].load(n, feature, h, w) * weights[feature, c].astype("int32")
            T.buffer_store(total, total[0] + product, [0])
        residual = [inputs[1].load(n, c, h, w)] if len(inputs) > 1 else []
        return finish([total[0]], op, multipliers, residual, c)

    return node_by_words(request, reads, writes, body, constants)


def _cost(request: Request, reads: tuple[Storage, ...], writes: Storage) -> Prediction:
    op = request.node.op
    assert isinstance(op, Linear)
    return simple_cost(request, reads, writes, op.weight.shape[1], op.weight.size)


LINEAR_CUDA = Kernel("linear_x8w8s32_cuda", canonical(Linear, _cost, _build))
