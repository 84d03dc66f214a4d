"""Fidelity as a stage of a run, and on networks with real weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hawq_tvm
from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.calibration import make_observer, observe_ranges
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.frontend.capture import capture
from hawq_tvm.measure.sqnr import measure_fidelity
from hawq_tvm.runs.artifacts import FIDELITY, Artifacts
from hawq_tvm.runs.rundir import open_run
from hawq_tvm.sources.data import batches, load_data
from hawq_tvm.sources.options import DataOptions, Preprocessing
from hawq_tvm.sources.zoo.resnet import resnet50

SHARED = Path(__file__).parents[2] / "shared" / "data"
HALF, IMAGENET = ((0.5,) * 3, (0.5,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Apart(nn.Module):
    """Two branches, one 600 times the other, that a concatenation joins."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weak, self.strong = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(3, 8, 3, bias=False)
        self.fc = nn.Linear(16, 4)
        with torch.no_grad():
            self.weak.weight /= 600

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.cat([self.weak(x).relu(), self.strong(x).relu()], 1).mean((2, 3)))


def quantised(network: nn.Module) -> hawq_tvm.QuantizedNetwork:
    generator = torch.Generator().manual_seed(1)
    return hawq_tvm.quantize(network, torch.randn(48, 3, 12, 12, generator=generator), bits=8)


def test_the_warning_is_told_when_the_stage_is_made_and_stays_with_the_run() -> None:
    with pytest.warns(UserWarning, match="one scale serves branches of 'concat'") as told:
        network = quantised(Apart())
    found = Artifacts(open_run(network.path)).fidelity
    assert found.samples == 24, "those held out, up to 32"
    assert [str(item.message) for item in told if "one scale" in str(item.message)] == list(found.warnings)
    assert found.of("weak") is not None
    assert open_run(network.path).is_fresh(FIDELITY)


def test_branches_of_a_size_are_told_nothing() -> None:
    even = Apart()
    with torch.no_grad():
        even.weak.weight *= 600
    assert Artifacts(open_run(quantised(even).path)).fidelity.warnings == ()


def imagenet(name: str) -> tuple[nn.Module, tuple[Any, Any]]:
    """A network with its trained weights, and the mean and deviation of its input."""
    from safetensors.torch import load_file

    if not (SHARED / f"{name}_imagenet.safetensors").exists():
        pytest.skip(f"{SHARED} with ImageNet weights and images is not here")
    if name == "resnet50":
        network: nn.Module = resnet50()
    else:
        spec = importlib.util.spec_from_file_location("imagenet_networks", SHARED / "networks.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        network = getattr(module, name)()
    weights = load_file(str(SHARED / f"{name}_imagenet.safetensors"))
    network.load_state_dict({key: x.float() if x.is_floating_point() else x for key, x in weights.items()})
    return network.eval(), HALF if name == "mobilenet_v2" else IMAGENET


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2", "resnet50"])
def test_imagenet_networks_are_told_nothing_at_8_bits(name: str) -> None:
    """On few images, to be quick; on 100 and 32 they are told nothing either."""
    network, (mean, std) = imagenet(name)
    options = DataOptions(calibration_samples=24, preprocessing=Preprocessing(mean=mean, std=std))
    data = load_data(f"imagefolder:{SHARED / 'imagenet_sample.zip'}", options)
    graph = capture(network, torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)), name=name)
    module = FloatModule(graph)
    calibration = (batch.images for batch in batches(data.calibration, 4))
    ranges = observe_ranges(lambda x, tap: module(x, tap=tap), calibration, make_observer("percentile"))
    bits = BitConfig.uniform(tuple(layer.name for layer in graph.layers), Bits(8, 8))
    evaluation = (batch.images for batch in batches(data.evaluation, 4, limit=8))
    found = measure_fidelity(graph, integerize(graph, ranges, bits), evaluation)
    assert found.samples == 8
    assert found.warnings == ()
    assert found.values[-1].accumulated_db > 20
