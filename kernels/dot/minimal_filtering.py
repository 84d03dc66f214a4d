"""Exact convolution of 3x3 windows by integers with a quarter of the multiplications: Winograd's F(4x4, 3x3).

In one dimension four neighbouring outputs ``y_j = sum_k g_k d_(j+k)`` need six inputs d and three weights g. Taken as
polynomials they are found from values at six points, here 0, infinity, 1, -1, 2 and -2: six products instead of
twelve,

    OUTPUT [(WEIGHTS g) * (INPUT d)] = 24 y

The usual matrix of weights holds fractions; here each row is multiplied by what clears them, and some by more, so that
few multiplications are left in OUTPUT. All three hold integers, and the result is 24 times the convolution. That is an
identity of polynomials with integer coefficients, so it holds modulo any number; a test multiplies it out. In two
dimensions rows are transformed, then columns: 36 products an input channel instead of 144, and 576 times the result.

**16 bits hold both factors.** The absolute values of a row of INPUT add up to 10 at most, those of WEIGHTS to 12. So
bytes from 0 to 255 become at most 100 * 255 = 25,500 in size, and weights from -128 to 127 at most 144 * 128 = 18,432.
What comes between may wrap around: the results are known modulo 2^16 and fit.

**32 bits hold the result.** Sums over channels and OUTPUT are taken modulo 2^32, and end as 576 y = 9 * 64 y. Nine is
odd, so it has an inverse modulo 2^32, which leaves 64 y modulo 2^32. With ``|y| < 2^25`` that is 64 y itself as a
signed number, and an arithmetic shift by 6 leaves y. `Bounds` proves that of accumulators.

What accumulators of a direct convolution begin with is 576 times itself at one of the 36 points alone, (1, 1): OUTPUT
takes it into all 16 results with the factor -1 * -1.

Source: A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks, arXiv 1509.09308, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

OUTPUTS, TAPS, POINTS = 4, 3, 6
"""In one dimension: outputs of a tile, taps of the window, and points, which are as many as inputs of a tile."""

INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, 4, 0, -5, 0, 1),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
)
WEIGHTS = ((6, 0, 0), (0, 0, 12), (4, 4, 4), (4, -4, 4), (1, 2, 4), (1, -2, 4))
OUTPUT = ((1, 0, -1, -1, 1, 1), (0, 0, -1, 1, 2, -2), (0, 0, -1, -1, 4, 4), (0, 2, -1, 1, 8, -8))

BIAS_POINT = 2 * POINTS + 2
"""The point whose product all results take in as it is."""

FACTOR = 24 * 24
"""The result is so many times the convolution."""

INVERSE_OF_NINE = pow(9, -1, 1 << 32)
FACTOR_SHIFT = 6
"""576 is nine shifted by so much."""

BOUND = 1 << 25
"""Accumulators must stay under it."""


class Number(Protocol):
    """What the transforms take: vectors of integers, or arrays, that wrap around."""

    def __add__(self: N, other: N, /) -> N: ...

    def __sub__(self: N, other: N, /) -> N: ...

    def __mul__(self: N, other: int, /) -> N: ...


N = TypeVar("N", bound=Number)


def transform_input(d: Sequence[N]) -> list[N]:
    """INPUT times six numbers."""
    odd, even = d[3] - d[1], d[4] - d[2]
    fours, ones = d[4] - d[2] * 4, d[3] - d[1] * 4
    twice = odd + odd
    return [
        (d[0] - d[2]) * 4 + even,
        d[5] - d[3] - (twice + twice),
        fours + ones,
        fours - ones,
        even + twice,
        even - twice,
    ]


PAIRS = POINTS // 2
"""Rows of WEIGHTS come in pairs that share terms."""


def transform_weights(pair: int, g: Sequence[N]) -> tuple[N, N]:
    """A pair of rows of WEIGHTS, by its number, times three numbers."""
    if pair == 0:
        return g[0] * 6, g[2] * 12
    if pair == 1:
        outer = g[0] + g[2]
        return (outer + g[1]) * 4, (outer - g[1]) * 4
    outer, inner = g[0] + g[2] * 4, g[1] + g[1]
    return outer + inner, outer - inner


def transform_output(m: Sequence[N]) -> list[N]:
    """OUTPUT times six numbers."""
    one, one_less = m[2] + m[3], m[3] - m[2]
    two, two_less = m[4] + m[5], m[4] - m[5]
    return [
        m[0] + (two - one),
        one_less + (two_less + two_less),
        two * 4 - one,
        one_less + (two_less * 4 + m[1]) * 2,
    ]
