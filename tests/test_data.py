from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset, random_split

from hawq_tvm.core.errors import DataError, HawqError, ModelError
from hawq_tvm.sources.data import as_data, batches, digits_images, digits_split, limited, load_data
from hawq_tvm.sources.models import load_model
from hawq_tvm.sources.options import DataOptions, Preprocessing
from hawq_tvm.sources.samples import Data

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
    assert len(data.calibration) == len(data.evaluation) == 3
    (batch,) = batches(data.evaluation, 8)
    assert batch.images.shape == (3, 3, 4, 4)
    assert batch.images.dtype == torch.float32


def loader(images: torch.Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(images, torch.arange(len(images))), batch_size=4)


def samples_of(split: Any) -> list[bytes]:
    return [split.sample(index)[0].tobytes() for index in range(len(split))]


X = torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
ONE_SET: dict[str, Callable[[], Any]] = {
    "tensor": lambda: X,
    "array": lambda: X.numpy(),
    "pair": lambda: (X, torch.arange(40)),
    "dataset": lambda: TensorDataset(X, torch.arange(40)),
    "list": lambda: list(X),
    "loader": lambda: loader(X),
    "generator": lambda: (X[start : start + 10] for start in range(0, 40, 10)),
}


@pytest.mark.parametrize("kind", ONE_SET)
def test_of_one_set_a_part_is_held_out(kind: str) -> None:
    options = DataOptions(calibration_samples=12, seed=3)
    data = limited(as_data(ONE_SET[kind](), name="mine", options=options), options)
    calibration, evaluation = samples_of(data.calibration), samples_of(data.evaluation)
    assert (len(calibration), len(evaluation)) == (12, 28)
    assert set(calibration).isdisjoint(evaluation)
    assert len({*calibration, *evaluation}) == 40
    again = limited(as_data(ONE_SET[kind](), name="mine", options=options), options)
    assert samples_of(again.calibration) == calibration
    other = as_data(ONE_SET[kind](), name="mine", options=DataOptions(calibration_samples=12, seed=4))
    assert samples_of(other.calibration) != calibration
    assert data.settings["held_out"] == {"of": 40, "calibration": 12, "evaluation": 28, "seed": 3}
    assert data.note == (
        "one set of 40 samples was given: 12 of them, drawn with seed 3, calibrate, and accuracy is measured on others"
    )


@pytest.mark.parametrize(
    ("total", "calibration", "evaluation", "expected"),
    [
        (40, 256, None, (20, 20)),
        (41, 256, None, (20, 21)),
        (2, 256, None, (1, 1)),
        (3, 1, None, (1, 2)),
        (40, 30, 10, (30, 10)),
        (40, 30, 5, (30, 5)),
        (40, 256, 10, (30, 10)),
        (40, 256, 100, (20, 20)),
    ],
)
def test_how_much_is_held_out(total: int, calibration: int, evaluation: int | None, expected: tuple[int, int]) -> None:
    """At most half calibrates, or what the evaluation samples that are asked for leave."""
    options = DataOptions(calibration_samples=calibration, evaluation_samples=evaluation)
    data = limited(as_data(X.repeat(2, 1, 1, 1)[:total], name="mine", options=options), options)
    assert (len(data.calibration), len(data.evaluation)) == expected


def test_a_single_sample_is_not_enough() -> None:
    with pytest.raises(DataError, match="'mine' holds one sample, too few to calibrate on some and measure"):
        as_data(X[:1], name="mine", options=DataOptions())
    data = as_data({"calibration": X[:1], "evaluation": X[:1]}, name="mine", options=DataOptions())
    assert data.note.startswith("all evaluation samples are calibration samples too")


