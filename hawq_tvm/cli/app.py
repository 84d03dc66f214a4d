"""The command line: `hawq-tvm VERB`.

Exit status 0; 1 where verification found a difference; 2 on bad input; 3 on a bug of ours; 130 when interrupted.

The verbs' bodies are in `commands`, which loads PyTorch and TVM: ``--help`` and bad options answer without.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hawq_tvm.cli import console
from hawq_tvm.core.errors import AllocationError, DataError, HawqError, SettingsError
from hawq_tvm.core.specs import Bits, Budget
from hawq_tvm.core.targets import DEFAULT_TARGET, TARGETS, find_target
from hawq_tvm.core.version import VERSION
from hawq_tvm.settings import DEFAULT_OBSERVER, HessianSettings, Settings

if TYPE_CHECKING:
    from hawq_tvm.sources.options import DataOptions

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_INTERRUPTED, _INTERNAL = 130, 3
_TRACEBACK = "HAWQ_TVM_TRACEBACK"
_CHOICE, _SAMPLES, _IMAGES = "Allocation", "Samples", "Image files"

Model = Annotated[
    str, typer.Argument(help="zoo name (resnet20, resnet18, resnet50), torchvision:NAME, timm:NAME or file.py:factory")
]
RunPath = Annotated[Path, typer.Argument(help="run directory")]
DataName = Annotated[
    str, typer.Option("--data", help="digits, imagefolder:PATH, random or file.py:factory", rich_help_panel=_SAMPLES)
]
Weights = Annotated[
    str | None, typer.Option(help="safetensors or state dict, or 'random'; default: the zoo's checkpoint, else random")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="run directory; default runs/MODEL")]
BitsList = Annotated[
    str, typer.Option("--bits", help="candidate pairs, as 4,8 or w4a4,w4a8,w8a8", rich_help_panel=_CHOICE)
]
BitsFile = Annotated[
    Path | None, typer.Option(help="take the bits from this JSON file instead of allocating", rich_help_panel=_CHOICE)
]
Size = Annotated[
    str | None, typer.Option("--budget-size", help="bytes of weights: 60%, 6.5MB or 2000000", rich_help_panel=_CHOICE)
]
Bops = Annotated[
    str | None, typer.Option("--budget-bops", help="bit operations a sample: 50% or 1.2G", rich_help_panel=_CHOICE)
]
Latency = Annotated[
    str | None, typer.Option("--budget-latency", help="time of all kernels: 80% or 1.5ms", rich_help_panel=_CHOICE)
]
Pins = Annotated[
    list[str] | None, typer.Option("--pin", help="hold a layer: NAME=w8a8; repeat for more", rich_help_panel=_CHOICE)
]
PinEnds = Annotated[bool, typer.Option(help="hold the first and the last layer at 8 bits", rich_help_panel=_CHOICE)]
Solver = Annotated[str, typer.Option(help="cbc or highs", rich_help_panel=_CHOICE)]
TimeKernels = Annotated[
    bool, typer.Option("--latency", help="time kernels even without a latency budget", rich_help_panel=_CHOICE)
]
LatencyTable = Annotated[
    Path | None, typer.Option(help="JSON of microseconds by layer and pair, instead of timing", rich_help_panel=_CHOICE)
]
Observer = Annotated[
    str, typer.Option(help="of activation ranges: max, percentile or percentile:99.9", rich_help_panel=_SAMPLES)
]
Calibration = Annotated[
    int, typer.Option("--calibration-samples", help="samples drawn for ranges", min=1, rich_help_panel=_SAMPLES)
]
Evaluation = Annotated[
    int | None,
    typer.Option("--evaluation-samples", help="at most so many; default all", min=1, rich_help_panel=_SAMPLES),
]
InputShape = Annotated[str | None, typer.Option(help="of random samples, as 3x224x224", rich_help_panel=_SAMPLES)]
Resize = Annotated[int, typer.Option(help="short side after resizing, in pixels", min=1, rich_help_panel=_IMAGES)]
Crop = Annotated[int, typer.Option(help="side of the centre crop, in pixels", min=1, rich_help_panel=_IMAGES)]
Mean = Annotated[str, typer.Option(help="subtracted per channel, after /255", rich_help_panel=_IMAGES)]
Std = Annotated[str, typer.Option(help="divided by per channel", rich_help_panel=_IMAGES)]
HessianSamples = Annotated[
    int, typer.Option(help="calibration samples that the loss is taken over", min=1, rich_help_panel=_CHOICE)
]
HessianError = Annotated[
    float, typer.Option(help="relative standard error at which probing stops", min=0, rich_help_panel=_CHOICE)
]
HessianProbes = Annotated[
    int,
    typer.Option(help="double backwards at which it stops, at least 2 for each batch", min=2, rich_help_panel=_CHOICE),
]
TargetName = Annotated[str, typer.Option("--target", help=f"one of {', '.join(TARGETS)}")]
BatchSize = Annotated[int, typer.Option("--batch", help="samples a call of the compiled library", min=1)]
Threads = Annotated[int | None, typer.Option(help="default: all cores", min=1)]
VerifySamples = Annotated[int, typer.Option(help="evaluation samples that verify compares", min=1)]
BenchSeconds = Annotated[float, typer.Option(help="about how long the benchmark takes", min=0.1)]
AnyTarget = Annotated[
    str | None, typer.Option("--target", help="default: the one that is compiled, llvm among several")
]
Seed = Annotated[int, typer.Option(help="of everything random", min=0, max=2**63 - 1)]
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
        console.print_error(str(error))
    except typer.TyperException as error:
        if error.format_message():  # none where help was printed instead
            console.print_error(error.format_message())
    except (KeyboardInterrupt, typer.Abort):
        console.print_error("interrupted; finished stages are kept, and the same command goes on from there")
        return _INTERRUPTED
    except MemoryError:
        console.print_error("out of memory; use fewer or smaller samples, or --hessian-samples 8")
    except OSError as error:
        console.print_error(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except Exception as error:  # ours, not the user's: still one sentence, and a status of its own
        if os.environ.get(_TRACEBACK):
            raise
        what = " ".join(f"{type(error).__name__}: {error}".split())
        console.print_error(f"internal error, please report it: {what[:500]}; {_TRACEBACK}=1 shows where")
        return _INTERNAL
    return 2


def run_main() -> None:
    """The `hawq-tvm` script."""
    sys.exit(main())


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"hawq_tvm {VERSION}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version and exit", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Compile a PyTorch network into an integer-only TVM module, and prove that it computes what was evaluated."""


