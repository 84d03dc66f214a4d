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
    assert f"gives layer 'conv' at w4a4 {value}; expected a finite number of microseconds" in str(raised.value)


def test_tables_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    for text in ("{", "[1]", '{"conv": 3}'):
        path.write_text(text)
        with pytest.raises(AllocationError, match="table.json cannot be read"):
            read_latency_table(path, ("conv",))
    path.write_text('{"conv": {"w8a8": 1}}')
    with pytest.raises(AllocationError, match="has no layer 'fc'; the layers are conv, fc"):
        read_latency_table(path, ("conv", "fc"))
