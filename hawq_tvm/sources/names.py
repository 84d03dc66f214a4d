"""Names of networks, checkpoints and data, checked before anything heavy is loaded: neither PyTorch nor Pillow.

A name that is wrong, a file that is not there and a Python file without its ``:factory`` are told in one sentence,
which suggests what was meant. `load_model`, `load_weights` and `load_data` ask here too, so that a name is refused
alike wherever it comes from; what only the loaded file or package can tell (no such function, no such network) they
tell.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from pathlib import Path

from hawq_tvm.core.errors import DataError, ModelError, did_you_mean
from hawq_tvm.sources.zoo import ZOO

RANDOM_WEIGHTS = "random"
OTHER_ZOOS = ("torchvision", "timm")
DATA_NAMES = ("digits", "random")
IMAGE_FOLDER = "imagefolder"
CIFAR10 = "cifar10"
PATH_SOURCES = {IMAGE_FOLDER: "image folder", CIFAR10: "CIFAR-10 data set"}
"""Sources that are named with a path, as ``imagefolder:PATH``, and what lies there."""


def check_names(model: str | None = None, weights: str | None = None, data: str | None = None) -> None:
    """Refuse names that cannot be loaded, in a moment and without PyTorch.

    Args:
        model: as `load_model` takes it.
        weights: as `load_model` takes it.
        data: as `load_data` takes it.

    Raises:
        ModelError: an unknown network, a file that is not there or names no factory, a package that is not installed.
        DataError: unknown data, an image folder or a data set that is not there.
    """
    if model is not None:
        check_network_name(model)
    if weights is not None and weights != RANDOM_WEIGHTS:
        check_checkpoint_path(path_of(weights))
    if data is not None:
        check_data_name(data)


def check_network_name(spec: str) -> None:
    """Refuse what `load_model` cannot load; see `check_names`."""
    prefix, colon, rest = spec.partition(":")
    if spec in ZOO or _names_factory(spec, "network"):
        return
    if prefix in OTHER_ZOOS and colon:
        if importlib.util.find_spec(prefix) is None:
            raise ModelError(f"{prefix} is not installed; pip install --no-deps {prefix}, or give file.py:factory")
        if not rest:
            raise ModelError(f"{prefix}: names no network; write {prefix}:NAME, such as {prefix}:resnet18")
        return
    known = [*ZOO, *(f"{package}:NAME" for package in OTHER_ZOOS), "file.py:factory"]
    meant = did_you_mean(spec, [*ZOO, *(f"{package}:{rest}" for package in OTHER_ZOOS if rest)])
    raise ModelError(f"unknown network '{shown(spec)}'{meant or ';'} known: {', '.join(known)}")


def check_checkpoint_path(path: Path) -> None:
    """Refuse a checkpoint that is not there."""
    if not os.path.isfile(path):
        what = "is a folder; name a file in it" if os.path.isdir(path) else "does not exist"
        raise ModelError(f"the checkpoint {shown(path)} {what}")


def check_data_name(spec: str) -> None:
    """Refuse what `load_data` cannot load; see `check_names`."""
    prefix, _, rest = spec.partition(":")
    if spec in DATA_NAMES or _names_factory(spec, "data"):
        return
    if prefix in PATH_SOURCES:
        if not rest.strip():
            raise DataError(f"{prefix}: names no path; write {prefix}:PATH")
        if not os.path.exists(path_of(rest)):
            raise DataError(f"the {PATH_SOURCES[prefix]} {shown(path_of(rest))} does not exist")
        return
    meant = did_you_mean(spec, [*DATA_NAMES, *(f"{source}:{rest}" for source in PATH_SOURCES if rest)])
    if spec and os.path.exists(path_of(spec)):
        source = CIFAR10 if "cifar" in os.path.basename(os.path.abspath(path_of(spec))).lower() else IMAGE_FOLDER
        meant = f"; did you mean {source}:{shown(spec)}?"
    known = ["digits", *(f"{source}:PATH" for source in PATH_SOURCES), "random", "file.py:factory"]
    raise DataError(f"unknown data '{shown(spec)}'{meant or ';'} known: {', '.join(known)}")


def path_of(text: str) -> Path:
    """A path as users write it; ``~`` is the home folder."""
    return Path(os.path.expanduser(text))


def file_of(spec: str) -> Path | None:
    """The file of ``file.py:factory``; None for other names."""
    return path_of(spec.rpartition(":")[0]) if ".py:" in spec else None


def shown(name: object) -> str:
    r"""A name as it can be printed and stored anywhere: bytes of a path that are not UTF-8 are written ``\xff``."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _names_factory(spec: str, what: str) -> bool:
    """Whether a name is ``file.py:factory``.

    Raises:
        ModelError: the file is not there, or the factory is missing.
    """
    path = file_of(spec) or (path_of(spec) if spec.endswith(".py") else None)
    if path is None:
        return False
    if not os.path.isfile(path):
        raise ModelError(f"the {what}'s file {shown(path)} does not exist")
    if not spec.endswith(".py") and spec.rpartition(":")[2]:
        return True
    file = shown(spec.removesuffix(":"))
    found = " or ".join(f"{file}:{name}" for name in _functions(path)[:3])
    example = f"as in {found}" if found else "the name of a function in it that takes no arguments"
    raise ModelError(f"{file} names no factory; add :factory, {example}")


def _functions(path: Path) -> list[str]:
    """The public functions of a Python file that can be called without arguments; the file is read, not run."""
    try:
        body = ast.parse(path.read_bytes()).body
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError):  # told when the file is imported
        return []
    functions = [node for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return [node.name for node in functions if not _needs_arguments(node.args)]


def _needs_arguments(arguments: ast.arguments) -> bool:
    positional = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)
    return positional > 0 or None in arguments.kw_defaults
