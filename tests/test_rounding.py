"""Rounding of one layer's weights: the pieces that every method is made of, held to laws and to brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import weighted
from hawq_tvm.calibration.corrections import ResultSums, corrections
from hawq_tvm.calibration.moments import Moments, MomentSums, by_group, has_own_moments, outputs_at, patches, positions
from hawq_tvm.calibration.rounding import (
    _CANDIDATES,
    Elimination,
    Levels,
    Rounded,
    candidate_ratios,
    damped,
    descend,
    find_damping,
    find_grid,
    fit,
    max_abs_scales,
    nearest_errors,
    search_nearest,
    squared_error,
)
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.float_ir import Clip, FloatNode
from hawq_tvm.core.ir import Window

SEEDS = st.integers(0, 2**32 - 1)


def integers(limit: int) -> Levels:
    """All from -limit to limit."""
    return Levels(WeightFormat(limit.bit_length() + 1))


def nearest(weight: Tensor, scales: Tensor, limit: int) -> Tensor:
    return integers(limit).nearest(weight / scales)


def correlated(generator: torch.Generator, groups: int, columns: int) -> Tensor:
    """A random second moment, float64 [g, K, K]."""
    x = torch.randn(groups, columns, 3 * columns, generator=generator, dtype=torch.float64)
    mixed = torch.randn(groups, columns, columns, generator=generator, dtype=torch.float64) @ x
    return mixed @ mixed.transpose(1, 2) / x.shape[2]


def problem(seed: int, groups: int = 2, rows: int = 3, columns: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups, rows, columns, generator=generator, dtype=torch.float64)
    return weight, correlated(generator, groups, columns)


@given(SEEDS, st.integers(2, 8), st.booleans())
@settings(max_examples=60)
def test_a_grid_that_weights_lie_on_is_found_exactly(seed: int, bits: int, folded: bool) -> None:
    """Whatever level a channel's largest weight stands at, and after a batch norm was folded in float32."""
    generator = np.random.default_rng(seed)
    limit = (1 << (bits - 1)) - 1
    levels = generator.integers(-limit, limit + 1, (1, 5, 12))
    levels[:, :, 0] = generator.integers(1, limit + 1, (1, 5))  # no row of zeros
    levels[:, :, 1] = 1  # so that the coarsest grid is this one
    weight = levels * generator.uniform(0.01, 3.0, (1, 5, 1))
    weight = weight.astype(np.float32).astype(np.float64) if folded else weight
    scales, found = find_grid(torch.from_numpy(weight), limit)
    assert found.all()
    assert torch.equal(nearest(torch.from_numpy(weight), scales, limit), torch.from_numpy(levels).double())


def test_no_grid_is_found_where_there_is_none() -> None:
    weight, _ = problem(0, columns=20)
    _, found = find_grid(weight, 7)
    assert not found.any()


def test_a_row_of_zeros_lies_on_every_grid() -> None:
    """Fitting would give it weights that make up for a residual's error, of those samples alone."""
    weight, _ = problem(0, columns=20)
    weight[0, 1] = 0
    scales, found = find_grid(weight, 7)
    assert found.nonzero().tolist() == [[0, 1]]
    assert scales[0, 1] == weight.abs().max() / 7


def test_candidates_are_narrower_and_wider_than_max_abs() -> None:
    ratios = candidate_ratios(7)
    assert (ratios == 1.0).any()
    assert ratios.min() < 0.5
    for level in range(1, 7):
        assert (ratios - 7 / level).abs().min() < 1e-12  # the largest weight at that level
    assert candidate_ratios(1).max() == 1.0


@given(SEEDS)
@settings(max_examples=30)
def test_scale_search_beats_max_abs_by_its_own_measure(seed: int) -> None:
    weight, inputs = problem(seed)
    start = max_abs_scales(weight, 7)
    found = search_nearest(weight, inputs, start, integers(7))
    importance = torch.diag_embed(inputs.diagonal(dim1=1, dim2=2))
    errors = [squared_error(weight, nearest(weight, s, 7) * s, importance) for s in (found, start)]
    assert (errors[0] <= errors[1]).all()
    every = [start * ratio for ratio in candidate_ratios(7)]
    least = torch.stack([squared_error(weight, nearest(weight, s, 7) * s, importance) for s in every]).amin(0)
    assert torch.allclose(errors[0], least)


