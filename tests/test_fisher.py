"""The Fisher information's quadratic form against exact Hessians and finite differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import FloatModule, clipped, evaluate
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.errors import SensitivityError
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.posttraining.divergence import output_divergence
from hawq_tvm.posttraining.fisher import DRAWS, Fisher, fisher_information
from hawq_tvm.posttraining.input_curvature import input_curvatures
from hawq_tvm.posttraining.simulate import Grid
from hawq_tvm.sources.samples import Batch

from .float_graphs import RELU, conv, graph, linear, node

COARSE, FINE = Grid(0.5, -3, 3), Grid(0.05, -127, 127)


def small() -> FloatGraph:
    """Two layers that read one value, and a sum; no class is certain."""
    weight = np.random.default_rng(0).normal(0, 0.05, (3, 144)).astype(np.float32)
    return graph(
        conv("a", "x", clip=RELU),
        conv("b", "a"),
        conv("c", "a", clip=RELU),
        node("sum", "add", "b", "c"),
        node("flat", "flatten", "sum", shape=(144,)),
        replace(linear("fc", "flat", features=144), weight=weight, bias=np.zeros(3, np.float32)),
    )


def inputs(count: int = 3) -> Tensor:
    return 0.3 * torch.randn(count, 4, 6, 6, generator=torch.Generator().manual_seed(1))


def form_of_inputs(
    network: FloatModule, grids: Mapping[str, Mapping[int, Grid]], x: Tensor, draws: int = DRAWS
) -> dict[str, dict[int, float]]:
    """The mean quadratic form of each layer's input at each width."""
    found = fisher_information(network, {}, grids, [Batch(x, None)], draws=draws)
    return {name: {bits: float(form.mean()) for bits, form in part.forms.items()} for (_, name), part in found.items()}


def forward(
    net: FloatGraph, x: Tensor, moved: Mapping[str, Tensor] | None = None, seen: dict[str, Tensor] | None = None
) -> Tensor:
    """Logits, with something added to the input of some layers alone."""
    module, values = FloatModule(net), {net.input_name: x}
    for item in net:
        read = [values[name] for name in item.inputs]
        if moved and item.name in moved:
            read[0] = read[0] + moved[item.name]
        if seen is not None:
            seen[item.name] = read[0]
        constants = (module.constant(item.name, part) for part in ("weight", "bias", "counts"))
        values[item.name] = clipped(evaluate(item, read, *constants), item.clip)
    return values[net.output]


def exact(net: FloatGraph, x: Tensor, layer: str, grid: Grid) -> float:
    """Mean of ``d^T J^T (diag(p) - p p^T) J d``, J d by a forward derivative."""
    seen: dict[str, Tensor] = {}
    p = forward(net, x, seen=seen).double().softmax(1)
    move = grid.nearest(seen[layer]) - seen[layer]
    _, change = torch.autograd.functional.jvp(
        lambda step: forward(net, x, {layer: step * move}), torch.zeros(()), torch.ones(())
    )
    change = change.double()
    return float(((p * change.square()).sum(1) - (p * change).sum(1).square()).mean())


@pytest.mark.parametrize("layer", ["a", "b", "c", "fc"])
def test_drawn_labels_converge_to_the_gauss_newton_hessian(layer: str) -> None:
    net, x = small(), inputs()
    found = form_of_inputs(FloatModule(net), {layer: {3: COARSE, 8: FINE}}, x, draws=3000)
    for bits, grid in ((3, COARSE), (8, FINE)):
        assert found[layer][bits] == pytest.approx(exact(net, x, layer, grid), rel=0.1)