def test_a_factory_that_returns_one_set_has_a_part_held_out(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text("import torch\ndef make(): return torch.randn(40, 3, 4, 4)\n")
    data = load_data(f"{tmp_path}/data.py:make", DataOptions(calibration_samples=10))
    assert set(samples_of(data.calibration)).isdisjoint(samples_of(data.evaluation))
    assert data.note.startswith("one set of 40 samples was given: 10 of them")
    again = load_data(f"{tmp_path}/data.py:make", DataOptions(calibration_samples=10))
    assert again.fingerprint == data.fingerprint, "the seed is set before the factory is called"


A, B = X[:24], X[24:]
TWO_SETS: dict[str, Callable[[], Any]] = {
    "dict": lambda: {"calibration": A, "evaluation": (B, range(16))},
    "pair of pairs": lambda: ((A, torch.arange(24)), (B, torch.arange(16))),
    "pair of loaders": lambda: (loader(A), loader(B)),
    "list of loaders": lambda: [loader(A), loader(B)],
    "pair of datasets": lambda: (TensorDataset(A), TensorDataset(B, torch.arange(16))),
    "random split": lambda: random_split(TensorDataset(X, torch.arange(40)), [24, 16]),
    "pair and loader": lambda: ((A, range(24)), loader(B)),
    "pair of lists": lambda: ([(x, 0) for x in A], [(x, 0) for x in B]),
}


@pytest.mark.parametrize("kind", TWO_SETS)
def test_two_sets_are_calibration_and_evaluation(kind: str) -> None:
    options = DataOptions(calibration_samples=20)
    data = limited(as_data(TWO_SETS[kind](), name="mine", options=options), options)
    assert (len(data.calibration), len(data.evaluation)) == (20, 16)
    assert set(samples_of(data.calibration)).isdisjoint(samples_of(data.evaluation))
    assert data.evaluation.sample(3)[1] is not None
    assert data.note == ""
    assert "held_out" not in data.settings


def test_the_same_samples_for_both_are_allowed_and_told() -> None:
    dataset = TensorDataset(X, torch.arange(40))
    split = as_data({"calibration": X, "evaluation": X}, name="mine", options=DataOptions()).calibration
    for made in (
        {"calibration": X, "evaluation": X.clone()},
        {"calibration": dataset, "evaluation": dataset},
        ((X, range(40)), (X, range(40))),
        Data("mine", split, split),
    ):
        data = as_data(made, name="mine", options=DataOptions())
        assert data.note == "all evaluation samples are calibration samples too, as the data gives them for both"
        assert data.settings["evaluation_samples_in_calibration"] == 40
    data = as_data({"calibration": X, "evaluation": X}, name="mine", options=DataOptions(calibration_samples=10))
    assert data.note.startswith("10 of the 40 evaluation samples are calibration samples too")


def fingerprint(made: Any, **options: Any) -> str:
    given = DataOptions(**options)
    return limited(as_data(made, name="mine", options=given), given).fingerprint


def test_the_bytes_of_samples_decide_their_fingerprint() -> None:
    changed = X.clone()
    changed[17, 1, 2, 3] += 1e-3
    for kind in ("tensor", "pair", "loader", "list", "dataset"):
        assert fingerprint(ONE_SET[kind]()) == fingerprint(ONE_SET[kind]()), kind
    base = (X, torch.arange(40))
    other = torch.arange(40)
    other[5] = 7
    found = [base, (changed, base[1]), (X, other), (X.flip(0), base[1]), X, X[:39], list(changed)]
    assert len({fingerprint(made) for made in found}) == len(found)
    assert fingerprint(loader(changed)) == fingerprint((changed, base[1])), "the same samples, however they come"
    two = {"calibration": A, "evaluation": B}
    assert fingerprint(two) != fingerprint({"calibration": B, "evaluation": A})
    assert fingerprint(two) != fingerprint({"calibration": A, "evaluation": changed[24:] + 1})


def test_a_file_that_the_users_code_loads_counts(tmp_path: Path) -> None:
    """The code is the same, the samples are not."""
    (tmp_path / "data.py").write_text(
        "import numpy as np\nfrom pathlib import Path\ndef make(): return np.load(Path(__file__).parent / 'x.npy')\n"
    )
    found = []
    for seed in (0, 0, 1):
        np.save(tmp_path / "x.npy", np.random.default_rng(seed).standard_normal((8, 3, 4, 4)))
        found.append(load_data(f"{tmp_path}/data.py:make", DataOptions()).fingerprint)
    assert found[0] == found[1] != found[2]


class Computed(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Many samples, and how many of them were asked for."""

    def __init__(self, odd: int | None = None) -> None:
        self.asked: list[int] = []
        self.odd = odd

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> torch.Tensor:
        self.asked.append(index)
        return torch.full((3, 4, 4), float(index) + (index == self.odd))


def test_samples_that_are_computed_are_looked_at_here_and_there() -> None:
    both = {"calibration": Computed(), "evaluation": Computed()}
    data = as_data(both, name="mine", options=DataOptions())
    assert both["evaluation"].asked == [], "nothing is computed before it is asked for"
    assert data.fingerprint == data.fingerprint
    assert len(both["evaluation"].asked) == 64
    assert {*range(16), 9_999} < {*both["evaluation"].asked}
    for odd in (0, 15, 9_999):
        other = as_data({"calibration": Computed(), "evaluation": Computed(odd)}, name="mine", options=DataOptions())
        assert other.fingerprint != data.fingerprint


def test_noise_and_digits_have_fingerprints() -> None:
    found = {
        load_data(name, DataOptions(input_shape=shape, seed=seed)).fingerprint
        for name in ("random", "digits")
        for shape in ((3, 4, 4), (3, 4, 5))
        for seed in (0, 1)
    }
    assert len(found) == 4 + 2, "digits have a shape of their own"


def test_other_python_objects_are_refused() -> None:
    for made in (3, {"train": [1]}, iter(())):
        with pytest.raises(DataError):
            as_data(made, name="mine", options=DataOptions())
    with pytest.raises(DataError, match="6 images and 5 labels"):
        as_data((torch.zeros(6, 3, 4, 4), torch.arange(5)), name="mine", options=DataOptions())


def test_samples_of_several_shapes_are_refused() -> None:
    data = as_data([(torch.zeros(3, n, n), 0) for n in (4, 5, 6, 7)], name="mine", options=DataOptions())
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
