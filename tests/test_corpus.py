"""Files that once broke a reader or were taken for what they were not, kept in ``tests/corpus/FORMAT--WHAT``."""

from __future__ import annotations

from pathlib import Path

import pytest

from .fuzz.engine import judge
from .fuzz.formats import NAMES, Bench, formats, make_run

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    path = tmp_path_factory.mktemp("corpus") / "run"
    make_run(path)
    return Bench(path)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_each_is_refused_in_one_sentence(path: Path, bench: Bench) -> None:
    name = path.name.partition("--")[0]
    form = formats(())[name]
    own = (bench.path / form.file).read_bytes()
    outcome = judge(bench, form, 0, own, path.read_bytes())
    assert (outcome.what, outcome.why) == ("refused", "")


def test_every_format_has_some() -> None:
    assert {path.name.partition("--")[0] for path in CORPUS} == set(NAMES)
