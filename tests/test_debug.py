"""Which layers cause the loss: a bad one is found, and what is said of it is true."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import hawq_tvm
from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.errors import DataError, RunError, SettingsError
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.integerize import round_to_nearest
from hawq_tvm.core.quantizer import Range, RangeTable
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.measure import debug
from hawq_tvm.measure.debug import Quantised, find_causes
from hawq_tvm.measure.debug_report import DebugReport
from hawq_tvm.posttraining.changes import RealNetwork
from hawq_tvm.posttraining.layer_losses import network_loss

from . import networks
from .builders import captured, ranges_of, samples
from .conftest import Run

NET = "Residual"
PIECES = [samples(4), samples(4, seed=1)]


def quantised(bits: dict[str, str] | None = None, ranges: RangeTable | None = None, rest: str = "w8a8") -> Quantised:
    """The network at nearest integers, some layers at bits of their own."""
    net = captured(NET)
    config = BitConfig({layer.name: Bits.parse((bits or {}).get(layer.name, rest)) for layer in net.layers})
    types = ActivationTypes(net, ranges or ranges_of(NET), config)
    weights = {
        layer.name: round_to_nearest(layer, config.layers[layer.name].format, types.reads(layer).scale)
        for layer in net.layers
    }
    return Quantised(net, types, weights, corrects_means=False)


def names(net: FloatGraph | None = None) -> list[str]:
    return [layer.name for layer in (net or captured(NET)).layers]


@pytest.mark.parametrize("layer", names()[1:])
def test_the_bad_layer_comes_first_and_the_network_is_well_without_it(layer: str) -> None:
    network = quantised({layer: "w2a8"})
    report = find_causes(network, PIECES, PIECES, calibrated_on=8)
    first = report.layers[0]
    assert (first.name, first.bits) == (layer, "w2a8")
    assert first.weights > 10 * first.input
    assert first.without < report.loss / 10
    assert all(cause.without > report.loss / 2 for cause in report.layers[1:])
    assert report.loss == network_loss(network.simulated(), PIECES, reference=RealNetwork(network.graph))
    assert [cause.both for cause in report.layers] == sorted((cause.both for cause in report.layers), reverse=True)
    assert (report.samples, report.held_out, report.fitted) == (8, 8, report.loss)


def test_what_a_pin_costs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debug, "NEGLIGIBLE", 0.0)
    layer = names()[1]
    network = quantised({layer: "w2a8"})
    advice = find_causes(network, PIECES, PIECES, calibrated_on=8).advice
    size = network.weights[layer].integers.size
    total = sum(found.integers.size * found.bits / 8 for found in network.weights.values())
    extra = size * 6 / 8
    assert f"--pin {layer}=w8a8 costs {extra:,.0f} bytes more ({extra / total:.2%} of the weights)" in advice[0]
    assert "most of it by its weights" in advice[0]


def test_inputs_cost_no_bytes_and_a_better_range_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debug, "NEGLIGIBLE", 0.0)
    layer = captured(NET).layers[1]
    source = captured(NET).source(layer.inputs[0])
    wide = dict(ranges_of(NET))
    found = wide[source]
    assert isinstance(found, Range)
    wide[source] = {8: found, 4: Range(3 * found.lo, 3 * found.hi)}
    report = find_causes(quantised({layer.name: "w8a4"}, wide), PIECES, PIECES, calibrated_on=8)
    assert report.layers[0].name == layer.name
    assert f"--pin {layer.name}=w8a8 costs no bytes of weights" in report.advice[0]
    assert f"{layer.name}: a range of its input 0.7 times as wide loses " in report.advice[1]


def test_few_positions_for_many_inputs_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debug, "NEGLIGIBLE", 0.0)
    last = names()[-1]
    advice = find_causes(quantised({last: "w2a8"}), PIECES, PIECES, calibrated_on=8).advice
    assert any("were fitted on 8 positions; more calibration samples (--calibration" in text for text in advice)
    advice = find_causes(quantised({last: "w2a8"}), PIECES, PIECES, calibrated_on=8000).advice
    assert not any("more calibration samples" in text for text in advice)


def test_a_network_that_loses_nothing_needs_no_advice() -> None:
    (sentence,) = find_causes(quantised(), PIECES, PIECES, calibrated_on=8).advice
    assert "was seen to leave accuracy as it is" in sentence


def test_what_is_fitted_too_closely_is_told_by_samples_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debug, "NEGLIGIBLE", 0.0)
    network = quantised(rest="w4a8")
    near, far = [samples(1)], [samples(8, seed=2)]
    fitted, loss = (
        network_loss(network.simulated(), pieces, reference=RealNetwork(network.graph)) for pieces in (near, far)
    )
    report = find_causes(network, near, far, calibrated_on=1)
    assert (report.fitted, report.loss) == (fitted, loss)
    assert (report.samples, report.held_out) == (1, 8)
    monkeypatch.setattr(debug, "_CLOSE", 0.0)
    told = find_causes(network, near, far, calibrated_on=1).advice[-1]
    assert f"loses {report.fitted:.2g}, on others {report.loss:.2g}: 1 are few" in told


def test_biases_are_corrected_as_rounding_corrects_them() -> None:
    network = quantised(rest="w4a4")
    corrected, plain = (
        find_causes(replace(network, corrects_means=corrects), PIECES, PIECES, calibrated_on=8)
        for corrects in (True, False)
    )
    assert sum(cause.weights for cause in corrected.layers) < sum(cause.weights for cause in plain.layers)


def test_threads_change_nothing_and_progress_ends() -> None:
    seen: list[int] = []
    first = find_causes(quantised(rest="w4a4"), PIECES, PIECES, calibrated_on=8, progress=seen.append)
    assert seen == [4, 8, 12, 16]
    assert find_causes(quantised(rest="w4a4"), PIECES, PIECES, calibrated_on=8, threads=3) == first


def test_reports_come_back_from_json() -> None:
    report = find_causes(quantised(rest="w4a4"), PIECES, PIECES, calibrated_on=8)
    assert DebugReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert report.layers[0].name in str(report)
    with pytest.raises(RunError, match="make it again with hawq-tvm debug"):
        DebugReport.from_json({"samples": 3})
    odd = replace(report, layers=(replace(report.layers[0], bits="w9a9"),))
    with pytest.raises(RunError, match="bits are written like w4a8"):
        DebugReport.from_json(odd.to_json())


def test_the_verb_ranks_the_layers_of_a_run(scratch: Path, cli: Run) -> None:
    status, out, err = cli("debug", scratch, "--samples", 4)
    assert status == 0 and "measuring what each layer causes" in err
    assert out.startswith("layer ") and "all but it" in out and "the whole network loses" in out
    report = DebugReport.from_json(json.loads((scratch / "debug.json").read_text()))
    assert report.samples == 4 and report.rounded and report.data == "digits"
    chosen = json.loads((scratch / "bits.json").read_text())["bits"]
    assert {cause.name: cause.bits for cause in report.layers} == chosen
    status, out, _ = cli("debug", scratch, "--samples", 4, "--json")
    assert status == 0 and DebugReport.from_json(json.loads(out)) == report


def test_from_python_and_without_samples(tmp_path: Path) -> None:
    data = {"calibration": samples(8), "evaluation": samples(4, seed=1)}
    made = hawq_tvm.quantize(networks.make(NET), data, bits="w4a4")
    report = made.debug(samples=4)
    assert report.samples == 4 and report.loss > 0 and report.rounded
    with pytest.raises(SettingsError, match="at least 1 sample"):
        made.debug(samples=0)
    again = hawq_tvm.load(made.save(tmp_path / "kept"))
    with pytest.raises(DataError, match="samples are not at hand; name them with --data"):
        again.debug()
    with pytest.warns(UserWarning, match="on other samples than those that calibrated the run"):
        other = hawq_tvm.load(tmp_path / "kept", data=samples(6, seed=3)).debug()
    assert other.samples == 6 and np.isfinite(other.loss)
    assert torch.is_grad_enabled()
