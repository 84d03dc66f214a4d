"""Top eigenvalues and traces against exact Hessians, and against another package where it is installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.calibration import Progress, hutchinson_traces, top_eigenvalue, top_eigenvalues
from hawq_tvm.core.errors import SensitivityError

from .builders import captured, samples
from .test_calibration import tiny_loss

LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def exact_blocks(loss: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every layer's block of the exact Hessian, float64."""
    blocks = {}
    for name, weight in weights.items():

        def of_one(flat: Tensor, name: str = name, shape: torch.Size = weight.shape) -> Tensor:
            result: Tensor = loss({**weights, name: flat.view(shape)})
            return result

        blocks[name] = torch.autograd.functional.hessian(of_one, weight.flatten()).double()
    return blocks


def largest(block: Tensor) -> float:
    values = torch.linalg.eigvalsh(block)
    return float(values[values.abs().argmax()])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_eigenvalues_are_those_of_the_exact_hessian(seed: int) -> None:
    loss, weights = tiny_loss()
    found = top_eigenvalues([loss], weights, target_error=1e-4, max_iterations=2000, seed=seed)
    for name, block in exact_blocks(loss, weights).items():
        assert found[name].value == pytest.approx(largest(block), rel=1e-3)
        assert found[name].relative_error <= 1e-4
        assert found[name].parameters == weights[name].numel()


def test_an_eigenvalue_lies_within_the_residual_however_early_it_stops() -> None:
    loss, weights = tiny_loss()
    blocks = exact_blocks(loss, weights)
    for iterations in (1, 2, 3, 5, 9):
        for name, top in top_eigenvalues([loss], weights, target_error=0.0, max_iterations=iterations).items():
            assert top.iterations == iterations
            nearest = float((torch.linalg.eigvalsh(blocks[name]) - top.value).abs().min())
            assert nearest <= top.residual * (1 + 1e-4) + 1e-7
            estimate = top_eigenvalue(top)
            assert (estimate.value, estimate.error) == (abs(top.value), top.residual)


def test_batches_count_by_their_samples() -> None:
    loss, weights = tiny_loss()

    def tripled(w: Mapping[str, Tensor]) -> Tensor:
        return 3.0 * loss(w)

    found = top_eigenvalues([loss, tripled], weights, samples=[1, 3], target_error=1e-4, max_iterations=2000)
    for name, block in exact_blocks(loss, weights).items():
        assert found[name].value == pytest.approx(2.5 * largest(block), rel=1e-3)


def test_the_magnitude_counts_where_the_loss_bends_down() -> None:
    scale = torch.tensor([3.0, -5.0, 1.0])
    found = top_eigenvalues([lambda w: 0.5 * (w["a"] ** 2 * scale).sum()], {"a": torch.ones(3)}, target_error=1e-4)
    assert found["a"].value == pytest.approx(-5.0, rel=1e-4)
    assert found["a"].magnitude == -found["a"].value
    assert top_eigenvalue(found["a"]).value > 0, "and it is not free"


def test_a_layer_that_does_not_bend_is_0_and_leaves_at_once() -> None:
    found = top_eigenvalues(
        [lambda w: w["straight"].sum() + (w["bent"] ** 4).sum()],
        {"straight": torch.ones(3), "bent": torch.tensor([1.0, 2.0])},
        target_error=1e-4,
    )
    assert (found["straight"].value, found["straight"].residual, found["straight"].iterations) == (0.0, 0.0, 1)
    assert found["straight"].relative_error == 0.0
    assert found["bent"].value == pytest.approx(48.0, rel=1e-4)


def test_iterations_stop_at_the_target_or_the_cap() -> None:
    loss, weights = tiny_loss()
    seen: list[int] = []
    loose = top_eigenvalues([loss], weights, target_error=0.5, max_iterations=500, progress=seen.append)
    assert max(top.iterations for top in loose.values()) == seen[-1] == len(seen) < 50
    tight = top_eigenvalues([loss], weights, target_error=0.01, max_iterations=500)
    assert all(tight[name].iterations > loose[name].iterations for name in loose)


def test_what_was_kept_is_gone_on_from_to_the_same_result() -> None:
    loss, weights = tiny_loss()
    settings: dict[str, Any] = {"target_error": 1e-3, "max_iterations": 300, "seed": 5}
    kept: list[Progress] = []
    whole = top_eigenvalues([loss], weights, **settings, keep=kept.append)
    assert len(kept) > 5
    for done in (kept[0], kept[4], kept[-1]):
        assert top_eigenvalues([loss], weights, **settings, done=done) == whole
    assert top_eigenvalues([loss], weights, **settings) == whole
    assert top_eigenvalues([loss], weights, **{**settings, "seed": 6}) != whole


def test_what_cannot_be_differentiated_is_told() -> None:
    with pytest.raises(SensitivityError, match="0 batches"):
        top_eigenvalues([], {"a": torch.ones(2)})
    with pytest.raises(SensitivityError, match="has none; replace it .*, or take a metric that needs none, such as kl"):
        top_eigenvalues([lambda w: torch.cdist(w["a"], w["a"] + 1).square().sum()], {"a": torch.randn(4, 4)})
    with pytest.raises(SensitivityError, match="the Hessian of layer 'a' is not finite"):
        top_eigenvalues([lambda w: w["a"].sqrt().sum()], {"a": torch.zeros(2)})


@pytest.mark.parametrize("name", ["Residual", "Mobile"])
def test_traces_and_eigenvalues_agree_with_curvlinops(name: str) -> None:
    """One layer of a captured network, through another package's Hessian."""
    curvlinops = pytest.importorskip(
        "curvlinops", reason="curvlinops-for-pytorch is not installed; pip install --no-deps it and what it imports"
    )
    network = FloatModule(captured(name))
    x, weights = samples(6), network.weights()

    def loss(w: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(network(x, weights=w), LABELS)

    traces = hutchinson_traces([loss], weights, target_error=0.03, max_probes=2000)
    tops = top_eigenvalues([loss], weights, target_error=1e-3, max_iterations=1000)
    for layer in list(weights)[1:4]:

        class OfOne(nn.Module):
            """The network as a function of one layer's weights."""

            def __init__(self, layer: str = layer) -> None:
                super().__init__()
                self.layer = layer
                self.weight = nn.Parameter(weights[layer].clone())

            def forward(self, images: Tensor) -> Tensor:
                return network(images, weights={self.layer: self.weight})

        module = OfOne()
        hessian = curvlinops.HessianLinearOperator(
            module, nn.CrossEntropyLoss(), [module.weight], [(x, LABELS)], check_deterministic=False
        )
        size = weights[layer].numel()
        block = (hessian @ torch.eye(size)).double()
        trace, top = float(block.trace()), largest((block + block.T) / 2)
        assert abs(traces[layer].trace - trace) < 4 * traces[layer].standard_error
        assert tops[layer].value == pytest.approx(top, rel=5e-3)
