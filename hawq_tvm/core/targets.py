"""The machines that a graph can be compiled for, one row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hawq_tvm.core.errors import CompileError


@dataclass(frozen=True)
class Target:
    """A machine to compile for.

    Attributes:
        name: what the user writes.
        kind: TVM's target kind; kernels accept by it.
        summary: one line for ``hawq-tvm compile --help`` and `doctor`.
        host_cpu: whether the CPU of the compiling machine is detected and compiled for (``mcpu``).
        attributes: further attributes of the TVM target.
    """

    name: str
    kind: str
    summary: str
    host_cpu: bool = False
    attributes: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def library_name(self) -> str:
        """The compiled library's file name in a run directory."""
        return f"model.{self.name.replace('/', '-')}.so"


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("llvm", "llvm", "this machine's CPU, with every instruction set it has", host_cpu=True),
        Target("llvm/portable", "llvm", "any CPU of this machine's architecture"),
    )
}
"""Every target by its name. To add one, see `docs/adding.md`."""

DEFAULT_TARGET = "llvm"
"""What is compiled for where nothing is said."""


def find_target(name: str) -> Target:
    """The target of that name.

    Raises:
        CompileError: there is none; the message lists those there are.
    """
    if name not in TARGETS:
        raise CompileError(f"unknown target '{name}'; known: {', '.join(TARGETS)}")
    return TARGETS[name]
