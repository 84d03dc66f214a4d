"""The user's own code: ``file.py:factory`` is called, and whatever goes wrong inside is told in one sentence."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from hawq_tvm.core.errors import HawqError, ModelError, did_you_mean, first_line
from hawq_tvm.sources.names import file_of, shown


def call_factory(spec: str, what: str) -> tuple[Any, str]:
    """Import ``file.py`` and call ``factory()`` of ``file.py:factory``.

    Args:
        spec: as the user wrote it.
        what: what the factory makes, for messages.

    Returns:
        What it returned, and the file's text.

    Raises:
        ModelError: no such file or function, or an exception or `sys.exit` inside, named with its line.
    """
    name = spec.rpartition(":")[2]
    path = file_of(spec)
    assert path is not None
    if not os.path.isfile(path):
        raise ModelError(f"the {what}'s file {shown(path)} does not exist")
    module_name = f"hawq_tvm_user_{path.stem}_{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:8]}"
    loader = importlib.util.spec_from_file_location(module_name, path)
    assert loader is not None and loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    sys.modules[module_name] = module
    folder = str(path.parent.resolve())
    sys.path.insert(0, folder)
    try:
        with users_code(spec, spec, ModelError):
            loader.loader.exec_module(module)
            factory = getattr(module, name, None)
            if not callable(factory):
                callables = [known for known, value in vars(module).items() if callable(value)]
                raise ModelError(f"{shown(path)} has no function '{name}'{did_you_mean(name, callables)}")
            return factory(), path.read_text(encoding="utf-8", errors="replace")
    finally:
        with suppress(ValueError):  # the user's file may have changed the path too
            sys.path.remove(folder)


@contextmanager
def users_code(what: str, spec: str, kind: type[HawqError]) -> Iterator[None]:
    """Around calls of the user's code: what it prints goes to standard error, what it raises becomes one sentence.

    Args:
        what: what is called, for the message.
        spec: ``file.py:factory`` that the code came from, where there is one.
        kind: the error's class.

    Raises:
        HawqError: of that class, for an exception or `sys.exit`; errors of ours pass as they are.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (HawqError, MemoryError):
        raise
    except SystemExit as error:
        raise kind(f"{what} failed{_line_in(error, spec)}: it called sys.exit({error.code!r})") from error
    except Exception as error:
        raise kind(f"{what} failed{_line_in(error, spec)}: {type(error).__name__}: {first_line(error)}") from error


def _line_in(error: BaseException, spec: str) -> str:
    """`` at line N`` of the user's own file, where the traceback passes it."""
    path = file_of(spec)
    if path is None:
        return ""
    trace, line = error.__traceback__, None
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).resolve() == path.resolve():
        line = error.lineno
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).resolve() == path.resolve():
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f" at line {line}"
