"""Mutants against tests: which tests run a line, and which of them notices a fault in it.

One process has imported what is slow (PyTorch, TVM) and collected the tests; every measurement and every mutant is a
fork of it. A mutant of a function takes the place of that function's code, in memory; one of a module's or a class's
own lines, and one that survived so but runs while the tests are collected, is imported anew in a fork that has loaded
nothing of ours. Files are never written to.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import inspect
import json
import os
import shutil
import sys
import tempfile
import threading
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from .forks import Answer, Task, limit_cpu, run_tasks
from .operators import Mutant, mutated

PRELOAD = (
    "numpy",
    "torch",
    "tvm",
    "onnx",
    "onnxruntime",
    "pulp",
    "highspy",
    "hypothesis",
    "safetensors",
    "typer",
    "rich",
)
CPU_FACTOR, CPU_SPARE = 10, 5.0
"""A test may use so many times its own CPU seconds, and so many more, before it counts as hanging."""

COLLECTING = "(collecting)"

OPTIONS = ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:faulthandler"]


@dataclass(frozen=True)
class Coverage:
    """What one test does.

    Attributes:
        seconds: of the CPU, traced, so rather more than it takes.
        lines: that it ran, by file.
        passed: a test that fails without a fault judges nothing.
    """

    seconds: float
    lines: dict[str, list[int]]
    passed: bool


@dataclass(frozen=True)
class Verdict:
    """Who noticed a mutant.

    Attributes:
        killer: the test that failed, or how the process ended; empty for a survivor.
        tests: how many ran.
        cpu_seconds: what it took.
    """

    killer: str
    tests: int
    cpu_seconds: float


def preload() -> None:
    """Import what is slow and not ours, PyTorch's exporter at work too; forks have it for nothing."""
    for name in PRELOAD:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1)).eval()
    torch.export.export(
        network, (torch.zeros(2, 1, 2, 2),), dynamic_shapes=({0: torch.export.Dim("n")},)
    ).run_decompositions({})


def _settle() -> None:
    """The same examples every time, and no seconds spent on making a failing one pretty."""
    from hypothesis import HealthCheck, Phase, settings

    settings.register_profile(
        "mutate", derandomize=True, database=None, deadline=None, phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    settings.load_profile("mutate")


class _Session:
    """A pytest plugin: what is done with the tests once they are collected, instead of running them."""

    def __init__(self, work: Callable[[list[pytest.Item]], None]) -> None:
        self._work = work

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        sys.settrace(None)
        self._work(session.items)
        return True


def _with_tests(root: Path, tests: Sequence[str], work: Callable[[list[pytest.Item]], Any]) -> Any:
    """Collect the tests and do the work with them; its result."""
    results: list[Any] = []
    _settle()
    present = [test for test in tests if (root / test.split("::")[0]).exists()]
    arguments = [*OPTIONS, "--rootdir", str(root), *(str(root / test) for test in present)]
    status = pytest.main(arguments, plugins=[_Session(lambda items: results.append(work(items)))])
    if not results:
        raise RuntimeError(f"the tests could not be collected (pytest ended with {status!r})")
    return results[0]


def _run(item: pytest.Item, following: pytest.Item | None) -> bool:
    """Whether a test passes."""
    return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=following))


