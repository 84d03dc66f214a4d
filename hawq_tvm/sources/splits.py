"""Samples by index, and the Python objects that hold them: arrays, pairs, PyTorch datasets, iterables of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hawq_tvm.core.errors import DataError
from hawq_tvm.sources.factory import users_code

Images = NDArray[np.float32]
Labels = NDArray[np.int64]

_MOST_BYTES = 4 << 30  # of an iterable that nothing limits: one without an end would fill the memory


COMPUTED_SAMPLES = 64  # looked at for the identity of samples that are computed one by one


class Split(Protocol):
    """Samples by index.

    A split of ours also has ``identity(indices)``: bytes that change when these samples do. Of others, see `identity`.
    """

    def __len__(self) -> int:
        """How many there are."""

    def sample(self, index: int) -> tuple[Images, int | None]:
        """A float32 image [C, H, W] (or any sample shape) and its label, where it has one."""


class ArraySplit:
    """Samples in memory."""

    def __init__(self, images: Images, labels: Sequence[int] | Labels | None = None) -> None:
        if labels is not None and len(labels) != len(images):
            raise DataError(f"there are {len(images)} images and {len(labels)} labels")
        self._images = images
        self._labels = labels

    def __len__(self) -> int:
        return len(self._images)

    def sample(self, index: int) -> tuple[Images, int | None]:
        return self._images[index], None if self._labels is None else int(self._labels[index])

    def identity(self, indices: Sequence[int]) -> Iterator[bytes]:
        """Every byte."""
        return _contents(self, indices)


class Subset:
    """Some samples of another split, in a given order."""

    def __init__(self, split: Split, indices: Sequence[int] | Labels) -> None:
        self._split = split
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def sample(self, index: int) -> tuple[Images, int | None]:
        return self._split.sample(int(self._indices[index]))

    def identity(self, indices: Sequence[int]) -> Iterator[bytes]:
        """As the split identifies these samples."""
        return identity(self._split, [int(self._indices[index]) for index in indices])


def identity(split: Split, indices: Sequence[int]) -> Iterator[bytes]:
    """Bytes that change when some samples of a split do.

    Args:
        split: the samples; where it does not say itself what tells them apart, 64 of them are computed: the first 16,
            and others evenly spread to the last.
        indices: which samples.
    """
    own: Callable[[Sequence[int]], Iterator[bytes]] | None = getattr(split, "identity", None)
    if own is not None:
        return own(indices)
    return _contents(split, [indices[position] for position in spread(len(indices), COMPUTED_SAMPLES)])


def spread(count: int, most: int) -> list[int]:
    """At most so many of `count` positions: the first quarter of that number, and others evenly spread to the last.

    >>> spread(100, 8)
    [0, 1, 2, 21, 41, 60, 80, 99]
    """
    if count <= most:
        return list(range(count))
    first = most // 4
    return [*range(first), *np.linspace(first, count - 1, most - first).round().astype(int).tolist()]


def _contents(split: Split, indices: Sequence[int]) -> Iterator[bytes]:
    for index in indices:
        image, label = split.sample(index)
        yield f"{image.shape} {label}".encode()
        yield np.ascontiguousarray(image).tobytes()


class _UserSplit:
    """Samples that code of the user's gives one by one; each is checked as it comes."""

    def __init__(self, made: Any, get: Callable[[int], Any], name: str) -> None:
        self._get = get
        self._name = name
        with users_code(f"the length of '{name}'", name, DataError):
            self._count = len(made)

    def __len__(self) -> int:
        return self._count

    def sample(self, index: int) -> tuple[Images, int | None]:
        where = f"sample {index} of '{self._name}'"
        with users_code(where, self._name, DataError):
            item = self._get(index)
        image, label = _image_and_label(item)
        return _as_array(image, where), None if label is None else _as_label(label, where)


def as_split(made: Any, name: str, most: int | None) -> Split:
    """The samples of what a user's factory or an argument of the API holds.

    Args:
        made: a tensor or array [N, ...]; a tuple (images, labels) of one and N whole numbers; a PyTorch dataset or a
            list of samples; an object with `sample` and a length; or an iterable of batches.
        name: for messages.
        most: samples that are read of an iterable of batches; None for all.

    Raises:
        DataError: none of these, or what they hold is no array of numbers or no label.
    """
    if isinstance(made, ArraySplit):
        return made
    if isinstance(made, Tensor | np.ndarray):
        return ArraySplit(_as_array(made, f"'{name}'", least=2))
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Tensor | np.ndarray):
        images = _as_array(made[0], f"the first of the pair '{name}'", least=2)
        return ArraySplit(images, None if made[1] is None else _as_labels(made[1], f"'{name}'"))
    if _looks_like_a_pair(made):
        raise DataError(f"'{name}' is a list, which holds samples; write the pair (images, labels) as a tuple")
    dataset = isinstance(made, torch.utils.data.Dataset | list)
    if hasattr(made, "sample") and hasattr(made, "__len__") and not dataset:
        return _UserSplit(made, made.sample, name)
    if isinstance(made, Iterable) and not dataset and not isinstance(made, str | bytes):
        return _read_batches(made, name, most)
    if hasattr(made, "__getitem__") and hasattr(made, "__len__") and not isinstance(made, str | bytes):
        return _UserSplit(made, made.__getitem__, name)
    raise DataError(
        f"'{name}' gives a {type(made).__name__}; expected arrays, a PyTorch dataset with a length or an iterable of "
        "batches, such as a DataLoader"
    )


