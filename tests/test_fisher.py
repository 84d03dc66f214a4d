"""The Fisher information's quadratic form against exact Hessians and finite differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import FloatModule, clipped, evaluate
from hawq_tvm.core.errors import SensitivityError
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.posttraining.divergence import output_divergence
from hawq_tvm.posttraining.fisher import input_sensitivities
from hawq_tvm.posttraining.simulate import Grid

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
    found = input_sensitivities(FloatModule(net), {layer: {3: COARSE, 8: FINE}}, [x], draws=3000)
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


def test_seeds_repeat_and_threads_change_nothing() -> None:
    network, pieces = FloatModule(small()), [inputs(2), inputs(3), inputs(1)]
    grids = {"b": {3: COARSE}, "fc": {3: COARSE, 8: FINE}}
    first, again, other = (input_sensitivities(network, grids, pieces, seed=seed) for seed in (3, 3, 4))
    assert first == again != other
    assert input_sensitivities(network, grids, pieces, seed=3, threads=3) == first
    assert first["fc"][3] > first["fc"][8] > 0


def test_the_next_seed_draws_what_no_piece_of_this_one_drew() -> None:
    network, grids, x = FloatModule(small()), {"fc": {3: COARSE}}, inputs()

    def drawn(seed: int, pieces: int) -> float:
        return input_sensitivities(network, grids, [x] * pieces, seed=seed)["fc"][3] * pieces

    second = drawn(0, 2) - drawn(0, 1)
    assert second > 0
    assert second != pytest.approx(drawn(1, 1), rel=1e-6)


def test_an_input_on_its_grid_loses_nothing() -> None:
    x = COARSE.nearest(inputs())
    assert input_sensitivities(FloatModule(small()), {"a": {3: COARSE}}, [x]) == {"a": {3: 0.0}}


def test_what_cannot_be_differentiated_is_told() -> None:
    network = FloatModule(small())
    with pytest.raises(SensitivityError, match="no samples"):
        input_sensitivities(network, {"a": {3: COARSE}}, [])
    with pytest.raises(SensitivityError, match="result is not finite"):
        input_sensitivities(network, {"a": {3: COARSE}}, [torch.full((1, 4, 6, 6), torch.nan)])