def test_dead_inputs_do_not_set_the_scale() -> None:
    weight = torch.tensor([[[100.0, 0.5, -0.7]], [[100.0, 0.0, 0.0]]], dtype=torch.float64)
    live = torch.tensor([[[False, True, True]], [[False, True, True]]])
    assert max_abs_scales(weight, 7, live).flatten().tolist() == pytest.approx([0.1, 100 / 7])  # nothing else to go by
    assert max_abs_scales(weight, 7).flatten().tolist() == pytest.approx([100 / 7] * 2)
    assert (max_abs_scales(torch.tensor([[[0.0], [3.0]]], dtype=torch.float64), 3) == 1.0).all()


@given(SEEDS, st.integers(1, 3))
@settings(max_examples=40)
def test_descent_never_raises_the_error_and_stays_on_the_grid(seed: int, bits: int) -> None:
    limit = (1 << bits) - 1
    weight, inputs = problem(seed)
    scales = max_abs_scales(weight, limit)
    start = Rounded(nearest(weight, scales, limit), scales, integers(limit))
    for rescale in (False, True):
        found = descend(weight, inputs, start, rescale=rescale)
        error, before = (squared_error(weight, r.restored, inputs) for r in (found, start))
        assert (error <= before * (1 + 1e-9)).all()
        assert torch.equal(found.integers, found.integers.round().clamp(-limit, limit))
        assert (found.scales > 0).all()
        assert rescale or torch.equal(found.scales, scales)


@given(SEEDS)
@settings(max_examples=20)
def test_descent_ends_where_no_single_integer_does_better(seed: int) -> None:
    weight, inputs = problem(seed, groups=1, rows=2, columns=4)
    scales = max_abs_scales(weight, 3)  # so few integers that each move counts as more than settled
    found = descend(weight, inputs, Rounded(nearest(weight, scales, 3), scales, integers(3)), rescale=False)
    error = squared_error(weight, found.restored, inputs)
    for column, level in product(range(4), range(-3, 4)):
        other = found.integers.clone()
        other[:, :, column] = level
        assert (squared_error(weight, other * scales, inputs) >= error * (1 - 1e-9)).all()


def test_elimination_and_descent_come_near_the_best_of_all_integers() -> None:
    """Brute force over 7^4 integers a row: never better than it, less than half of nearest's way from it."""
    weight, inputs = problem(0, groups=40, rows=5, columns=4)
    scales = max_abs_scales(weight, 3)
    every = torch.tensor(list(product(range(-3, 4), repeat=4)), dtype=torch.float64)
    errors = weight[:, :, None] - every * scales[:, :, None]  # [g, o, 7^4, 4]
    best = ((errors @ inputs[:, None]) * errors).sum(3).amin(2)
    start = Rounded(Elimination(inputs).round(weight, scales, integers(3)), scales, integers(3))
    found = squared_error(weight, descend(weight, inputs, start, rescale=False).restored, inputs)
    near = squared_error(weight, nearest(weight, scales, 3) * scales, inputs)
    assert (found >= best * (1 - 1e-9)).all()
    assert (found - best).sum() <= 0.4 * (near - best).sum()


@given(SEEDS)
@settings(max_examples=20)
def test_elimination_is_nearest_rounding_where_inputs_do_not_correlate(seed: int) -> None:
    weight, inputs = problem(seed)
    diagonal = torch.diag_embed(inputs.diagonal(dim1=1, dim2=2))
    scales = max_abs_scales(weight, 7)
    assert torch.equal(Elimination(diagonal).round(weight, scales, integers(7)), nearest(weight, scales, 7))


def test_elimination_is_the_same_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = problem(1, columns=13)
    scales = max_abs_scales(weight, 7)
    whole = Elimination(inputs).round(weight, scales, integers(7))
    descended = descend(weight, inputs, Rounded(whole, scales, integers(7)), rescale=True)
    monkeypatch.setattr("hawq_tvm.calibration.rounding._BLOCK", 3)
    assert torch.equal(Elimination(inputs).round(weight, scales, integers(7)), whole)
    again = descend(weight, inputs, Rounded(whole, scales, integers(7)), rescale=True)
    assert torch.equal(again.integers, descended.integers)


def test_elimination_makes_up_for_what_it_rounded() -> None:
    """Two inputs that are the same up to noise: rounding one up is made up for by rounding the other down."""
    inputs = torch.tensor([[[1.0, 0.999], [0.999, 1.0]]], dtype=torch.float64)
    weight = torch.tensor([[[0.5, 0.5]]], dtype=torch.float64)
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    assert nearest(weight, one, 7).tolist() == [[[1.0, 1.0]]]
    assert sorted(Elimination(inputs).round(weight, one, integers(7)).flatten().tolist()) == [0.0, 1.0]


