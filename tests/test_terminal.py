"""Tables and sentences as a terminal of some width shows them: nothing is cut, and lines break between words."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from hawq_tvm.cli import terminal

LAYERS = ("stem", "blocks.10.depthwise")
COLUMNS = ("layer", "bits", "sensitivity", "BOPS", "why")
ROWS = [
    (name, "w4a8", "0.0125", "1,234,567", "it is tied to what it is added to, and both are wide") for name in LAYERS
]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Lines that a table takes in a terminal of a width."""

    def show(width: int, **options: object) -> list[str]:
        file = io.StringIO()
        monkeypatch.setattr(terminal, "out", Console(file=file, width=width, highlight=False))
        terminal.print_table(COLUMNS, ROWS, texts=2, **options)  # type: ignore[arg-type]
        return [line.rstrip() for line in file.getvalue().splitlines()]

    return show


@pytest.mark.parametrize("width", range(20, 140, 7))
@pytest.mark.parametrize(
    "options", [{}, {"wraps": True}, {"spare": ("why", "BOPS")}, {"wraps": True, "spare": ("BOPS",)}]
)
def test_no_line_is_too_long_and_no_word_is_cut(
    shown: Callable[..., list[str]], width: int, options: dict[str, object]
) -> None:
    lines = shown(width, **options)
    text = " ".join(" ".join(lines).split())
    assert all(len(line) <= width for line in lines) and "…" not in text
    left_out = (
        set(text.partition("shows ")[2].removesuffix(" too").split(", ")) if "a wider terminal" in text else set()
    )
    for name in LAYERS:
        assert name in text
    for column, cell in zip(COLUMNS[1:4], ROWS[0][1:4], strict=True):
        assert (column in left_out) == (cell not in text)


def test_a_table_gives_up_what_is_spare_and_wraps_before_it_is_a_list(shown: Callable[..., list[str]]) -> None:
    whole = shown(140)
    assert whole[0].split() == list(COLUMNS) and len(whole) == 3
    assert shown(90, wraps=True)[0].split() == list(COLUMNS), "the sentence goes on below"
    less = shown(72, wraps=True, spare=("BOPS",))
    assert less[0].split() == [name for name in COLUMNS if name != "BOPS"]
    assert less[-1] == "a wider terminal, or --json, shows BOPS too"
    listed = shown(50)
    assert listed[0] == "stem" and listed[1].startswith("  bits w4a8")


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_gets_lines_that_break_between_words(columns: int, tmp_path: Path) -> None:
    """Through a terminal, as a person has it: a long sentence keeps its words; elsewhere it keeps its line."""
    words = "latency binds: 20 us more buys 0.0043 less sensitivity: " + ", ".join(
        f"layer{i} w4a4 to w8a8" for i in range(9)
    )
    script = f"from hawq_tvm.cli import terminal; terminal.out.print({words!r}); terminal.err.print({words!r})"
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as ours_file:
        subprocess.run([sys.executable, "-c", script], stdout=theirs, stderr=theirs, env=environment, check=True)
        os.close(theirs)
        lines = ours_file.read(1 << 16).decode().splitlines()
    assert all(len(line) <= columns for line in lines)
    assert " ".join(" ".join(lines).split()) == f"{words} {words}"
    piped = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert piped.stdout == piped.stderr == f"{words}\n"
