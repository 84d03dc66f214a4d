"""hawq_tvm: a PyTorch network becomes an integer-only TVM module, its bits chosen by Hessian and integer program.

    import hawq_tvm

    network = hawq_tvm.quantize("resnet20", "digits", budget=hawq_tvm.Budget(size="60%"))
    print(network.accuracy)
    print(network.verify())

Importing the package loads neither PyTorch nor TVM; the names below are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hawq_tvm.core.version import VERSION

if TYPE_CHECKING:
    from hawq_tvm.api import QuantizedNetwork, load, quantize
    from hawq_tvm.core.budget import Budget
    from hawq_tvm.core.errors import HawqError
    from hawq_tvm.core.specs import BitConfig, Bits, CostTable
    from hawq_tvm.settings import HessianSettings, RoundingSettings
    from hawq_tvm.sources.options import DataOptions, Preprocessing
    from hawq_tvm.sources.samples import Data

__version__ = VERSION

__all__ = [
    "BitConfig",
    "Bits",
    "Budget",
    "CostTable",
    "Data",
    "DataOptions",
    "HawqError",
    "HessianSettings",
    "Preprocessing",
    "QuantizedNetwork",
    "RoundingSettings",
    "load",
    "quantize",
]

_HOMES = {
    "BitConfig": "core.specs",
    "Bits": "core.specs",
    "Budget": "core.budget",
    "CostTable": "core.specs",
    "Data": "sources.samples",
    "DataOptions": "sources.options",
    "HawqError": "core.errors",
    "HessianSettings": "settings",
    "Preprocessing": "sources.options",
    "QuantizedNetwork": "api",
    "RoundingSettings": "settings",
    "load": "api",
    "quantize": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hawq_tvm' has no attribute '{name}'")
    return getattr(importlib.import_module(f"hawq_tvm.{_HOMES[name]}"), name)
