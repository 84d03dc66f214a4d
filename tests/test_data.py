from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hawq_tvm.data import DataOptions, Preprocessing, as_data, batches, digits_images, digits_split, limited, load_data
from hawq_tvm.errors import DataError, ModelError
from hawq_tvm.imagefolder import preprocess

HERE = Path(__file__).parent
SMALL = Preprocessing(resize=20, crop=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))


def draw(path: Path, classes: int = 3, each: int = 4, size: tuple[int, int] = (24, 30)) -> Path:
    """Image folders of noise, one a class."""
    rng = np.random.default_rng(0)
    for c in range(classes):
        folder = path / f"n{c:02d}"
        folder.mkdir(parents=True)
        for i in range(each):
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{i}.png")
    return path


def options(**changes: object) -> DataOptions:
    fields = {"calibration_samples": 4, "preprocessing": SMALL, **changes}
    return DataOptions(**fields)  # type: ignore[arg-type]


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


def test_preprocessing_is_torchvisions() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8))
    result = preprocess(image, SMALL)
    assert result.shape == (3, 16, 16)
    resized = np.asarray(image.resize((30, 20), Image.Resampling.BILINEAR), np.float32) / 255
    centre = resized[2:18, 7:23].transpose(2, 0, 1)
    expected = (centre - np.reshape(SMALL.mean, (3, 1, 1))) / np.reshape(SMALL.std, (3, 1, 1))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("zipped", [False, True])
def test_image_folders_and_zip_files(tmp_path: Path, zipped: bool) -> None:
    folder = draw(tmp_path / "images")
    path = folder
    if zipped:
        path = tmp_path / "images.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.rglob("*.png")):
                archive.write(file, file.relative_to(folder))
    data = load_data(f"imagefolder:{path}", options())
    assert (len(data.calibration), len(data.evaluation)) == (4, 8)
    assert data.settings["classes"] == 3
    assert data.settings["mean"] == SMALL.mean
    (batch,) = batches(data.evaluation, 100)
    assert batch.images.shape == (8, 3, 16, 16)
    assert set(batch.labels.tolist()) <= {0, 1, 2}
    seen = [data.calibration.sample(i)[0].tobytes() for i in range(4)]
    held_out = [data.evaluation.sample(i)[0].tobytes() for i in range(8)]
    assert set(seen).isdisjoint(held_out), "calibration and evaluation share no image"
    assert len({*seen, *held_out}) == 12


def test_train_and_val_folders_are_kept_apart(tmp_path: Path) -> None:
    draw(tmp_path / "set" / "train", each=5)
    draw(tmp_path / "set" / "val", each=2)
    data = load_data(f"imagefolder:{tmp_path / 'set'}", options())
    assert (len(data.calibration), len(data.evaluation)) == (4, 6)
    assert data.settings["split"] == "calibration from train/, evaluation on val/"
    assert [data.evaluation.sample(i)[1] for i in range(6)] == [0, 0, 1, 1, 2, 2]


def test_bad_image_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_data(f"imagefolder:{tmp_path / 'nothing'}", options())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load_data(f"imagefolder:{tmp_path / 'empty'}", options())
    (tmp_path / "text.zip").write_text("not a zip")
    with pytest.raises(DataError, match="neither a folder nor a zip file"):
        load_data(f"imagefolder:{tmp_path / 'text.zip'}", options())
    draw(tmp_path / "few", classes=1)
    with pytest.raises(DataError, match="too few to calibrate on 4 and evaluate on the rest"):
        load_data(f"imagefolder:{tmp_path / 'few'}", options())
    with pytest.raises(DataError, match="larger than the resized short side"):
        load_data(f"imagefolder:{tmp_path / 'few'}", options(preprocessing=Preprocessing(resize=16, crop=20)))


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    folder = draw(tmp_path / "images")
    for file in folder.rglob("*.png"):
        file.write_bytes(file.read_bytes()[:50])
    data = load_data(f"imagefolder:{folder}", options())
    with pytest.raises(DataError, match=r"the image .*\.png cannot be read"):
        data.calibration.sample(0)


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
