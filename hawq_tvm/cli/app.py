"""The command line: `hawq-tvm VERB`.

Exit status 0; 1 where verification found a difference; 2 on bad input; 3 on a bug of ours; 130 when interrupted.

The verbs' bodies are in `commands`, which loads PyTorch and TVM: ``--help`` and bad options answer without.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from hawq_tvm.cli import console, terminal
from hawq_tvm.cli.options import Changes, Of, flat
from hawq_tvm.core.budget import CHOICE, Budget
from hawq_tvm.core.devices import FORMS, Device
from hawq_tvm.core.errors import HawqError, SettingsError
from hawq_tvm.core.targets import DEFAULT_TARGET, TARGETS, architectures_of, find_target
from hawq_tvm.core.version import VERSION
from hawq_tvm.runs.rundir import open_run
from hawq_tvm.settings import SAMPLES, Settings
from hawq_tvm.sources.names import check_names
from hawq_tvm.sources.options import DataOptions

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    suggest_commands=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_DECIDES = (
    *("bits", "budget", "pins", "pin_ends", "solver", "gap", "time_limit", "evaluations", "choose_by", "caution"),
    *("residual_bits", "stored_bits"),
)
"""The settings that `allocate` takes anew."""

_NOT_PROFILED = ("budget", "solver", "gap", "time_limit", "evaluations", "verify_samples", "bench_seconds")
"""The settings that say nothing to `profile`."""

_INTERRUPTED, _INTERNAL = 130, 3
_TRACEBACK = "HAWQ_TVM_TRACEBACK"

Model = Annotated[
    str,
    typer.Argument(
        help="zoo name (resnet18, resnet50, mobilenet_v1, ...), torchvision:NAME, timm:NAME or file.py:factory"
    ),
]
RunPath = Annotated[Path, typer.Argument(help="run directory")]
DataName = Annotated[
    str,
    typer.Option(
        "--data", help="digits, imagefolder:PATH, cifar10:PATH, random or file.py:factory", rich_help_panel=SAMPLES
    ),
]
Weights = Annotated[
    str | None, typer.Option(help="safetensors or state dict, or 'random'; default: the zoo's checkpoint, else random")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="run directory; default runs/MODEL")]
TargetName = Annotated[str, typer.Option("--target", help=f"one of {', '.join(TARGETS)}")]
AnyTarget = Annotated[
    str | None, typer.Option("--target", help="default: the one that is compiled, llvm among several")
]
OtherData = Annotated[str | None, typer.Option("--data", help="take samples anew; default: those of the run")]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="execute the Python file that the run names for its samples")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON and nothing else")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None takes the process's own.

    Returns:
        The exit status.
    """
    try:
        status = int(app(None if arguments is None else list(arguments), standalone_mode=False) or 0)
        if status == _INTERRUPTED:  # typer turns Ctrl-C into a status
            raise KeyboardInterrupt
        return status
    except HawqError as error:
        terminal.print_error(str(error))
    except typer.TyperException as error:
        if error.format_message():  # none where help was printed instead
            terminal.print_error(error.format_message())
    except (KeyboardInterrupt, typer.Abort):
        terminal.print_error("interrupted; finished stages are kept, and the same command goes on from there")
        return _INTERRUPTED
    except MemoryError:
        terminal.print_error("out of memory; use fewer or smaller samples, or --hessian-samples 8")
    except OSError as error:
        terminal.print_error(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except Exception as error:  # ours, not the user's: still one sentence, and a status of its own
        if os.environ.get(_TRACEBACK):
            raise
        what = " ".join(f"{type(error).__name__}: {error}".split())
        terminal.print_error(f"internal error, please report it: {what[:500]}; {_TRACEBACK}=1 shows where")
        return _INTERNAL
    return 2


def run_main() -> None:
    """The `hawq-tvm` script."""
    sys.exit(main())


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"hawq_tvm {VERSION}")
        raise typer.Exit


def _table(settings: Settings) -> dict[str, Path | None]:
    return {"latency table": settings.latency_table}


def _check_early(model: str, weights: str | None, data: str, target: str, files: Mapping[str, Path | None]) -> None:
    """Refuse wrong names and missing files before PyTorch and TVM are loaded, which takes seconds."""
    check_names(model, weights, data)
    find_target(target)
    for what, file in files.items():
        if file is not None and not file.is_file():
            raise SettingsError(f"the {what} {file} does not exist; check the path")


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version and exit", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Compile a PyTorch network into an integer-only TVM module, and prove that it computes what was evaluated."""