@given(SEEDS)
@settings(max_examples=15)
def test_search_ends_with_the_least_error_over_the_promising_candidates(seed: int) -> None:
    weight, inputs = problem(seed, groups=1, rows=3, columns=66)
    scales = max_abs_scales(weight, 7)
    elimination = Elimination(inputs)
    found = elimination.search(weight, scales, integers(7))
    candidates = [scales * ratio for ratio in candidate_ratios(7)]
    ends = torch.stack(
        [squared_error(weight, elimination.round(weight, s, integers(7)) * s, inputs) for s in candidates]
    )
    promising = nearest_errors(weight, inputs, scales, integers(7)).argsort(0)[:_CANDIDATES]
    error = squared_error(weight, found.restored, inputs)
    assert torch.allclose(error, ends.gather(0, promising).amin(0))


def test_promising_candidates_are_hardly_worse_than_all() -> None:
    weight, inputs = problem(0, groups=2, rows=16, columns=70)
    scales = max_abs_scales(weight, 7)
    elimination = Elimination(inputs)
    found = squared_error(weight, elimination.search(weight, scales, integers(7)).restored, inputs)
    candidates = [scales * ratio for ratio in candidate_ratios(7)]
    ends = torch.stack(
        [squared_error(weight, elimination.round(weight, s, integers(7)) * s, inputs) for s in candidates]
    )
    assert found.sum() < 1.1 * ends.amin(0).sum()
    assert found.sum() < ends[35].sum()  # max-abs


@given(SEEDS, st.floats(0.001, 3.0))
@settings(max_examples=20)
def test_the_target_is_ridge_regression_drawn_to_the_weights(seed: int, damping: float) -> None:
    """The gradient of ``tr(V H V^T - 2 V C^T) + l |V - W|^2`` is 0 there."""
    weight, inputs = problem(seed)
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    with_ridge, ridge = damped(inputs, damping)
    found = Elimination(with_ridge).solve(outputs + ridge * weight)
    assert torch.allclose(ridge[:, 0], damping * inputs.diagonal(dim1=1, dim2=2), rtol=0.1)
    gradient = found @ inputs - outputs + ridge * (found - weight)
    assert gradient.abs().max() < 1e-7 * inputs.abs().max()
    assert torch.allclose(with_ridge, inputs + torch.diag_embed(ridge[:, 0]))


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_singular_and_dead_inputs_still_have_an_answer(damping: float) -> None:
    weight, inputs = problem(6)
    singular = torch.ones_like(inputs)
    dead = torch.zeros_like(inputs)
    for second_moment in (singular, dead):
        with_ridge, ridge = damped(second_moment, damping)
        elimination = Elimination(with_ridge)
        target = elimination.solve(weight @ second_moment + ridge * weight)
        assert torch.allclose(target, weight, atol=1e-6)  # the outputs are theirs
        assert torch.isfinite(
            fit(target, elimination, max_abs_scales(weight, 7), integers(7), search=True).restored
        ).all()
    assert torch.equal(damped(dead, damping)[0], torch.eye(6, dtype=torch.float64).expand_as(dead))


CONVOLUTIONS = st.tuples(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2)
)


def convolution(shape: tuple[int, ...], generator: torch.Generator) -> tuple[FloatNode, Tensor]:
    """A random layer and its input."""
    groups, ins, outs, kernel, stride, dilation = shape
    window = Window((kernel, kernel), (stride, stride), (1, 0, 2, 1), (dilation, dilation))
    weight = torch.randn(groups * outs, ins, kernel, kernel, generator=generator).numpy()
    x = torch.randn(2, groups * ins, 7, 6, generator=generator)
    output = (len(weight), *window.output_size(7, 6))
    bias = np.zeros(len(weight), np.float32)
    return FloatNode("c", "conv2d", ("x",), output, weight=weight, bias=bias, window=window, groups=groups), x


@given(CONVOLUTIONS, SEEDS)
@settings(max_examples=40)
def test_patches_are_what_outputs_are_sums_over(shape: tuple[int, ...], seed: int) -> None:
    node, x = convolution(shape, torch.Generator().manual_seed(seed))
    at = positions(node, 9, np.random.default_rng(seed))
    cut = patches(node, x, at)
    weight = torch.from_numpy(node.weight)
    summed = by_group(node, weight).float() @ cut
    assert torch.allclose(summed, outputs_at(node, weighted(node, x, weight, None), at), atol=1e-4)