def _cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class _Room:
    """A temporary folder of a child's own, so that children do not meet in one."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="mutate-")

    def enter(self) -> None:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = self.path

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _in_rooms(tasks: Iterable[tuple[Any, Callable[[], Any], float]], jobs: int) -> Iterator[Answer]:
    rooms: dict[Any, _Room] = {}

    def make() -> Iterator[Task]:
        for key, work, seconds in tasks:
            rooms[key] = room = _Room()

            def inside(work: Callable[[], Any] = work, room: _Room = room) -> Any:
                room.enter()
                return work()

            yield Task(key, inside, seconds)

    for answer in run_tasks(make(), jobs):
        rooms.pop(answer.key).remove()
        yield answer


# which test runs which line


def measure(root: Path, tests: Sequence[str], files: Sequence[Path], jobs: int) -> dict[str, Coverage]:
    """Every test's lines and time, by its name; each is run in a fork, so that no cache hides a line.

    What is run while the tests are collected stands under `COLLECTING`.
    """
    wanted = {str(path.resolve()): str(path.relative_to(root)) for path in files}

    def work(items: list[pytest.Item]) -> dict[str, Coverage]:
        tasks = ((item.nodeid, lambda item=item: _trace(item, wanted), 900.0) for item in items)
        found = {COLLECTING: Coverage(0.0, _listed(seen), passed=False)}
        for answer in _in_rooms(tasks, jobs):
            result = answer.result or {"seconds": answer.cpu_seconds, "lines": {}, "passed": False}
            found[answer.key] = Coverage(**result)
        return found

    seen: dict[str, set[int]] = defaultdict(set)

    def collect() -> dict[str, Coverage]:
        sys.settrace(_tracer(wanted, seen))
        return dict(_with_tests(root, tests, work))

    return _in_a_fork(collect, Coverage)


def _in_a_fork(work: Callable[[], dict[str, Any]], type: Any) -> dict[str, Any]:
    """A dictionary made in a child, so that this process stays without anything of ours."""
    (answer,) = run_tasks([Task("", lambda: {key: vars(value) for key, value in work().items()}, 1e6)], 1)
    if answer.result is None:
        raise RuntimeError(f"the child that runs the tests ended: {answer.end}")
    return {key: type(**fields) for key, fields in answer.result.items()}


def _trace(item: pytest.Item, wanted: dict[str, str]) -> dict[str, Any]:
    seen: dict[str, set[int]] = defaultdict(set)
    start, tracer = _cpu(), _tracer(wanted, seen)
    threading.settrace(tracer)
    sys.settrace(tracer)
    try:
        passed = _run(item, None)
    finally:
        sys.settrace(None)
    return {"seconds": _cpu() - start, "lines": _listed(seen), "passed": passed}


def _tracer(wanted: dict[str, str], seen: dict[str, set[int]]) -> Callable[..., Any]:
    """A trace function that notes the lines of the files that are wanted, and leaves all others alone."""
    names: dict[str, str | None] = {}

    def enter(frame: types.FrameType, event: str, argument: Any) -> Any:
        path = frame.f_code.co_filename
        if path not in names:
            names[path] = wanted.get(os.path.realpath(path))
        name = names[path]
        if name is None or not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            return None
        lines = seen[name]
        lines.add(frame.f_lineno)

        def step(frame: types.FrameType, event: str, argument: Any) -> Any:
            lines.add(frame.f_lineno)
            return step

        return step

    return enter


def _listed(seen: dict[str, set[int]]) -> dict[str, list[int]]:
    return {name: sorted(lines) for name, lines in seen.items()}


def witnesses(mutant: Mutant, file: str, early: bool, coverage: dict[str, Coverage], seconds: float) -> list[str]:
    """The tests that run a mutant's lines, as many as `seconds` hold; all tests where these run `early`, at import.

    The quickest come first, the further instances of a parametrised test later, as they see much the same. What runs at
    import may be seen by any test.
    """
    found = [
        name
        for name, test in coverage.items()
        if test.passed and (early or not set(mutant.lines).isdisjoint(test.lines.get(file, ())))
    ]
    found.sort(key=lambda name: coverage[name].seconds)
    instances: Counter[str] = Counter()
    late: dict[str, float] = {}
    for name in found:
        function = name.partition("[")[0]
        instances[function] += 1
        late[name] = coverage[name].seconds * instances[function]
    found.sort(key=late.__getitem__)
    total, kept = 0.0, []
    for name in found:
        total += coverage[name].seconds
        if kept and total > seconds:
            break
        kept.append(name)
    return kept


# judging


@dataclass(frozen=True)
class Case:
    """A mutant of a file.

    Attributes:
        file: relative to the root.
        mutant: the fault.
        tests: those that may notice it, the quickest first.
        early: its lines run while the tests are collected, so that only an import anew tells all of its effects.
    """

    file: str
    mutant: Mutant
    tests: tuple[str, ...]
    early: bool

    @property
    def key(self) -> str:
        return f"{self.file}:{self.mutant.number}"


def judge(
    root: Path, cases: Sequence[Case], coverage: dict[str, Coverage], jobs: int, tell: Callable[[Case, Verdict], None]
) -> dict[str, Verdict]:
    """Every case's verdict, by its key; `tell` hears each as it comes, in the process that judges."""
    verdicts = {case.key: Verdict("", 0, 0.0) for case in cases if not case.tests}
    for case in cases:
        if not case.tests:
            tell(case, verdicts[case.key])
    left = [case for case in cases if case.tests]
    if left:
        tests = sorted({test for case in left for test in case.tests})
        verdicts |= _in_a_fork(
            lambda: _with_tests(root, tests, lambda items: _judge_warm(root, left, items, coverage, jobs, tell)),
            Verdict,
        )
    left = [case for case in left if case.key not in verdicts]
    tasks = ((case.key, lambda case=case: _judge_cold(root, case, coverage), _clock(case, coverage)) for case in left)
    by_key = {case.key: case for case in left}
    for answer in _in_rooms(tasks, jobs):
        verdicts[answer.key] = _verdict(answer, by_key[answer.key])
        tell(by_key[answer.key], verdicts[answer.key])
    return verdicts


