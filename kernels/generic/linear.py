"""Matrix product of activations [N, in] with the rescale and the residual fused; channel blocks in parallel."""

from __future__ import annotations

from typing import Any

from tvm import s_tir, te

from hawq_tvm.core.ops import Linear
from hawq_tvm.kernels.generic.acceptance import BYTE_WEIGHT, PACKED_WEIGHT, canonical
from hawq_tvm.kernels.generic.blocking import Blocking, PackedWeight, PerChannel
from hawq_tvm.kernels.generic.costs import Work, cost, weighted_macs
from hawq_tvm.kernels.generic.expressions import Expr, int64, rescale
from hawq_tvm.kernels.generic.parallel import MIN_MACS, spread
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Request


def _build(request: Request, nibbles: bool) -> BuiltKernel:
    op, output = request.node.op, request.node.type
    assert isinstance(op, Linear)
    channels, features = op.weight.shape
    blocking = Blocking.choose(channels, 1, request.vector_bits)
    half, lane, block = blocking.halves, blocking.lanes, blocking.block
    x = te.placeholder((request.batch, features), request.inputs[0].dtype.carrier, name="x")
    packed = PackedWeight.pack(op.weight, 1, blocking, nibbles)
    weight = te.placeholder(packed.array.shape, str(packed.array.dtype), name="weight")
    per_channel = PerChannel(1, blocking)
    bias = per_channel.add("bias", op.bias)
    multiplier = per_channel.add("multiplier", op.rescale.multiplier)
    k = te.reduce_axis((0, features), "k")

    def product(n: Expr, b: Expr, hf: Expr, ln: Expr) -> Expr:
        return te.sum(x[n, k].astype("int32") * packed.read(weight, 0, b, k, hf, ln), axis=k)

    accumulator = te.compute((request.batch, -(-channels // block), half, lane), product, name="accumulator")
    inputs = [x]
    if op.rescale.residual is not None:
        inputs.append(te.placeholder((request.batch, channels), request.inputs[1].dtype.carrier, name="residual"))
        residual_multiplier = per_channel.add("residual_multiplier", op.multipliers[1])

    def result(n: Expr, c: Expr) -> Expr:
        b, hf, ln = c // block, (c // lane) % half, c % lane
        total = int64(accumulator[n, b, hf, ln] + bias[0, b, hf, ln]) * multiplier[0, b, hf, ln]
        if len(inputs) == 2:
            total = total + int64(inputs[1][n, c]) * residual_multiplier[0, b, hf, ln]
        return rescale(total, op.rescale, output.dtype)

    y = te.compute((request.batch, channels), result, name="y")
    function = te.create_prim_func([*inputs, weight, *per_channel.placeholders, y])
    threads = op.macs(output) * request.batch >= MIN_MACS
    return BuiltKernel(_schedule(function, threads), (packed.array, *per_channel.arrays))


def _schedule(function: Any, threads: bool) -> Any:
    schedule = s_tir.Schedule(function)
    accumulator, y = schedule.get_sblock("accumulator"), schedule.get_sblock("y")
    n, b, half, lane, k = schedule.get_loops(accumulator)
    schedule.reorder(n, b, k, half, lane)
    schedule.unroll(half)
    schedule.vectorize(lane)
    blocks = spread(schedule, schedule.fuse(n, b), threads)
    schedule.reverse_compute_at(y, blocks)
    schedule.decompose_reduction(accumulator, k)
    return schedule.mod["main"]


def _cost(request: Request) -> float:
    outputs = request.batch * request.node.type.shape[0]
    return cost("linear", request, Work(weighted_macs(request), outputs))


LINEAR_W4_GENERIC = Kernel(
    "linear_x8w4s32_generic",
    canonical(Linear, _cost, lambda request: _build(request, True), weight_bits=PACKED_WEIGHT),
)
LINEAR_W8_GENERIC = Kernel(
    "linear_x8w8s32_generic",
    canonical(Linear, _cost, lambda request: _build(request, False), weight_bits=BYTE_WEIGHT),
)
