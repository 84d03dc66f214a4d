"""``python -m tests.mutate``: which faults no test notices."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from . import judges, runner
from .operators import Mutant, mutants

ROOT = Path(__file__).resolve().parent.parent.parent
ACCEPTED = Path(__file__).with_name("accepted.toml")
STORE = ".mutate"
WITNESS_SECONDS = 30.0
"""CPU seconds of tests that a mutant is held against, the quickest first: who needs more is found by no one."""


@dataclass(frozen=True)
class Accepted:
    """Survivors that no test can notice.

    Attributes:
        file: where.
        function: the qualified name; empty for a module's own lines.
        changes: each the statement as it is and with the fault, joined by `` => ``; one that ends in `` ...`` stands
            for all that begin so.
        reason: why the program does the same.
    """

    file: str
    function: str
    changes: tuple[str, ...]
    reason: str

    def covers(self, file: str, mutant: Mutant) -> bool:
        here, change = (file, mutant.function) == (self.file, self.function), change_of(mutant)
        return here and any(
            change.startswith(given.removesuffix(" ...")) if given.endswith(" ...") else change == given
            for given in self.changes
        )


def change_of(mutant: Mutant) -> str:
    return f"{mutant.before} => {mutant.after}"


def accepted(path: Path = ACCEPTED) -> list[Accepted]:
    """The list, read from its file."""
    rows = tomllib.loads(path.read_text())["survivor"] if path.exists() else []
    return [Accepted(row["file"], row["function"], tuple(row["changes"]), row["reason"]) for row in rows]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the status is 1 where a mutant survived that is not accepted."""
    options = _options(arguments)
    root = options.root.resolve()
    part = judges.PARTS.get(options.part, judges.Part((), ()))
    files = [root / file for file in options.file] or part.paths(root)
    tests = options.tests or list(part.tests)
    if options.part:
        runner.preload()
    terminal = os.dup(2)
    tell = lambda text: os.write(terminal, f"{text}\n".encode())  # noqa: E731
    start = time.monotonic()
    store = root / STORE
    judged = part.paths(root) or files
    coverage = runner.measured(root, tests, judged, options.jobs, store / f"coverage-{options.part or 'files'}.json")
    for name, test in coverage.items():
        if not test.passed and name != runner.COLLECTING:
            tell(f"left out, since it fails without a fault: {name}")
    cases = _cases(root, files, coverage, options)
    log = store / f"verdicts-{options.part or 'files'}.jsonl"
    store.mkdir(exist_ok=True)
    past = dict(map(json.loads, log.read_text().splitlines())) if log.exists() else {}
    names = _names(cases)
    known = {key: str(past.get(name, "")) for key, name in names.items()}
    excused = accepted()
    todo = [
        case
        for case in cases
        if not options.survivors or not (known[case.key] or any(e.covers(case.file, case.mutant) for e in excused))
    ]
    tell(f"{len(cases)} mutants of {len(files)} files, {len(todo)} to judge, {options.jobs} at a time")
    done = 0

    def heard(case: runner.Case, verdict: runner.Verdict) -> None:
        nonlocal done
        done += 1
        with log.open("a") as stream:
            stream.write(json.dumps([names[case.key], verdict.killer]) + "\n")
        if not verdict.killer or done % 100 == 0:
            fate = verdict.killer or "SURVIVED" + ("" if verdict.tests else " (no test runs it)")
            tell(f"{time.monotonic() - start:6.0f} s  {case.file}:{case.mutant}\n    {fate}")

    verdicts = runner.judge(root, todo, coverage, options.jobs, heard)
    known |= {key: verdict.killer for key, verdict in verdicts.items()}
    return _report(cases, known, verdicts, time.monotonic() - start, options)


def _names(cases: Sequence[runner.Case]) -> dict[str, str]:
    """What each case is called from run to run, by its key: lines may move, and one change may stand twice."""
    seen: Counter[str] = Counter()
    names = {}
    for case in cases:
        name = f"{case.file} {case.mutant.function} {change_of(case.mutant)}"
        seen[name] += 1
        names[case.key] = f"{name} #{seen[name]}"
    return names


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__)
    parser.add_argument("--part", choices=judges.PARTS, default="", help="which files, and the tests that judge them")
    parser.add_argument("--file", action="append", default=[], help="these files alone; repeat it")
    parser.add_argument("--tests", action="append", default=[], help="judges in place of the part's; repeat it")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="forks at a time")
    parser.add_argument("--seconds", type=float, default=WITNESS_SECONDS, help="of tests, for one mutant")
    parser.add_argument(
        "--survivors", action="store_true", help="judge those alone that were neither killed before nor are accepted"
    )
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file, beside those of other parts")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.part and not (options.file and options.tests):
        parser.error("name a --part, or a --file and its --tests")
    return options


def _cases(
    root: Path, files: Sequence[Path], coverage: dict[str, runner.Coverage], options: argparse.Namespace
) -> list[runner.Case]:
    cases = []
    for path in files:
        file = str(path.relative_to(root))
        collecting = set(coverage[runner.COLLECTING].lines.get(file, ()))
        for mutant in mutants(path.read_text()):
            early = not mutant.runs or not collecting.isdisjoint(mutant.lines)
            tests = runner.witnesses(mutant, file, early, coverage, options.seconds)
            cases.append(runner.Case(file, mutant, tuple(tests), early))
    if options.sample is not None and options.sample < len(cases):
        cases = sorted(random.Random(options.seed).sample(cases, options.sample), key=cases.index)
    return cases


def _report(
    cases: Sequence[runner.Case], killers: dict[str, str], verdicts: dict[str, runner.Verdict], seconds: float,
    options: argparse.Namespace,
) -> int:  # fmt: skip
    excused = accepted()
    rows: dict[str, dict[str, int]] = {}
    unexcused = []
    for case in cases:
        row = rows.setdefault(case.file, {"mutants": 0, "killed": 0, "accepted": 0, "survived": 0})
        row["mutants"] += 1
        if killers[case.key]:
            row["killed"] += 1
        elif any(entry.covers(case.file, case.mutant) for entry in excused):
            row["accepted"] += 1
        else:
            row["survived"] += 1
            unexcused.append(case)
    for case in unexcused:
        print(f"{case.file}:{case.mutant}" + ("" if case.tests else "\n    (no test runs it)"))
    print(f"\n{'file':44}{'mutants':>9}{'killed':>9}{'accepted':>9}{'survived':>9}")
    total = {key: sum(row[key] for row in rows.values()) for key in ("mutants", "killed", "accepted", "survived")}
    for file, row in [*rows.items(), ("all", total)]:
        share = row["killed"] / row["mutants"]
        print(f"{file:44}{row['mutants']:9}{row['killed']:9}{row['accepted']:9}{row['survived']:9}  {share:7.1%}")
    cpu = sum(verdict.cpu_seconds for verdict in verdicts.values())
    print(f"{seconds:.0f} seconds, {cpu:.0f} of the CPU in judging {len(verdicts)}")
    if options.output:
        written = json.loads(options.output.read_text()) if options.output.exists() else {}
        written[options.part] = {
            "date": date.today().isoformat(), "machine": _machine(), "sample": options.sample,
            "share_killed": round(total["killed"] / total["mutants"], 4), "all": total, "files": rows,
        }  # fmt: skip
        options.output.write_text(json.dumps(written, indent=1) + "\n")
    return 1 if unexcused else 0


def _machine() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{names[0].split(':')[1].strip() if names else platform.machine()}, {len(names)} cores"


if __name__ == "__main__":
    sys.exit(main())
