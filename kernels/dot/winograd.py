"""Convolution of 3x3 windows by a quarter of the multiplications, exactly, where instructions multiply 16-bit numbers.

A tile is 4x4 pixels of the result and the 6x6 pixels that they read. Three steps: all channels of some tiles become
numbers at 36 points; at each point these are one product of matrices, tiles by channels; and the 36 sums of a tile
become its 16 results (`kernels/dot/minimal_filtering.py` has the arithmetic and why it is exact). Multiplications are
by instructions of half the rate, so that half of the time is won at best, less what the transforms take.

Weights stay bytes in memory and become 16-bit numbers at 36 points in each call: eight times as many bytes, which would
come from far otherwise.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np

from hawq_tvm.core.ops import Conv2d
from hawq_tvm.kernels.dot.cut import L2_BYTES, MIN_MACS
from hawq_tvm.kernels.dot.minimal_filtering import BOUND, OUTPUTS, TAPS
from hawq_tvm.kernels.dot.panels import Panels
from hawq_tvm.kernels.dot.result import build_function, per_channel, refuse
from hawq_tvm.kernels.dot.unit import Unit
from hawq_tvm.kernels.dot.winograd_loops import ALL_POINTS, Layout, Loops, Tiling
from hawq_tvm.kernels.generic.acceptance import ANY_WEIGHT, PACKED_WEIGHT, decline, with_weights
from hawq_tvm.kernels.generic.costs import Work
from hawq_tvm.kernels.interface import BuiltKernel, Kernel, Offer, Request

SCRATCH_BYTES = 700 * 1024
"""What tiles that are multiplied together may take of the second cache, before and after their products."""

MOST_CHANNELS = 384
"""Input channels up to which the second cache holds a block's weights at 12 points beside tiles; 512 lost at 7x7."""

FEW_PASSES = 3
"""So often weights that the second cache does not hold are transformed anew rather than kept from the first time."""


