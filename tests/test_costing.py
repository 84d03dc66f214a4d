from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.calibration import TraceEstimate
from hawq_tvm.core.errors import AllocationError, DataError
from hawq_tvm.core.specs import Bits
from hawq_tvm.measure import curvature
from hawq_tvm.measure.costing import cost_table, rated, read_latency_table
from hawq_tvm.measure.curvature import Curved, probe_limit, profile_omega
from hawq_tvm.settings import HessianSettings
from hawq_tvm.sources.samples import Batch

from .builders import captured, rounded, samples


@pytest.mark.parametrize("label", [-1, 5, 13])
def test_labels_outside_the_classes_are_refused_before_the_hessian(label: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature, "hutchinson_traces", lambda *_, **__: pytest.fail("the Hessian was begun"))
    batches = [Batch(samples(2), torch.tensor([0, 4])), Batch(samples(2), torch.tensor([1, label]))]
    with pytest.raises(DataError, match=f"sample 3: a label is {label}, and the network has 5 classes, 0 to 4"):
        profile_omega(
            Curved.over(FloatModule(captured("Residual")), batches), rounded("Residual"), {}, HessianSettings()
        )


def test_a_latency_table_is_read_bare_or_under_its_key(tmp_path: Path) -> None:
    table = {"conv": {"w4a4": 0, "w8a8": 2.5}}
    for data in (table, {"latency_us": table}):
        (tmp_path / "table.json").write_text(json.dumps(data))
        found = read_latency_table(tmp_path / "table.json", ("conv",)).latency_us
        assert found == {"conv": {Bits(4, 4): 0.0, Bits(8, 8): 2.5}}


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "-1", '"3"', "true", "null", "[1]"])
def test_times_that_are_none_are_refused_by_layer_and_pair(tmp_path: Path, value: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(f'{{"conv": {{"w8a8": 1, "w4a4": {value}}}}}')
    with pytest.raises(AllocationError) as raised:
        read_latency_table(path, ("conv",))
    shown = {'"3"': "'3'", "[1]": "a list of 1"}.get(value, value)
    assert f"table.json: conv.w4a4 is {shown}, " in str(raised.value)
    assert str(raised.value).endswith('; give microseconds as {"layer": {"w4a4": 12.5, ...}, ...}')


def test_tables_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    for text, message in (
        ("{", "table.json: not valid JSON"),
        ("[1]", "table.json: the whole is a list of 1, expected an object"),
        ('{"conv": 3}', "table.json: conv is 3, expected an object"),
        ('{"latency_us": {"conv": 3}}', "table.json: latency_us.conv is 3, expected an object"),
        ('{"conv": {"w9a9": 3}}', "table.json: layer 'conv': bits are written like w4a8"),
        ('{"conv": {"w4a4": 1, "4": 2}}', "table.json: layer 'conv' has two times for one pair of bits"),
        ('{"conv": {"w4a4": 1}, "conv": {"w4a4": 2}}', "table.json: the key 'conv' stands twice in the whole"),
    ):
        path.write_text(text)
        with pytest.raises(AllocationError, match=message):
            read_latency_table(path, ("conv",))
    path.write_text('{"conv": {"w8a8": 1}}')
    with pytest.raises(AllocationError, match="has no layer 'fc'; the layers are conv, fc"):
        read_latency_table(path, ("conv", "fc"))


PAIRS = (Bits(4, 4), Bits(8, 8))
AS_CHEAP: dict[str, Any] = {"max_probes": None}


def profiled(**settings: Any) -> dict[str, Any]:
    batch = Batch(samples(6), torch.tensor([0, 1, 2, 3, 4, 0]))
    loss = Curved.over(FloatModule(captured("Residual")), [batch])
    return profile_omega(loss, rounded("Residual"), {}, HessianSettings(**settings))


def test_errors_come_into_the_cost_table_and_a_sentence_says_what_to_raise() -> None:
    found = profiled(max_probes=4, target_error=0.01)
    table = cost_table(captured("Residual"), PAIRS, sensitivity=found, latency=None)
    errors = {}
    for layer in table.layers:
        trace = found["layers"][layer.name]
        errors[layer.name] = trace["standard_error"] / abs(trace["trace"])
        assert errors[layer.name] > 0.01
        assert trace["trace"] > 0
        assert layer.sensitivity_error == pytest.approx(errors[layer.name])
    worst = max(errors, key=lambda name: errors[name])
    assert found["note"] == (
        f"the sensitivities of 5 of 5 layers are uncertain by more than 1%, that of '{worst}' by {errors[worst]:.0%}; "
        "raise --hessian-probes (HessianSettings.max_probes) above the 4 made, four times as many halve the errors"
    )
    assert table.sources["sensitivity"] == f"{found['method']}. {found['note']}"


def test_estimates_that_converged_need_no_sentence() -> None:
    found = profiled(max_probes=8, target_error=100.0)
    assert found["note"] is None
    assert (
        cost_table(captured("Residual"), PAIRS, sensitivity=found, latency=None).sources["sensitivity"]
        == (found["method"])
    )


def test_a_table_without_sensitivities_has_no_errors() -> None:
    table = cost_table(captured("Residual"), PAIRS, sensitivity=None, latency=None)
    assert {layer.sensitivity_error for layer in table.layers} == {None}


def test_a_trace_of_zero_with_noise_has_an_error_that_json_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    estimate = TraceEstimate(0.0, 1.0, 4, 12)
    names = [layer.name for layer in captured("Residual").layers]
    monkeypatch.setattr(curvature, "hutchinson_traces", lambda *_, **__: dict.fromkeys(names, estimate))
    found = profiled()
    assert {layer["relative_error"] for layer in found["layers"].values()} == {None}
    json.dumps(found, allow_nan=False)
    assert "are uncertain by more than 10%" in found["note"]
    costs = cost_table(captured("Residual"), PAIRS, sensitivity=found, latency=None, caution=1.0)
    assert {layer.sensitivity_error for layer in costs.layers} == {1.0}, "all of it is error"


def test_what_is_not_known_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace that came out negative, of a layer whose true one may be as far above 0 as its error."""
    names = [layer.name for layer in captured("Residual").layers]
    traces = {name: TraceEstimate(1.0, 0.1, 4, 12) for name in names}
    traces[names[1]] = TraceEstimate(-0.05, 0.2, 4, 12)
    monkeypatch.setattr(curvature, "hutchinson_traces", lambda *_, **__: traces)
    found = profiled()

    def costs(caution: float) -> list[float]:
        table = cost_table(captured("Residual"), PAIRS, sensitivity=found, latency=None, caution=caution)
        return [layer.choices[PAIRS[0]].sensitivity for layer in table.layers]

    bare, careful = costs(0.0), costs(2.0)
    assert bare[1] == 0.0 < careful[1]
    error = found["layers"][names[1]]["weights_error"]["4"]
    assert careful[1] == pytest.approx(2.0 * error), "the bound starts at 0, not below it"
    assert careful[0] == pytest.approx(bare[0] * 1.2)
    table = cost_table(captured("Residual"), PAIRS, sensitivity=found, latency=None, caution=2.0)
    assert "taken 2 standard errors higher" in table.sources["sensitivity"]
    assert rated(table, found, 0.0) == cost_table(captured("Residual"), PAIRS, sensitivity=found, latency=None)


def test_small_networks_are_probed_more_and_great_ones_as_before() -> None:
    """By work, so that every machine makes the same probes."""
    cheap = HessianSettings(**AS_CHEAP)
    assert probe_limit(cheap, macs=10**7, batch=32) == 312
    assert probe_limit(cheap, macs=10**5, batch=32) == 1024, "never without end"
    assert probe_limit(cheap, macs=18 * 10**8, batch=8) == 64, "a ResNet-18"
    assert probe_limit(HessianSettings(max_probes=12), macs=10**5, batch=32) == 12


def test_probing_stops_at_what_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    work = sum(layer.macs for layer in captured("Residual").layers) * 6
    monkeypatch.setattr(curvature, "_FEWEST_PROBES", 2)
    monkeypatch.setattr(curvature, "_CHEAP_MACS", 11 * work)
    first, second = (profiled(target_error=0.0, **AS_CHEAP) for _ in range(2))
    assert first["probes_per_batch"] == 11
    assert first == second
    more = profiled(target_error=0.0, max_probes=12)
    assert more["probes_per_batch"] == 12
