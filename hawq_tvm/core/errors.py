"""Every error that hawq_tvm raises on bad input; a bug of ours is an `AssertionError` instead.

    HawqError
    ├── ModelError               the network or its checkpoint cannot be loaded
    │   └── CaptureError         the network cannot be turned into a float graph
    │       └── UnsupportedOperator
    ├── DataError                images, labels or a batch of the wrong shape
    ├── CalibrationError         empty or NaN-holding calibration set, a dead layer
    ├── SensitivityError         no second derivative, a Hessian that is not finite
    ├── AllocationError          budgets, bit sets, pins or ties that make no sense
    │   └── InfeasibleBudget
    ├── GraphError               an integer graph that breaks the numeric contract
    │   └── OverflowRefused      an accumulator that could leave its proved range
    ├── ModelFileError           a `model.onnx` that is corrupted, truncated or not ours
    ├── CompileError             no kernel, no C compiler, TVM or the linker failed
    ├── RuntimeModuleError       a compiled library that cannot be loaded or run
    ├── DeviceError              a device that cannot be reached, does not fit, or is lost in the middle
    ├── EmulatorError            a kernel that breaks a rule of the GPU, or that the emulator cannot run
    ├── RunError                 a run directory: missing, of another version, full disk
    └── SettingsError            an option that makes no sense

A message says what is wrong, where, what was got and expected, and what to do next, in one sentence or two. The
command line prints it after ``error:`` and exits with status 2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches


class HawqError(Exception):
    """Root of all errors that a user can cause and mend."""

    def __str__(self) -> str:
        """The message on one line: the names that it quotes may come from a stranger's file."""
        text = " ".join(super().__str__().splitlines())
        return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class ModelError(HawqError):
    """The network or its checkpoint cannot be loaded."""


class CaptureError(ModelError):
    """The network cannot be turned into a float graph."""


class UnsupportedOperator(CaptureError):
    """An operator without an integer form.

    Attributes:
        operator: the operator as the exporter names it, such as ``aten.silu``.
        module: the path of the module that calls it, empty for the network itself.
    """

    def __init__(self, operator: str, module: str, hint: str) -> None:
        self.operator = operator
        self.module = module
        where = f"module '{module}'" if module else "the network's own forward()"
        super().__init__(f"operator '{operator}' in {where} has no integer form; {hint}")


class DataError(HawqError):
    """Images, labels or a batch that do not fit."""


class CalibrationError(HawqError):
    """A calibration set from which no range can be read."""


class SensitivityError(HawqError):
    """The Hessian cannot be computed."""


class AllocationError(HawqError):
    """Budgets, bit sets, pins or ties that make no sense."""


class InfeasibleBudget(AllocationError):
    """No bit configuration meets the budgets.

    Attributes:
        budget: which budget binds: ``size_bytes``, ``bops``, ``latency_us`` or ``energy_uj``.
        limit: what was asked for, in the budget's unit.
        nearest: the smallest value that any configuration reaches while it meets the other budgets.
    """

    def __init__(self, budget: str, limit: float, nearest: float, message: str) -> None:
        self.budget = budget
        self.limit = limit
        self.nearest = nearest
        super().__init__(message)


class GraphError(HawqError):
    """An integer graph that breaks the numeric contract."""


class OverflowRefused(GraphError):
    """A layer whose accumulator, dyadic sum or rounded result is not proved to fit.

    Attributes:
        layer: the layer's name.
        quantity: ``accumulator``, ``dyadic sum`` or ``rounded result``.
        bound: the largest magnitude that it can reach.
        limit: the magnitude that it must stay under.
    """

    def __init__(self, layer: str, quantity: str, bound: int, limit: int) -> None:
        self.layer = layer
        self.quantity = quantity
        self.bound = bound
        self.limit = limit
        advice = "give the layer fewer weight or activation bits, or split its input channels"
        if quantity == "rounded result":
            advice = "its range or its clip is far smaller than what it can reach: check both"
        super().__init__(f"layer '{layer}': the {quantity} can reach {bound}, and must stay under {limit}; {advice}")


class ModelFileError(HawqError):
    """An ONNX file that is corrupted, truncated or not ours."""


class CompileError(HawqError):
    """A graph that cannot be compiled here."""


class RuntimeModuleError(HawqError):
    """A compiled library that cannot be loaded or run here."""


class DeviceError(HawqError):
    """A device that kernels are to be timed on and that cannot be reached, does not fit, or is lost in the middle."""


class EmulatorError(HawqError):
    """A kernel that breaks a rule of the GPU under the emulator, or that the emulator cannot compile or run."""


class RunError(HawqError):
    """A run directory that cannot be read or written."""


class SettingsError(HawqError):
    """An option that makes no sense, or two that contradict each other."""


_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, without a terminal's colours; its type's name where it has no text."""
    lines = [line.strip() for line in _COLOURS.sub("", str(error)).splitlines()]
    return next(filter(None, lines), type(error).__name__)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean NAME?`` where a known name is close to a word, nothing where none is.

    >>> did_you_mean("resnet19", ["resnet18", "squeezenet"])
    '; did you mean resnet18?'
    """
    close = get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
