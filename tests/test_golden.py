from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hawq_tvm.core import interpreter
from hawq_tvm.core.errors import HawqError, RunError
from hawq_tvm.core.hashing import file_sha256
from hawq_tvm.runs.golden import GOLDEN, GOLDEN_INDEX, check_golden, read_golden, write_golden
from hawq_tvm.runs.manifest import MANIFEST
from hawq_tvm.runs.rundir import edit_run, open_run

from .builders import integer_samples, integers_of, same

GRAPH = integers_of("Residual", ("w4a8",))
X = integer_samples(GRAPH, 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with edit_run(tmp_path / "r", identity={"model": "m", "weights": "w", "data": "d"}) as run:
        run.stage("golden", lambda: write_golden(run, GRAPH, X), options={}, writes=[GOLDEN])
    return tmp_path / "r"


def replaced(path: Path, name: str, data: bytes) -> None:
    """Put other bytes in a file's place and their hash in the manifest, as a stranger's run would have it."""
    (path / name).write_bytes(data)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["stages"]["golden"]["files"][name] = file_sha256(path / name)
    (path / MANIFEST).write_text(json.dumps(manifest))


def test_golden_tensors_come_back_whole(path: Path) -> None:
    assert same(interpreter.run(GRAPH, X), read_golden(open_run(path))) == []
    check_golden(open_run(path), GRAPH)


def saved(value: np.ndarray[Any, Any], path: Path, **options: Any) -> bytes:
    with path.open("wb") as stream:
        np.save(stream, value, **options)
    return path.read_bytes()


def bad_arrays(folder: Path) -> dict[str, bytes]:
    good = saved(X, folder / "good.npy")
    header = good[: len(good) - X.size]
    shape = str(X.shape).encode()
    huge = header.replace(shape, b"(999999999, 99999)") + b"\0" * 8
    return {
        "truncated": good[:-1],
        "longer": good + b"\0",
        "half a header": good[:20],
        "empty": b"",
        "huge": huge,
        "negative": good.replace(shape, b"(-1, 3, 12, 12)"),
        "floats": saved(X.astype(np.float32), folder / "floats.npy"),
        "objects": saved(np.array([print], object), folder / "objects.npy", allow_pickle=True),
        "by columns": saved(np.asfortranarray(X[0]), folder / "columns.npy"),
        "deep": header[:10] + b"(" * 9000 + b"\n",
        "code": header[:10] + b"{'descr': __import__('os').abort(), 'shape': (), }\n",
    }


def test_arrays_that_are_none_are_refused(path: Path, tmp_path: Path) -> None:
    for name, data in bad_arrays(tmp_path).items():
        replaced(path, f"{GOLDEN}000.npy", data)
        with pytest.raises(RunError, match=r"golden/000.npy is not an array of integers as hawq-tvm writes them"):
            pytest.fail(f"{name}: {read_golden(open_run(path))}")


@pytest.mark.parametrize("value", [X[:, :, :-1], X.astype(np.int32), X[0]])
def test_arrays_that_do_not_fit_the_network_are_refused(path: Path, tmp_path: Path, value: Any) -> None:
    replaced(path, f"{GOLDEN}000.npy", saved(value, tmp_path / "x.npy"))
    with pytest.raises(HawqError):
        check_golden(open_run(path), GRAPH)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"[]", "the whole is a list of 0, expected an object"),
        (b'{"x": 3}', "x is 3, expected text"),
        (b'{"x": "../manifest.json"}', "has no golden/../manifest.json"),
        (b'{"x": "000.npy", "x": "001.npy"}', "the key 'x' stands twice"),
        (b"{", "not valid JSON"),
        (b"{}", "holds no input"),
    ],
)
def test_an_index_that_is_none_is_refused(path: Path, index: bytes, message: str) -> None:
    replaced(path, GOLDEN_INDEX, index)
    with pytest.raises(RunError, match=message):
        check_golden(open_run(path), GRAPH)
