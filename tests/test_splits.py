from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from hawq_tvm.core.errors import DataError
from hawq_tvm.sources import splits
from hawq_tvm.sources.data import as_data, batches, limited
from hawq_tvm.sources.options import DataOptions
from hawq_tvm.sources.samples import Data
from hawq_tvm.sources.splits import as_split

X = np.random.default_rng(0).standard_normal((6, 3, 4, 4), np.float32)


class Items(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Six samples, each made by a function."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


def read(made: object, **options: Any) -> list[Any]:
    """Everything that a user's object gives."""
    given = DataOptions(**options)
    if isinstance(made, dict | Data):
        return list(batches(as_data(made, name="mine", options=given).evaluation, 4))
    return list(batches(as_split(made, "mine", given.evaluation_samples), 4))


def labels_of(made: object) -> list[int]:
    return [int(label) for batch in read(made) for label in batch.labels]


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, 2, 3, 4, 5],
        range(6),
        (0, 1, 2, 3, 4, 5),
        np.arange(6.0),
        torch.arange(6)[:, None],
        np.arange(6, dtype="u1"),
    ],
)
def test_labels_of_a_pair_are_any_sequence_of_whole_numbers(labels: object) -> None:
    assert labels_of((X, labels)) == [0, 1, 2, 3, 4, 5]
    assert labels_of({"calibration": X, "evaluation": (torch.from_numpy(X), labels)}) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("label", "told"),
    [
        (3.7, "3.7 of type float"),
        (float("nan"), "nan of type float"),
        (float("inf"), "inf of type float"),
        ("cat", "'cat' of type str"),
        (-1, "-1 of type int"),
        (2**63, "9223372036854775808 of type int"),
        ([0, 1], r"of shape \(2,\) of type list"),
        ({"label": 1}, "{'label': 1} of type dict"),
    ],
)
def test_other_labels_are_refused_with_the_sample_and_the_type(label: object, told: str) -> None:
    given = [0, 0, 0, 0, label, 0]
    message = rf"sample 4 of 'mine' has the label {told}; labels are whole numbers from 0"
    with pytest.raises(DataError, match=message):
        read((X, given))
    with pytest.raises(DataError, match=message):
        read(Items(lambda index: (X[index], given[index])))


def test_labels_of_a_wrong_kind_or_number_are_refused() -> None:
    with pytest.raises(DataError, match="6 images and 5 labels"):
        read((X, [0] * 5))
    with pytest.raises(DataError, match="6 images and 1 labels"):
        read((X, 3))
    with pytest.raises(DataError, match=r"sample 0 of 'mine' has the label of shape \(5,\)"):
        read((X, np.eye(6, 5)))
    with pytest.raises(DataError, match="has the label 'abcdef' of type str"):
        read((X, "abcdef"))


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ("a string", "is of type str"),
        ({"image": X[0]}, "is of type dict"),
        (None, "is of type NoneType"),
        ([[1, 2], [3]], "is of type list"),
        ((X[0], 1, "path"), "is of type tuple"),
        (np.array(["a", "b"]), r"is an array of <U1, shape \(2,\)"),
        (torch.zeros(2, dtype=torch.complex64), r"is an array of torch.complex64, shape \(2,\)"),
        (3.0, "is of type float"),
        (np.zeros((3, 0, 4)), r"has the shape \(3, 0, 4\), which holds no numbers"),
    ],
)
def test_samples_that_are_no_arrays_are_refused(item: object, told: str) -> None:
    with pytest.raises(DataError, match=f"sample 2 of 'mine' {told}"):
        read(Items(lambda index: item if index == 2 else X[index]))


def test_arrays_that_are_no_samples_are_refused() -> None:
    for made in (np.array(["a", "b"]), np.zeros(6), np.float32(3), torch.zeros(6, 3, dtype=torch.complex64)):
        with pytest.raises(DataError, match=r"'mine' .*expected"):
            read(made)
    for made in ("digits", b"digits", None, 3):
        with pytest.raises(DataError, match="gives a .*; expected arrays, a PyTorch dataset"):
            read(made)
    with pytest.raises(DataError, match=r"needs the keys 'calibration' and 'evaluation', got \['1', 'a'\]"):
        read({1: X, "a": X})


