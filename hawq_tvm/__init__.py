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

if TYPE_CHECKING:
    from hawq_tvm.api import QuantizedNetwork, load, quantize
    from hawq_tvm.data import Data, DataOptions, Preprocessing
    from hawq_tvm.errors import HawqError
    from hawq_tvm.settings import HessianSettings
    from hawq_tvm.specs import BitConfig, Bits, Budget, CostTable

__version__ = "0.1.0"

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
    "load",
    "quantize",
]

_HOMES = {
    "BitConfig": "specs",
    "Bits": "specs",
    "Budget": "specs",
    "CostTable": "specs",
    "Data": "data",
    "DataOptions": "data",
    "HawqError": "errors",
    "HessianSettings": "settings",
    "Preprocessing": "data",
    "QuantizedNetwork": "api",
    "load": "api",
    "quantize": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hawq_tvm' has no attribute '{name}'")
    return getattr(importlib.import_module(f"hawq_tvm.{_HOMES[name]}"), name)
