"""Tables of sensitivities, predicted and measured, and what the cost table makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import hawq_tvm
from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.errors import AllocationError, DataError, SensitivityError, SettingsError
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.specs import Bits
from hawq_tvm.measure import curvature
from hawq_tvm.measure.costing import cost_table
from hawq_tvm.measure.curvature import Curved, profile_eigenvalue, profile_omega, samples_at_once
from hawq_tvm.measure.information import FisherMetric, profile_fisher
from hawq_tvm.measure.losses import MeasuredMetric, profile_measured
from hawq_tvm.posttraining.changes import Change, RealNetwork
from hawq_tvm.posttraining.fisher import fisher_information
from hawq_tvm.posttraining.input_curvature import input_curvatures
from hawq_tvm.posttraining.layer_losses import layer_losses, with_means_of
from hawq_tvm.posttraining.simulate import input_grids
from hawq_tvm.settings import METRICS, HessianSettings, RoundingSettings, Settings, parse_metrics
from hawq_tvm.sources.samples import Batch

from . import networks
from .builders import captured, ranges_of, rounded, samples
from .float_graphs import graph, linear

NET = "Mobile"
PAIRS = tuple(map(Bits.parse, ("w4a4", "w4a8", "w8a4", "w8a8")))
QUICK = HessianSettings(target_error=0.0, max_probes=4, max_iterations=3)
LABELS = torch.tensor([0, 1, 2, 3, 1, 0])


def grids() -> Any:
    return input_grids(captured(NET), ranges_of(NET), (4, 8))


def batch() -> Batch:
    return Batch(samples(6), LABELS)


def loss() -> Curved:
    return Curved.over(FloatModule(captured(NET)), [batch()])


def measured(metric: MeasuredMetric = "kl", of: Any = None, **options: Any) -> dict[str, Any]:
    return profile_measured(metric, captured(NET), [batch()], rounded(NET), grids() if of is None else of, **options)


def squared_error(layer: str, bits: int) -> float:
    weight = captured(NET).by_name[layer].weight
    assert weight is not None
    return float(np.square(rounded(NET)[layer][WeightFormat(bits)].restored - weight).sum())


def test_divergences_are_those_of_each_part_alone() -> None:
    real, pieces = RealNetwork(captured(NET)), [samples(2), samples(3, seed=1)]
    batches = [Batch(piece, None) for piece in pieces]
    table = profile_measured("kl", captured(NET), batches, rounded(NET), grids())
    assert (table["metric"], table["samples"], table["note"]) == ("kl", 5, None)
    for layer in captured(NET).layers:
        found, row = rounded(NET)[layer.name][WeightFormat(4)], table["layers"][layer.name]
        weights = Change(layer.name, torch.from_numpy(found.restored).float(), torch.from_numpy(found.bias))
        inputs = Change(layer.name, reads=grids()[layer.name][4])
        corrected = with_means_of(real, real, {0: inputs}, lambda: pieces)[0]
        expected = layer_losses(real, {"weights": weights, "inputs": corrected}, pieces, reference=real)
        assert {part: row[part]["4"] for part in ("weights", "inputs")} == expected
        assert row["weights"]["4"] > row["weights"]["8"]
        assert 0 < row["weights_error"]["4"] < row["weights"]["4"]
        assert list(row["inputs_error"]) == ["4", "8"]
    uncorrected = profile_measured("kl", captured(NET), batches, rounded(NET), grids(), corrects_means=False)
    first = captured(NET).layers[0].name
    assert uncorrected["layers"][first]["inputs"] != table["layers"][first]["inputs"]


def test_the_loss_is_the_rise_of_cross_entropy_against_the_labels() -> None:
    table, network = measured("loss"), FloatModule(captured(NET))
    layer = captured(NET).layers[2].name
    found = rounded(NET)[layer][WeightFormat(4)]
    node = replace(captured(NET).by_name[layer], weight=found.restored.astype(np.float32), bias=found.bias)
    changed = FloatModule(
        replace(captured(NET), nodes=tuple(node if n.name == layer else n for n in captured(NET).nodes))
    )
    rises = [F.cross_entropy(net(samples(6)).double(), LABELS, reduction="none").detach() for net in (changed, network)]
    rise = rises[0] - rises[1]
    row = table["layers"][layer]
    assert row["weights"]["4"] == pytest.approx(float(rise.mean()), rel=1e-3)
    assert row["weights_error"]["4"] == pytest.approx(float(rise.std() / 6**0.5), rel=1e-3)


def test_the_ratio_of_error_to_signal_is_that_of_the_layers_own_result() -> None:
    table = measured("sqnr", {})
    layer = captured(NET).layers[0]
    module = FloatModule(captured(NET))
    unclipped = replace(layer, clip=None)
    exact = module.result(unclipped, [samples(6)])
    got = module.result(
        unclipped, [samples(6)], torch.from_numpy(rounded(NET)[layer.name][WeightFormat(4)].restored).float()
    )
    got = got + torch.from_numpy(rounded(NET)[layer.name][WeightFormat(4)].bias - layer.bias).reshape(1, -1, 1, 1)
    ratio = float((got - exact).double().square().sum() / exact.double().square().sum())
    assert table["layers"][layer.name]["weights"]["4"] == pytest.approx(ratio, rel=1e-4)
    assert "inputs" not in table["layers"][layer.name]
    assert all(row["weights"]["4"] > row["weights"]["8"] for row in table["layers"].values())


def test_omega_is_of_the_weights_as_deployed_and_has_a_term_of_the_input() -> None:
    table = profile_omega(loss(), rounded(NET), grids(), QUICK)
    inputs = fisher_information(FloatModule(captured(NET)), {}, grids(), [Batch(samples(6), None)])
    for layer in captured(NET).layers:
        row = table["layers"][layer.name]
        for bits in (4, 8):
            error = squared_error(layer.name, bits)
            assert row["weights"][str(bits)] == pytest.approx(row["mean_trace"] * error)
            standard = row["standard_error"] / row["parameters"]
            assert row["weights_error"][str(bits)] == pytest.approx(standard * error)
            form = inputs["inputs", layer.name].forms[bits]
            assert row["inputs"][str(bits)] == float(form.mean())
            assert row["inputs_error"][str(bits)] == pytest.approx(float(form.std() / 6**0.5))
        assert row["order"] == row["mean_trace"]
    assert "of the input" in table["method"]
    alone = profile_omega(loss(), rounded(NET), {}, QUICK)
    assert "inputs" not in alone["layers"][captured(NET).layers[0].name]
    assert "of the input" not in alone["method"]


def test_hawqs_omega_is_the_eigenvalue_times_the_squared_error_and_its_order_is_per_weight() -> None:
    table = profile_eigenvalue(loss(), rounded(NET), grids(), QUICK)
    inputs = input_curvatures(
        FloatModule(captured(NET)), grids(), [(samples(6), LABELS)], target_error=0.0, max_iterations=3
    )
    for layer in captured(NET).layers:
        row = table["layers"][layer.name]
        for bits in (4, 8):
            error = squared_error(layer.name, bits)
            assert row["weights"][str(bits)] == pytest.approx(abs(row["eigenvalue"]) * error)
            assert row["weights_error"][str(bits)] == pytest.approx(row["residual"] * error)
            assert row["inputs"][str(bits)] == pytest.approx(float(inputs[layer.name][bits].bounds.mean()))
        assert row["order"] == pytest.approx(abs(row["eigenvalue"]) / row["parameters"])
    assert "raise --power-iterations (HessianSettings.max_iterations) above 3" in table["note"]
    sure = profile_eigenvalue(loss(), rounded(NET), {}, HessianSettings(target_error=0.3, max_iterations=200))
    assert sure["note"] is None and sure["converged"] == len(captured(NET).layers)


@pytest.mark.parametrize("metric", ["fisher", "fisher-form"])
def test_fisher_tables_hold_lengths_or_forms(metric: FisherMetric) -> None:
    network = FloatModule(captured(NET))
    table = profile_fisher(metric, network, [batch()], rounded(NET), grids())
    moves = {
        name: {bits: torch.from_numpy(found.restored).float() - network.weights()[name] for bits, found in row.items()}
        for name, row in rounded(NET).items()
    }
    draws = {"draws": None} if metric == "fisher" else {}
    found = fisher_information(network, moves, grids(), [batch()], **draws)
    for name, row in table["layers"].items():
        for part in ("weights", "inputs"):
            parts = found[part, name]
            values = parts.lengths if metric == "fisher" else parts.forms
            width = WeightFormat(4) if part == "weights" else 4
            assert row[part]["4"] == pytest.approx(float(values[width].mean()), rel=1e-4)
        assert row["order"] == pytest.approx(float(found["weights", name].traces.mean()))
    assert table["samples"] == 6


def test_the_divergence_is_half_of_what_the_form_says_for_small_changes() -> None:
    """The measured one and the predicted one are in one unit, at 8 bits on one layer."""
    measured_table = measured("kl", {})
    table = profile_fisher("fisher-form", FloatModule(captured(NET)), [batch()], rounded(NET), {})
    name = captured(NET).layers[0].name
    ratio = table["layers"][name]["weights"]["8"] / measured_table["layers"][name]["weights"]["8"]
    assert 1.0 < ratio < 4.0, "four draws a sample, and 8 bits"


def test_a_pair_costs_its_weights_and_its_input() -> None:
    table = measured()
    for layer in cost_table(captured(NET), PAIRS, sensitivity=table, latency=None).layers:
        row = table["layers"][layer.name]
        for pair, cost in layer.choices.items():
            assert cost.sensitivity == row["weights"][str(pair.weight)] + row["inputs"][str(pair.activation)]
        error = (row["weights_error"]["4"] + row["inputs_error"]["4"]) / layer.choices[PAIRS[0]].sensitivity
        assert layer.sensitivity_error == pytest.approx(error) == pytest.approx(row["relative_error"])
    layer = cost_table(captured(NET), PAIRS, sensitivity=table, latency=None).layers[1]
    assert layer.choices[PAIRS[0]].sensitivity > layer.choices[PAIRS[1]].sensitivity, "w4a4 and w4a8 do not tie"


def test_where_inputs_do_not_differ_weights_count_alone() -> None:
    table = measured("kl", {})
    for layer in cost_table(captured(NET), PAIRS, sensitivity=table, latency=None).layers:
        assert layer.choices[PAIRS[0]].sensitivity == layer.choices[PAIRS[1]].sensitivity


@pytest.mark.parametrize(("part", "pair"), [("weights", "w5a8"), ("inputs", "w4a5")])
def test_widths_that_were_not_profiled_are_named(part: str, pair: str) -> None:
    with pytest.raises(AllocationError, match=f"nothing for the {part} of layer .* at 5 bits; profile"):
        cost_table(captured(NET), [Bits.parse(pair)], sensitivity=measured(), latency=None)


def test_activations_are_looked_at_where_candidates_differ_in_them() -> None:
    assert Settings(bits=(Bits(4, 4), Bits(8, 8))).chooses_activations
    assert not Settings(bits=(Bits(4, 8), Bits(8, 8))).chooses_activations


# what a network or its samples cannot have


def regression() -> FloatGraph:
    """One linear layer with a single output."""
    return graph(replace(linear("fc", "x", features=144), weight=np.ones((1, 144), np.float32),
                         bias=np.zeros(1, np.float32), shape=(1,)))  # fmt: skip


def single_output() -> tuple[FloatModule, list[Batch]]:
    return FloatModule(regression()), [Batch(torch.ones(3, 4, 6, 6).flatten(1), torch.zeros(3, dtype=torch.int64))]


@pytest.mark.parametrize(
    "begin",
    [
        lambda network, batches: Curved.over(network, batches),
        lambda network, batches: profile_fisher("fisher", network, batches, {}, {}),
        lambda network, batches: profile_fisher("fisher-form", network, batches, {}, {}),
        lambda network, batches: profile_measured("loss", network.graph, batches, {}, {}),
    ],
)
def test_a_single_output_has_no_cross_entropy(begin: Callable[[FloatModule, list[Batch]], Any]) -> None:
    with pytest.raises(SensitivityError, match="the network has a single output, .*--metric kl"):
        begin(*single_output())


def test_samples_without_labels_are_told_from_those_with() -> None:
    plain = [Batch(samples(4), None)]
    for table in (
        lambda: profile_measured("loss", captured(NET), plain, rounded(NET), {}),
        lambda: profile_fisher("fisher", FloatModule(captured(NET)), plain, rounded(NET), {}),
    ):
        with pytest.raises(SensitivityError, match="samples have no labels, .* kl"):
            table()
    assert "predictions" in profile_omega(Curved.over(FloatModule(captured(NET)), plain), {}, {}, QUICK)["method"]
    profile_fisher("fisher-form", FloatModule(captured(NET)), plain, rounded(NET), {})
    with pytest.raises(DataError, match="sample 2: a label is 77"):
        profile_measured("loss", captured(NET), [Batch(samples(3), torch.tensor([0, 1, 77]))], rounded(NET), {})


def test_one_sample_shows_no_error() -> None:
    one = [Batch(samples(1), torch.tensor([1]))]
    for table in (
        lambda: profile_measured("kl", captured(NET), one, rounded(NET), {}),
        lambda: profile_fisher("fisher", FloatModule(captured(NET)), one, rounded(NET), {}),
    ):
        with pytest.raises(SensitivityError, match="over 1 samples shows no error; give at least 2"):
            table()


def test_a_network_that_is_sure_of_everything_has_no_hessian() -> None:
    nodes = list(captured(NET).nodes)
    last = nodes[-1]
    assert last.kind == "linear" and last.weight is not None and last.bias is not None
    bias = np.full_like(last.bias, -1e4)
    bias[0] = 1e4
    sure = replace(captured(NET), nodes=(*nodes[:-1], replace(last, bias=bias)))
    zeros = [Batch(samples(4), torch.zeros(4, dtype=torch.int64))]
    for begin in (profile_omega, profile_eigenvalue):
        with pytest.raises(SensitivityError, match="the Hessian is 0 in every layer: .* --metric kl or sqnr"):
            begin(Curved.over(FloatModule(sure), zeros), rounded(NET), {}, QUICK)
    with pytest.raises(SensitivityError, match="the gradient of the loss is 0 in every layer"):
        profile_fisher("fisher", FloatModule(sure), zeros, rounded(NET), {})


def test_memory_bounds_the_samples_that_are_differentiated_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = samples_at_once(captured(NET))
    assert whole > 100
    monkeypatch.setattr(curvature, "_GRAPH_BYTES", curvature._GRAPH_BYTES // whole * 3)
    assert samples_at_once(captured(NET)) in (2, 3)
    monkeypatch.setattr(curvature, "_GRAPH_BYTES", 1)
    assert samples_at_once(captured(NET)) == 1, "never none"


# settings


@pytest.mark.parametrize(
    "changes", [{"metrics": ("hessian",)}, {"metrics": ()}, {"choose_by": "x"}, {"loss_samples": 0}, {"caution": -1.0}]
)
def test_metrics_that_are_none_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(
        SettingsError,
        match="a metric is one of omega, eigenvalue|there is no metric|samples of the loss|caution is a number",
    ):
        Settings(**changes)


def test_metrics_are_said_once_or_several_times() -> None:
    assert parse_metrics(["omega", "kl, sqnr", "omega"]) == ("omega", "kl", "sqnr")
    with pytest.raises(SettingsError, match="--metric names no metric; the metrics are omega, "):
        parse_metrics([" "])
    both = Settings(metrics=("kl", "omega"))
    assert (both.metric, both.profiled) == ("kl", ("kl", "omega"))
    other = Settings(metrics=("kl", "omega"), choose_by="sqnr")
    assert (other.metric, other.profiled) == ("sqnr", ("kl", "omega", "sqnr"))
    assert Settings.from_json(json.loads(json.dumps(other.to_json()))) == other


def test_several_metrics_stand_side_by_side_and_bits_are_chosen_by_the_one_that_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(curvature, "hutchinson_traces", lambda *_, **__: pytest.fail("the Hessian was begun"))
    made = hawq_tvm.quantize(
        networks.make("Residual"),
        {"calibration": samples(8), "evaluation": samples(4, seed=1)},
        budget=hawq_tvm.Budget(size="50%"),
        bits=["w4a4", "w4a8", "w8a8"],
        metric=["sqnr", "kl"],
        choose_by="kl",
        rounding=RoundingSettings(method="nearest"),
    )
    tables = {metric: json.loads((made.path / f"sensitivity.{metric}.json").read_text()) for metric in ("kl", "sqnr")}
    assert [table["metric"] for table in tables.values()] == ["kl", "sqnr"] and tables["kl"]["samples"] == 8
    source = "measured on 8 calibration samples: the mean KL divergence"
    assert made.costs.sources["sensitivity"].startswith(source)
    assert not (made.path / "sensitivity.omega.json").exists()
    assert set(METRICS) == set(curvature_and_others())


def curvature_and_others() -> list[str]:
    """The metrics that the stage knows."""
    from hawq_tvm.stages.profile import _METRICS

    return list(_METRICS)
