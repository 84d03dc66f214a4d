from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hawq_tvm.core.errors import DataError
from hawq_tvm.sources.data import batches, load_data
from hawq_tvm.sources.imagefolder import preprocess
from hawq_tvm.sources.options import DataOptions, Preprocessing

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
    assert data.key == json.loads(json.dumps(data.key)), "as a manifest keeps it"
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


def zip_of(folder: Path, path: Path, *, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder))
    return path


def test_an_encrypted_zip_file_is_refused_at_once(tmp_path: Path) -> None:
    path = zip_of(draw(tmp_path / "images"), tmp_path / "images.zip")
    data = bytearray(path.read_bytes())
    entry = data.find(b"PK\x01\x02")
    while entry >= 0:
        data[entry + 8] |= 1
        entry = data.find(b"PK\x01\x02", entry + 1)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"images.zip is encrypted \(n00/0.png is\); unpack it"):
        load_data(f"imagefolder:{path}", options())


def test_damaged_zip_files_are_told(tmp_path: Path) -> None:
    path = zip_of(draw(tmp_path / "images"), tmp_path / "images.zip", compression=zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            start = entry.header_offset + 30 + len(entry.filename)
            data[start : start + 20] = b"\xff" * 20
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"the image .*images.zip/n.*png cannot be read: Error -3"):
        load_data(f"imagefolder:{path}", options()).calibration.sample(0)
    path.write_bytes(data[-100:])
    with pytest.raises(DataError, match="neither a folder nor a zip file that can be read"):
        load_data(f"imagefolder:{path}", options())


def test_a_huge_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data(f"imagefolder:{draw(tmp_path / 'images')}", options())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"cannot be read: Image size \(720 pixels\) exceeds limit"):
        data.calibration.sample(0)


def test_a_file_that_is_no_image_is_told_in_plain_words(tmp_path: Path) -> None:
    folder = draw(tmp_path / "images")
    for file in folder.rglob("*.png"):
        file.write_text("not an image")
    data = load_data(f"imagefolder:{folder}", options())
    with pytest.raises(DataError, match="cannot be read: it is no image of a known kind; mend it") as raised:
        data.calibration.sample(0)
    assert "BytesIO" not in str(raised.value)


@pytest.mark.parametrize("zipped", [False, True])
def test_hidden_files_are_passed_over(tmp_path: Path, zipped: bool) -> None:
    folder = draw(tmp_path / "images")
    for name in ("n00/._0.png", "__MACOSX/n00/._0.png", ".cache/n00/0.png", ".0.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0\5\x16\7")
    (folder / "n01" / "folder.png").mkdir()
    data = load_data(f"imagefolder:{zip_of(folder, tmp_path / 'images.zip') if zipped else folder}", options())
    assert (data.settings["images"], data.settings["classes"]) == (12, 3)
    (batch,) = batches(data.evaluation, 100)
    assert len(batch.images) == 8


def test_images_without_class_folders_have_no_labels(tmp_path: Path) -> None:
    flat = draw(tmp_path / "images", classes=1, each=6) / "n00"
    data = load_data(f"imagefolder:{flat}", options())
    assert data.settings["classes"] == 0
    assert {data.evaluation.sample(i)[1] for i in range(2)} == {None}
    draw(tmp_path / "mixed")
    (flat / "0.png").rename(tmp_path / "mixed" / "stray.png")
    with pytest.raises(DataError, match="class folders and beside them, such as stray.png; move it"):
        load_data(f"imagefolder:{tmp_path / 'mixed'}", options())


def test_a_flat_evaluation_folder_beside_training_classes(tmp_path: Path) -> None:
    draw(tmp_path / "set" / "train")
    (draw(tmp_path / "flat", classes=1) / "n00").rename(tmp_path / "set" / "val")
    data = load_data(f"imagefolder:{tmp_path / 'set'}", options())
    assert {data.calibration.sample(i)[1] for i in range(4)} <= {0, 1, 2}
    assert {data.evaluation.sample(i)[1] for i in range(4)} == {None}
    assert data.settings["classes"] == 3


@pytest.mark.parametrize("wrapper", ["set", "download/set"])
def test_a_folder_around_all_others_is_passed_through(tmp_path: Path, wrapper: str) -> None:
    draw(tmp_path / "top" / wrapper / "train", each=5)
    draw(tmp_path / "top" / wrapper / "val", each=2)
    data = load_data(f"imagefolder:{tmp_path / 'top'}", options())
    assert data.settings["split"] == f"calibration from {wrapper}/train/, evaluation on {wrapper}/val/"
    assert [data.evaluation.sample(i)[1] for i in range(6)] == [0, 0, 1, 1, 2, 2]


def test_the_class_is_the_first_folder_and_other_splits_do_not_count(tmp_path: Path) -> None:
    draw(tmp_path / "set" / "train")
    draw(tmp_path / "set" / "val")
    for folder in list((tmp_path / "set" / "train").iterdir()):
        (folder / "images").mkdir()
        for file in list(folder.glob("*.png")):
            file.rename(folder / "images" / file.name)
    draw(tmp_path / "other", classes=1)
    (tmp_path / "other" / "n00").rename(tmp_path / "set" / "unlabelled")
    data = load_data(f"imagefolder:{tmp_path / 'set'}", options(calibration_samples=12))
    assert (data.settings["images"], data.settings["classes"]) == (24, 3)
    assert sorted(data.calibration.sample(i)[1] or 0 for i in range(12)) == [0] * 4 + [1] * 4 + [2] * 4


def test_the_path_is_needed_and_its_tilde_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="imagefolder: names no path; write imagefolder:PATH"):
        load_data("imagefolder:", options())
    draw(tmp_path / "images")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_data("imagefolder:~/images", options()).evaluation) == 8
