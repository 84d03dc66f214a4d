from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from hawq_tvm.core.errors import ModelError
from hawq_tvm.sources.models import load_model, load_weights, module_fingerprint, normal_spec
from hawq_tvm.sources.zoo import ZOO

from . import networks

HERE = Path(__file__).parent


def test_zoo_networks_have_torchvisions_names() -> None:
    keys = set(load_model("resnet50").module.state_dict())
    assert {"conv1.weight", "layer1.0.downsample.0.weight", "layer4.2.bn3.running_var", "fc.bias"} <= keys
    counts = {
        name: sum(p.numel() for p in load_model(name, "random").module.parameters())
        for name in ("resnet18", "resnet50", "resnet50_v1")
    }
    assert counts == {"resnet18": 11_689_512, "resnet50": 25_557_032, "resnet50_v1": 25_557_032}, "as torchvision's"
    with torch.no_grad():
        assert load_model("resnet18").module(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)


def test_the_two_resnet50s_differ_in_where_the_stride_is() -> None:
    def strided(name: str) -> list[str]:
        module = load_model(name, "random").module.layer2
        return [f"{n} {m.stride[0]}" for n, m in module.named_modules() if isinstance(m, nn.Conv2d) and m.stride[0] > 1]

    assert strided("resnet50") == ["0.conv2 2", "0.downsample.0 2"]
    assert strided("resnet50_v1") == ["0.conv1 2", "0.downsample.0 2"]
    ours, papers = (load_model(name, "random").module for name in ("resnet50", "resnet50_v1"))
    papers.load_state_dict(ours.state_dict())


def test_mobilenet_v1_is_the_papers() -> None:
    """Layers, output sizes and parameters of table 1 and 4 of the paper; names of mit-han-lab/haq."""
    network = load_model("mobilenet_v1", "random").module
    assert sum(p.numel() for p in network.parameters()) == 4_231_976
    keys = set(network.state_dict())
    assert {"conv1.0.weight", "features.0.0.weight", "features.12.4.running_var", "classifier.0.bias"} <= keys
    macs = 0

    def count(module: nn.Module, _: Any, y: Tensor) -> None:
        nonlocal macs
        macs += module.weight[0].numel() * y[0].numel()

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
        assert macs == 568_740_352, "569 M in the paper's table 4"
        assert network.features(network.conv1(torch.zeros(1, 3, 64, 64))).shape == (1, 1024, 2, 2)


def test_mobilenet_v1_can_be_narrow() -> None:
    from hawq_tvm.sources.zoo.mobilenet import mobilenet_v1

    network = mobilenet_v1(num_classes=10, width=0.25).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert network.features[-1][3].out_channels == 256


class _Lambda(nn.Module):
    """The shortcut as akamaster/pytorch_resnet_cifar10 writes it."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.lambd = lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4), "constant", 0)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.lambd(x)
        return made


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (56, 853_018)])
def test_cifars_resnets_are_those_of_the_paper(depth: int, parameters: int) -> None:
    """The parameters of He et al.'s table 6, and what the well-known checkpoints were trained with."""
    network = load_model(f"resnet{depth}_cifar", "random").module
    assert sum(p.numel() for p in network.parameters()) == parameters
    x = torch.randn(2, 3, 32, 32)
    keys = set(network.state_dict())
    with torch.no_grad():
        expected = network(x)
        for layer, planes in (("layer2", 32), ("layer3", 64)):
            getattr(network, layer)[0].downsample = _Lambda(planes)
        assert torch.equal(network(x), expected)
    assert {"conv1.weight", "bn1.running_var", "layer3.0.bn2.weight", "linear.bias"} <= keys
    assert not any("downsample" in key for key in keys)


def test_every_network_of_the_zoo_can_be_made() -> None:
    for name, entry in ZOO.items():
        if name.endswith("_cifar"):
            assert load_model(name).input_shape == entry.input_shape == (3, 32, 32)
            assert len([m for m in entry.make().modules() if isinstance(m, nn.Conv2d)]) == int(name[6:-6]) - 1


SHARED = Path(__file__).parents[2] / "shared" / "data"
"""Public checkpoints for measuring, beside the repository where they are at hand; not part of it."""


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared CIFAR-10 checkpoints are not at hand")
@pytest.mark.parametrize("depth", [20, 56])
def test_a_well_known_checkpoint_loads(depth: int) -> None:
    load_model(f"resnet{depth}_cifar", str(SHARED / f"resnet{depth}_cifar10.safetensors"))


def test_resnet20_comes_trained() -> None:
    loaded = load_model("resnet20")
    assert "trained on scikit-learn's digits" in loaded.weights
    assert ZOO["resnet20"].weights.stat().st_size < 1_200_000
    assert load_model("resnet20", "random").weights == "random, seed 0"
    assert not loaded.module.training


