"""Convolutions and linear layers on Tensor Cores: what is offered, and the function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.gpu_model import Prediction
from hawq_tvm.core.ops import Conv2d, Linear, WeightedOperator
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.cuda.acceptance import Build, Cost, canonical, packed
from hawq_tvm.kernels.cuda.gemm import Gemm, Tile
from hawq_tvm.kernels.cuda.gemm_costs import fastest, predict_layer
from hawq_tvm.kernels.cuda.gemm_epilogue import Residual, Rows, finish
from hawq_tvm.kernels.cuda.gemm_kernel import Products, Sums, accumulate, first_channel
from hawq_tvm.kernels.cuda.gemm_operands import Pixels, Weights
from hawq_tvm.kernels.cuda.gemm_shared import Layout, Planes, Swizzled
from hawq_tvm.kernels.cuda.gemm_tiles import MIN_BLOCKS, TILES, WMMA_TILES
from hawq_tvm.kernels.cuda.gemm_weights import channel_of_row, filled_up, first_sums, pack_weights
from hawq_tvm.kernels.cuda.gemm_wmma import Fragments
from hawq_tvm.kernels.cuda.launch import stored_parameters
from hawq_tvm.kernels.cuda.registers import load_channels, local
from hawq_tvm.kernels.cuda.storages import CHUNK_BYTES, stored_values
from hawq_tvm.kernels.cuda.values import words_of
from hawq_tvm.kernels.generic.acceptance import refuse_filling_up
from hawq_tvm.kernels.generic.functions import function
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Request


@dataclass(frozen=True)
class Family:
    """A way to multiply.

    Attributes:
        signed_alone: whether its instruction takes signed operands alone.
        tiles: what is chosen from.
        layout: of a step in shared memory.
        channel_of_row: the channel of each row of a tile.
        products: what multiplies.
        slowdown: of all that it does on the multiprocessors beside `mma.sync`; not measured.
    """

    signed_alone: bool
    tiles: Sequence[Tile]
    layout: Callable[[Tile], Layout]
    channel_of_row: Callable[[Tile], Any]
    products: Callable[[Gemm, Layout, Any], Products]
    slowdown: float


MMA = Family(False, TILES, Swizzled, channel_of_row, Sums.of, 1.0)
WMMA = Family(True, WMMA_TILES, Planes, lambda tile: np.arange(tile.n), Fragments.of, 1.3)


def build(
    request: Request, reads: tuple[Storage, ...], writes: Storage, family: Family = MMA, tile: Tile | None = None
) -> BuiltKernel:
    """The function of a convolution or a linear layer.

    Args:
        request: what to compute.
        reads: how the inputs are stored.
        writes: how the result is stored.
        family: how it multiplies.
        tile: how the product is cut; None for what the model takes for fastest.
    """
    op, node = request.node.op, request.node
    assert isinstance(op, WeightedOperator) and request.target.gpu is not None
    gemm = Gemm.of(request, reads[0], signed_alone=family.signed_alone)
    chosen = tile or fastest(layer_tiles(request, reads, writes, family))
    layout = family.layout(chosen)
    constants = [pack_weights(op, gemm, layout, family.channel_of_row(chosen))]
    constants += [filled_up(values, chosen) for values in (first_sums(op, gemm), op.rescale.multiplier)]
    if op.rescale.residual is not None and len(op.rescale.residual) > 1:
        constants.append(filled_up(op.rescale.residual, chosen))

    def launch(*buffers: Any) -> None:
        inputs, given = buffers[: len(reads)], buffers[len(reads) : -1]
        x, *rest = (words_of(buffer, "uint32") for buffer in inputs)
        rows, columns = gemm.tiles(chosen)
        with (
            T.launch_thread("blockIdx.x", rows * columns) as block,
            T.launch_thread("threadIdx.x", chosen.threads) as thread,
            T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", MIN_BLOCKS),
        ):
            first_row, column = T.bind(block // columns * chosen.m), T.bind(block % columns)
            products = family.products(gemm, layout, thread)
            channel = T.bind(column * chosen.n + first_channel(chosen, thread))
            products.start(given[1], channel)
            pixels = Pixels.of(gemm, layout, x, (first_row, column), thread)
            sums = accumulate(gemm, products, pixels, Weights.of(layout, given[0], column, thread))
            multiplier = load_channels(local(chosen.lane_channels, "uint32"), given[2], channel)
            residual = None
            if rest:
                residual = _residual(op, Rows.of(rest[0], request.inputs[1], reads[1]), given[3:], channel, chosen)
            y = Rows.of(words_of(buffers[-1], "uint32"), node.type, writes)
            finish(gemm, sums, op.rescale, multiplier, residual, y, (first_row, channel))

    inputs, output = stored_values(request, reads, writes)
    parameters = stored_parameters(inputs, constants, output, request.batch)
    return BuiltKernel(function(parameters, launch), tuple(constants))


def _residual(op: WeightedOperator, rows: Rows, given: Sequence[Any], channel: Any, tile: Tile) -> Residual:
    assert op.rescale.residual is not None
    multipliers = load_channels(local(tile.lane_channels, "uint32"), given[0], channel) if given else None
    words = local(tile.lane_channels // rows.a_word, "uint32")
    return Residual(rows, multipliers, int(op.rescale.residual[0]), words)


def _refuse_conv2d(bits: int) -> Callable[[Request], str | None]:
    """Why the kernel that multiplies in so many bits does not take a convolution, channels last."""

    def refuse(request: Request) -> str | None:
        op, node = request.node.op, request.node
        assert isinstance(op, Conv2d)
        if op.depthwise:
            return "multiplies channels with one another, and those of a depthwise convolution stay apart"
        reads = request.alternatives[node.inputs[0]]
        if op.groups > 1 and Gemm.of(request, reads).taps_per_chunk > 1:
            stored = reads.channels(request.inputs[0])
            return f"finds groups among the {CHUNK_BYTES} bytes that it loads of a pixel, which has {stored} channels"
        reason = refuse_filling_up(request.alternatives[node.name], node.type, op.rescale)
        return reason or _refuse_width(request, reads, bits)

    return refuse


def _refuse_linear(request: Request) -> str | None:
    """Why the kernel does not take a linear layer: vectors are canonical, and not filled up."""
    features, outputs = request.inputs[0].shape[0], request.node.type.shape[0]
    if features % CHUNK_BYTES:
        return f"loads {CHUNK_BYTES} features at once, of which {features} are no multiple"
    if request.node.type.dtype.bits <= 8 and outputs % 4:
        return f"stores 4 results at once, of which {outputs} are no multiple"
    return _refuse_width(request, Storage.canonical(request.inputs[0]), 8)


def _refuse_width(request: Request, reads: Storage, bits: int) -> str | None:
    gpu, op = request.target.gpu, request.node.op
    assert isinstance(op, WeightedOperator)
    if gpu is None:
        return f"needs to know the GPU's instructions, and nothing is known of '{request.target.name}'"
    if not gpu.architecture.native(bits):
        return f"multiplies {bits}-bit values, which {gpu.name} does not do natively"
    multiplied = Gemm.of(request, reads).bits
    if multiplied != bits:
        return (
            f"multiplies {bits}-bit values; weights of {op.weight_bits} bits with an input stored in {reads.bits} are "
            f"multiplied as {multiplied} bits on {gpu.name}"
        )
    return None


def layer_tiles(
    request: Request, reads: tuple[Storage, ...], writes: Storage, family: Family = MMA
) -> dict[Tile, Prediction]:
    """What a layer takes with each of a family's tiles that fit the GPU."""
    gemm = Gemm.of(request, reads[0], signed_alone=family.signed_alone)
    predictions = predict_layer(request, gemm, reads, writes, map(family.layout, family.tiles))
    return {tile: prediction.slowed(family.slowdown) for tile, prediction in predictions.items()}