def test_patches_of_a_linear_layer_are_its_inputs() -> None:
    weight = torch.randn(4, 6).numpy()
    node = FloatNode("l", "linear", ("x",), (4,), weight=weight, bias=np.zeros(4, np.float32))
    x = torch.randn(5, 6)
    at = positions(node, 100, np.random.default_rng(0))
    assert at.tolist() == [0]
    assert torch.equal(patches(node, x, at), x.T[None])
    assert torch.equal(outputs_at(node, x[:, :4], at), x[:, :4].T[None])


def test_positions_are_drawn_without_repetition_and_all_where_there_are_few() -> None:
    node, _ = convolution((1, 1, 1, 1, 1, 1), torch.Generator().manual_seed(0))
    size = node.shape[1] * node.shape[2]
    assert positions(node, 10**6, np.random.default_rng(0)).tolist() == list(range(size))
    some = positions(node, 5, np.random.default_rng(0)).tolist()
    assert len(set(some)) == 5
    assert some == sorted(some)
    assert some != positions(node, 5, np.random.default_rng(1)).tolist()
    assert len(positions(node, 0, np.random.default_rng(0))) == 1


def test_sums_of_pieces_are_sums_of_the_whole() -> None:
    x, y = torch.randn(2, 4, 30) + 3, torch.randn(2, 3, 30) - 1
    pieces = [MomentSums.of(x[..., i : i + 7], y[..., i : i + 7]) for i in range(0, 30, 7)]
    found = (pieces[0] + pieces[1] + pieces[2] + pieces[3] + pieces[4]).moments()
    xc, yc = (v.double() - v.double().mean(2, keepdim=True) for v in (x, y))
    assert torch.allclose(found.inputs, xc @ xc.transpose(1, 2) / 30, atol=1e-5)
    assert torch.allclose(found.outputs, yc @ xc.transpose(1, 2) / 30, atol=1e-5)


def test_moments_of_inputs_that_hardly_vary_lose_no_digits() -> None:
    x = 1000 + 0.01 * torch.randn(1, 3, 40, dtype=torch.float64)
    pieces = [MomentSums.of(x[..., i : i + 10].float(), x[:, :1, i : i + 10].float()) for i in range(0, 40, 10)]
    found = (pieces[0] + pieces[1] + pieces[2] + pieces[3]).moments()
    centred = x.float().double() - x.float().double().mean(2, keepdim=True)
    assert torch.allclose(found.inputs, centred @ centred.transpose(1, 2) / 40, rtol=1e-3, atol=1e-9)
    assert torch.allclose(found.outputs, found.inputs[:, :1])
    constant = MomentSums.of(torch.full((1, 3, 7), 1234.567), torch.ones(1, 2, 7)).moments()
    assert not constant.inputs.any()


def test_outputs_alone_have_the_moments_of_groups() -> None:
    """Of each output by itself: its own patches' weights, in the order of by_group."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3, 20, generator=generator), torch.randn(2, 4, 20, generator=generator)
    importance = torch.rand(2, 4, 20, generator=generator) + 0.1
    found = MomentSums.of_each(x, y, importance).moments()
    for group in range(2):
        for output in range(4):
            part = slice(group, group + 1), slice(output, output + 1)
            alone = MomentSums.of(x[part[0]], y[part], importance[part]).moments()
            assert torch.equal(found.inputs[4 * group + output], alone.inputs[0])
            assert torch.equal(found.outputs[4 * group + output], alone.outputs[0])


@pytest.mark.parametrize(
    ("clip", "channels", "groups", "own"),
    [(Clip(0, 6), 8, 1, False), (Clip(0, 6), 7, 1, True), (None, 7, 1, False), (Clip(0, 6), 14, 2, True)],
)
def test_outputs_of_few_inputs_behind_a_clip_have_own_moments(
    clip: Clip | None, channels: int, groups: int, own: bool
) -> None:
    """Up to 64 inputs: 63 of 7 channels, and not 72 of 8."""
    weight = np.ones((4, channels // groups, 3, 3), np.float32)
    node = FloatNode("layer", "conv2d", ("x",), (4, 6, 6), weight=weight, groups=groups, clip=clip)
    assert has_own_moments(node) == own
    assert by_group(node, torch.from_numpy(weight)).shape[:2] == ((4, 1) if own else (groups, 4 // groups))


def test_importance_counts_patches_as_often() -> None:
    """Whole numbers of importance are repetitions."""
    x, y = torch.randn(2, 4, 9), torch.randn(2, 1, 9)
    times = torch.tensor([4, 1, 2, 3, 1, 1, 1, 2, 1])
    found = MomentSums.of(x, y, times.float().expand(2, 1, 9)).moments()
    repeated = MomentSums.of(x.repeat_interleave(times, 2), y.repeat_interleave(times, 2)).moments()
    assert torch.allclose(found.inputs, repeated.inputs, atol=1e-6)
    assert torch.allclose(found.outputs, repeated.outputs, atol=1e-6)
    raw = MomentSums.of(x, y, times.float().expand(2, 1, 9)).moments(centred=False)
    several = x.repeat_interleave(times, 2).double()
    assert torch.allclose(raw.inputs, several @ several.transpose(1, 2) / several.shape[2], atol=1e-6)


def test_damping_is_what_serves_samples_that_were_not_seen() -> None:
    """Few noisy patches of many inputs ask for more of it than many patches do, and it is near the best in truth."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 8, 20, generator=generator, dtype=torch.float64)
    truth = weight + 0.05 * torch.randn(1, 8, 20, generator=generator, dtype=torch.float64)

    def half(rows: int) -> Moments:
        x = torch.randn(1, 20, rows, generator=generator)
        return MomentSums.of(x, (truth.float() @ x) + torch.randn(1, 8, rows, generator=generator)).moments()

    few, many = (find_damping(weight, (half(rows), half(rows))) for rows in (30, 3000))
    assert few > many


