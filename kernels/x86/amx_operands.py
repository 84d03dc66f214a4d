"""The left matrix of an AMX product: which bytes of memory stand in its rows, and which weights meet them.

A row is an output pixel, counted along the rows of the output's plane. 64 bytes of every row are a k-step: they begin
`pixel_bytes` behind those of the row before, and where the first row's begin is in a table. A window, its strides and
dilations, channels and their tails are nothing but that table and the order of the weights. All taps of a plane come
one after the other, since they read nearly the same pixels. There are three sources:

- `in_place`: stride 1 over a blocked value; a k-step is one tap and one plane of 64 channels.
- `by_phases`: other strides; each phase of rows and columns is copied into planes of its own, whose pixels are one
  stride apart in the image and lie side by side.
- `of_few_channels`: a canonical image of few channels, as the network's input is. It is copied with its channels
  together; 64 bytes are several neighbouring columns of as many rows as the stride is high.

A linear layer is a window of one pixel over an image whose pixels are the samples (`of_samples`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from hawq_tvm.core.ir import Array, Shape, Window
from hawq_tvm.kernels.x86.amx_storages import BLOCK_PIXELS, PLANE_CHANNELS, Plane
from hawq_tvm.kernels.x86.amx_tiles import ROW_BYTES

NO_WEIGHT = -1


@dataclass(frozen=True, eq=False)
class Operand:
    """The left matrix of one sample.

    Attributes:
        offsets: int32 [steps]: where the first row's 64 bytes begin, from the sample's first byte.
        taps: int64 [steps, 64]: which of an output channel's weights, flattened, meets each byte; or `NO_WEIGHT`, which
            stands for a weight of zero.
        pixel_bytes: from a row to the next.
        sample_bytes: of the memory that a sample takes.
    """

    offsets: Array
    taps: Array
    pixel_bytes: int
    sample_bytes: int

    @property
    def steps(self) -> int:
        return len(self.offsets)

    def reach(self, pixels: int) -> tuple[int, int]:
        """The first byte that `pixels` rows read and the one behind the last, from the sample's first."""
        last = int(self.offsets.max()) + (pixels - 1) * self.pixel_bytes + ROW_BYTES
        return int(self.offsets.min()), last