@app.command()
def run(
    model: Model,
    data: DataName = "random",
    weights: Weights = None,
    output: Output = None,
    bits: BitsList = "4,8",
    bits_file: BitsFile = None,
    budget_size: Size = None,
    budget_bops: Bops = None,
    budget_latency: Latency = None,
    pin: Pins = None,
    pin_ends: PinEnds = True,
    solver: Solver = "cbc",
    latency: TimeKernels = False,
    latency_table: LatencyTable = None,
    hessian_samples: HessianSamples = HessianSettings.samples,
    hessian_error: HessianError = HessianSettings.target_error,
    hessian_probes: HessianProbes = HessianSettings.max_probes,
    observer: Observer = DEFAULT_OBSERVER,
    calibration_samples: Calibration = 256,
    evaluation_samples: Evaluation = None,
    input_shape: InputShape = None,
    resize: Resize = 256,
    crop: Crop = 224,
    mean: Mean = "0.485,0.456,0.406",
    std: Std = "0.229,0.224,0.225",
    target: TargetName = DEFAULT_TARGET,
    batch: BatchSize = 1,
    threads: Threads = None,
    verify_samples: VerifySamples = Settings.verify_samples,
    bench_seconds: BenchSeconds = Settings.bench_seconds,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> int:
    """Everything: capture, calibrate, profile, allocate, integerise, export, compile, verify, benchmark, report."""
    settings = Settings(
        bits=parse_bits(bits),
        budget=Budget(size=budget_size, bops=budget_bops, latency=budget_latency),
        pins=parse_pins(pin),
        pin_ends=pin_ends,
        observer=observer,
        hessian=HessianSettings(hessian_samples, None, hessian_error, hessian_probes),
        latency=latency,
        latency_table=latency_table,
        solver=solver,
        batch=batch,
        threads=threads,
        verify_samples=verify_samples,
        bench_seconds=bench_seconds,
        seed=seed,
    )
    samples = data_options(calibration_samples, evaluation_samples, input_shape, resize, crop, mean, std, seed)
    find_target(target)
    path = output or default_output(model)
    from hawq_tvm.cli import commands

    return commands.run_all(path, model, weights, data, samples, settings, bits_file, target, as_json)


@app.command()
def profile(
    model: Model,
    data: DataName = "random",
    weights: Weights = None,
    output: Output = None,
    bits: BitsList = "4,8",
    pin: Pins = None,
    pin_ends: PinEnds = True,
    latency: TimeKernels = False,
    latency_table: LatencyTable = None,
    hessian_samples: HessianSamples = HessianSettings.samples,
    hessian_error: HessianError = HessianSettings.target_error,
    hessian_probes: HessianProbes = HessianSettings.max_probes,
    observer: Observer = DEFAULT_OBSERVER,
    calibration_samples: Calibration = 256,
    evaluation_samples: Evaluation = None,
    input_shape: InputShape = None,
    resize: Resize = 256,
    crop: Crop = 224,
    mean: Mean = "0.485,0.456,0.406",
    std: Std = "0.229,0.224,0.225",
    target: TargetName = DEFAULT_TARGET,
    batch: BatchSize = 1,
    threads: Threads = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> int:
    """Capture, calibrate and measure every layer's sensitivity and costs; `allocate` goes on from there."""
    settings = Settings(
        bits=parse_bits(bits),
        pins=parse_pins(pin),
        pin_ends=pin_ends,
        observer=observer,
        hessian=HessianSettings(hessian_samples, None, hessian_error, hessian_probes),
        latency=latency,
        latency_table=latency_table,
        batch=batch,
        threads=threads,
        seed=seed,
    )
    samples = data_options(calibration_samples, evaluation_samples, input_shape, resize, crop, mean, std, seed)
    path = output or default_output(model)
    from hawq_tvm.cli import commands

    return commands.profile(path, model, weights, data, samples, settings, target, as_json)


@app.command()
def allocate(
    path: Annotated[Path, typer.Argument(help="run directory, or a costs.json")],
    budget_size: Size = None,
    budget_bops: Bops = None,
    budget_latency: Latency = None,
    bits: Annotated[
        str | None, typer.Option("--bits", help="candidate pairs; default: those profiled", rich_help_panel=_CHOICE)
    ] = None,
    pin: Pins = None,
    pin_ends: Annotated[
        bool | None, typer.Option(help="hold the ends at 8 bits; default: as profiled", rich_help_panel=_CHOICE)
    ] = None,
    solver: Solver = "cbc",
    as_json: AsJson = False,
) -> int:
    """Choose bits from a cost table within budgets; writes bits.json into a run directory."""
    budget = Budget(size=budget_size, bops=budget_bops, latency=budget_latency)
    candidates = None if bits is None else parse_bits(bits)
    from hawq_tvm.cli import commands

    pins = None if pin is None else parse_pins(pin)
    return commands.allocate(path, budget, candidates, pins, pin_ends, solver, as_json)


@app.command()
def compile(
    path: RunPath,
    target: TargetName = DEFAULT_TARGET,
    batch: Annotated[int | None, typer.Option(help="samples a call; default: as the run was made", min=1)] = None,
    as_json: AsJson = False,
) -> int:
    """Integerise with the run's bits.json, edited or not, and compile for a target."""
    from hawq_tvm.cli import commands

    return commands.compile(path, target, batch, as_json)


@app.command()
def verify(
    path: RunPath,
    target: AnyTarget = None,
    samples: Annotated[
        int | None, typer.Option(help="evaluation samples compared; default: as the run was made", min=1)
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Compare every tensor of every layer: numpy = PyTorch = ONNX Runtime = the compiled library. Exit 1 if not."""
    from hawq_tvm.cli import commands

    return commands.verify(path, target, samples, as_json)


@app.command()
def bench(
    path: RunPath,
    target: AnyTarget = None,
    threads: Threads = None,
    seconds: BenchSeconds = Settings.bench_seconds,
    layers: Annotated[bool, typer.Option("--layers", help="also each layer's time")] = False,
    as_json: AsJson = False,
) -> int:
    """Time the compiled library beside fp32 PyTorch and ONNX Runtime, interleaved."""
    from hawq_tvm.cli import commands

    return commands.bench(path, target, threads, seconds, layers, as_json)


@app.command()
def inspect(
    path: RunPath,
    graph: Annotated[bool, typer.Option("--graph", help="print the integer graph instead")] = False,
    as_json: AsJson = False,
) -> int:
    """Print a run's layers, bits and costs, counted from the exported network."""
    from hawq_tvm.cli import commands

    return commands.inspect(path, graph, as_json)


@app.command()
def doctor(as_json: AsJson = False) -> int:
    """Say what this machine can do: CPU, compilers, TVM, solvers, CUDA, GPU. Exit 2 if something needed is missing."""
    from hawq_tvm.cli.doctor import examine

    checks = examine()
    if as_json:
        console.print_json([vars(check) for check in checks])
    else:
        console.print_checks(checks)
    return 0 if all(check.ok for check in checks if check.needed) else 2


def default_output(model: str) -> Path:
    """``runs/NAME`` for a model as the user wrote it."""
    source, _, name = model.rpartition(":")
    parts = [Path(source).stem, name] if source else [name]
    return Path("runs") / "-".join(part for part in parts if part).replace("/", "-")


def parse_bits(text: str) -> tuple[Bits, ...]:
    """Candidate pairs from ``4,8`` or ``w4a4,w8a8``."""
    bits = tuple(dict.fromkeys(Bits.parse(part) for part in text.split(",") if part.strip()))
    if not bits:
        raise SettingsError("--bits names no bits; write 4,8 or w4a4,w4a8,w8a8")
    return bits


def parse_pins(pins: Sequence[str] | None) -> dict[str, Bits]:
    """Pins from ``NAME=w8a8``."""
    table = {}
    for pin in pins or ():
        name, separator, bits = pin.rpartition("=")
        if not separator or not name:
            raise AllocationError(f"a pin is written NAME=w8a8, got '{pin}'")
        table[name] = Bits.parse(bits)
    return table


def data_options(
    calibration: int,
    evaluation: int | None,
    input_shape: str | None,
    resize: int,
    crop: int,
    mean: str,
    std: str,
    seed: int,
) -> DataOptions:
    """Sample options from the command line's texts."""
    from hawq_tvm.sources.options import DataOptions, Preprocessing

    preprocessing = Preprocessing(resize, crop, _three(mean, "--mean"), _three(std, "--std"))
    return DataOptions(calibration, evaluation, _shape(input_shape), preprocessing, seed)


def _three(text: str, option: str) -> tuple[float, float, float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) == 1:
        values *= 3
    if len(values) != 3:
        raise DataError(f"{option} takes one number or three, as 0.485,0.456,0.406; got '{text}'")
    return values[0], values[1], values[2]


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise DataError(f"--input-shape is written 3x224x224, got '{text}'")
    return tuple(int(part) for part in parts)