@pytest.mark.parametrize("layer", ["b", "fc"])
def test_it_is_twice_the_rise_of_the_loss_for_small_changes(layer: str) -> None:
    """A Taylor series has the half that neither this nor the trace times the squared error has."""
    net, x = small(), inputs()
    seen: dict[str, Tensor] = {}
    wanted = forward(net, x, seen=seen)
    move, step = FINE.nearest(seen[layer]) - seen[layer], 0.25
    rise = float(output_divergence(wanted, forward(net, x, {layer: step * move})).mean()) / step**2
    assert exact(net, x, layer, FINE) == pytest.approx(2 * rise, rel=0.05)


LABELS = torch.tensor([0, 2, 1])


THREE, EIGHT = WeightFormat(3), WeightFormat(8)


def moves(net: FloatGraph) -> dict[str, dict[WeightFormat, Tensor]]:
    """Each layer's weights on a coarse and on a fine grid, less themselves."""
    weights = FloatModule(net).weights()
    return {name: {THREE: COARSE.nearest(w) - w, EIGHT: FINE.nearest(w) - w} for name, w in weights.items()}


@pytest.mark.parametrize("layer", ["a", "b", "fc"])
def test_forms_and_lengths_are_those_of_each_samples_own_gradient(layer: str) -> None:
    """Of the weights and of the input, against labels that are given: gradients a sample, by finite differences too."""
    net, x = small(), inputs()
    network, change = FloatModule(net), moves(small())
    found = fisher_information(network, change, {layer: {3: COARSE}}, [Batch(x, LABELS)], draws=None)
    weights, part = network.weights()[layer], found["weights", layer]
    for sample in range(3):
        leaf = weights.clone().requires_grad_()
        loss = F.cross_entropy(network(x[sample : sample + 1], weights={layer: leaf}), LABELS[sample : sample + 1])
        (gradient,) = torch.autograd.grad(loss, leaf)
        for bits, move in change[layer].items():
            assert float(part.forms[bits][sample]) == pytest.approx(float((gradient * move).sum()) ** 2, rel=1e-3)
            length = float(gradient.square().mean() * move.square().sum())
            assert float(part.lengths[bits][sample]) == pytest.approx(length, rel=1e-4)
        assert float(part.traces[sample]) == pytest.approx(float(gradient.square().mean()), rel=1e-4)
    seen: dict[str, Tensor] = {}
    forward(net, x, seen=seen)
    move, step = COARSE.nearest(seen[layer]) - seen[layer], 1e-3
    rise = F.cross_entropy(forward(net, x, {layer: step * move}).double(), LABELS, reduction="none")
    fall = F.cross_entropy(forward(net, x, {layer: -step * move}).double(), LABELS, reduction="none")
    slopes = (rise - fall) / (2 * step)
    np.testing.assert_allclose(found["inputs", layer].forms[3], slopes.square(), rtol=0.1, atol=1e-7)


def test_a_length_is_the_form_of_a_change_in_any_direction() -> None:
    """The mean of (g . d)^2 over signs d is |g|^2 |d|^2 / n."""
    net, x = small(), inputs(1)
    network, generator = FloatModule(net), torch.Generator().manual_seed(0)
    shape = network.weights()["fc"].shape
    draws = [torch.randint(0, 2, shape, generator=generator).float() * 2 - 1 for _ in range(400)]
    found = [
        fisher_information(network, {"fc": {EIGHT: move}}, {}, [Batch(x, LABELS[:1])], draws=None)["weights", "fc"]
        for move in draws
    ]
    lengths = {float(each.lengths[EIGHT]) for each in found}
    assert max(lengths) == pytest.approx(min(lengths))
    assert np.mean([float(each.forms[EIGHT]) for each in found]) == pytest.approx(max(lengths), rel=0.25)


def same(first: Mapping[tuple[str, str], Fisher], second: Mapping[tuple[str, str], Fisher]) -> bool:
    return all(
        torch.equal(form, second[key].forms[width]) for key, part in first.items() for width, form in part.forms.items()
    )