def test_an_input_that_is_scaled_and_weights_that_are_scaled_back_change_nothing() -> None:
    weight, inputs = problem(2)
    factor = torch.tensor([1.0, 30.0, 0.01, 1.0, 1.0, 5.0], dtype=torch.float64)
    scaled = inputs * factor[:, None] * factor
    outputs = 0.9 * weight @ inputs
    with_ridge, ridge = damped(inputs, 0.3)
    target = Elimination(with_ridge).solve(outputs + ridge * weight)
    with_ridge, ridge = damped(scaled, 0.3)
    again = Elimination(with_ridge).solve(outputs * factor + ridge * weight / factor)
    assert torch.allclose(again * factor, target, rtol=1e-2, atol=1e-2)


def test_corrections_match_mean_and_spread_of_every_channel() -> None:
    wanted = torch.randn(6, 3, 5, 5, dtype=torch.float64) * torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1) + 4
    got = 0.8 * wanted + 0.3 * torch.randn(6, 3, 5, 5, dtype=torch.float64) - 1
    sums = ResultSums.of(wanted[:2], got[:2]) + ResultSums.of(wanted[2:], got[2:])
    slope, offset = corrections(sums, slope=True, bias=True)
    fixed = got * slope.view(1, 3, 1, 1) + offset.view(1, 3, 1, 1)
    over = (0, 2, 3)
    assert torch.allclose(fixed.mean(over), wanted.mean(over))
    assert torch.allclose(fixed.std(over), wanted.std(over))
    slope, offset = corrections(sums, slope=False, bias=True)
    assert torch.equal(slope, torch.ones(3, dtype=torch.float64))
    assert torch.allclose(got.mean(over) + offset, wanted.mean(over))
    assert not corrections(sums, slope=True, bias=False)[1].any()


def test_corrections_make_up_for_the_error_of_a_residual() -> None:
    wanted, drift = torch.randn(8, 2), torch.full((8, 2), 0.25)
    _, offset = corrections(ResultSums.of(wanted, wanted, drift), slope=True, bias=True)
    assert torch.allclose(offset, torch.full((2,), 0.25, dtype=torch.float64))


def test_a_constant_channel_gets_no_slope_from_the_noise_of_its_sums() -> None:
    sums = ResultSums.of(torch.full((4900, 1), 0.3), torch.full((4900, 1), 0.123))
    slope, offset = corrections(sums, slope=True, bias=True)
    assert slope.item() == 1.0
    assert offset.item() == pytest.approx(0.177, rel=1e-5)


def test_dead_and_wild_channels_keep_their_slope() -> None:
    wanted = torch.stack([torch.zeros(9), torch.linspace(0, 1, 9), torch.linspace(0, 9, 9), torch.full((9,), 2.0)], 1)
    got = torch.stack([torch.linspace(0, 1, 9), torch.zeros(9), torch.linspace(0, 1, 9), torch.full((9,), 1.0)], 1)
    slope, offset = corrections(ResultSums.of(wanted, got), slope=True, bias=True)
    assert slope.tolist() == [1.0, 1.0, 1.0, 1.0]
    assert torch.allclose(offset, (wanted - got).double().mean(0))
