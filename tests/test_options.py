"""Options from the fields of dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from hawq_tvm.cli.app import app as real
from hawq_tvm.cli.options import Changes, Of, flat
from hawq_tvm.core.budget import CHOICE, Budget
from hawq_tvm.core.errors import SettingsError
from hawq_tvm.core.option import Option, option
from hawq_tvm.settings import Settings
from hawq_tvm.sources.options import DataOptions


def pair(text: str) -> tuple[int, int]:
    try:
        first, second = map(int, text.split("x"))
    except ValueError:
        raise SettingsError(f"a pair is written 1x2, got '{text}'") from None
    return first, second


@dataclass(frozen=True)
class Inner:
    depth: int = option(3, "how deep", flag="--inner-depth", least=1)
    secret: int = 7


@dataclass(frozen=True)
class Outer:
    size: tuple[int, int] = option((1, 2), "how large", parse=pair, panel="Shape")
    fast: bool = option(True, "whether to hurry", negated=True)
    loud: bool = option(False, "whether to tell")
    names: Mapping[str, int] = option({}, "NAME=1", parse=lambda given: dict.fromkeys(given, 1), many=True)
    inner: Inner = field(default_factory=Inner)


def told(verb: Any, *arguments: str) -> Any:
    """What a verb was given, through typer."""
    got: list[Any] = []

    app = typer.Typer()

    @app.command()
    @flat
    def whole(outer: Outer, word: str = "x") -> int:
        got.append((outer, word))
        return 0

    @app.command()
    @flat
    def some(changes: Annotated[Changes, Of(Outer, only=("size", "inner"))]) -> int:
        got.append(changes)
        return 0

    @app.command()
    @flat
    def fewer(outer: Annotated[Outer, Of(Outer, without=("inner", "names"))]) -> int:
        got.append(outer)
        return 0

    result = CliRunner().invoke(app, [verb, *arguments])
    return got[0] if got else result


def test_what_is_not_said_is_the_default_of_its_field() -> None:
    assert told("whole") == (Outer(), "x")
    assert told("some") == {}


def test_what_is_said_is_parsed_and_put_where_it_belongs() -> None:
    arguments = ("--size", "3x4", "--no-fast", "--loud", "--names", "a", "--names", "b", "--inner-depth", "9")
    outer, word = told("whole", *arguments, "--word", "y")
    assert outer == Outer((3, 4), False, True, {"a": 1, "b": 1}, Inner(9))
    assert (outer.inner.secret, word) == (7, "y")


def test_changes_hold_what_was_said_alone() -> None:
    assert told("some", "--size", "5x6") == {"size": (5, 6)}
    assert told("some", "--inner-depth", "2") == {"inner": Inner(2)}


def test_a_verb_may_take_fewer_fields() -> None:
    assert told("fewer", "--size", "5x6") == Outer((5, 6))
    assert told("fewer", "--inner-depth", "2").exit_code == 2


def test_bounds_and_parsers_refuse() -> None:
    assert told("whole", "--inner-depth", "0").exit_code == 2
    assert isinstance(told("whole", "--size", "oops").exception, SettingsError)


def test_help_shows_words_panel_and_default() -> None:
    text = " ".join(told("whole", "--help").output.replace("│", " ").split())
    assert "how large; default 1,2" in text
    assert "Shape" in text
    assert "on by default" in text
    assert "secret" not in text


@pytest.mark.parametrize("kind", [Settings, DataOptions])
def test_every_field_of_ours_is_an_option_or_holds_some(kind: type) -> None:
    """Whoever adds a field to these decides whether it is one; those that are none are listed here."""
    instance = kind()
    plain = [item for item in fields(kind) if not is_dataclass(getattr(instance, item.name))]
    bare = {item.name for item in plain if "option" not in item.metadata}
    assert bare == ({"seed"} if kind is DataOptions else set()), "the seed is that of the settings"


def test_run_and_profile_agree_on_every_option_they_share() -> None:
    commands = typer.main.get_command(real).commands  # type: ignore[attr-defined]
    run, profile = ({p.name: p for p in commands[verb].params} for verb in ("run", "profile"))
    only_run = {
        "budget_size", "budget_bops", "budget_latency", "budget_energy", "solver", "evaluations",
        "verify_samples", "bench_seconds", "bits_file",
    }  # fmt: skip
    assert run.keys() - profile.keys() == only_run
    for name in profile:
        assert (profile[name].opts, profile[name].help) == (run[name].opts, run[name].help)


def test_budgets_are_options_of_the_allocation() -> None:
    words = {item.name: item.metadata["option"] for item in fields(Budget)}
    assert {name: option.flag for name, option in words.items()} == {
        "size": "--budget-size", "bops": "--budget-bops", "latency": "--budget-latency", "energy": "--budget-energy"
    }  # fmt: skip
    assert {(option.panel, option.parse) for option in words.values()} == {(CHOICE, str)}
    assert repr(Budget(size="60%")) == "Budget(size=60%)"
    with pytest.raises(TypeError):
        Budget("60%")  # type: ignore[misc]


def test_a_switch_has_no_other_form_unless_it_says_so() -> None:
    assert not Option("words").negated
    assert told("whole", "--no-loud").exit_code == 2
