"""hawq_tvm beside the tools that one would pick instead on a CPU: one interleaved run, each engine in its own process.

    pip install --constraint constraints.txt '.[peers]'
    python -m benchmarks.cpu_peers [--networks resnet18 ...] [--batches 1 8] [--threads 1 2] [--engines NAME ...]
                                   [--rounds N] [--seconds S] [--work FOLDER] [--output FILE]

Every engine gets the same fp32 PyTorch network and the same image, and is timed from that fp32 image to logits
(`benchmarks.cpu_engines` says how each is loaded). Compare medians within one table alone: machines change. A share of
the peak is that of the strongest INT8 instructions of as many threads, measured in the same run, also for engines that
do not use them; a share of the bandwidth is that of reading all weights once.

Nothing is reported, and the exit status is 1, where the machine was disturbed: `benchmarks.turns` states the bounds.
Engines that are not installed are left out by name. Prepared files stay in ``--work``, so that the next run is quick
(``--anew`` removes them); hawq_tvm's library is compiled and verified anew in any case. Prints tables; writes JSON and
beside it a plot.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.cpu_engines import ENGINES, Engine, thread_environment
from benchmarks.cpu_plot import draw_bars
from benchmarks.cpu_prepare import NEEDED, RANDOM_FILE, STEPS, WEIGHTS, Network, installed_versions, is_installed
from benchmarks.cpu_table import make_rows, table
from benchmarks.runs import RESULTS
from benchmarks.turns import MOST_FOREIGN, MOST_LOST, Contender, Disturbed, take_turns
from hawq_tvm.backends.tvm.host import cpu_name, instruction_sets, usable_cores
from hawq_tvm.measure.ceilings import measure_ceilings, measure_hand_over

NETWORKS: dict[str, tuple[str, tuple[int, ...]]] = {
    "resnet18": ("resnet18", (3, 224, 224)),
    "resnet50": ("resnet50", (3, 224, 224)),
    "mobilenet_v2": ("torchvision:mobilenet_v2", (3, 224, 224)),
    "inception_v3": ("timm:inception_v3", (3, 299, 299)),
}
"""The networks, as `hawq-tvm run` takes them, and the shape of a sample."""


def main() -> None:
    arguments = _arguments()
    engines, left_out = select_engines(arguments.engines)
    for name, why in left_out.items():
        print(f"{name} is left out: {why}", file=sys.stderr)
    cases, refused = [], []
    for name in arguments.networks:
        for index, batch in enumerate(arguments.batches):
            anew = arguments.anew and index == 0
            folder, ready = prepare(
                name, batch, engines, arguments.work, left_out, weights=arguments.weights, anew=anew
            )
            for threads in arguments.threads:
                try:
                    cases.append(run_case(name, folder, batch, threads, ready, arguments))
                except Disturbed as error:
                    refused.append(f"{name}, batch {batch}, {threads} threads: {error}")
                    print(refused[-1], file=sys.stderr)
                    continue
                print(table(cases[-1]), flush=True)
    if cases:
        write(cases, left_out, refused, arguments)
    if refused:
        raise SystemExit(f"{len(refused)} of {len(refused) + len(cases)} cases are not reported, see above")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--weights", type=Path, help="a checkpoint, where one network is named; random otherwise")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--engines", nargs="+", choices=[item.name for item in ENGINES], help="all by default")
    parser.add_argument("--rounds", type=int, default=30, help="turns of each engine")
    parser.add_argument("--seconds", type=float, default=0.1, help="of a turn")
    parser.add_argument("--most-lost", type=float, default=MOST_LOST, help="share of a call that an engine may wait")
    parser.add_argument(
        "--most-foreign", type=float, default=MOST_FOREIGN, help="share of the machine that others may take"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/cpu_peers"), help="where prepared files stay")
    parser.add_argument("--anew", action="store_true", help="make prepared files again, as after a change of hawq_tvm")
    parser.add_argument("--output", type=Path, default=RESULTS / "cpu_peers.json", help="the plot lies beside it")
    arguments = parser.parse_args()
    if arguments.weights is not None and len(arguments.networks) != 1:
        parser.error("--weights belongs to one network: name it with --networks")
    return arguments


def select_engines(names: Sequence[str] | None) -> tuple[list[Engine], dict[str, str]]:
    """The engines that can run here, and why the others are left out."""
    wanted = [item for item in ENGINES if names is None or item.name in names]
    present, left_out = set(instruction_sets()), {}
    for item in wanted:
        missing = [package for package in item.packages if not is_installed(package)]
        if missing:
            left_out[item.name] = f"{' and '.join(missing)} is not installed (pip install 'hawq_tvm[peers]')"
        elif item.needs and present.isdisjoint(item.needs):
            left_out[item.name] = f"this machine has no {' or '.join(item.needs)}, so that it would repeat another row"
    return [item for item in wanted if item.name not in left_out], left_out


def prepare(
    name: str,
    batch: int,
    engines: Sequence[Engine],
    work: Path,
    left_out: dict[str, str],
    *,
    weights: Path | None = None,
    anew: bool = False,
) -> tuple[Path, list[Engine]]:
    """Make what the engines load, each step in a process of its own.

    Args:
        name: of the network.
        batch: samples a call.
        engines: that will run.
        work: where a folder for each network is.
        left_out: told of engines whose files cannot be made.
        weights: a checkpoint; None for random ones.
        anew: remove what lies in the network's folder first.

    Returns:
        The folder, and the engines of which everything was made; the others are added to `left_out`.

    Raises:
        SystemExit: the network cannot be made, or our library is not exact.
    """
    folder = (work / f"{name}-{'random' if weights is None else weights.stem}").resolve()
    if anew and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    spec, shape = NETWORKS[name]
    Network(spec, str(folder / RANDOM_FILE if weights is None else weights.resolve()), shape).write(folder)
    for step in NEEDED if weights is not None else (WEIGHTS, *NEEDED):
        why = _make(step, folder, batch)
        if why is not None:
            raise SystemExit(f"{name} cannot be timed: {step} failed: {why}")
    failed = {
        step: _make(step, folder, batch) for step in dict.fromkeys(step for item in engines for step in item.steps)
    }
    ready = []
    for engine in engines:
        reasons = [f"{step} failed: {failed[step]}" for step in engine.steps if failed[step] is not None]
        if reasons:
            left_out[f"{engine.name} ({name}, batch {batch})"] = reasons[0]
            print(f"{engine.name} is left out of {name}, batch {batch}: {reasons[0]}", file=sys.stderr)
        else:
            ready.append(engine)
    return folder, ready


def _make(step: str, folder: Path, batch: int) -> str | None:
    """One step, where what it makes is not there yet; its last words where it fails."""
    made = STEPS[step][1].format(batch=batch)
    if made and (folder / made).exists():
        return None
    command = [sys.executable, "-m", "benchmarks.cpu_prepare", step, str(folder), str(batch)]
    result = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if result.returncode == 0:
        return None
    return (result.stderr.strip().splitlines() or ["it said nothing"])[-1]


def run_case(
    name: str, folder: Path, batch: int, threads: int, engines: Sequence[Engine], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Time all engines on one network at one batch, on some threads.

    Raises:
        Disturbed: the machine was not quiet.
    """
    facts = json.loads((folder / f"facts_b{batch}.json").read_text())
    worker = (sys.executable, "-m", "benchmarks.cpu_engines")
    contenders = [
        Contender(
            engine.name,
            (*worker, engine.name, str(folder), str(batch), str(threads)),
            {**thread_environment(threads), **engine.environment},
        )
        for engine in engines
    ]
    ceilings = measure_ceilings(threads, [facts["weights"], 4 * facts["weights"]])
    outcome = take_turns(
        contenders,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        most_lost=arguments.most_lost,
        most_foreign=arguments.most_foreign,
    )
    for engine_name, why in outcome.failed.items():
        print(f"{engine_name} failed on {name}, batch {batch}, {threads} threads: {why}", file=sys.stderr)
    return {
        "network": name,
        "batch": batch,
        "threads": threads,
        **facts,
        "ceilings": asdict(ceilings),
        "hand_over_after": measure_hand_over(threads),
        "foreign": outcome.foreign,
        "failed": dict(outcome.failed),
        "rows": [asdict(row) for row in make_rows(outcome, engines, facts["macs"] * batch, facts["weights"], ceilings)],
    }


def write(
    cases: Sequence[dict[str, Any]], left_out: dict[str, str], refused: Sequence[str], arguments: argparse.Namespace
) -> None:
    """The results as JSON, and beside it the plot."""
    output: Path = arguments.output
    found = {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": {
            "cpu": cpu_name(),
            "cores": usable_cores(),
            "instruction_sets": instruction_sets(),
            "kernel": os.uname().release,
        },
        "versions": installed_versions(),
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "bounds": {"most_lost": arguments.most_lost, "most_foreign": arguments.most_foreign},
        "left_out": left_out,
        "refused": list(refused),
        "cases": list(cases),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(found, indent=1) + "\n")
    plot = output.with_suffix(".svg")
    plot.write_text(draw_bars(found))
    print(f"\nwrote {output} and {plot}")


if __name__ == "__main__":
    main()
