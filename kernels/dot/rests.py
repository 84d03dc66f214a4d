"""What rows of taps leave over, gathered into steps of its own.

A row of 7 taps of 3 channels is 21 bytes: five steps of four, and one byte that would take a step of its own in each of
7 rows. Side by side those bytes are two steps. So before the tiles of a row of outputs they are put together for each
of its pixels, a vector of pixels at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import op

from hawq_tvm.core.ir import Array
from hawq_tvm.kernels.dot.product import DOT_STEP
from hawq_tvm.kernels.dot.unit import Unit
from hawq_tvm.kernels.dot.vectors import constant, ramp, shuffle
from hawq_tvm.kernels.generic.expressions import Expr


@dataclass(frozen=True)
class Rests:
    """Bytes of a pixel that no whole step takes.

    Attributes:
        rows: of taps.
        size: bytes that each leaves over, of one step's four.
    """

    rows: int
    size: int

    @property
    def words(self) -> int:
        """Steps that all of them take together."""
        return -(-self.rows * self.size // DOT_STEP)

    @classmethod
    def of(cls, rows: int, run: int, width: int, unit: Unit) -> Rests | None:
        """Those of rows of so many bytes; None where that saves no step, or outputs are less than a vector wide.

        >>> from hawq_tvm.kernels.x86.units import VNNI_512
        >>> rests = Rests.of(7, 21, 112, VNNI_512)
        >>> rests, rests.words, Rests.of(1, 21, 112, VNNI_512)
        (Rests(rows=7, size=1), 2, None)
        """
        found = cls(rows, run % DOT_STEP)
        saves = found.size > 0 and found.words < rows
        return found if saves and unit.step == DOT_STEP and width >= unit.lanes else None

    def pack(self, runs: Array) -> Array:
        """Weights in the order in which they meet activations: int8 [out, bytes of whole steps].

        Args:
            runs: of each row of taps: int8 [out, rows, run].
        """
        whole, left_over = runs[..., : -self.size], runs[..., -self.size :]
        filling = np.zeros((len(runs), self.words * DOT_STEP - self.rows * self.size), np.int8)
        return np.concatenate([part.reshape(len(runs), -1) for part in (whole, left_over, filling)], axis=1)

    def gather(self, image: Any, place: Callable[[int], Expr], between: int, width: int, lanes: int) -> Any:
        """For each pixel of a row of outputs its words: a buffer of int32 [words * width], word after word.

        Args:
            image: bytes.
            place: where the first pixel's bytes lie that a row of taps leaves over, by the row's number.
            between: from a pixel's bytes to the next one's.
            width: of the row of outputs.
            lanes: pixels at once, at most `width`; the last ones move left until they fit.
        """
        gathered = T.alloc_buffer((self.words * width,), "int32", align=64)
        with T.serial(-(-width // lanes)) as number:
            first = tirx.min(number * lanes, width - lanes)
            for word in range(self.words):
                total = constant(0, "int32", lanes)
                for byte in range(min(DOT_STEP, self.rows * self.size - DOT_STEP * word)):
                    row, offset = divmod(DOT_STEP * word + byte, self.size)
                    bytes_ = _spread(image, place(row) + (first * between + offset), between, lanes)
                    total = total | op.shift_left(bytes_, constant(8 * byte, "int32", lanes))
                T.buffer_store(gathered, total, [ramp(word * width + first, lanes)])
        return gathered


def _spread(image: Any, first: Expr, between: int, lanes: int) -> Expr:
    """Bytes that lie so far apart, each in a lane of its own: int32, from 0 to 255.

    Two loads hold them, one from the first and one up to the last, so that nothing else is read.
    """
    span = (lanes - 1) * between + 1
    size = 1 << (span.bit_length() - 1)
    loads = [image[ramp(start, size)] for start in (first, first + (span - size))]
    places = [lane * between for lane in range(lanes)]
    bytes_ = shuffle(loads, [place if place < size else place - span + 2 * size for place in places])
    return op.reinterpret(f"uint8x{lanes}", bytes_).astype(f"int32x{lanes}")
