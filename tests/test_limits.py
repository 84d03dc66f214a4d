"""Every method against what the definition gives when it is worked out the slow way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hawq_tvm.calibration.histogram import BINS, Histogram
from hawq_tvm.calibration.limits import METHODS, candidates, divergences, least_error, squared_errors, within
from hawq_tvm.core.ir import IntType

WIDTHS = range(2, 9)


def histogram(seed: int = 0, *, count: int = 400, power: int = 3, scale: float = 1.0, relu: bool = False) -> Histogram:
    """Of normal elements to some power, heavy-tailed as activations are."""
    x = torch.randn(count, generator=torch.Generator().manual_seed(seed)) ** power * scale
    made = Histogram()
    made.observe(x.clamp_min(0) if relu else x)
    return made


def small(seed: int, bins: int = 60) -> Histogram:
    """A histogram of a few full bins on each side, some of them empty, of width 1 and with an element at its end."""
    generator = np.random.default_rng(seed)
    made = Histogram()
    made.counts[:, :bins] = generator.poisson(3, (2, bins)) * generator.integers(0, 2, (2, bins))
    made.counts[0, bins - 1] = 1
    made.width, made.hi = float(BINS), float(bins)  # a bin is 1 wide
    made.lo = -float(np.flatnonzero(np.append(1, made.counts[1]))[-1])
    made.zeros = 7
    return made


def spread(found: Histogram, parts: int = 300) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The histogram as points with weights, `parts` in each bin."""
    values, weights = [], []
    for sign, counts in zip((1, -1), found.counts, strict=True):
        bins = np.flatnonzero(counts)
        points = (bins[:, None] + (np.arange(parts) + 0.5) / parts) * found.bin_width
        values.append(sign * points.ravel())
        weights.append(np.repeat(counts[bins] / parts, parts))
    return np.concatenate(values), np.concatenate(weights)


@settings(max_examples=25)
@given(seed=st.integers(0, 99), bits=st.sampled_from(WIDTHS), signed=st.booleans(), share=st.floats(0.01, 1))
def test_squared_errors_are_those_of_every_point_quantised(seed: int, bits: int, signed: bool, share: float) -> None:
    made, dtype = small(seed), IntType(bits, signed)
    if not signed:
        made.counts[1] = 0
        made.lo = 0.0
    limit = share * made.magnitude
    values, weights = spread(made)
    scale = limit / dtype.hi
    restored = np.clip(np.floor(values / scale + 0.5), dtype.lo, dtype.hi) * scale
    expected = (weights * (restored - values) ** 2).sum()
    assert squared_errors(made, np.array([limit]), dtype)[0] == pytest.approx(expected, rel=1e-3)


def divergence(made: Histogram, limit: float, dtype: IntType) -> float:
    """The divergence as its definition has it, bin by bin."""
    scale = limit / dtype.hi
    bins = [(-(i + 0.5), int(c)) for i, c in enumerate(made.counts[1, :80]) if c][::-1]
    bins += [(i + 0.5, int(c)) for i, c in enumerate(made.counts[0, :80]) if c]
    level = {v: math.floor(v / scale + 0.5) for v, _ in bins}
    kept = [(v, c) for v, c in bins if dtype.lo <= level[v] <= dtype.hi]
    if not kept:
        return math.inf
    p, q = dict(kept), dict[float, float]()
    p[kept[0][0]] += sum(c for v, c in bins if level[v] < dtype.lo)
    p[kept[-1][0]] += sum(c for v, c in bins if level[v] > dtype.hi)
    for v, _ in kept:
        beside = [c for u, c in kept if level[u] == level[v]]
        q[v] = sum(beside) / len(beside)
    whole, rest = sum(p.values()), sum(q.values())
    return sum(p[v] / whole * math.log((p[v] / whole) / (q[v] / rest)) for v in p)


