"""The process that sees an emulated GPU: makes objects and calls their methods, as `session` asks through its pipes.

It is a deployment, which has no PyTorch: an import of it fails, which also spares the seconds that it would take.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any


@dataclass(frozen=True)
class Create:
    """Make an object; the answer is its number."""

    factory: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Call:
    """Call a method of an object."""

    number: int
    method: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Failed:
    """The answer where something was raised: the exception, or its text where it cannot be sent."""

    error: Exception | None
    text: str


def send(stream: IO[bytes], message: Any) -> None:
    """Write a message at once."""
    pickle.dump(message, stream, protocol=5)
    stream.flush()


def answer(request: Create | Call, objects: list[Any]) -> Any:
    """Do what is asked."""
    if isinstance(request, Create):
        objects.append(request.factory(*request.arguments))
        return len(objects) - 1
    return getattr(objects[request.number], request.method)(*request.arguments)


def failure(error: Exception) -> Failed:
    """An exception as it can be sent: not all can, such as those of TVM."""
    text = f"{type(error).__name__}: {error}"
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return Failed(None, text)
    return Failed(error, text)


def main() -> None:
    """Answer requests until there are no more."""
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed does not come between the answers
    sys.modules["torch"] = None  # type: ignore[assignment]
    sys.path[:] = pickle.load(requests)
    objects: list[Any] = []
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        except Exception as error:  # what is asked for cannot be imported
            send(answers, failure(error))
            continue
        try:
            result = answer(request, objects)
        except Exception as error:  # whatever it is, the other side hears of it
            result = failure(error)
        send(answers, result)
