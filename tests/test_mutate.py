"""That the mutation tool bites: it finds what no test holds, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from .mutate import judges
from .mutate.__main__ import accepted
from .mutate.forks import Task, run_tasks
from .mutate.operators import mutants, mutated

ROOT = Path(__file__).parent.parent


def changes(source: str) -> list[str]:
    """What the mutants make of a statement, in order."""
    return [mutant.after for mutant in mutants(source)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = a + b", ["x = a - b"]),
        ("x = a // b", ["x = -(-a // b)"]),
        ("x = -a", ["x = a"]),
        ("x = a < b", ["x = a <= b", "x = a >= b"]),
        ("x = a is not b", ["x = a is b"]),
        ("x = 0 < a", ["x = 0 <= a", "x = 0 >= a", "x = 1 < a"]),
        ("x = a and b", ["x = a or b", "x = b", "x = a"]),
        ("x = 3", ["x = 4", "x = 2"]),
        ("x = (0, True, 2.5, 0.0)", ["x = (1, True, 2.5, 0.0)", "x = (0, False, 2.5, 0.0)", "x = (0, True, 5.0, 0.0)",
                                     "x = (0, True, 2.5, 1.0)"]),
        ("x = max(a, b)", ["x = min(a, b)"]),
        ("x = np.sum(a, axis=b)", ["x = np.max(a, axis=b)", "x = np.sum(a)"]),
        ("x = sorted(a)", ["x = list(a)"]),
        ("x = f(a, b, c)", ["x = f(b, a, c)"]),
        ("x = a if f(b) else c", ["x = a if not f(b) else c"]),
        ("f()", ["pass"]),
        ("x += y", ["pass"]),
        ("x.a = y", ["pass"]),
        ("for x in y: break", ["continue"]),
        ("while f(): g()", ["while not f():", "pass"]),
        ("def f(x): return x", ["return None"]),
        ("def f(x): x = y", ["pass"]),
        ("def f(x) -> bool: return g", ["return not g"]),
        ("def f(x):\\n  if x: raise ValueError('no')", ["if not x:", "pass"]),
        ("def f(x=1): pass", ["def f(x=2):", "def f(x=0):"]),
    ],
)  # fmt: skip
def test_each_kind_of_fault(source: str, expected: list[str]) -> None:
    assert changes(source.replace("\\n", "\n")) == expected


@pytest.mark.parametrize(
    "source",
    [
        '"""1 + 1"""', "x: Annotated[int, 1] = y", "def f(x: A[1]) -> B[2]: pass", "assert x < 1", "x = f'{1 + 1}'",
        "def __repr__(self): return 1", "def describe(self): return 1", "from x import y", "x = Literal[1, 2]",
        "if TYPE_CHECKING: x = 1", "raise AssertionError(1 + 1)", "x = zip(a, strict=True)", "x = 'words'", "x = None",
        "def f() -> None: return None", "@dataclass(frozen=True)\nclass A: pass", "x = te.compute(a, name=b)",
        "x = a.reshape(-1)",
    ],
)  # fmt: skip
def test_what_is_left_alone(source: str) -> None:
    assert changes(source) == []


def test_a_mutant_knows_where_it_is_and_the_tree_is_mutated_there() -> None:
    source = "A = 7\nclass B:\n  c: int = 2\n  def d(self, x):\n    if x > 0:\n      return x\n    return A\n"
    found = mutants(source)
    places = [(mutant.function, mutant.runs, mutant.lines.start) for mutant in found]
    assert places == [("", False, 1)] * 2 + [("B", False, 3)] * 2 + [("B.d", True, 5)] * 3 + [
        ("B.d", True, 6),
        ("B.d", True, 7),
    ]
    assert [mutant.number for mutant in found] == list(range(len(found)))
    for mutant in found:
        values: dict[str, Any] = {}
        exec(compile(mutated(source, mutant.number), "mutated", "exec"), values)
        made = values["B"]
        told = (*(made().d(x) for x in (5, 1, 0)), values["A"], made.c)
        assert told != (5, 1, 7, 7, 2), mutant


def answers(tasks: Sequence[Task], jobs: int) -> dict[str, object]:
    return {answer.key: answer.result if not answer.end else answer.end for answer in run_tasks(tasks, jobs)}


def spin() -> None:
    from .mutate.forks import limit_cpu

    limit_cpu(0)
    while True:
        pass


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait() -> None:
    import time

    time.sleep(60)


def test_every_child_is_answered_for() -> None:
    tasks = [
        Task("value", lambda: {"a": [1, 2]}, 60), Task("crash", die, 60), Task("leaves", lambda: os._exit(3), 60),
        Task("loops", spin, 60), Task("hangs", wait, 0.2), Task("raises", lambda: 1 // 0, 60),
    ]  # fmt: skip
    found = answers(tasks, 3)
    assert str(found.pop("raises")).strip().endswith("ZeroDivisionError: integer division or modulo by zero")
    assert found == {
        "value": {"a": [1, 2]}, "crash": "SIGKILL", "leaves": "status 3", "loops": "SIGXCPU",
        "hangs": "no answer in time",
    }  # fmt: skip


MODULE = """\
LIMIT = 10


def held(x):
    return x + 1 if x < LIMIT else LIMIT


def loose(x):
    return x * 2


def untested(x):
    return x - 1
"""
TESTS = """\
import pytest
from module import LIMIT, held, loose


@pytest.mark.parametrize("x", [0, 3, 8, 9])
def test_below(x):
    assert held(x) == x + 1 and LIMIT == 10


def test_above():
    assert held(10) == 10 and held(11) == 10


def test_runs_it_and_looks_away():
    loose(2)


def test_fails_anyway():
    assert loose(2) == 5
"""


def test_the_tool_names_what_no_test_holds(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(MODULE)
    (tmp_path / "test_module.py").write_text(TESTS)
    given = ["--root", str(tmp_path), "--file", "module.py", "--tests", "test_module.py"]
    command = [sys.executable, "-m", "tests.mutate", *given]
    result = subprocess.run([*command, "--jobs", "2"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 1, result.stderr
    survivors = [line[6:] for line in result.stdout.splitlines() if line.startswith("    + ")]
    assert survivors == [
        "return None", "return x + 2", "return x * 3", "return x * 1",
        "return None", "return x + 1", "return x - 2", "return x - 0",
    ]  # fmt: skip
    assert result.stdout.count("(no test runs it)") == 4
    assert "left out, since it fails without a fault: test_module.py::test_fails_anyway" in result.stderr
    assert (tmp_path / "module.py").read_text() == MODULE
    again = subprocess.run([*command, "--survivors"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "16 mutants of 1 files, 8 to judge" in again.stderr


@pytest.mark.parametrize("entry", accepted(), ids=lambda entry: f"{entry.file}:{entry.function}")
def test_what_is_accepted_is_there_and_has_a_reason(entry: object) -> None:
    from .mutate.__main__ import Accepted

    assert isinstance(entry, Accepted)
    found = mutants((ROOT / entry.file).read_text())
    for change in entry.changes:
        alone = replace(entry, changes=(change,))
        assert any(alone.covers(entry.file, mutant) for mutant in found), change
    assert len(entry.reason.split()) > 3


def test_no_file_is_judged_twice() -> None:
    judged = [path for part in judges.PARTS.values() for path in part.paths(ROOT)]
    assert len(judged) == len(set(judged)) and all(part.paths(ROOT) for part in judges.PARTS.values())
