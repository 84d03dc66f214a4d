from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.calibration import Estimate, TraceEstimate, hutchinson_traces, make_observer, mean_trace, observe_ranges
from hawq_tvm.core.errors import CalibrationError, SensitivityError
from hawq_tvm.measure import curvature as curvature_file
from hawq_tvm.measure.curvature import Curved, profile_omega
from hawq_tvm.settings import HessianSettings
from hawq_tvm.sources.samples import Batch

from .builders import captured, rounded, samples


def ranges(batches: list[Tensor]) -> Mapping[str, object]:
    network = FloatModule(captured("Residual"))
    return observe_ranges(lambda x, tap: network(x, tap=tap), batches, make_observer("max"))


def test_every_value_gets_a_range() -> None:
    found = ranges([samples(4), samples(4, seed=1)])
    assert set(found) == {"x", *(node.name for node in captured("Residual"))}


def test_bad_calibration_sets_are_refused() -> None:
    with pytest.raises(CalibrationError, match="the calibration set is empty"):
        ranges([])
    with pytest.raises(CalibrationError, match="the calibration set is empty"):
        ranges([torch.zeros(0, 3, 12, 12)])
    holed = samples(4)
    holed[2, 1, 3, 3] = float("nan")
    with pytest.raises(CalibrationError, match="calibration samples 4 to 7 hold NaN or infinity"):
        ranges([samples(4), holed])
    with pytest.raises(CalibrationError, match="the input is 0 over all 4 calibration samples"):
        ranges([torch.zeros(4, 3, 12, 12)])


def test_a_dead_layer_is_named() -> None:
    def run(x: Tensor, tap: object) -> None:
        tap("x", x)  # type: ignore[operator]
        tap("layer1.0", F.relu(-x.abs()))  # type: ignore[operator]

    with pytest.raises(CalibrationError, match="layer 'layer1.0' is dead: its output is 0 over all 4"):
        observe_ranges(run, [samples(4)], make_observer("max"))


def test_a_layer_that_computes_nan_is_named() -> None:
    def run(x: Tensor, tap: object) -> None:
        tap("x", x)  # type: ignore[operator]
        tap("layer2", x / 0.0 - x / 0.0)  # type: ignore[operator]

    with pytest.raises(CalibrationError, match="layer 'layer2' computes NaN or infinity on finite samples"):
        observe_ranges(run, [samples(4)], make_observer("max"))


# Hessian


