from __future__ import annotations

import pytest
import torch

from hawq_tvm import costing
from hawq_tvm.costing import profile_sensitivity
from hawq_tvm.data import Batch
from hawq_tvm.errors import DataError
from hawq_tvm.settings import HessianSettings
from hawq_tvm.torch_float import FloatModule

from .builders import captured, samples


@pytest.mark.parametrize("label", [-1, 5, 13])
def test_labels_outside_the_classes_are_refused_before_the_hessian(label: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costing, "hutchinson_traces", lambda *_, **__: pytest.fail("the Hessian was begun"))
    batches = [Batch(samples(2), torch.tensor([0, 4])), Batch(samples(2), torch.tensor([1, label]))]
    with pytest.raises(DataError, match=f"sample 3: a label is {label}, and the network has 5 classes, 0 to 4"):
        profile_sensitivity(FloatModule(captured("Residual")), batches, (4, 8), HessianSettings())
