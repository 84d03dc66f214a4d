"""Tables of sensitivities, predicted and measured, and what the cost table makes of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

import hawq_tvm
from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.errors import AllocationError, SettingsError
from hawq_tvm.core.specs import Bits
from hawq_tvm.measure import sensitivity
from hawq_tvm.measure.costing import cost_table
from hawq_tvm.measure.sensitivity import profile_losses, profile_omega
from hawq_tvm.posttraining.fisher import input_sensitivities
from hawq_tvm.posttraining.layer_losses import Change, RealNetwork, layer_losses, with_means_of
from hawq_tvm.posttraining.simulate import input_grids
from hawq_tvm.settings import HessianSettings, RoundingSettings, Settings
from hawq_tvm.sources.samples import Batch

from . import networks
from .builders import captured, ranges_of, rounded, samples

NET = "Mobile"
PAIRS = tuple(map(Bits.parse, ("w4a4", "w4a8", "w8a4", "w8a8")))
QUICK = HessianSettings(target_error=0.0, max_probes=4)


def grids() -> Any:
    return input_grids(captured(NET), ranges_of(NET), (4, 8))


def batch() -> Batch:
    return Batch(samples(6), torch.tensor([0, 1, 2, 3, 1, 0]))


def test_losses_are_those_of_each_part_alone() -> None:
    real, pieces = RealNetwork(captured(NET)), [samples(2), samples(3, seed=1)]
    table = profile_losses(captured(NET), pieces, rounded(NET), grids())
    assert (table["metric"], table["samples"], table["note"]) == ("loss", 5, None)
    for layer in captured(NET).layers:
        found, row = rounded(NET)[layer.name][WeightFormat(4)], table["layers"][layer.name]
        weights = Change(layer.name, torch.from_numpy(found.restored).float(), torch.from_numpy(found.bias))
        inputs = Change(layer.name, reads=grids()[layer.name][4])
        corrected = with_means_of(real, real, {0: inputs}, lambda: pieces)[0]
        expected = layer_losses(real, {"weights": weights, "inputs": corrected}, pieces, reference=real)
        assert {part: row[part]["4"] for part in row} == expected
        assert {part: list(values) for part, values in row.items()} == {"weights": ["4", "8"], "inputs": ["4", "8"]}
        assert row["weights"]["4"] > row["weights"]["8"]
    uncorrected = profile_losses(captured(NET), pieces, rounded(NET), grids(), corrects_means=False)
    first = captured(NET).layers[0].name
    assert uncorrected["layers"][first]["inputs"] != table["layers"][first]["inputs"]


def test_omega_is_of_the_weights_as_deployed_and_has_a_term_of_the_input() -> None:
    network = FloatModule(captured(NET))
    table = profile_omega(network, [batch()], rounded(NET), grids(), QUICK)
    pieces = torch.split(samples(6), 4)
    inputs = input_sensitivities(network, grids(), pieces)
    for layer in captured(NET).layers:
        row = table["layers"][layer.name]
        assert layer.weight is not None
        for bits in (4, 8):
            error = float(np.square(rounded(NET)[layer.name][WeightFormat(bits)].restored - layer.weight).sum())
            assert row["weights"][str(bits)] == pytest.approx(max(row["mean_trace"], 0.0) * error)
            assert row["inputs"][str(bits)] == inputs[layer.name][bits]
    assert "of the input" in table["method"]
    alone = profile_omega(network, [batch()], rounded(NET), {}, QUICK)
    assert "inputs" not in alone["layers"][captured(NET).layers[0].name]
    assert "of the input" not in alone["method"]


def test_a_pair_costs_its_weights_and_its_input() -> None:
    table = profile_losses(captured(NET), [samples(4)], rounded(NET), grids())
    for layer in cost_table(captured(NET), PAIRS, sensitivity=table, latency=None).layers:
        row = table["layers"][layer.name]
        for pair, cost in layer.choices.items():
            assert cost.sensitivity == row["weights"][str(pair.weight)] + row["inputs"][str(pair.activation)]
    layer = cost_table(captured(NET), PAIRS, sensitivity=table, latency=None).layers[1]
    assert layer.choices[PAIRS[0]].sensitivity > layer.choices[PAIRS[1]].sensitivity, "w4a4 and w4a8 do not tie"


def test_where_inputs_do_not_differ_weights_count_alone() -> None:
    table = profile_losses(captured(NET), [samples(4)], rounded(NET), {})
    for layer in cost_table(captured(NET), PAIRS, sensitivity=table, latency=None).layers:
        assert layer.choices[PAIRS[0]].sensitivity == layer.choices[PAIRS[1]].sensitivity


@pytest.mark.parametrize(("part", "pair"), [("weights", "w5a8"), ("inputs", "w4a5")])
def test_widths_that_were_not_profiled_are_named(part: str, pair: str) -> None:
    table = profile_losses(captured(NET), [samples(4)], rounded(NET), grids())
    with pytest.raises(AllocationError, match=f"nothing for the {part} of layer .* at 5 bits; profile"):
        cost_table(captured(NET), [Bits.parse(pair)], sensitivity=table, latency=None)


def test_activations_are_looked_at_where_candidates_differ_in_them() -> None:
    assert Settings(bits=(Bits(4, 4), Bits(8, 8))).chooses_activations
    assert not Settings(bits=(Bits(4, 8), Bits(8, 8))).chooses_activations


@pytest.mark.parametrize("changes", [{"metric": "hessian"}, {"loss_samples": 0}])
def test_metrics_that_are_none_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="the metric is one of omega, loss|samples of the loss"):
        Settings(**changes)


def test_the_measured_loss_needs_no_hessian(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "hutchinson_traces", lambda *_, **__: pytest.fail("the Hessian was begun"))
    rounding = RoundingSettings(method="nearest")
    made = hawq_tvm.quantize(
        networks.make("Residual"),
        {"calibration": samples(8), "evaluation": samples(4, seed=1)},
        budget=hawq_tvm.Budget(size="50%"),
        bits=["w4a4", "w4a8", "w8a8"],
        metric="loss",
        rounding=rounding,
    )
    table = json.loads((made.path / "sensitivity.json").read_text())
    assert table["metric"] == "loss" and table["samples"] == 8
    assert made.costs.sources["sensitivity"].startswith("measured on 8 calibration samples: the mean KL divergence")