@cache
def tiny_loss() -> tuple[Callable[[Mapping[str, Tensor]], Tensor], dict[str, Tensor]]:
    """A two-layer network small enough for its exact Hessian, trained some way so that its traces are positive."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 4, generator=generator), torch.randint(0, 3, (20,), generator=generator)
    weights = {"a": torch.randn(5, 4, generator=generator) * 0.5, "b": torch.randn(3, 5, generator=generator) * 0.5}

    def loss(w: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(F.linear(torch.tanh(F.linear(x, w["a"])), w["b"]), y)

    for _ in range(100):
        leaves = {name: weight.requires_grad_() for name, weight in weights.items()}
        gradients = torch.autograd.grad(loss(leaves), list(leaves.values()))
        weights = {
            name: (weight - 0.3 * gradient).detach()
            for (name, weight), gradient in zip(leaves.items(), gradients, strict=True)
        }
    return loss, weights


def exact_traces() -> dict[str, float]:
    loss, weights = tiny_loss()
    found = {}
    for name, weight in weights.items():

        def of_one(flat: Tensor, name: str = name, shape: torch.Size = weight.shape) -> Tensor:
            return loss({**weights, name: flat.view(shape)})

        found[name] = float(torch.autograd.functional.hessian(of_one, weight.flatten()).trace())
    return found


def test_traces_converge_to_the_exact_hessian() -> None:
    loss, weights = tiny_loss()
    estimates = hutchinson_traces([loss], weights, target_error=0.02, max_probes=4000, seed=1)
    for name, exact in exact_traces().items():
        assert abs(estimates[name].trace - exact) < 4 * estimates[name].standard_error
        assert estimates[name].relative_error <= 0.02
        assert estimates[name].parameters == weights[name].numel()
        assert estimates[name].mean == pytest.approx(estimates[name].trace / weights[name].numel())


def test_the_standard_error_is_honest() -> None:
    """Over many seeds the error of the estimate is as large as it says."""
    loss, weights = tiny_loss()
    exact = exact_traces()["a"]
    runs = [hutchinson_traces([loss], weights, target_error=0, max_probes=30, seed=seed)["a"] for seed in range(60)]
    spread = np.std([run.trace for run in runs])
    claimed = np.mean([run.standard_error for run in runs])
    assert claimed == pytest.approx(spread, rel=0.35)
    assert abs(np.mean([run.trace for run in runs]) - exact) < 4 * spread / 60**0.5


def test_probing_stops_at_the_target_or_the_cap() -> None:
    loss, weights = tiny_loss()
    seen: list[int] = []
    loose = hutchinson_traces([loss], weights, target_error=10.0, max_probes=500, progress=seen.append)
    assert loose["a"].probes == seen[-1] == 8, "never before the fewest"
    capped = hutchinson_traces([loss], weights, target_error=0.0, max_probes=13)
    assert capped["a"].probes == 13


def test_batches_share_the_probes_and_estimate_the_mean_loss() -> None:
    loss, weights = tiny_loss()

    def doubled(w: Mapping[str, Tensor]) -> Tensor:
        return 3.0 * loss(w)

    found = hutchinson_traces([loss, doubled], weights, target_error=0.02, max_probes=4000)
    for name, exact in exact_traces().items():
        assert abs(found[name].trace - 2 * exact) < 4 * found[name].standard_error


def quadratic(curvatures: list[float], coupling: float) -> list[Callable[[Mapping[str, Tensor]], Tensor]]:
    """Batches of the loss w^T A w / 2 over two layers of four weights, A of known trace: 4 x curvature each."""
    generator = torch.Generator().manual_seed(5)
    losses = []
    for curvature in curvatures:
        matrix = torch.randn(8, 8, generator=generator) * coupling * curvature
        matrix = (matrix + matrix.T) / 2
        matrix.fill_diagonal_(curvature)

        def loss(w: Mapping[str, Tensor], matrix: Tensor = matrix) -> Tensor:
            flat = torch.cat([w["a"], w["b"]])
            return flat @ matrix @ flat / 2

        losses.append(loss)
    return losses


TWO_LAYERS = {"a": torch.ones(4), "b": torch.ones(4)}


def test_every_batch_is_in_every_probe_with_its_share_of_the_samples() -> None:
    curvatures, counts = [float(b) for b in range(40)], [8] * 39 + [3]
    seen: list[int] = []
    found = hutchinson_traces(
        quadratic(curvatures, coupling=0.0), TWO_LAYERS, samples=counts, max_probes=2, progress=seen.append
    )
    assert found["a"].trace == pytest.approx(4 * np.average(curvatures, weights=counts))
    assert found["a"].standard_error == 0.0, "a diagonal Hessian is found exactly, and batches may differ"
    assert found["a"].probes == 2
    assert seen == sorted(seen)
    assert (len(seen), seen[-1]) == (80, 2)


@pytest.mark.parametrize(
    ("curvatures", "counts"), [([1.0] * 3 + [9.0] * 3, [4] * 6), ([1.0, 5.0, 2.0], [16, 16, 3]), ([3.0], [7])]
)
def test_the_standard_error_is_that_of_the_signs_alone(curvatures: list[float], counts: list[int]) -> None:
    """Errors in units of the reported standard error have mean 0 and variance 1 over seeds, nearly."""
    losses, exact = quadratic(curvatures, coupling=0.4), 4 * np.average(curvatures, weights=counts)
    scores = []
    for seed in range(100):
        found = hutchinson_traces(losses, TWO_LAYERS, samples=counts, target_error=0, max_probes=12, seed=seed)
        scores += [(estimate.trace - exact) / estimate.standard_error for estimate in found.values()]
    assert abs(np.mean(scores)) < 4 / len(scores) ** 0.5
    assert 0.7 < np.mean(np.square(scores)) < 1.6


def test_one_graph_is_kept_at_a_time() -> None:
    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            saved.append(weakref.ref(self))

    saved: list[weakref.ref[Saved]] = []

    def loss(w: Mapping[str, Tensor]) -> Tensor:
        assert all(reference() is None for reference in saved), "the graph of an earlier batch is still held"
        return (w["a"] ** 4).sum()

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda kept: kept.tensor):
        hutchinson_traces([loss] * 3, {"a": torch.ones(4)}, target_error=0.0, max_probes=4)
    assert saved


def test_a_dead_layer_is_exactly_zero_and_does_not_hold_up_the_others() -> None:
    """A layer whose output is multiplied by zeros: every probe of it is 0, which is no noise."""

    def loss(w: Mapping[str, Tensor]) -> Tensor:
        return (w["a"] ** 2).sum() + 0.0 * (w["dead"] ** 3).sum()

    found = hutchinson_traces([loss, loss], {"a": torch.ones(4), "dead": torch.ones(5)}, max_probes=400)
    assert (found["dead"].trace, found["dead"].standard_error, found["dead"].relative_error) == (0.0, 0.0, 0.0)
    assert found["dead"].probes == 5, "the first look, at 2 x (5 - 1) degrees of freedom"
    assert found["a"].trace == pytest.approx(8.0)


def test_a_loss_without_samples_or_probes_is_refused() -> None:
    loss, weights = tiny_loss()
    with pytest.raises(SensitivityError, match="0 batches"):
        hutchinson_traces([], weights)
    with pytest.raises(SensitivityError, match="at least one sample"):
        hutchinson_traces([loss, loss], weights, samples=[4, 0])
    with pytest.raises(SensitivityError, match="at least one sample"):
        hutchinson_traces([loss, loss], weights, samples=[4])
    for few in (0, 1):
        with pytest.raises(SensitivityError, match="2 or more"):
            hutchinson_traces([loss], weights, max_probes=few)
    with pytest.raises(SensitivityError, match="0 batches"):
        profile_omega(Curved.over(FloatModule(captured("Residual")), []), {}, {}, HessianSettings())


def test_a_short_last_batch_counts_as_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cross-entropy is a mean over a batch, so the batches are weighed by their samples."""
    network = FloatModule(captured("Residual"))
    x, labels = samples(6), torch.tensor([0, 1, 2, 3, 4, 0])
    given: list[object] = []

    def traces(losses: Any, weights: Any, **options: Any) -> dict[str, TraceEstimate]:
        given.append(options["samples"])
        return hutchinson_traces(losses, weights, **options)

    monkeypatch.setattr(curvature_file, "hutchinson_traces", traces)
    cut = [Batch(x[:4], labels[:4]), Batch(x[4:], labels[4:])]
    found = profile_omega(
        Curved.over(network, cut), rounded("Residual"), {}, HessianSettings(target_error=0.0, max_probes=2)
    )
    assert given == [[4, 2]]
    assert "6 samples" in found["method"]


