"""The divergence of results against the formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.quantizer import Range
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.posttraining.changes import RealNetwork
from hawq_tvm.posttraining.divergence import output_divergence
from hawq_tvm.posttraining.layer_losses import network_loss
from hawq_tvm.posttraining.range_choice import Comparison
from hawq_tvm.posttraining.simulate import SimulatedNetwork

from .float_graphs import conv, graph

logits = st.lists(st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3), min_size=1, max_size=4)


@given(logits, st.integers(0, 99), st.floats(-5, 5, width=32))
def test_it_is_the_kl_divergence(rows: list[list[float]], seed: int, shift: float) -> None:
    wanted = torch.tensor(rows)
    got = wanted + torch.randn(wanted.shape, generator=torch.Generator().manual_seed(seed))
    p, q = (np.exp(np.float64(z)) / np.exp(np.float64(z)).sum(1, keepdims=True) for z in (wanted, got))
    found = output_divergence(wanted, got)
    assert found.tolist() == pytest.approx((p * np.log(p / q)).sum(1).tolist(), abs=1e-6)
    assert found.min() >= 0
    assert output_divergence(wanted, wanted + shift).max() < 1e-9, "probabilities, not logits"


@given(st.integers(0, 99), st.sampled_from([(3, 5), (3, 5, 2, 2)]))
def test_it_is_a_mean_over_positions(seed: int, shape: tuple[int, ...]) -> None:
    expected, got = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed)) * 3
    found = output_divergence(expected, got)
    wanted = F.kl_div(got.log_softmax(1), expected.log_softmax(1), reduction="none", log_target=True).sum(1)
    torch.testing.assert_close(found, wanted.reshape(3, -1).mean(1).double(), rtol=1e-3, atol=1e-5)
    assert found.min() > 0


def test_one_logit_is_compared_by_its_square() -> None:
    assert output_divergence(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.5], [4.0]])).tolist() == [0.25, 4.0]


def test_losses_and_ranges_are_judged_alike_where_the_result_is_an_image() -> None:
    net, bits = graph(conv("a", "x")), BitConfig.uniform(("a",), Bits(8, 3))
    ranges = {"x": Range(-3.0, 3.0)}
    x = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    quantised = SimulatedNetwork(net, ActivationTypes(net, ranges, bits))
    loss = network_loss(quantised, [x], reference=RealNetwork(net))
    assert loss == pytest.approx(Comparison(net, [x]).divergence(ranges, bits), rel=1e-9)
    assert loss > 0
