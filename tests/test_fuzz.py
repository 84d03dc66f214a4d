"""A quick round of what `make fuzz` does for minutes, and that its judge sees what it is to see."""

from __future__ import annotations

import time
from dataclasses import replace
from random import Random

import pytest

from hawq_tvm.core.errors import RunError

from .fuzz import engine
from .fuzz.engine import fuzz, inputs, judge
from .fuzz.formats import NAMES, Bench, Format, formats, make_run
from .fuzz.mutations import mutate_json

COUNT = 120  # of each format: about two thousand in all


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    path = tmp_path_factory.mktemp("fuzz") / "run"
    make_run(path)
    return Bench(path)


@pytest.fixture(scope="module")
def known() -> dict[str, Format]:
    return formats(())


def test_every_format_has_its_name(known: dict[str, Format]) -> None:
    assert tuple(known) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_refused_or_read_for_what_they_say(name: str, bench: Bench, known: dict[str, Format]) -> None:
    outcomes = list(fuzz(bench, known[name], seed=0, count=COUNT))
    assert [f"{outcome.number}: {outcome.why}" for outcome in outcomes if outcome.what == "failed"] == []
    assert sum(outcome.what == "refused" for outcome in outcomes) > COUNT / 3, "damage is done"
    again = [data for _, data in inputs(bench, known[name], seed=0, count=COUNT)]
    assert [outcome.data for outcome in outcomes] == again, "the same for the same seed"


def test_undamaged_files_are_read_as_they_are(bench: Bench, known: dict[str, Format]) -> None:
    for name, form in known.items():
        data = (bench.path / form.file).read_bytes()
        assert judge(bench, form, 0, data, data).what == "same", name
        bench.read(form, data)


def test_the_judge_sees_what_it_is_to_see(
    bench: Bench, known: dict[str, Format], monkeypatch: pytest.MonkeyPatch
) -> None:
    form = known["accuracy"]
    data = (bench.path / form.file).read_bytes()

    def verdict(changed: Format, damaged: bytes = data + b" ") -> str:
        return judge(bench, changed, 0, data, damaged).why

    def fail(error: BaseException) -> object:
        raise error

    assert verdict(form) == ""
    assert "KeyError" in verdict(replace(form, read=lambda run: fail(KeyError("x"))))
    assert "not one line" in verdict(replace(form, read=lambda run: fail(RunError(""))))
    assert "hash" in verdict(replace(form, read=lambda run: 3))
    sealed = replace(form, file="bits.json", read=lambda run: (run.path / "bits.json").read_bytes(), sealed=True)
    assert "other contents of a sealed file" in judge(bench, sealed, 0, b"{}", b"[]").why
    monkeypatch.setattr(engine, "LONGEST", 1)
    assert verdict(replace(form, read=lambda run: time.sleep(5))) == "took more than 1 seconds"


def test_json_is_damaged_in_structure_too() -> None:
    """Keys twice, depths without end and numbers of any size come up."""
    random = Random(0)
    texts = [mutate_json(random, b'{"a": {"b": [1, 2]}, "c": 3}') for _ in range(3000)]
    assert any(text.count(b'"a"') == 2 for text in texts)
    assert any(b"[" * 1000 in text for text in texts)
    assert any(b"0" * 400 in text for text in texts)
    assert any(b"NaN" in text for text in texts)