def layout_of(request: Request, unit: Unit) -> Layout:
    """What a layer's work is."""
    source, target = (request.alternatives[name] for name in (request.node.inputs[0], request.node.name))
    _, height, width = request.node.type.shape
    channels, out = source.channels(request.inputs[0]), target.channels(request.node.type)
    panels = Panels(replace(unit, step=2), out, channels // 2 * TAPS * TAPS)
    return Layout(unit, panels, channels, request.batch, -(-height // OUTPUTS), -(-width // OUTPUTS))


def choose(request: Request, layout: Layout) -> Tiling:
    """By what the caches hold, and so that threads have more than one task."""
    op, sizes = request.node.op, _sizes(layout)
    assert isinstance(op, Conv2d)
    threads = op.macs(request.node.type) * request.batch >= MIN_MACS
    if threads and layout.panels.blocks == 1:
        sizes = sizes[:-1] or sizes
    if layout.weights_bytes <= L2_BYTES:
        rows = next((rows for rows in sizes if rows * layout.columns >= layout.unit.max_tile), sizes[-1])
        return Tiling(rows, True, threads, own=True)
    rows = max((rows for rows in sizes if layout.scratch_bytes(rows) <= SCRATCH_BYTES), default=1)
    if layout.all_rows // rows <= FEW_PASSES:
        return Tiling(rows, False, threads, own=True)
    rows = max((rows for rows in sizes if layout.scratch_bytes(rows) <= L2_BYTES), default=1)
    return Tiling(rows, True, threads, own=False)


def candidates(request: Request, layout: Layout) -> tuple[Tiling, ...]:
    """All that are worth timing, the chosen one first."""
    own = choose(request, layout)
    fitting = [rows for rows in _sizes(layout) if layout.scratch_bytes(rows) <= 2 * SCRATCH_BYTES] or [1]
    choices = (Tiling(*choice) for choice in product(fitting, (True, False), (True, False), (True, False)))
    return tuple(dict.fromkeys((own, *choices)))


def _sizes(layout: Layout) -> list[int]:
    """Rows of tiles that can be taken together so that none are left over."""
    return [rows for rows in range(1, layout.all_rows + 1) if layout.all_rows % rows == 0]


def _build(request: Request, unit: Unit, tiling: Tiling) -> BuiltKernel:
    op, layout = request.node.op, layout_of(request, unit)
    assert isinstance(op, Conv2d)
    weight = np.zeros((op.out_channels, layout.channels, TAPS * TAPS), np.int8)
    weight[:, : op.weight.shape[1]] = op.weight.reshape(*op.weight.shape[:2], -1)
    pairs = weight.reshape(op.out_channels, -1, 2, TAPS * TAPS).transpose(0, 1, 3, 2)
    stream = layout.panels.pack(pairs.reshape(op.out_channels, -1))
    bytes_ = unit.product(op.weight, request.inputs[0], request.alternatives[request.node.inputs[0]], request.features)
    constants = stream, *per_channel(request, layout.panels, bytes_)
    return build_function(request, constants, lambda buffers: Loops(request, layout, tiling, buffers).emit())


def _refuse(request: Request, unit: Unit) -> str | None:
    """Why a layer is not computed so; None where it is."""
    op = request.node.op
    assert isinstance(op, Conv2d)
    window, ones = op.window, (1, 1)
    if unit.dot_words is None:
        return f"multiplies pairs of 16-bit numbers, for which {unit.name} has no one instruction"
    if window.kernel != (TAPS, TAPS) or window.strides != ones or window.dilations != ones or op.groups > 1:
        return f"computes 3x3 windows, stride 1, dilation 1, in one group, not {window} in {op.groups}"
    if op.weight_bits in PACKED_WEIGHT:
        return f"stores weights in 8 bits, these have {op.weight_bits} and stay packed"
    if min(request.node.type.shape[1:]) < OUTPUTS:
        return f"computes {OUTPUTS}x{OUTPUTS} pixels at once, not {request.node.type}"
    if refusal := refuse(request, unit):
        return refusal
    stored = request.alternatives[request.node.inputs[0]].channels(request.inputs[0])
    if stored < 2 * unit.lanes:
        return f"transforms {2 * unit.lanes} channels at once, there are {stored}"
    if stored > MOST_CHANNELS:
        return f"keeps transformed weights of up to {MOST_CHANNELS} input channels in the second cache, not of {stored}"
    bound = op.bounds(request.inputs).accumulator
    return None if bound < BOUND else f"accumulators can reach {bound}, and must stay under 2^25 to be divided exactly"


def _cost(request: Request, layout: Layout, tiling: Tiling) -> float:
    """Of all lanes, and of all pixels that are computed twice."""
    tiles, stored = layout.all_rows * layout.columns, layout.panels.channels
    passes = 1 if tiling.once else layout.all_rows // tiling.rows
    transformed = ALL_POINTS * layout.channels * (tiles + passes * stored)
    rates = "winograd vnni residual" if request.inputs[1:] else "winograd vnni"
    work = Work(ALL_POINTS * tiles * layout.channels * stored, OUTPUTS * OUTPUTS * tiles * stored, transformed)
    return layout.unit.cost(rates, work)


def winograd_kernel(unit: Unit) -> Kernel:
    """Of weights of one byte."""

    def offer(request: Request) -> Offer | str:
        storages = decline(request, Conv2d, ANY_WEIGHT) or request.channels_last()
        if isinstance(storages, str):
            return storages
        refusal = _refuse(request, unit)
        if refusal is not None:
            return refusal
        layout = layout_of(request, unit)
        own = choose(request, layout)
        plain = Offer.of_candidates(
            storages,
            _cost(request, layout, own),
            own,
            partial(candidates, request, layout),
            lambda tiling: _build(request, unit, tiling),
        )
        return with_weights(plain, request, packed=False)

    return Kernel(f"conv2d_winograd_u8s8s32_{unit.name}", offer)