def test_random_weights_are_seeded() -> None:
    first, second, other = (load_model("resnet20", "random", seed=seed).fingerprint for seed in (0, 0, 1))
    assert first == second != other


def test_a_users_file_is_taken_unchanged() -> None:
    loaded = load_model(f"{HERE / 'networks.py'}:residual")
    assert loaded.module(torch.zeros(1, 3, 12, 12)).shape == (1, 5)
    assert loaded.name == "residual"
    assert loaded.input_shape is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mobilenet", "unknown network 'mobilenet'; did you mean mobilenet_v1?"),
        ("nothing.py:make", "the network's file nothing.py does not exist"),
        (f"{HERE / 'networks.py'}:nothing", "has no function 'nothing'"),
        (f"{HERE / 'networks.py'}:broken", r"broken failed at line \d+: ValueError: no such configuration"),
        (f"{HERE / 'networks.py'}:samples", "returned a dict, expected an nn.Module"),
    ],
)
def test_bad_names_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(spec)


def test_a_factorys_own_weights_are_not_called_random(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import torch\ndef make(): return torch.nn.Linear(2, 2)\n")
    first, second, other = (load_model(f"{tmp_path}/net.py:make", seed=seed) for seed in (0, 0, 1))
    assert first.weights == second.weights == "as the factory makes them, seed 0"
    assert first.fingerprint == second.fingerprint != other.fingerprint, "the seed is set before the factory is called"
    assert load_model(f"{tmp_path}/net.py:make", "random").weights == first.weights


def test_a_checkpoint_is_the_same_however_its_path_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(ZOO["resnet20"].make().state_dict(), tmp_path / "w.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = ("w.pt", "./w.pt", "~/w.pt", str(tmp_path / "w.pt"))
    assert {load_model("resnet20", path).weights for path in paths} == {str(tmp_path.resolve() / "w.pt")}
    for prefix, suffix in (("", "net.py:make"), ("imagefolder:", "set"), ("cifar10:", "set.zip")):
        names = {normal_spec(f"{prefix}{folder}{suffix}") for folder in ("", "./", "~/", f"{tmp_path}/")}
        assert names == {f"{prefix}{tmp_path.resolve()}/{suffix}"}
    for name in ("resnet20", "torchvision:resnet18", "digits", "imagefolder:"):
        assert normal_spec(name) == name


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "the model is a NoneType, expected an nn.Module"),
        (5, "the model is an int, expected an nn.Module"),
        (networks.Residual, r"the model is the class Residual, expected an nn.Module; call it: Residual\(\)"),
        (networks.make, "the model is a function, expected an nn.Module"),
        (nn.LazyLinear(2), "'weight' of the model has no values yet; run the network once, or load its weights"),
        (nn.Linear(2, 2, device="meta"), "'weight' of the model has no values yet"),
    ],
)
def test_what_is_no_network_is_refused(made: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        module_fingerprint(made)


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "parallel", "half"])
def test_checkpoints_of_many_kinds_load(tmp_path: Path, wrap: str) -> None:
    state = networks.make("Residual", seed=5).state_dict()
    saved: object = state
    if wrap in ("state_dict", "model"):
        saved = {wrap: state, "epoch": 3}
    elif wrap == "parallel":
        saved = {f"module.{key}": value for key, value in state.items()}
    elif wrap == "half":
        saved = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    torch.save(saved, tmp_path / "weights.pt")
    network = networks.make("Residual")
    load_weights(network, tmp_path / "weights.pt")
    expected = state["conv1.weight"].half().float() if wrap == "half" else state["conv1.weight"]
    assert torch.equal(network.state_dict()["conv1.weight"], expected)


TENSORS = {
    "complex": lambda value: value.to(torch.complex64),
    "sparse": lambda value: value.to_sparse(),
    "quantised": lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
    "meta (without values)": lambda value: value.to("meta"),
}


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path: Path, kind: str) -> None:
    state = networks.make("Residual").state_dict()
    torch.save({**state, "conv2.weight": TENSORS[kind](state["conv2.weight"])}, tmp_path / "weights.pt")
    network = networks.make("Residual", seed=1)
    before = module_fingerprint(network)
    with pytest.raises(ModelError, match=rf"holds 'conv2.weight', a {re.escape(kind)} tensor; weights are dense"):
        load_weights(network, tmp_path / "weights.pt")
    assert module_fingerprint(network) == before