def _clock(case: Case, coverage: dict[str, Coverage]) -> float:
    return 300 + 60 * sum(coverage[test].seconds for test in case.tests)


def _verdict(answer: Answer, case: Case) -> Verdict:
    if answer.result is None:
        return Verdict(f"({answer.end.strip().splitlines()[-1]})", len(case.tests), answer.cpu_seconds)
    return Verdict(answer.result["killer"], answer.result["tests"], answer.cpu_seconds)


def _judge_warm(
    root: Path, cases: Sequence[Case], items: list[pytest.Item], coverage: dict[str, Coverage], jobs: int,
    tell: Callable[[Case, Verdict], None],
) -> dict[str, Verdict]:  # fmt: skip
    """The verdicts on mutants of functions; those that only an import anew tells are left out."""
    by_name = {item.nodeid: item for item in items}
    paths = {os.path.realpath(root / case.file) for case in cases}
    functions: dict[types.CodeType, list[types.FunctionType]] = defaultdict(list)
    for thing in gc.get_objects():
        if isinstance(thing, types.FunctionType) and os.path.realpath(thing.__code__.co_filename) in paths:
            functions[thing.__code__].append(thing)
    gc.freeze()
    by_key = {case.key: case for case in cases}
    sources = {file: (root / file).read_text() for file in {case.file for case in cases}}

    def work(case: Case) -> dict[str, Any]:
        changes = _new_codes(sources[case.file], case.mutant.number)
        if changes is None:
            return {"killer": "", "tests": 0}
        for old, new in changes:
            for function in functions[old]:
                function.__code__ = new
        return _until_one_fails([by_name[test] for test in case.tests], coverage)

    tasks = ((case.key, lambda case=case: work(case), _clock(case, coverage)) for case in cases)
    verdicts = {}
    for answer in _in_rooms(tasks, jobs):
        verdict = _verdict(answer, by_key[answer.key])
        if verdict.killer or (verdict.tests and not by_key[answer.key].early):
            verdicts[answer.key] = verdict
            tell(by_key[answer.key], verdict)
    return verdicts


def _until_one_fails(items: Sequence[pytest.Item], coverage: dict[str, Coverage]) -> dict[str, Any]:
    for count, (item, following) in enumerate(zip(items, [*items[1:], None], strict=True), 1):
        limit_cpu(CPU_SPARE + CPU_FACTOR * coverage[item.nodeid].seconds)
        if not _run(item, following):
            return {"killer": item.nodeid, "tests": count}
    return {"killer": "", "tests": len(items)}


