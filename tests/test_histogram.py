"""Histograms of magnitudes: exact counts, however the elements come."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from hawq_tvm.calibration.histogram import BINS, Histogram

ELEMENTS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=30)


def histogram(*parts: Tensor) -> Histogram:
    made = Histogram()
    for part in parts:
        made.observe(part)
    return made


def same(a: Histogram, b: Histogram) -> bool:
    return (a.lo, a.hi, a.zeros, a.width) == (b.lo, b.hi, b.zeros, b.width) and np.array_equal(a.counts, b.counts)


def test_every_element_is_counted_in_its_bin() -> None:
    made = histogram(torch.tensor([0.0, 1.0, 0.5, -0.25, -1.0, 1 / BINS, 1.001 / BINS, 0.0]))
    assert (made.lo, made.hi, made.zeros, made.width) == (-1.0, 1.0, 2, 1.0)
    positive, negative = made.counts
    assert np.flatnonzero(positive).tolist() == [0, 1, BINS // 2 - 1, BINS - 1], "an edge belongs to the bin below it"
    assert np.flatnonzero(negative).tolist() == [BINS // 4 - 1, BINS - 1]
    assert made.bin_width == 1 / BINS


@given(ELEMENTS)
def test_counts_are_those_of_the_definition(elements: list[float]) -> None:
    x = torch.tensor(elements)
    made = histogram(x)
    exact = x.double().numpy()
    assert (made.lo, made.hi) == (min(exact.min(), 0), max(exact.max(), 0))
    assert made.magnitude <= made.width and math.log2(made.width).is_integer()
    assert made.width < 2 * made.magnitude or made.width == 2.0**-100
    for sign, counts in zip((1, -1), made.counts, strict=True):
        scaled = exact[np.sign(exact) == sign] * sign / made.bin_width
        wanted = np.bincount(np.maximum(np.ceil(scaled), 1).astype(int) - 1, minlength=BINS)
        assert np.array_equal(counts, wanted)
    assert made.zeros + made.counts.sum() == len(elements)


@given(ELEMENTS, st.lists(st.integers(1, 29), max_size=5))
@example([68719484928.0, 1.1754943508222875e-38], [1])
@example([68719484928.0, -1.1754943508222875e-38, 0.0], [1, 2])
def test_neither_batches_nor_their_order_matter(elements: list[float], cuts: list[int]) -> None:
    x = torch.tensor(elements)
    parts = [part for part in torch.tensor_split(x, sorted(set(cuts))) if len(part)]
    whole = histogram(x)
    assert same(histogram(*parts), whole)
    assert same(histogram(*reversed(parts)), whole)
    merged = Histogram()
    for part in parts:
        merged.merge(histogram(part))
    assert same(merged, whole)


def test_dimensions_do_not_matter() -> None:
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert same(histogram(x), histogram(x.flatten()))
    assert same(histogram(x.transpose(1, 3)), histogram(x))