@pytest.mark.parametrize("kind", ["complex", "sparse", "quantised"])
@pytest.mark.filterwarnings("ignore")
def test_a_network_of_such_tensors_is_refused(kind: str) -> None:
    network = nn.Linear(2, 2)
    network.register_buffer("table", TENSORS[kind](torch.ones(2, 2)))
    with pytest.raises(ModelError, match=f"'table' of the model is a {kind} tensor; weights are dense"):
        module_fingerprint(network)


def test_a_parameter_that_comes_twice_is_refused(tmp_path: Path) -> None:
    state = networks.make("Residual").state_dict()
    torch.save({**state, "module.fc.weight": torch.zeros(5, 12)}, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=r"has both 'fc.weight' and 'module.fc.weight', which are one parameter"):
        load_weights(networks.make("Residual"), tmp_path / "weights.pt")


def test_a_part_that_is_called_module_keeps_its_name(tmp_path: Path) -> None:
    network = nn.ModuleDict({"module": nn.Linear(2, 3)})
    torch.save({"module.weight": torch.ones(3, 2), "module.bias": torch.ones(3)}, tmp_path / "weights.pt")
    load_weights(network, tmp_path / "weights.pt")
    assert network["module"].bias.tolist() == [1, 1, 1]


def test_batch_counters_may_be_missing(tmp_path: Path) -> None:
    state = {k: v for k, v in networks.make("Residual").state_dict().items() if "num_batches" not in k}
    save_file(state, tmp_path / "weights.safetensors")
    load_weights(networks.make("Residual", seed=1), tmp_path / "weights.safetensors")


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = networks.make("Residual").state_dict()
    path = tmp_path / "weights.safetensors"
    network = networks.make("Residual", seed=1)
    before = module_fingerprint(network)
    save_file({k: v for k, v in state.items() if not k.startswith("conv")}, path)
    with pytest.raises(ModelError, match="it lacks 'conv1.weight', 'conv1.bias', 'conv2.weight' and 1 more"):
        load_weights(network, path)
    save_file({**state, "head.weight": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="it has 'head.weight', which the network has not"):
        load_weights(network, path)
    save_file({**state, "fc.weight": torch.zeros(7, 12)}, path)
    with pytest.raises(ModelError, match=r"'fc.weight' has the shape \(7, 12\), the network's \(5, 12\)"):
        load_weights(network, path)
    assert module_fingerprint(network) == before, "nothing is loaded by half"


def test_unreadable_checkpoints_are_refused(tmp_path: Path) -> None:
    network = networks.make("Residual")
    with pytest.raises(ModelError, match="does not exist"):
        load_weights(network, tmp_path / "nothing.pt")
    for name, data in (("a.safetensors", b"x" * 100), ("b.pt", b"x" * 100), ("c.pt", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ModelError, match=rf"the checkpoint .*{name} (cannot be read|is not)"):
            load_weights(network, tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="is not a state dict; save model.state_dict"):
        load_weights(network, tmp_path / "list.pt")
    torch.save(network, tmp_path / "whole.pt")
    with pytest.raises(
        ModelError, match="is not a plain state dict: it holds a tests.networks.Residual, .* save model"
    ):
        load_weights(network, tmp_path / "whole.pt")
    torch.save({3: torch.zeros(1)}, tmp_path / "numbers.pt")
    with pytest.raises(ModelError, match="has the key 3 of type int; a state dict's keys are names"):
        load_weights(network, tmp_path / "numbers.pt")
    with pytest.raises(ModelError, match="is a folder; name a file in it"):
        load_weights(network, tmp_path)


def test_pytorchs_advice_to_run_a_checkpoints_code_is_not_passed_on(tmp_path: Path) -> None:
    network = networks.make("Residual")
    torch.save(network, tmp_path / "whole.pt")
    torch.save({"state_dict": network.state_dict(), "best": np.float64(0.9)}, tmp_path / "scalar.pt")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    (tmp_path / "damaged.pt").write_bytes(b"x" * 100)
    for name in ("whole", "scalar", "script", "damaged"):
        with pytest.raises(ModelError, match="save model.state_dict") as raised:
            load_weights(network, tmp_path / f"{name}.pt")
        assert "weights_only" not in str(raised.value)
        assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_optional_packages_are_named_when_missing(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else real(name, *a))
    with pytest.raises(ModelError, match=f"{package} is not installed; pip install --no-deps {package}"):
        load_model(f"{package}:resnet18")


def test_fingerprints_see_structure_and_weights() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    b.load_state_dict(a.state_dict())
    assert module_fingerprint(a) == module_fingerprint(b)
    assert module_fingerprint(nn.Sequential(a)) != module_fingerprint(nn.Sequential(a, nn.ReLU()))
    with torch.no_grad():
        b.bias[0] += 1
    assert module_fingerprint(a) != module_fingerprint(b)
