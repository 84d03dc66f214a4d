from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from hawq_tvm.core.errors import DataError, ModelError, first_line
from hawq_tvm.sources import imagefiles, splits
from hawq_tvm.sources.data import batches, load_data
from hawq_tvm.sources.factory import call_factory
from hawq_tvm.sources.models import load_model
from hawq_tvm.sources.names import check_names
from hawq_tvm.sources.options import DataOptions

TEXT = """import sys
import torch

def stop():
    sys.exit(0)

def talk():
    print("hello")
    return 3

def wrong():
    return torch.zeros(2).reshape(3)

def coloured():
    raise ValueError("\\033[1mbold\\033[0m")

class Items(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return torch.zeros(3, 4, 4)[index]

def items():
    return Items()
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's file in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(TEXT)
    return Path("mine.py")


def test_sys_exit_in_a_factory_is_a_failure(file: Path) -> None:
    with pytest.raises(ModelError, match=r"mine.py:stop failed at line 5: it called sys.exit\(0\)"):
        call_factory("mine.py:stop", "network")
    file.write_text("raise SystemExit\n")
    with pytest.raises(ModelError, match=r"failed at line 1: it called sys.exit\(None\)"):
        call_factory("mine.py:stop", "network")


def test_what_a_factory_prints_is_no_result(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_factory("mine.py:talk", "network")[0] == 3
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "hello\n")


@pytest.mark.parametrize("spec", ["mine.py:wrong", "./mine.py:wrong", "../{}/mine.py:wrong"])
def test_the_line_is_told_however_the_file_is_named(file: Path, spec: str) -> None:
    with pytest.raises(ModelError, match=r"failed at line 12: RuntimeError: shape"):
        call_factory(spec.format(Path.cwd().name), "network")
    with pytest.raises(ModelError, match=r"failed at line 12: RuntimeError: shape"):
        call_factory(f"{file.resolve()}:wrong", "network")


def test_the_line_of_a_syntax_error_is_told(file: Path) -> None:
    file.write_text("x = 1\ny = (\n")
    with pytest.raises(ModelError, match="failed at line 2: SyntaxError"):
        call_factory("mine.py:make", "network")


def test_the_line_of_a_failing_dataset_is_told(file: Path) -> None:
    data = load_data("mine.py:items", DataOptions())
    with pytest.raises(DataError, match="sample 3 of 'mine.py:items' failed at line 21: IndexError"):
        list(batches(data.calibration, 4))
        list(batches(data.evaluation, 4))


def test_messages_have_no_colours(file: Path) -> None:
    with pytest.raises(ModelError, match="failed at line 15: ValueError: bold$"):
        call_factory("mine.py:coloured", "network")
    assert first_line(ValueError("")) == "ValueError"


def test_the_import_path_is_left_as_it_was(file: Path) -> None:
    before = list(sys.path)
    call_factory("mine.py:talk", "network")
    assert sys.path == before
    file.write_text("import sys\nsys.path.insert(0, 'theirs')\ndef make(): return 1\n")
    call_factory("mine.py:make", "network")
    assert sys.path == ["theirs", *before]
    sys.path.remove("theirs")


DOCUMENT = Path(__file__).parent.parent / "docs" / "factories.md"


def test_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    network, data, use = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    for text in (network, data):
        name = text.splitlines()[0].removeprefix("# ")
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    exec(use, {})
    assert capsys.readouterr().out == "16 samples that calibration has not seen\n"
    (command,) = re.findall(r"```sh\nhawq-tvm run (.*?)\n```", DOCUMENT.read_text())
    model, _, spec, *_ = command.split()
    check_names(model, None, spec)
    (tmp_path / "net.py").write_text(
        network.replace("    return nn.Seq", "    raise ValueError('no such width')\n    nn.Seq")
    )
    with pytest.raises(ModelError) as raised:
        load_model("net.py:make")
    assert f"error: {raised.value}" in DOCUMENT.read_text()


def test_the_document_tells_the_numbers_of_the_code() -> None:
    text = " ".join(DOCUMENT.read_text().split())
    assert f"{splits.COMPUTED_SAMPLES} of each set" in text
    assert f"the first {splits.COMPUTED_SAMPLES // 4} and others" in text
    assert f"at most {splits._MOST_BYTES >> 30} GiB" in text
    assert f"up to {imagefiles.HASHED_WHOLE >> 20} MiB" in text
    assert f"every byte of {imagefiles.HASHED_FILES}." in text
