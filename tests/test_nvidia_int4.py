"""`benchmarks.nvidia_int4` on a small network in place of NVIDIA's, whose weights do not come with this project."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import nvidia_int4
from benchmarks.nvidia_int4 import Answer, answers, deploy, extract
from hawq_tvm.sources.options import Preprocessing

from .builders import SIZE, integers_of
from .emulated import needs_compiler
from .fake_cuda import use_fake_compiler

NAMES = ("n01_a/a.png", "n02_b/b.png", "n03_c/c.png", "n04_d/d.png")


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A zip file of four classes, one image each."""
    generator = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "sample.zip", "w") as archive:
        for name in reversed(NAMES):
            with archive.open(name, "w") as file:
                Image.fromarray(generator.integers(0, 256, (20, 17, 3), np.uint8)).save(file, "PNG")
    return tmp_path / "sample.zip"


def test_images_lie_evenly_over_the_classes(sample: Path, tmp_path: Path) -> None:
    assert extract(sample, 2, tmp_path) == {"b.png": 1, "d.png": 3}
    assert extract(sample, 4, tmp_path) == {"a.png": 0, "b.png": 1, "c.png": 2, "d.png": 3}
    with zipfile.ZipFile(sample) as archive:
        assert (tmp_path / "c.png").read_bytes() == archive.read("n03_c/c.png")


def test_answers_are_read_as_they_are_printed() -> None:
    printed = (
        "a.png: class 1, logit 0.5000\nintegers: -3 5 2\nb.png: class 0, logit -1.0\nintegers: 7 6 -2\n9.000 ms a call"
    )
    assert answers(printed) == [Answer(1, (-3, 5, 2)), Answer(0, (7, 6, -2))]


def test_data_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"resnet50_imagenet\.safetensors is not there; see the data of benchmarks\.im"
    ):
        nvidia_int4.main([str(tmp_path)])


@needs_compiler
@pytest.mark.skipif(shutil.which("make") is None, reason="the C++ example is built by make")
def test_both_examples_give_the_interpreters_answers(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_compiler(monkeypatch)
    folder = tmp_path / "device"
    folder.mkdir()
    classes = extract(sample, 2, folder)
    rows = deploy(integers_of("Residual", ("w4a4",)), Preprocessing(resize=SIZE + 3, crop=SIZE), classes, folder)
    assert [(row["image"], row["class"]) for row in rows] == list(classes.items())
    for row in rows:
        assert row["equal"] and row["interpreter"] == row["python"] == row["cpp"]
