"""Which verb of the command line makes which file of a run, so that who misses one is told what to call."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

_FRONT = "allocate --pareto size,sensitivity"

_MAKES = {
    "profile": ("float.safetensors", "ranges.json", "sensitivity.*", "costs.json"),
    "allocate": ("bits.json", "allocation.json", "allocations/*"),
    "explain": ("explanations.json",),
    _FRONT: ("front.json", "front.csv"),
    "compile": (
        "model.*",
        "weights.safetensors",
        "bounds.json",
        "layers.json",
        "golden/*",
        "accuracy.json",
        "fidelity.json",
    ),
    "tune": ("tuned.*",),
    "verify": ("verify.*",),
    "bench": ("bench.*",),
    "debug": ("debug.json",),
    "compare": ("comparison.json",),
}
_CHAIN = ("profile", "allocate", "compile")
"""`tune`, `verify`, `bench` and `debug` need what all three make."""

_NEEDS = {
    "profile": (),
    "allocate": _CHAIN[:1],
    "compare": _CHAIN[:1],
    _FRONT: _CHAIN[:1],
    "explain": _CHAIN[:2],
    "compile": _CHAIN[:2],
}
"""The verbs whose files each needs, where that is not the whole chain."""


def how_to_make(name: str, run: object, there: Collection[str]) -> str:
    """The commands that are still to be called for a file, as one reads them.

    Args:
        name: of a file in the run.
        run: the run's path.
        there: the files that stages have written.

    >>> how_to_make("model.onnx", "runs/r18", ["float.safetensors", "ranges.json", "costs.json"])
    'hawq-tvm allocate runs/r18, then hawq-tvm compile runs/r18'
    >>> how_to_make("front.json", "runs/r18", ["float.safetensors", "ranges.json", "costs.json"])
    'hawq-tvm allocate --pareto size,sensitivity runs/r18'
    """
    verb = next((verb for verb, patterns in _MAKES.items() if _matches(name, patterns)), None)
    if verb is None:
        return f"hawq-tvm run MODEL -o {run}"
    missing = [
        earlier for earlier in _NEEDS.get(verb, _CHAIN) if not any(_matches(file, _MAKES[earlier]) for file in there)
    ]
    return ", then ".join(_command(each, run) for each in (*missing, verb))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _command(verb: str, run: object) -> str:
    return f"hawq-tvm profile MODEL -o {run}" if verb == "profile" else f"hawq-tvm {verb} {run}"
