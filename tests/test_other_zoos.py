"""Networks of torchvision and timm, as their users name them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import pytest
import torch

import hawq_tvm
from hawq_tvm import HessianSettings
from hawq_tvm.sources import zoo
from hawq_tvm.sources.models import load_model


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@needs("torchvision")
def test_the_versions_of_other_zoos_are_known(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import torchvision\ndef make(): return torchvision.models.squeezenet1_1()\n")
    (tmp_path / "own.py").write_text("import torchvision, torch\ndef make(): return torch.nn.Linear(2, 2)\n")
    version = {"torchvision": importlib.metadata.version("torchvision")}
    assert load_model("torchvision:squeezenet1_1", "random").versions == version
    assert load_model(f"{tmp_path}/net.py:make").versions == version
    assert load_model(f"{tmp_path}/own.py:make").versions == load_model("resnet18").versions == {}


@needs("torchvision")
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_checkpoints_go_from_torchvision_to_the_zoo(name: str) -> None:
    theirs = load_model(f"torchvision:{name}", "random").module.eval()
    ours = zoo.ZOO[name].make().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param("torchvision:mobilenet_v2", marks=needs("torchvision")),
        pytest.param("timm:mobilenetv2_050", marks=needs("timm")),
    ],
)
def test_networks_of_other_zoos_are_exact(spec: str) -> None:
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    network = hawq_tvm.quantize(spec, images, bits=["w4a4"], weights="random", hessian=HessianSettings(samples=1))
    assert network.verify(samples=2).ok