@settings(max_examples=60)
@given(seed=st.integers(0, 99), bits=st.integers(2, 5), signed=st.booleans(), scale=st.integers(1, 20))
def test_divergences_are_those_of_the_definition(seed: int, bits: int, signed: bool, scale: int) -> None:
    made, dtype = small(seed), IntType(bits, signed)
    if not signed:
        made.counts[1] = 0
    limit = 2.0 * scale * dtype.hi  # levels begin at whole bins, so that no bin is in doubt
    expected = divergence(made, limit, dtype)
    assert divergences(made, np.array([limit]), dtype)[0] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_divergence_counts_what_is_clipped() -> None:
    """The trap: with the clipped elements in both distributions, the narrowest range looks perfect."""
    made = histogram(count=4000, power=1)
    limits = candidates(made)
    found = divergences(made, limits, IntType(4, signed=True))
    assert limits[np.argmin(found)] > made.magnitude / 2
    assert found[0] < 0.2 and found[-1] > 2 and (found >= 0).all()


def test_a_step_narrower_than_a_bin_is_no_candidate() -> None:
    found = divergences(histogram(), candidates(histogram()), IntType(8, signed=False))
    assert np.isinf(found[-1]) and np.isfinite(found[0])


@given(seed=st.integers(0, 999), scale=st.floats(1e-4, 1e4), percent=st.sampled_from([90.0, 99.0, 99.9, 100.0]))
def test_percentile_is_the_quantile_of_the_magnitudes(seed: int, scale: float, percent: float) -> None:
    x = torch.randn(5000, generator=torch.Generator().manual_seed(seed)) * scale
    made = Histogram()
    made.observe(x)
    exact = float(np.quantile(x.abs().numpy(), percent / 100, method="inverted_cdf"))
    limit = within(made, 8, True, percent=percent)
    assert exact <= limit * (1 + 1e-6)
    assert limit == pytest.approx(exact, abs=made.bin_width)


def test_percentile_counts_zeros_and_stays_above_them() -> None:
    made = Histogram()
    made.observe(torch.tensor([0.0] * 98 + [1.0, 4.0]))
    assert within(made, 8, True, percent=98) == made.bin_width
    assert within(made, 8, True, percent=99) == 1.0
    assert within(made, 8, True, percent=100) == 4.0


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=10)
@given(seed=st.integers(0, 99), factor=st.floats(1e-3, 1e3), signed=st.booleans())
def test_ranges_grow_with_the_values(name: str, seed: int, factor: float, signed: bool) -> None:
    """Up to a bin; up to some candidates where bins fall otherwise and the criterion is flat."""
    power = 1 if name == "kl" else 3
    one, other = (histogram(seed, count=50000, power=power, scale=by, relu=not signed) for by in (1.0, factor))
    tolerance = {"max": 1e-6, "percentile": 2**-11, "mse": 0.05, "kl": 0.25}[name]
    for bits in (2, 4, 8):
        expected = METHODS[name](one, bits, signed) * factor
        assert METHODS[name](other, bits, signed) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("name", METHODS)
def test_doubled_values_have_doubled_ranges_exactly(name: str) -> None:
    for bits in WIDTHS:
        for signed in (True, False):
            one, two = (METHODS[name](histogram(3, scale=by, relu=not signed), bits, signed) for by in (1.0, 2.0))
            assert two == 2 * one


@pytest.mark.parametrize("name", METHODS)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20).filter(any), st.sampled_from(WIDTHS))
@settings(max_examples=30)
def test_a_limit_is_above_0_and_within_what_was_seen(name: str, elements: list[float], bits: int) -> None:
    made = Histogram()
    made.observe(torch.tensor(elements))
    for signed in (True, False):
        limit = METHODS[name](made, bits, signed)
        assert 0 < limit <= made.magnitude
        if name == "max":
            assert limit == made.magnitude


@pytest.mark.parametrize("signed", [True, False])
def test_least_error_is_least_and_no_finer_search_finds_much_less(signed: bool) -> None:
    made = histogram(1, count=20000, relu=not signed)
    limits, chosen = [], []
    for bits in WIDTHS:
        dtype = IntType(bits, signed)
        limit = least_error(made, bits, signed)
        errors = squared_errors(made, np.geomspace(0.5, 2, 2001) * limit, dtype)
        least = squared_errors(made, np.array([limit]), dtype)[0]
        assert least == squared_errors(made, candidates(made), dtype).min()
        assert least < 1.01 * errors.min()
        limits.append(limit)
        chosen.append(least)
    assert limits == sorted(limits) and limits[0] < limits[-1] / 2, "the fewer the bits, the narrower"
    assert chosen == sorted(chosen, reverse=True)