def _looks_like_a_pair(made: Any) -> bool:
    if not isinstance(made, list) or len(made) != 2 or not isinstance(made[0], Tensor | np.ndarray):
        return False
    labels = made[1]
    return labels.ndim < made[0].ndim if isinstance(labels, Tensor | np.ndarray) else isinstance(labels, list | tuple)


def _image_and_label(item: Any) -> tuple[Any, Any]:
    """An item's parts: datasets give tuples, loaders lists; a list of plain lists is a sample itself."""
    if isinstance(item, tuple | list) and len(item) == 1 and isinstance(item[0], Tensor | np.ndarray):
        return item[0], None
    if isinstance(item, tuple | list) and len(item) == 2:
        image, label = item
        if isinstance(item, tuple) or isinstance(image, Tensor | np.ndarray) or not isinstance(label, list):
            return image, label
    return item, None


def _as_array(value: Any, where: str, least: int = 1) -> Images:
    """Float32 of at least so many dimensions."""
    try:
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            value = value.float() if value.is_floating_point() else value
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # pieces of several lengths, sparse tensors
        array = np.asarray(None)
    if array.dtype.kind not in "biuf" or array.ndim < least:
        one = "samples [N, ...]" if least > 1 else "one sample"
        raise DataError(
            f"{where} is {_described(value)}; expected a tensor or array of numbers that holds {one}, alone or in a "
            "tuple with its label"
        )
    if 0 in array.shape[least - 1 :]:
        raise DataError(f"{where} has the shape {array.shape}, which holds no numbers")
    return np.asarray(array, np.float32)


def _described(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"an array of {value.dtype}, shape {tuple(value.shape)}"
    return f"of type {type(value).__name__}"


def _as_labels(values: Any, where: str) -> Labels:
    """One label a sample, from any sequence; a lone one is that of a single sample."""
    if isinstance(values, Tensor | np.ndarray):
        values = values.tolist()
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        values = [values]
    return np.asarray([_as_label(value, f"sample {i} of {where}") for i, value in enumerate(values)], np.int64)


def _as_label(value: Any, where: str) -> int:
    """A class index; floats are taken where they are whole."""
    try:
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        array = np.asarray(None)
    if array.size == 1 and array.dtype.kind in "biuf":
        number = array.reshape(-1)[0].item()
        if np.isfinite(number) and number == int(number) and 0 <= number < 2**63:
            return int(number)
    shown = f"of shape {array.shape}" if array.size > 1 else repr(value)[:60]
    raise DataError(
        f"{where} has the label {shown} of type {type(value).__name__}; labels are whole numbers from 0, one a sample"
    )


def _read_batches(made: Iterable[Any], name: str, most: int | None) -> ArraySplit:
    images: list[Images] = []
    labels: list[Labels] = []
    count = size = 0
    for number, item in enumerate(_items(made, name)):
        where = f"batch {number} of '{name}'"
        part, label = _image_and_label(item)
        images.append(_as_array(part, where, least=2))
        if images[-1].shape[1:] != images[0].shape[1:]:
            raise DataError(
                f"{where} has samples of the shape {images[-1].shape[1:]}, those before {images[0].shape[1:]}; "
                "resize or crop them to one"
            )
        if label is not None:
            labels.append(_as_labels(label, where))
            if len(labels[-1]) != len(images[-1]):
                raise DataError(f"{where} has {len(images[-1])} images and {len(labels[-1])} labels")
        count += len(images[-1])
        size += images[-1].nbytes
        if most is not None and count >= most:
            break
        if size > _MOST_BYTES:
            raise DataError(
                f"'{name}' has given {count} samples, {size / 2**30:.1f} GiB, without an end; limit them with "
                "evaluation_samples (--evaluation-samples), or give a PyTorch dataset, which is read as it is needed"
            )
    if not images:
        raise DataError(f"'{name}' gives no batches")
    return ArraySplit(np.concatenate(images), np.concatenate(labels) if len(labels) == len(images) else None)


def _items(made: Iterable[Any], name: str) -> Iterator[Any]:
    """The batches, read one at a time as code of the user's."""
    end = object()
    number = 0
    with users_code(f"batch 0 of '{name}'", name, DataError):
        iterator = iter(made)
    while True:
        with users_code(f"batch {number} of '{name}'", name, DataError):
            item = next(iterator, end)
        if item is end:
            return
        yield item
        number += 1
