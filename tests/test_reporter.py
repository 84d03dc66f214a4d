"""How progress is told: in lines, in warnings, or not at all."""

from __future__ import annotations

import re
import warnings

import pytest

from hawq_tvm.core.reporter import LineReporter, Reporter, as_reporter


def test_lines_go_to_standard_error_with_their_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = LineReporter()
    with reporter.stage("counting") as advance:
        assert advance(1, None) is None
        assert capsys.readouterr().err == "", "a line a stage, when it is done"
    reporter.skipped("timing")
    reporter.note("a word")
    out, err = capsys.readouterr()
    assert out == ""
    first, second, third = err.splitlines()
    assert re.fullmatch(r"  counting  0\.\d s", first)
    assert (second, third) == ("  timing  done before", "a word")


def test_the_silent_reporter_warns_alone(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with reporter.stage("counting") as advance:
            assert advance(1, 2) is None
        reporter.skipped("timing")
    assert capsys.readouterr() == ("", "")
    with pytest.warns(UserWarning, match="^a word$") as caught:
        reporter.note("a word")
    assert caught[0].filename == __file__, "it names who gave the word"


def test_what_progress_stands_for() -> None:
    mine = LineReporter()
    assert as_reporter(mine) is mine
    assert type(as_reporter(True)) is LineReporter
    assert type(as_reporter(False)) is Reporter
