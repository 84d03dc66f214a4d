from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hawq_tvm.core.errors import DataError, HawqError, ModelError
from hawq_tvm.sources.data import as_data, batches, digits_images, digits_split, limited, load_data
from hawq_tvm.sources.models import load_model
from hawq_tvm.sources.options import DataOptions, Preprocessing

HERE = Path(__file__).parent


def test_digits_are_split_once_and_for_all() -> None:
    images, labels = digits_images()
    train, held_out = digits_split(labels)
    assert images.shape == (1797, 3, 16, 16)
    assert (len(train), len(held_out)) == (1257, 540)
    assert set(train).isdisjoint(held_out)
    counts = np.bincount(labels[held_out])
    assert counts.max() - counts.min() <= 3, "the same share of each class"
    data = load_data("digits", DataOptions(calibration_samples=100, evaluation_samples=50))
    assert (len(data.calibration), len(data.evaluation), data.sample_shape) == (100, 50, (3, 16, 16))
    again = load_data("digits", DataOptions(calibration_samples=100))
    assert np.array_equal(data.calibration.sample(7)[0], again.calibration.sample(7)[0])
    assert len(again.evaluation) == 540


def test_random_data_is_seeded_and_lazy() -> None:
    first, second, other = (
        load_data("random", DataOptions(calibration_samples=8, input_shape=(3, 5, 5), seed=seed)) for seed in (1, 1, 2)
    )
    assert np.array_equal(first.calibration.sample(3)[0], second.calibration.sample(3)[0])
    assert not np.array_equal(first.calibration.sample(3)[0], other.calibration.sample(3)[0])
    assert not np.array_equal(first.calibration.sample(0)[0], first.evaluation.sample(0)[0])
    assert first.evaluation.sample(0)[1] is None
    with pytest.raises(DataError, match="give --input-shape"):
        load_data("random", DataOptions())


def test_a_users_factory() -> None:
    data = load_data(f"{HERE / 'networks.py'}:samples", DataOptions(calibration_samples=10))
    assert (len(data.calibration), len(data.evaluation), data.sample_shape) == (10, 8, (3, 12, 12))
    with pytest.raises(ModelError, match=r"networks.py has no function 'nothing'"):
        load_data(f"{HERE / 'networks.py'}:nothing", DataOptions())
    with pytest.raises(DataError, match="leaves no calibration samples"):
        load_data(f"{HERE / 'networks.py'}:empty_samples", DataOptions())
    with pytest.raises(DataError, match="unknown data 'mnist'; known: digits"):
        load_data("mnist", DataOptions())


@pytest.mark.parametrize(
    "made",
    [
        torch.zeros(6, 3, 4, 4),
        np.zeros((6, 3, 4, 4)),
        (torch.zeros(6, 3, 4, 4), torch.arange(6)),
        torch.utils.data.TensorDataset(torch.zeros(6, 3, 4, 4), torch.arange(6)),
        torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.zeros(6, 3, 4, 4), torch.arange(6)), batch_size=4
        ),
        [(torch.zeros(3, 4, 4), 1)] * 6,
        (torch.zeros(2, 3, 4, 4) for _ in range(3)),
    ],
)
def test_python_objects_of_many_kinds(made: object) -> None:
    data = limited(as_data(made, name="mine", options=DataOptions()), DataOptions())
    assert len(data.calibration) == len(data.evaluation) == 6
    (batch,) = batches(data.evaluation, 8)
    assert batch.images.shape == (6, 3, 4, 4)
    assert batch.images.dtype == torch.float32


def test_other_python_objects_are_refused() -> None:
    for made in (3, {"train": [1]}, iter(())):
        with pytest.raises(DataError):
            as_data(made, name="mine", options=DataOptions())
    with pytest.raises(DataError, match="6 images and 5 labels"):
        as_data((torch.zeros(6, 3, 4, 4), torch.arange(5)), name="mine", options=DataOptions())


def test_samples_of_several_shapes_are_refused() -> None:
    data = as_data([(torch.zeros(3, 4, 4), 0), (torch.zeros(3, 5, 5), 0)], name="mine", options=DataOptions())
    with pytest.raises(DataError, match="several shapes"):
        list(batches(data.evaluation, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"std": (0.2, 0.0, 0.2)}, r"must be above 0, got std=\(0.2, 0.0, 0.2\)"),
        ({"std": (0.2, -1, 0.2)}, "must be above 0"),
        ({"std": (0.2, math.nan, 0.2)}, "std must be three finite numbers, one a channel, got"),
        ({"mean": (0.2, math.inf, 0.2)}, "mean must be three finite numbers"),
        ({"mean": (0.2, 0.2)}, "mean must be three finite numbers"),
        ({"mean": 0.2}, "mean must be three finite numbers"),
        ({"mean": ("a", "b", "c")}, "mean must be three finite numbers"),
        ({"crop": 0}, "crop must be a whole number of at least 1, got 0"),
        ({"resize": 2.5}, "resize must be a whole number of at least 1, got 2.5"),
    ],
)
def test_preprocessing_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Preprocessing(**changes)


def test_preprocessing_is_kept_as_plain_numbers() -> None:
    how: Any = np.array([0.5, 0.25, 0.125], np.float32)
    assert Preprocessing(std=how) == Preprocessing(std=(0.5, 0.25, 0.125))
    assert json.loads(json.dumps(asdict(Preprocessing(resize=how.size, crop=1, std=how))))["std"] == [0.5, 0.25, 0.125]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calibration_samples": 0}, "calibration_samples must be a whole number of at least 1, got 0"),
        ({"calibration_samples": 2.5}, "calibration_samples must be a whole number"),
        ({"evaluation_samples": -1}, "evaluation_samples must be a whole number of at least 1, got -1"),
        ({"input_shape": (3, 0, 5)}, "every dimension of input_shape must be a whole number of at least 1, got 0"),
        ({"input_shape": 3}, "input_shape is a tuple of dimensions, got 3"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        DataOptions(**changes)


@pytest.mark.parametrize("seed", [-1, 2**63, 10**30, 1.5, "1", None, True])
def test_seeds_that_cannot_be_used_are_refused(seed: Any) -> None:
    for make in (lambda: DataOptions(seed=seed), lambda: load_model("resnet20", "random", seed=seed)):
        with pytest.raises(HawqError, match="the seed is .*; give a whole number from 0 to 2\\^63 - 1"):
            make()


def test_the_largest_seed_is_taken_everywhere() -> None:
    seed = 2**63 - 1
    for name in ("digits", "random"):
        options = DataOptions(calibration_samples=2, input_shape=(3, 4, 4), seed=seed)
        assert load_data(name, options).calibration.sample(0)[0].ndim == 3
    assert load_model("resnet20", "random", seed=seed).weights == f"random, seed {seed}"
