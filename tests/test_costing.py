from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.core.errors import AllocationError, DataError
from hawq_tvm.core.specs import Bits
from hawq_tvm.measure import costing
from hawq_tvm.measure.costing import profile_sensitivity, read_latency_table
from hawq_tvm.settings import HessianSettings
from hawq_tvm.sources.samples import Batch

from .builders import captured, samples


@pytest.mark.parametrize("label", [-1, 5, 13])
def test_labels_outside_the_classes_are_refused_before_the_hessian(label: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costing, "hutchinson_traces", lambda *_, **__: pytest.fail("the Hessian was begun"))
    batches = [Batch(samples(2), torch.tensor([0, 4])), Batch(samples(2), torch.tensor([1, label]))]
    with pytest.raises(DataError, match=f"sample 3: a label is {label}, and the network has 5 classes, 0 to 4"):
        profile_sensitivity(FloatModule(captured("Residual")), batches, (4, 8), HessianSettings())


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