def _whole(amount: int, unit: int) -> int:
    """How many units hold an amount."""
    return -(-amount // unit)


def _plane_taps(plane: int, tap: int, channels: int, taps: int) -> Array:
    """What meets the 64 channels of a plane at one tap of a window of `taps`; weights lie [in, kh, kw]."""
    channel = plane * PLANE_CHANNELS + np.arange(PLANE_CHANNELS)
    return np.where(channel < channels, channel * taps + tap, NO_WEIGHT)


def in_place(window: Window, x: Shape, plane: Plane) -> Operand:
    """Of a window of stride 1 over the planes of `x`, [C, H, W]."""
    planes = _whole(x[0], PLANE_CHANNELS)
    (kh, kw), (dy, dx), (top, left, _, _) = window.kernel, window.dilations, window.pads
    offsets, taps = [], []
    for index, (i, j) in product(range(planes), np.ndindex(kh, kw)):
        pixel = plane.start + (i * dy - top) * plane.pitch + j * dx - left
        offsets.append((index * plane.pixels + pixel) * PLANE_CHANNELS)
        taps.append(_plane_taps(index, i * kw + j, x[0], kh * kw))
    sample = planes * plane.pixels * PLANE_CHANNELS
    return Operand(np.array(offsets, np.int32), np.stack(taps), PLANE_CHANNELS, sample)


@dataclass(frozen=True, eq=False)
class Phases:
    """A copy of a blocked value, one image a phase: every `strides`-th row and column, from `phases` on.

    Attributes:
        operand: over that copy, [phase, plane, row, column, channel].
        phases: (row, column) of each.
        plane: of every phase: rows above its first, rows and columns of its image, pitch.
        strides: of the window.
        columns: of the input that anything reads.
    """

    operand: Operand
    phases: tuple[tuple[int, int], ...]
    plane: Plane
    strides: tuple[int, int]
    columns: int


def by_phases(window: Window, x: Shape, output: Plane) -> Phases:
    """Of any window over the planes of `x`, [C, H, W], for an output with the pitch of `output`."""
    planes = _whole(x[0], PLANE_CHANNELS)
    (kh, kw), (sy, sx), (dy, dx), (top, left, _, _) = window.kernel, window.strides, window.dilations, window.pads
    rows = [divmod(i * dy - top, sy) for i in range(kh)]  # of each tap: rows of its phase before the output's, phase
    columns = [divmod(j * dx - left, sx) for j in range(kw)]
    phases = tuple(sorted({(p, q) for (_, p), (_, q) in product(rows, columns)}))
    above = max(0, _whole(-rows[0][0] * output.pitch - min(0, columns[0][0]), output.pitch))
    last_tap = rows[-1][0] * output.pitch + max(0, columns[-1][0])
    end = output.blocks * BLOCK_PIXELS + last_tap
    plane = Plane(_whole(end, output.pitch), output.pitch, output.pitch, above)
    offsets, taps = [], []
    for index, (i, (row, p)), (j, (column, q)) in product(range(planes), enumerate(rows), enumerate(columns)):
        image = phases.index((p, q)) * planes + index
        pixel = image * plane.pixels + plane.start + row * plane.pitch + column
        offsets.append(pixel * PLANE_CHANNELS)
        taps.append(_plane_taps(index, i * kw + j, x[0], kh * kw))
    sample = len(phases) * planes * plane.pixels * PLANE_CHANNELS
    operand = Operand(np.array(offsets, np.int32), np.stack(taps), PLANE_CHANNELS, sample)
    last_column = (output.width - 1) * sx + (kw - 1) * dx - left
    return Phases(operand, phases, plane, (sy, sx), min(x[2], last_column + 1))


@dataclass(frozen=True, eq=False)
class Interleaved:
    """A copy of a canonical image of few channels, [row group, column, row of the group, channel].

    Attributes:
        operand: over that copy.
        channels: stored channels of a pixel.
        rows: of a group: as many as the window's stride is high.
        above: groups before the one that the first output's window is counted from.
        groups: stored.
        pitch: columns of a group, zeros included.
        columns: of the input that anything reads.
    """

    operand: Operand
    channels: int
    rows: int
    above: int
    groups: int
    pitch: int
    columns: int

    @property
    def column_bytes(self) -> int:
        return self.rows * self.channels


def of_few_channels(window: Window, x: Shape, output: Plane) -> Interleaved | None:
    """Of a window over a canonical `x`, [C, H, W]; None where a column of a group has more than 64 bytes."""
    (kh, kw), (sy, sx), (dy, dx), (top, left, _, _) = window.kernel, window.strides, window.dilations, window.pads
    stored = max(4, 1 << (x[0] - 1).bit_length())
    column = sy * stored
    if column > ROW_BYTES:
        return None
    pitch, wide = output.pitch * sx, ROW_BYTES // column
    first, last = -top // sy, ((kh - 1) * dy - top) // sy
    starts = range(-left, (kw - 1) * dx - left + 1, wide)
    above = max(0, _whole(left - first * pitch, pitch))
    offsets, taps = [], []
    for group, start in product(range(first, last + 1), starts):
        offsets.append(((above + group) * pitch + start) * column)
        row = np.full(ROW_BYTES, NO_WEIGHT)
        step = row[: wide * column].reshape(wide, sy, stored)
        for i, j in np.ndindex(kh, kw):
            at, line = divmod(i * dy - top, sy)
            offset = j * dx - left - start
            if at == group and 0 <= offset < wide:
                step[offset, line, : x[0]] = np.arange(x[0]) * kh * kw + i * kw + j
        taps.append(row)
    end = max(offsets) + (output.blocks * BLOCK_PIXELS - 1) * sx * column + ROW_BYTES
    groups = _whole(end, pitch * column)
    operand = Operand(np.array(offsets, np.int32), np.stack(taps), sx * column, groups * pitch * column)
    last_column = (output.width - 1) * sx + (kw - 1) * dx - left
    return Interleaved(operand, stored, sy, above, groups, pitch, min(x[2], last_column + 1))


def of_samples(features: int, batch: int) -> Operand:
    """Of a linear layer over a copy of its input, [plane, sample, 64 features], with samples for whole blocks."""
    planes, samples = _whole(features, PLANE_CHANNELS), _whole(batch, BLOCK_PIXELS) * BLOCK_PIXELS
    offsets = np.arange(planes, dtype=np.int32) * samples * PLANE_CHANNELS
    taps = np.stack([_plane_taps(plane, 0, features, 1) for plane in range(planes)])
    return Operand(offsets, taps, PLANE_CHANNELS, planes * samples * PLANE_CHANNELS)
