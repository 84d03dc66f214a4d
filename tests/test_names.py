from __future__ import annotations

import doctest
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hawq_tvm.core.errors import DataError, HawqError, ModelError
from hawq_tvm.sources import splits
from hawq_tvm.sources.data import load_data
from hawq_tvm.sources.factory import call_factory
from hawq_tvm.sources.models import load_model
from hawq_tvm.sources.names import check_names, shown
from hawq_tvm.sources.options import DataOptions

TEXT = """
import torch

def make():
    return torch.nn.Linear(2, 2)

def build(width=3, *, depth=1):
    return torch.nn.Linear(width, depth)

def sized(width):
    return torch.nn.Linear(width, 2)

def _hidden():
    return None
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a user's file and a folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynet.py").write_text(TEXT)
    (tmp_path / "empty.py").write_text("x = (")
    (tmp_path / "images").mkdir()
    (tmp_path / "cifar-10.zip").write_bytes(b"")
    return tmp_path


NETWORKS = [
    (
        "resnet19",
        "unknown network 'resnet19'; did you mean resnet18? known: resnet20, resnet18, resnet50, resnet50_v1",
    ),
    ("ResNet20", "did you mean resnet20?"),
    ("torchvison:resnet18", "did you mean torchvision:resnet18?"),
    ("tim:resnet18", "did you mean timm:resnet18?"),
    ("transformer", "unknown network 'transformer'; known: resnet20"),
    ("", "unknown network ''; known"),
    ("n" * 5000, "known: resnet20"),
    ("~nosuchuser/net.py:make", "the network's file ~nosuchuser/net.py does not exist"),
    ("mynet.py", "mynet.py names no factory; add :factory, as in mynet.py:make or mynet.py:build"),
    ("./mynet.py:", "./mynet.py names no factory; add :factory, as in ./mynet.py:make or ./mynet.py:build"),
    ("empty.py", "empty.py names no factory; add :factory, the name of a function in it that takes no arguments"),
    ("nothing.py", "the network's file nothing.py does not exist"),
    ("nothing.py:make", "the network's file nothing.py does not exist"),
    ("torchvision:", "torchvision: names no network; write torchvision:NAME"),
]
DATA = [
    ("digit", "unknown data 'digit'; did you mean digits? known: digits, imagefolder:PATH, cifar10:PATH, random"),
    ("imagefolders:images", "did you mean imagefolder:images?"),
    ("images", "unknown data 'images'; did you mean imagefolder:images?"),
    ("imagefolder:", "imagefolder: names no path; write imagefolder:PATH"),
    ("cifar10", "cifar10: names no path; write cifar10:PATH"),
    ("cifar10: ", "cifar10: names no path; write cifar10:PATH"),
    ("cifar10:nothing", "the CIFAR-10 data set nothing does not exist"),
    ("cifar:images", "did you mean cifar10:images?"),
    ("cifar-10.zip", "did you mean cifar10:cifar-10.zip?"),
    ("imagefolder:nothing", "the image folder nothing does not exist"),
    ("mynet.py", "mynet.py names no factory; add :factory, as in mynet.py:make"),
    ("nothing.py:make", "the data's file nothing.py does not exist"),
    ("mnist", "unknown data 'mnist'; known: digits"),
    ("", "unknown data ''; known"),
    ("imagefolder:" + "n" * 5000, "does not exist"),
    ("imagefolder:a\0b", "does not exist"),
]


@pytest.mark.parametrize(("spec", "message"), NETWORKS)
def test_names_of_networks_are_refused_alike_early_and_late(here: Path, spec: str, message: str) -> None:
    if spec.startswith("torchvision") and importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    told = []
    for refuse in (lambda: check_names(spec), lambda: load_model(spec)):
        with pytest.raises(ModelError) as raised:
            refuse()
        told.append(str(raised.value))
    assert message in told[0]
    assert told[0] == told[1]


@pytest.mark.parametrize(("spec", "message"), DATA)
def test_names_of_data_are_refused_alike_early_and_late(here: Path, spec: str, message: str) -> None:
    told = []
    for refuse in (lambda: check_names(data=spec), lambda: load_data(spec, DataOptions())):
        with pytest.raises(HawqError) as raised:
            refuse()
        told.append(str(raised.value))
    assert message in told[0]
    assert told[0] == told[1]


def test_checkpoints_are_looked_for(here: Path) -> None:
    with pytest.raises(ModelError, match=r"the checkpoint w.safetensors does not exist"):
        check_names("resnet18", "w.safetensors")
    with pytest.raises(ModelError, match="the checkpoint images is a folder; name a file in it"):
        check_names(weights="images")
    check_names("resnet18", "random", "digits")
    check_names("mynet.py:make", "mynet.py", "imagefolder:images")
    check_names(None, None, None)


def test_names_are_checked_without_pytorch_and_pillow(here: Path) -> None:
    script = (
        "import sys\n"
        "from hawq_tvm.sources.names import check_names\n"
        "from hawq_tvm.core.errors import HawqError\n"
        "check_names('resnet18', None, 'digits')\n"
        "check_names('mynet.py:make', 'random', 'imagefolder:images')\n"
        "for wrong in [('resnet19',), ('mynet.py',), ('resnet18', 'w.pt'), (None, None, 'imagefolder:nothing')]:\n"
        "    try:\n"
        "        check_names(*wrong)\n"
        "    except HawqError as error:\n"
        "        print(error)\n"
        "assert not {'torch', 'PIL', 'numpy', 'sklearn', 'tvm', 'onnx'} & set(sys.modules), sorted(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 4


def test_a_function_that_is_not_there_is_guessed(here: Path) -> None:
    with pytest.raises(ModelError, match=r"mynet.py has no function 'mkae'; did you mean make\?"):
        call_factory("mynet.py:mkae", "network")


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_a_network_of_another_zoo_is_guessed() -> None:
    with pytest.raises(
        ModelError, match=r"torchvision:resnet19 cannot be built: .*; did you mean torchvision:resnet18\?"
    ):
        load_model("torchvision:resnet19")


def test_names_that_are_not_utf_8_can_be_shown(here: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    assert shown(name) == "caf\\xe9"
    assert shown("café") == "café"
    with pytest.raises(DataError, match=r"the image folder caf\\xe9 does not exist") as raised:
        check_names(data=f"imagefolder:{name}")
    str(raised.value).encode()


def test_examples_in_docstrings_are_true() -> None:
    result = doctest.testmod(splits)
    assert result.attempted > 0
    assert result.failed == 0