def _new_codes(source: str, number: int) -> list[tuple[types.CodeType, types.CodeType]] | None:
    """The functions' codes that a mutant changes, old and new; None where it is not in functions alone."""
    old, new = (compile(text, "", "exec", dont_inherit=True) for text in (source, mutated(source, number)))
    changes: list[tuple[types.CodeType, types.CodeType]] = []
    return changes if _compare(old, new, changes) else None


def _compare(old: types.CodeType, new: types.CodeType, changes: list[tuple[types.CodeType, types.CodeType]]) -> bool:
    if old == new:
        return True
    is_function = bool(old.co_flags & inspect.CO_OPTIMIZED)  # the code of modules and class bodies is not
    inner_old, inner_new = ([c for c in code.co_consts if isinstance(c, types.CodeType)] for code in (old, new))
    if not is_function and (_own(old) != _own(new) or len(inner_old) != len(inner_new)):
        return False
    if is_function:
        if old.co_freevars != new.co_freevars:
            return False
        changes.append((old, new))
    if len(inner_old) == len(inner_new):
        return all(_compare(*pair, changes) for pair in zip(inner_old, inner_new, strict=True))
    return True


def _own(code: types.CodeType) -> tuple[Any, ...]:
    constants = [repr(c) for c in code.co_consts if not isinstance(c, types.CodeType)]
    return code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars


def _judge_cold(root: Path, case: Case, coverage: dict[str, Coverage]) -> dict[str, Any]:
    """Import the file with the fault in it, then collect and run."""
    path = os.path.realpath(root / case.file)
    tree = mutated(Path(path).read_text(), case.mutant.number)
    original = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, name: str) -> types.CodeType | None:
        if os.path.realpath(self.path) == path:
            return compile(tree, self.path, "exec", dont_inherit=True)
        return original(self, name)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
    limit_cpu(60)

    def work(items: list[pytest.Item]) -> dict[str, Any]:
        by_name = {item.nodeid: item for item in items}
        missing = [test for test in case.tests if test not in by_name]
        if missing:
            return {"killer": f"(not collected: {missing[0]})", "tests": 0}
        return _until_one_fails([by_name[test] for test in case.tests], coverage)

    try:
        return _with_tests(root, case.tests, work)
    except RuntimeError as error:
        return {"killer": f"({error})", "tests": 0}


# what was measured before


def digest(paths: Iterable[Path]) -> str:
    """One hash over files, names and contents."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(str(path).encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def measured(root: Path, tests: Sequence[str], files: Sequence[Path], jobs: int, store: Path) -> dict[str, Coverage]:
    """`measure`, a test file at a time, kept in `store` as long as neither sources nor tests change."""
    sources = [path for path in root.rglob("*.py") if "tests" not in path.parts and ".venv" not in path.parts]
    shared = [path for path in (root / "tests").glob("*.py") if not path.name.startswith("test_")]
    base = digest([*sources, *shared, *files])
    known: dict[str, Any] = json.loads(store.read_text()) if store.exists() else {}
    stale, keys = [], {}
    for test in tests:
        path = root / test.split("::")[0]
        if not path.exists():
            continue
        keys[test] = hashlib.sha256(f"{base} {digest([path])} {sorted(map(str, files))}".encode()).hexdigest()
        if known.get(test, {}).get("key") != keys[test]:
            stale.append(test)
    if stale:
        fresh = measure(root, stale, files, jobs)
        for test in stale:
            rows = {
                name: vars(c) for name, c in fresh.items() if name == test or name.startswith((f"{test}::", f"{test}["))
            }
            known[test] = {"key": keys[test], "rows": {**rows, COLLECTING: vars(fresh[COLLECTING])}}
        store.parent.mkdir(exist_ok=True)
        store.write_text(json.dumps(known))
    found = {name: Coverage(**row) for test in keys for name, row in known[test]["rows"].items()}
    early: dict[str, set[int]] = defaultdict(set)
    for test in keys:
        for file, lines in known[test]["rows"][COLLECTING]["lines"].items():
            early[file].update(lines)
    return {**found, COLLECTING: Coverage(0.0, _listed(early), passed=False)}