@app.command()
@flat
def run(
    model: Model,
    settings: Settings,
    samples: DataOptions,
    data: DataName = "random",
    weights: Weights = None,
    output: Output = None,
    bits_file: Annotated[
        Path | None,
        typer.Option(help="JSON of the bits to take, instead of allocating", rich_help_panel=CHOICE),
    ] = None,
    target: TargetName = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> int:
    """Everything: capture, calibrate, profile, allocate, integerise, export, compile, verify, benchmark, report."""
    if bits_file is not None and settings.budget:
        raise SettingsError("--bits-file takes bits as they are and budgets choose them; give one or the other")
    _check_early(model, weights, data, target, {"bit configuration": bits_file, **_table(settings)})
    from hawq_tvm.cli import commands

    names = commands.Sources(model, weights, data, samples)
    return commands.run(output or default_output(model), names, settings, target, bits_file, as_json)


@app.command()
@flat
def profile(
    model: Model,
    settings: Annotated[Settings, Of(Settings, without=_NOT_PROFILED)],
    samples: DataOptions,
    data: DataName = "random",
    weights: Weights = None,
    output: Output = None,
    target: TargetName = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> int:
    """Capture, calibrate and measure every layer's sensitivity and costs; `allocate` goes on from there."""
    _check_early(model, weights, data, target, _table(settings))
    from hawq_tvm.cli import commands

    names = commands.Sources(model, weights, data, samples)
    return commands.profile(output or default_output(model), names, settings, target, as_json)


@app.command()
@flat
def allocate(
    path: Annotated[Path, typer.Argument(help="run directory, or a costs.json")],
    changes: Annotated[Changes, Of(Settings, only=_DECIDES)],
    pareto: Annotated[
        str | None,
        typer.Option(
            help="the front over two of size, bops, latency, energy, sensitivity instead, as size,sensitivity; "
            "size,accuracy also measures each point's integer accuracy; writes front.json and front.csv",
            rich_help_panel=CHOICE,
        ),
    ] = None,
    points: Annotated[
        int | None, typer.Option(help="of the front; default 20, 0 for all", min=0, rich_help_panel=CHOICE)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="keep the bits by this name beside the run's own, which stay as they are")
    ] = None,
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> int:
    """Choose bits from a cost table within budgets; writes bits.json into a run directory.

    Bits and pins are those that were profiled, unless they are given.
    """
    if not path.is_file():
        open_run(path)
    if points is not None and pareto is None:
        raise SettingsError("--points says how many points a front has; say over what with --pareto size,sensitivity")
    from hawq_tvm.cli import commands, fronts

    given = {"budget": Budget(), **changes}
    if pareto is not None:
        if name is not None:
            raise SettingsError("--name keeps one allocation and --pareto finds many; give one of them")
        return fronts.pareto(path, pareto, 20 if points is None else points or None, given, trust_code, as_json)
    return commands.allocate(path, given, name, as_json)


@app.command()
def compile(
    path: RunPath,
    target: TargetName = DEFAULT_TARGET,
    batch: Annotated[int | None, typer.Option(help="samples a call; default: as the run was made", min=1)] = None,
    also: Annotated[
        str | None,
        typer.Option(
            help="of a GPU: further GPUs that the library is to run on without PTX, such as nvidia/a10,nvidia/l4"
        ),
    ] = None,
    data: OtherData = None,
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> int:
    """Integerise with the run's bits.json, edited or not, and compile for a target."""
    others = tuple(find_target(name.strip()) for name in (also or "").split(",") if name.strip())
    architectures_of(find_target(target), others)
    open_run(path)
    from hawq_tvm.cli import commands

    return commands.compile(path, target, batch, others, data, trust_code, as_json)


@app.command()
def tune(
    path: RunPath,
    target: TargetName = DEFAULT_TARGET,
    batch: Annotated[int | None, typer.Option(help="samples a call; default: that of the library", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help="default: as the run was made", min=1)] = None,
    as_json: AsJson = False,
) -> int:
    """Time ways to compute each layer on this machine, seconds a layer; the next compile takes the fastest.

    What was found is kept layer by layer: after a kill, the same command goes on.
    """
    find_target(target)
    open_run(path)
    from hawq_tvm.cli import commands

    return commands.tune(path, target, batch, threads, as_json)


@app.command()
def verify(
    path: RunPath,
    target: AnyTarget = None,
    samples: Annotated[
        int | None, typer.Option(help="evaluation samples compared; default: as the run was made", min=1)
    ] = None,
    data: OtherData = None,
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> int:
    """Compare every tensor of every layer: numpy = PyTorch = ONNX Runtime = the compiled library. Exit 1 if not."""
    open_run(path)
    from hawq_tvm.cli import commands

    return commands.verify(path, target, samples, data, trust_code, as_json)


@app.command()
def bench(
    path: RunPath,
    target: AnyTarget = None,
    threads: Annotated[int | None, typer.Option(help="default: as the run was made", min=1)] = None,
    seconds: Annotated[float, typer.Option(help="how long it takes at most", min=0.1)] = Settings.bench_seconds,
    device: Annotated[str | None, typer.Option(help=f"time it there: {FORMS}; default: this machine")] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="also each layer: its time, what bounds it, its kernel")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Time the compiled library beside fp32 PyTorch and ONNX Runtime, interleaved; on a device, by itself."""
    where = None if device is None else Device.parse(device)
    open_run(path)
    from hawq_tvm.cli import commands

    return commands.bench(path, target, threads, seconds, where, layers, as_json)


@app.command()
def debug(
    path: RunPath,
    samples: Annotated[int | None, typer.Option(help="samples measured on; default: those of the run", min=1)] = None,
    data: OtherData = None,
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> int:
    """Rank layers by how much of the loss each causes, alone quantised and all but it, and say what to try."""
    open_run(path)
    from hawq_tvm.cli import commands

    return commands.debug(path, samples, data, trust_code, as_json)


@app.command()
def compare(
    path: RunPath,
    samples: Annotated[int | None, typer.Option(help="evaluation samples measured on; default 64", min=4)] = None,
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> int:
    """Say which metrics order layers as the loss does: rank correlations with what each layer alone really loses."""
    open_run(path)
    from hawq_tvm.cli import commands

    return commands.compare(path, samples, trust_code, as_json)


@app.command()
def use(
    path: RunPath,
    name: Annotated[str, typer.Argument(help="as hawq-tvm allocate --name gave it")],
    as_json: AsJson = False,
) -> int:
    """Make an allocation of that name the run's own, to be compiled."""
    open_run(path)
    from hawq_tvm.cli import commands

    return commands.use(path, name, as_json)


@app.command()
def diff(
    path: RunPath,
    first: Annotated[str, typer.Argument(help="an allocation's name, or another run directory of this network")],
    second: Annotated[str | None, typer.Argument(help="another; default: the run's own bits")] = None,
    as_json: AsJson = False,
) -> int:
    """Compare two allocations: the layers whose bits differ, and what that costs and saves."""
    from hawq_tvm.cli import diff as command

    return command.diff(path, first, second, as_json)


@app.command()
def explain(
    path: RunPath,
    layer: Annotated[
        str | None, typer.Argument(help="its name, as hawq-tvm inspect lists it; default: all, kept for the report")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Say why a layer has its bits: what other bits would cost, which budget binds, what would change the answer."""
    from hawq_tvm.cli import explain as command

    return command.explain(path, layer, as_json)


@app.command()
def inspect(
    path: RunPath,
    graph: Annotated[bool, typer.Option("--graph", help="print the integer graph instead")] = False,
    as_json: AsJson = False,
) -> int:
    """Print a run's layers, bits and costs, counted from the exported network."""
    from hawq_tvm.cli import inspect as command

    return command.inspect(path, graph, as_json)


@app.command()
def doctor(as_json: AsJson = False) -> int:
    """Say what this machine can do: CPU, compilers, TVM, solvers, CUDA, GPU. Exit 2 if something needed is missing."""
    from hawq_tvm.cli.doctor import examine

    checks = examine()
    if as_json:
        terminal.print_json([vars(check) for check in checks])
    else:
        console.print_checks(checks)
    return 0 if all(check.ok for check in checks if check.needed) else 2


def default_output(model: str) -> Path:
    """``runs/NAME`` for a model as the user wrote it."""
    source, _, name = model.rpartition(":")
    parts = [Path(source).stem, name] if source else [name]
    return Path("runs") / "-".join(part for part in parts if part).replace("/", "-")
