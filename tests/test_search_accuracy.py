"""What a search measures with: the simulated network, and the same after a brief fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.errors import DataError
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.quantizer import LayerWeights, cluster_weight, quantize_weight, weight_scales
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.posttraining.simulate import Grid, SimulatedNetwork
from hawq_tvm.search.finetune import (
    FinetunedAccuracy,
    FinetuneSettings,
    TrainableNetwork,
    fine_tune,
    on_grid,
    passed,
)
from hawq_tvm.search.simulated import SimulatedAccuracy

from .builders import captured, ranges_of, rounded, samples, uniform

NAME = "Residual"


def labelled(count: int = 60, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Noise, each image with the class that the float network gives it more of than the others."""
    images = samples(count, seed)
    with torch.no_grad():
        logits = FloatModule(captured(NAME))(images).flatten(1)
    return images, (logits - logits.mean(0)).argmax(1)


def nearest(net: FloatGraph, bits: int) -> Mapping[str, Mapping[WeightFormat, LayerWeights]]:
    """Each layer's weights at one width, to nearest."""
    found = {}
    for node in net.layers:
        assert node.weight is not None and node.bias is not None
        scales = weight_scales(node.weight, bits)
        integers = quantize_weight(node.weight, scales, bits)
        found[node.name] = {WeightFormat(bits): LayerWeights(integers, scales, node.bias, bits)}
    return found


def test_it_puts_rounded_weights_together() -> None:
    images, labels = labelled()
    measure = SimulatedAccuracy(captured(NAME), ranges_of(NAME), rounded(NAME), images, labels)
    bits = BitConfig({layer.name: Bits(4 if i % 2 else 8, 8) for i, layer in enumerate(captured(NAME).layers)})
    network = measure.network(bits)
    for name, pair in bits.layers.items():
        expected = rounded(NAME)[name][pair.format]
        assert np.allclose(network.weights[name].numpy(), expected.restored, rtol=1e-6)
        assert np.array_equal(network.biases[name].numpy(), expected.bias)
    assert measure(bits) == float((network(images).argmax(1) == labels).double().mean())


def test_eight_bits_are_as_good_as_float_and_threads_change_nothing() -> None:
    images, labels = labelled(130)
    with torch.no_grad():
        expected = float((FloatModule(captured(NAME))(images).argmax(1) == labels).double().mean())
    one, two = (
        SimulatedAccuracy(captured(NAME), ranges_of(NAME), rounded(NAME), images, labels, threads=threads)
        for threads in (1, 2)
    )
    assert 0 < expected < 1
    assert one(uniform(NAME, Bits(8, 8))) == pytest.approx(expected, abs=0.03)
    assert one(uniform(NAME, Bits(4, 4))) == two(uniform(NAME, Bits(4, 4)))


def test_there_must_be_samples() -> None:
    images, labels = labelled(1)
    with pytest.raises(DataError, match="no samples to measure accuracy on"):
        SimulatedAccuracy(captured(NAME), ranges_of(NAME), rounded(NAME), images[:0], labels[:0])


@pytest.mark.parametrize("name", ["Residual", "Concat", "Mobile", "Pools"])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_trained_computes_what_is_simulated(name: str, bits: int) -> None:
    net, images = captured(name), samples(8)
    types = ActivationTypes(net, ranges_of(name), uniform(name, Bits(bits, bits)))
    weights = {
        layer: torch.from_numpy(by[WeightFormat(bits)].restored.astype(np.float32))
        for layer, by in nearest(net, bits).items()
    }
    expected = SimulatedNetwork(net, types, weights)(images)
    with torch.no_grad():
        got = TrainableNetwork(net, types)(images)
    assert torch.allclose(got, expected, atol=1e-4, rtol=1e-3) or (got != expected).float().mean() < 0.02


def test_gradients_pass_within_the_grids_ends_and_nowhere_else() -> None:
    x = torch.tensor([-3.0, -0.26, 0.3, 5.0], requires_grad=True)
    y = passed(Grid(0.5, -2, 3), x)
    assert y.tolist() == [-1.0, -0.5, 0.5, 1.5]
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("format", [WeightFormat(3), WeightFormat(8), WeightFormat(2, codebook=True)])
def test_weights_lie_on_their_grid_and_pass_gradients(format: WeightFormat) -> None:
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    got = on_grid(weight, format)
    reals = weight.detach().numpy()
    if format.codebook:
        scales = weight_scales(reals, 8)
        integers, codebook = cluster_weight(reals, scales, format.bits)
        assert len(codebook) == 4
    else:
        scales = weight_scales(reals, format.bits)
        integers = quantize_weight(reals, scales, format.bits)
    assert np.allclose(got.detach().numpy(), integers * scales.reshape(-1, 1, 1, 1), atol=1e-5)
    (2 * got).sum().backward()
    assert weight.grad is not None and bool((weight.grad == 2).all())


def test_a_channel_of_zeros_stays_zero() -> None:
    weight = torch.zeros(2, 3, 1, 1, requires_grad=True)
    assert torch.equal(on_grid(weight, WeightFormat(4)), torch.zeros(2, 3, 1, 1))


def test_fine_tuning_lowers_the_loss_and_is_seeded() -> None:
    training = labelled(96)
    types = ActivationTypes(captured(NAME), ranges_of(NAME), uniform(NAME, Bits(3, 4)))
    settings = FinetuneSettings(epochs=20, batch=32, rate=0.03)

    def loss(network: TrainableNetwork) -> float:
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(network(training[0]), training[1]))

    first, second = (TrainableNetwork(captured(NAME), types) for _ in range(2))
    before = loss(first)
    fine_tune(first, training, settings, seed=1)
    fine_tune(second, training, settings, seed=1)
    assert loss(first) < 0.9 * before
    assert all(torch.equal(a, b) for a, b in zip(first.parameters, second.parameters, strict=True))


def test_accuracy_after_fine_tuning_beats_that_before() -> None:
    training, validation = labelled(200, seed=5), labelled(100, seed=6)
    bits = uniform(NAME, Bits(2, 4))
    measures = [
        FinetunedAccuracy(
            captured(NAME), ranges_of(NAME), training, validation, FinetuneSettings(epochs=epochs, batch=25, rate=0.02)
        )
        for epochs in (0, 10)
    ]
    before, after = (measure(bits) for measure in measures)
    assert after > before
    assert measures[1](bits) == after, "the float network's weights are left as they were"


@pytest.mark.parametrize(("schedule", "shares"), [("constant", [1, 1, 1, 1]), ("cosine", [1, 0.854, 0.5, 0.146])])
def test_the_rate_stays_or_falls_along_half_a_cosine(
    schedule: Literal["constant", "cosine"], shares: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: rates.append(self.param_groups[0]["lr"]))
    types = ActivationTypes(captured(NAME), ranges_of(NAME), uniform(NAME, Bits(8, 8)))
    network = TrainableNetwork(captured(NAME), types)
    fine_tune(network, labelled(20), FinetuneSettings(epochs=2, batch=10, rate=0.3, schedule=schedule))
    assert rates == pytest.approx([0.3 * share for share in shares], abs=1e-3)