def test_seeds_repeat_and_threads_and_batches_change_nothing() -> None:
    network, x = FloatModule(small()), inputs(6)
    grids, batches = {"b": {3: COARSE}, "fc": {3: COARSE}}, [Batch(x[:2], None), Batch(x[2:], None)]
    first, again, other = (fisher_information(network, moves(small()), grids, batches, seed=seed) for seed in (3, 3, 4))
    assert same(first, again)
    assert not same(first, other)
    whole = [Batch(x, None)]
    assert same(first, fisher_information(network, moves(small()), grids, whole, seed=3, threads=3))
    assert len(first["weights", "b"].traces) == 6


def test_the_next_seed_draws_what_no_sample_of_this_one_drew() -> None:
    network, grids = FloatModule(small()), {"fc": {3: COARSE}}
    twice = Batch(inputs(1).expand(2, -1, -1, -1), None)
    forms = [
        fisher_information(network, {}, grids, [twice], draws=64, seed=seed)["inputs", "fc"].forms[3] for seed in (0, 1)
    ]
    assert forms[0][1] != forms[1][0]


def test_what_lies_on_its_grid_loses_nothing() -> None:
    x = COARSE.nearest(inputs())
    assert form_of_inputs(FloatModule(small()), {"a": {3: COARSE}}, x) == {"a": {3: 0.0}}


def test_what_cannot_be_differentiated_is_told() -> None:
    network = FloatModule(small())
    with pytest.raises(SensitivityError, match="no samples"):
        fisher_information(network, {}, {"a": {3: COARSE}}, [])
    with pytest.raises(SensitivityError, match="result is not finite"):
        form_of_inputs(network, {"a": {3: COARSE}}, torch.full((1, 4, 6, 6), torch.nan))
    with pytest.raises(SensitivityError, match="the samples have no labels, which the empirical Fisher .*fisher-form"):
        fisher_information(network, moves(small()), {}, [Batch(inputs(), None)], draws=None)


# the top eigenvalue of each sample's input


@pytest.mark.parametrize("layer", ["a", "b", "fc"])
def test_input_curvatures_are_those_of_each_samples_exact_hessian(layer: str) -> None:
    net, x = small(), inputs()
    found = input_curvatures(
        FloatModule(net), {layer: {3: COARSE}}, [(x[:2], LABELS[:2]), (x[2:], LABELS[2:])], target_error=1e-3,
        max_iterations=400,
    )[layer][3]  # fmt: skip
    for sample in range(3):
        one, label = x[sample : sample + 1], LABELS[sample : sample + 1]
        seen: dict[str, Tensor] = {}
        forward(net, one, seen=seen)
        value = seen[layer].detach()

        def loss(step: Tensor, one: Tensor = one, label: Tensor = label) -> Tensor:
            return F.cross_entropy(forward(net, one, {layer: step}), label)

        hessian = torch.autograd.functional.hessian(loss, torch.zeros_like(value)).reshape(value.numel(), -1)
        top = float(torch.linalg.eigvalsh(hessian.double()).abs().max())
        length = float((COARSE.nearest(value) - value).square().sum())
        assert float(found.bounds[sample]) == pytest.approx(top * length, rel=0.01)
        assert float(found.bounds[sample]) >= abs(exact(net, one, layer, COARSE)) * 0.999, "no direction bends more"
    assert float(found.residuals.sum()) < 0.01 * float(found.bounds.sum())


def test_an_input_that_nothing_depends_on_has_no_curvature() -> None:
    net = small()
    dead = replace(net.nodes[-1], weight=np.zeros((3, 144), np.float32))
    found = input_curvatures(
        FloatModule(replace(net, nodes=(*net.nodes[:-1], dead))), {"b": {3: COARSE}}, [(inputs(), LABELS)]
    )["b"][3]
    assert found.bounds.tolist() == found.residuals.tolist() == [0.0] * 3
    with pytest.raises(SensitivityError, match="no samples"):
        input_curvatures(FloatModule(net), {"b": {3: COARSE}}, [])