def test_the_cap_counts_double_backwards_whatever_the_number_of_batches() -> None:
    network = FloatModule(captured("Residual"))
    batches = [Batch(samples(2), torch.tensor([0, 1])) for _ in range(3)]
    seen: list[int] = []
    capped = HessianSettings(target_error=0.0, max_probes=12)
    found = profile_omega(Curved.over(network, batches), rounded("Residual"), {}, capped, progress=seen.append)
    assert (found["batches"], found["probes_per_batch"], seen[-1]) == (3, 4, 12)
    found = profile_omega(
        Curved.over(network, batches), rounded("Residual"), {}, HessianSettings(target_error=0.0, max_probes=2)
    )
    assert found["probes_per_batch"] == 2, "fewer show no error"


def test_seeds_repeat() -> None:
    loss, weights = tiny_loss()
    first, second, other = (
        hutchinson_traces([loss], weights, max_probes=8, seed=seed)["a"].trace for seed in (3, 3, 4)
    )
    assert first == second != other


def test_operators_without_a_second_derivative_are_named() -> None:
    class OnceDifferentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)  # type: ignore[attr-defined]
            return x.square()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
            return 2 * gradient * x

    weights = {"a": torch.randn(4, 4)}
    with pytest.raises(SensitivityError, match="operator 'OnceDifferentiable' has none"):
        hutchinson_traces([lambda w: OnceDifferentiable.apply(w["a"]).square().sum()], weights)
    with pytest.raises(
        SensitivityError, match="operator 'cdist_backward' has none|operator '_cdist_backward' has none"
    ):
        hutchinson_traces([lambda w: torch.cdist(w["a"], w["a"] + 1).square().sum()], weights)


def test_a_hessian_that_is_not_finite_is_named() -> None:
    with pytest.raises(SensitivityError, match="the Hessian of layer 'b' is not finite"):
        hutchinson_traces(
            [lambda w: w["a"].square().sum() + w["b"].sqrt().sum()], {"a": torch.ones(2), "b": torch.zeros(2)}
        )


def test_omega_is_mean_trace_times_squared_error_and_so_is_its_error() -> None:
    omega = mean_trace(TraceEstimate(24.0, 1.2, 50, 12)) * 0.5
    assert (omega.value, omega.error) == pytest.approx((1.0, 0.05))
    below = mean_trace(TraceEstimate(-0.1, 0.24, 50, 12)) * 0.5
    assert below.value < 0 < below.error == pytest.approx(0.01), "an estimate is kept as it is, and its error with it"