def _cost(family: Family) -> Cost:
    def cost(request: Request, reads: tuple[Storage, ...], writes: Storage) -> Prediction:
        tiles = layer_tiles(request, reads, writes, family)
        return tiles[fastest(tiles)]

    return cost


def _build(family: Family) -> Build:
    return lambda request, reads, writes: build(request, reads, writes, family)


CONV2D_W4_MMA = Kernel("conv2d_x4w4s32_mma_nhwc", packed(Conv2d, _cost(MMA), _build(MMA), refuse=_refuse_conv2d(4)))
CONV2D_W8_MMA = Kernel("conv2d_x8w8s32_mma_nhwc", packed(Conv2d, _cost(MMA), _build(MMA), refuse=_refuse_conv2d(8)))
LINEAR_W8_MMA = Kernel("linear_x8w8s32_mma", canonical(Linear, _cost(MMA), _build(MMA), refuse=_refuse_linear))
CONV2D_W4_WMMA = Kernel(
    "conv2d_x4w4s32_wmma_8x8x32_nhwc", packed(Conv2d, _cost(WMMA), _build(WMMA), refuse=_refuse_conv2d(4))
)
CONV2D_W8_WMMA = Kernel(
    "conv2d_x8w8s32_wmma_16x16x16_nhwc", packed(Conv2d, _cost(WMMA), _build(WMMA), refuse=_refuse_conv2d(8))
)
LINEAR_W8_WMMA = Kernel(
    "linear_x8w8s32_wmma_16x16x16", canonical(Linear, _cost(WMMA), _build(WMMA), refuse=_refuse_linear)
)