def test_a_dataset_that_fails_is_told_with_the_sample(capsys: pytest.CaptureFixture[str]) -> None:
    def make(index: int) -> object:
        print("loading", index)
        return {0: X[0], 1: X[1]}[index]

    with pytest.raises(DataError, match="sample 2 of 'mine' failed: KeyError: 2"):
        read(Items(make))
    printed = capsys.readouterr()
    assert printed.out == "", "standard output is for results"
    assert "loading 0" in printed.err

    class Endless(Items):
        def __len__(self) -> int:
            raise TypeError("no length")

    with pytest.raises(DataError, match="the length of 'mine' failed: TypeError: no length"):
        read(Endless(make))


def test_samples_of_several_shapes_are_told_by_number() -> None:
    made = [(torch.zeros(3, 4, 4), 0)] * 5 + [(torch.zeros(3, 5, 5), 0)]
    with pytest.raises(DataError, match=r"several shapes: sample 0 has \(3, 4, 4\), sample 5 has \(3, 5, 5\)"):
        read(made)


def test_a_list_of_two_images_is_two_samples() -> None:
    (batch,) = read([X[0], X[1]])
    assert (batch.images.shape, batch.labels) == ((2, 3, 4, 4), None)
    for made in ([X, np.arange(6)], [X, list(range(6))]):
        with pytest.raises(DataError, match=r"write the pair \(images, labels\) as a tuple"):
            read(made)


def test_items_of_one_and_items_of_two() -> None:
    tensors = torch.from_numpy(X)
    for made in (TensorDataset(tensors), DataLoader(TensorDataset(tensors), batch_size=4)):
        assert [tuple(batch.images.shape) for batch in read(made)] == [(4, 3, 4, 4), (2, 3, 4, 4)]
    assert labels_of([[x, 2] for x in tensors]) == [2] * 6
    (batch,) = read([[[1.0, 2.0], [3.0, 4.0]]] * 2)
    assert (batch.images.shape, batch.labels) == ((2, 2, 2), None), "a list of plain lists is a sample"
    assert read([torch.zeros(3, dtype=torch.bfloat16)])[0].images.dtype == torch.float32


def test_batches_that_do_not_fit_are_told_by_number() -> None:
    with pytest.raises(DataError, match=r"batch 1 of 'mine' has samples of the shape \(4,\), those before \(3, 4, 4\)"):
        read(iter([X, X[0, 0]]))
    with pytest.raises(DataError, match="batch 1 of 'mine' has 6 images and 2 labels"):
        read(iter([(X, [0] * 6), (X, [0, 1])]))
    with pytest.raises(DataError, match="batch 1 of 'mine' is of type str"):
        read(iter([X, "x"]))

    def failing() -> Iterator[Any]:
        yield X
        raise OSError("no such file")

    with pytest.raises(DataError, match="batch 1 of 'mine' failed: OSError: no such file"):
        read(failing())


def test_an_iterable_without_an_end_is_read_as_far_as_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless() -> Iterator[Any]:
        while True:
            yield X

    options = DataOptions(calibration_samples=10, evaluation_samples=20)
    data = limited(as_data(endless(), name="mine", options=options), options)
    assert (len(data.calibration), len(data.evaluation)) == (10, 20)
    monkeypatch.setattr(splits, "_MOST_BYTES", 10 * X.nbytes)
    with pytest.raises(DataError, match=r"'mine' has given 66 samples, .* without an end; limit them with evaluation"):
        read(endless())


def test_the_splits_of_a_users_data_are_checked_too() -> None:
    class Strange:
        def __len__(self) -> int:
            return 2

        def sample(self, index: int) -> Any:
            return "x", None

    with pytest.raises(DataError, match="sample 0 of 'theirs' is of type str"):
        read(Data("theirs", Strange(), Strange()))
    assert labels_of(Data("theirs", splits.ArraySplit(X), splits.ArraySplit(X, range(6)))) == [0, 1, 2, 3, 4, 5]
