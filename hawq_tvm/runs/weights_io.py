"""Rounded weights in one safetensors file: integers, scales and biases, with each layer's bits in the header.

A layer's place in the network names its arrays: ``3.integers``, ``3.scales``, ``3.bias``, and ``3.codebook`` where it
has one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from hawq_tvm.core.codebook import check_codebook, index_bits
from hawq_tvm.core.errors import RunError, first_line
from hawq_tvm.core.quantizer import LayerWeights
from hawq_tvm.core.strict_json import JsonReader
from hawq_tvm.runs.float_io import safetensors_header

_KEY = "hawq_tvm_weights"
_DTYPES: dict[str, type[np.generic]] = {"integers": np.int8, "scales": np.float64, "bias": np.float32}


class _Layer(TypedDict):
    name: str
    bits: int
    codebook: NotRequired[bool]


def _dtypes(layer: _Layer) -> dict[str, type[np.generic]]:
    """The arrays of a layer."""
    return {**_DTYPES, **({"codebook": np.int8} if layer.get("codebook") else {})}


def save_weights(weights: Mapping[str, LayerWeights], path: Path) -> None:
    """Write rounded weights; `load_weights` reads them."""
    layers = [
        _Layer(name=name, bits=layer.bits, codebook=layer.codebook is not None) for name, layer in weights.items()
    ]
    arrays = {
        f"{index}.{part}": np.ascontiguousarray(getattr(weights[layer["name"]], part), dtype)
        for index, layer in enumerate(layers)
        for part, dtype in _dtypes(layer).items()
    }
    path.write_bytes(save(arrays, metadata={_KEY: json.dumps(layers)}))


def load_weights(path: Path) -> dict[str, LayerWeights]:
    """Read what `save_weights` wrote.

    Raises:
        RunError: missing, truncated or not ours; integers that the bits do not hold, scales that are not above 0.
    """
    reader = JsonReader(f"{path} cannot be read", RunError, "round the network again with hawq-tvm compile")
    try:
        header = reader.parse(safetensors_header(path))
        layers = reader.take(reader.parse(header["__metadata__"][_KEY].encode()), tuple[_Layer, ...])
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        found = {
            layer["name"]: _checked(
                LayerWeights(**{part: arrays[f"{i}.{part}"] for part in _dtypes(layer)}, bits=layer["bits"])
            )
            for i, layer in enumerate(layers)
        }
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise reader.fault(first_line(error)) from error
    if sum(len(_dtypes(layer)) for layer in layers) != len(arrays) or len(found) < len(layers):
        raise reader.fault("it holds arrays of no layer, or two layers of one name")
    return found


def _checked(layer: LayerWeights) -> LayerWeights:
    for part, dtype in _DTYPES.items():
        array = getattr(layer, part)
        if array.dtype != dtype or not np.isfinite(array).all():
            raise ValueError(f"its {part} are {array.dtype}, expected finite {np.dtype(dtype)}")
    outputs = layer.integers.shape[:1]
    if not 2 <= layer.bits <= 8 or layer.scales.shape != outputs or layer.bias.shape != outputs:
        raise ValueError(f"{layer.bits} bits, scales {layer.scales.shape} and bias {layer.bias.shape} do not fit")
    if layer.codebook is not None:
        check_codebook(layer.codebook)
        if index_bits(layer.codebook) != layer.bits or not np.isin(layer.integers, layer.codebook).all():
            raise ValueError(f"its integers are not those of a codebook of {layer.bits} bits")
    if not layer.integers.size or np.abs(layer.integers.astype(np.int16)).max() > layer.format.limit:
        raise ValueError(f"its integers do not fit {layer.format} bits")
    if not (layer.scales > 0).all():
        raise ValueError("a scale is not above 0")
    return layer