def test_a_mean_and_a_ratio_over_samples_have_honest_errors() -> None:
    """Over many draws the spread of the estimate is what one draw says."""
    generator = torch.Generator().manual_seed(0)
    draws = [torch.rand(2, 40, generator=generator, dtype=torch.float64) for _ in range(300)]
    for found, exact in (
        ([Estimate.mean_of(above) for above, _ in draws], 0.5),
        ([Estimate.ratio_of(above * below, below) for above, below in draws], 0.5),
    ):
        values = np.array([estimate.value for estimate in found])
        assert abs(values.mean() - exact) < 4 * values.std() / 300**0.5
        assert np.mean([estimate.error for estimate in found]) == pytest.approx(values.std(), rel=0.15)
    assert Estimate.ratio_of(torch.zeros(3).double(), torch.zeros(3).double()) == Estimate(0.0, 0.0)
    with pytest.raises(SensitivityError, match="over 1 samples shows no error; give at least 2"):
        Estimate.mean_of(torch.ones(1).double())


# where probes go


def coupled(traces: list[float], noise: list[float]) -> tuple[list[Any], dict[str, Tensor]]:
    """One batch of a quadratic loss over layers of four weights, each of a given trace and own noise."""
    generator, blocks = torch.Generator().manual_seed(2), []
    for trace, size in zip(traces, noise, strict=True):
        block = torch.randn(4, 4, generator=generator) * size
        block = (block + block.T) / 2
        block.fill_diagonal_(trace / 4)
        blocks.append(block)

    def loss(w: Mapping[str, Tensor]) -> Tensor:
        parts = [weight @ block @ weight for weight, block in zip(w.values(), blocks, strict=True)]
        return torch.stack(parts).sum() / 2

    return [loss], {str(layer): torch.ones(4) for layer in range(len(traces))}


def test_probes_go_on_for_the_layers_alone_that_are_open() -> None:
    losses, weights = coupled([1.0, 1.0, 1.0], [0.0, 0.2, 0.8])
    found = hutchinson_traces(losses, weights, target_error=0.05, max_probes=10_000)
    assert found["0"].probes == 8 < found["1"].probes < found["2"].probes
    for estimate in found.values():
        assert abs(estimate.trace - 1.0) < 4 * estimate.standard_error + 1e-6
        assert estimate.relative_error <= 0.05


def test_a_layer_whose_place_is_sure_is_settled_however_uncertain_it_is() -> None:
    """Traces of 1000, 1.1 and 1 with noise: the first is the first whatever it is; the others are not told apart."""
    losses, weights = coupled([1000.0, 1.1, 1.0], [300.0, 1.0, 1.0])
    order = dict.fromkeys(weights, 1.0)
    found = hutchinson_traces(losses, weights, target_error=0.001, max_probes=200, order=order)
    assert found["0"].probes < 20 and found["0"].relative_error > 0.01
    assert found["1"].probes == found["2"].probes == 200
    every = hutchinson_traces(losses, weights, target_error=0.001, max_probes=200)
    assert every["0"].probes == 200, "by errors alone it is open"
    moved = hutchinson_traces(losses, weights, target_error=0.001, max_probes=200, order={**order, "0": 0.001})
    assert moved["0"].probes == 200, "where a unit of it weighs less, its place is open too"


def test_probes_that_were_kept_are_gone_on_from_to_the_same_result() -> None:
    losses, weights = coupled([1.0, 2.0, 3.0], [0.5, 1.0, 0.0])
    settings: dict[str, Any] = {"target_error": 0.05, "max_probes": 400, "seed": 3}
    kept: list[Tensor] = []
    whole = hutchinson_traces(losses, weights, **settings, keep=kept.append)
    assert len(kept) > 3 and kept[1].isnan().any(), "layers left"
    for done in (kept[0], kept[2], kept[-1]):
        assert hutchinson_traces(losses, weights, **settings, done=done) == whole

    def cut_off(w: Mapping[str, Tensor]) -> Tensor:
        pytest.fail("a probe was made once more")

    assert hutchinson_traces([cut_off], weights, **settings, done=kept[-1]) == whole


def test_the_captured_network_is_differentiated_through() -> None:
    """Every operator of the float graph has a second derivative; the joint trace of one layer is the exact one."""
    network = FloatModule(captured("Mobile"))
    x, y = samples(6), torch.tensor([0, 1, 2, 3, 0, 1])
    weights = network.weights()

    def loss(w: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(network(x, weights=w), y)

    estimates = hutchinson_traces([loss], weights, target_error=0.1, max_probes=400)
    fc = weights["fc"]
    exact = torch.autograd.functional.hessian(lambda flat: loss({**weights, "fc": flat.view_as(fc)}), fc.flatten())
    assert abs(estimates["fc"].trace - float(exact.trace())) < 4 * estimates["fc"].standard_error
