"""Linear layers on AMX: samples are the pixels of one image.

A task takes some panels of 32 outputs. Sums of a block are rescaled by plain loops: outputs are few, and may be of 32
bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.ops import Linear
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.dot.product import first_sums
from hawq_tvm.kernels.dot.vectors import flat
from hawq_tvm.kernels.generic.expressions import Expr, int64, rescale
from hawq_tvm.kernels.generic.functions import constant_parameters, function, stored_parameter
from hawq_tvm.kernels.interface import BuiltKernel, Request
from hawq_tvm.kernels.x86 import amx_tiles as tiles
from hawq_tvm.kernels.x86.amx_copies import samples_as_pixels, zero_of
from hawq_tvm.kernels.x86.amx_epilogue import NATURAL, in_lanes
from hawq_tvm.kernels.x86.amx_operands import of_samples
from hawq_tvm.kernels.x86.amx_product import (
    Product,
    Split,
    Sums,
    keep_size,
    multiply_by_tiles,
    multiply_by_vectors,
)
from hawq_tvm.kernels.x86.amx_storages import BLOCK_CHANNELS, BLOCK_PIXELS
from hawq_tvm.kernels.x86.amx_weights import Weights, pack_weight, unpacked_panel


def build_linear(request: Request, *, packed: bool) -> BuiltKernel:
    """The function and its constants; `packed`: whether two weights share a byte."""
    op, node, batch = request.node.op, request.node, request.batch
    assert isinstance(op, Linear)
    operand = of_samples(request.inputs[0].shape[0], batch)
    constants = (
        pack_weight(op.weight, operand, packed=packed),
        operand.offsets,
        in_lanes(first_sums(op, zero_of(request.inputs[0])), NATURAL),
        *(array.astype(np.int32) for array in op.multipliers),
    )
    panels, blocks = len(constants[0]), -(-batch // BLOCK_PIXELS)
    split = Split.choose(panels, 1, operand.steps * blocks, 1)
    types = (*request.inputs, node.type)
    *values, result = (
        stored_parameter(f"value{i}", type, Storage.canonical(type), batch) for i, type in enumerate(types)
    )
    parameters = [*values, *constant_parameters(constants), result]

    def body(*buffers: Any) -> None:
        inputs, y = buffers[: len(values)], buffers[-1]
        weight, offsets, bias, *multipliers = buffers[len(values) : -1]
        left = T.alloc_buffer((operand.sample_bytes,), "uint8")
        keep_size(left)
        samples_as_pixels(inputs[0], left, operand, request.inputs[0], batch)
        stream = flat(weight)
        granted = T.bind(tiles.permission())

        def rescale_block(panel: Expr, block: Expr, sums: Any) -> None:
            samples = tirx.min(BLOCK_PIXELS, batch - block * BLOCK_PIXELS)
            channels = tirx.min(BLOCK_CHANNELS, op.out_channels - panel * BLOCK_CHANNELS)
            with T.serial(samples) as sample, T.serial(channels) as channel:
                n, c = block * BLOCK_PIXELS + sample, panel * BLOCK_CHANNELS + channel
                total = int64(sums[sample * BLOCK_CHANNELS + channel]) * int64(multipliers[0][c])
                if len(multipliers) == 2:
                    total += int64(inputs[1][n, c]) * int64(multipliers[1][c])
                T.buffer_store(y, rescale(total, op.rescale, node.type.dtype), [n, c])

        with (T.parallel if split.across > 1 else T.serial)(split.across) as task:
            sums = T.alloc_buffer((BLOCK_PIXELS * BLOCK_CHANNELS,), "int32")
            keep_size(sums)
            unpacked = unpacked_panel(operand.steps) if packed else None
            weights = Weights(stream, panels, operand.steps, unpacked)
            product = Product(operand, left, tirx.const(0, "int32"), weights, bias, offsets)
            to = Sums(sums, 0, BLOCK_CHANNELS, tiles.ROWS * BLOCK_CHANNELS, tiles.ROWS)

            def every_block(*, on_tiles: bool) -> None:
                with T.serial(tirx.min(split.panels, panels - task * split.panels)) as p:
                    panel = task * split.panels + p
                    weights.unpack(panel)
                    with T.serial(blocks) as block:
                        if on_tiles:
                            multiply_by_tiles(product, panel, block * BLOCK_PIXELS, to, ahead=(block, blocks))
                        else:
                            multiply_by_vectors(product, panel, block * BLOCK_PIXELS, to)
                        rescale_block(panel, block, sums)

            with T.If(granted == 0):
                with T.Then():
                    tiles.configure()
                    every_block(on_tiles=True)
                    tiles.release()
                with T.Else():
                    every_block(on_tiles=False)

    return BuiltKernel(function(parameters, body), constants)
