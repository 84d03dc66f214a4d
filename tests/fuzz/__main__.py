"""Fuzz every format: ``python -m tests.fuzz --seed 0 --count 100000 [--format bits]``.

A reader given damaged bytes may refuse them with an error of ours, one line of text, or read them for what they say.
It may not raise anything else, run on for seconds, or take the bytes of a sealed file for what they were not. Inputs
that do otherwise are kept in a folder, one file each, and the status is 1.
"""

from __future__ import annotations

import argparse
import faulthandler
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from .engine import fuzz
from .formats import NAMES, Bench, formats, make_run

ROOM = 4 << 30  # bytes that inputs may make the process take, so that a bomb is seen


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100_000, help="inputs over all formats")
    parser.add_argument("--format", choices=NAMES, action="append", help="only this one; may be repeated")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="where failing inputs are kept")
    options = parser.parse_args()
    faulthandler.enable()
    known = formats()
    chosen = options.format or NAMES
    failures = 0
    with tempfile.TemporaryDirectory(prefix="hawq_tvm-fuzz-") as folder:
        make_run(Path(folder) / "run")
        bench = Bench(Path(folder) / "run")
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
        print(f"{'format':14} {'inputs':>7} {'refused':>8} {'same':>6} {'other':>6} {'failed':>6} {'seconds':>8}")
        for name in chosen:
            started = time.perf_counter()
            outcomes: Counter[str] = Counter()
            for outcome in fuzz(bench, known[name], seed=options.seed, count=-(-options.count // len(chosen))):
                outcomes[outcome.what] += 1
                if outcome.what == "failed":
                    options.keep.mkdir(exist_ok=True)
                    kept = options.keep / f"{name}-{options.seed}-{outcome.number}"
                    kept.write_bytes(outcome.data)
                    print(f"  {kept}: {outcome.why}", file=sys.stderr)
            failures += outcomes["failed"]
            counts = " ".join(f"{outcomes[what]:{size}}" for what, size in (("refused", 8), ("same", 6), ("other", 6)))
            seconds = time.perf_counter() - started
            print(f"{name:14} {outcomes.total():7} {counts} {outcomes['failed']:6} {seconds:8.1f}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
