"""The loop: damage, read, judge."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from hawq_tvm.core.errors import HawqError

from .formats import Bench, Format, check_message, is_hashed

LONGEST = 10  # seconds that one input may take


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Attributes:
        number: of the input.
        data: its bytes.
        what: ``refused``, ``same``, ``other`` or ``failed``.
        why: of a failure.
    """

    number: int
    data: bytes
    what: str
    why: str = ""


class TooLong(BaseException):
    """An input that took longer than `LONGEST`."""


def fuzz(bench: Bench, form: Format, *, seed: int, count: int) -> Iterator[Outcome]:
    """Judge `count` inputs of a format; the same for the same seed."""
    for number, (base, data) in enumerate(inputs(bench, form, seed=seed, count=count)):
        yield judge(bench, form, number, base, data)


def inputs(bench: Bench, form: Format, *, seed: int, count: int) -> Iterator[tuple[bytes, bytes]]:
    """Undamaged bytes and what becomes of them, again and again."""
    random = Random(f"{seed} {form.file}")
    bases = (bench.path / form.file).read_bytes(), *form.bases
    for _ in range(count):
        base = random.choice(bases)
        yield base, form.mutate(random, base)


def judge(bench: Bench, form: Format, number: int, base: bytes, data: bytes) -> Outcome:
    """Read one input twice: as a file that the manifest knows, and as one that was damaged since."""
    try:
        what = _read(bench, form, base, data)
    except TooLong:
        return Outcome(number, data, "failed", f"took more than {LONGEST} seconds")
    except (Exception, RecursionError, MemoryError) as error:
        return Outcome(number, data, "failed", f"{type(error).__name__}: {error}"[:500])
    return Outcome(number, data, what)


def _read(bench: Bench, form: Format, base: bytes, data: bytes) -> str:
    own = (bench.path / form.file).read_bytes()
    if data != own and is_hashed(form):
        refused, _ = _attempt(lambda: bench.read_unknown(form, data))
        assert refused, "a file was read that does not hash to what the manifest says"
    if data == base:
        return "same"
    refused, found = _attempt(lambda: bench.read(form, data))
    if refused:
        return "refused"
    if _same(found, bench, form, base):
        return "same"
    assert not form.sealed, "other contents of a sealed file were taken for its own"
    return "other"


def _attempt(read: Any) -> tuple[bool, Any]:
    """Whether it was refused, and what was read where not."""
    signal.signal(signal.SIGALRM, _interrupt)
    signal.alarm(LONGEST)
    try:
        return False, read()
    except HawqError as error:
        check_message(error)
        return True, None
    finally:
        signal.alarm(0)


def _interrupt(*_: object) -> None:
    raise TooLong


_READ: dict[tuple[str, bytes], Any] = {}


def _same(found: Any, bench: Bench, form: Format, base: bytes) -> bool:
    """Whether it is what the undamaged bytes give."""
    if (form.file, base) not in _READ:
        _READ[form.file, base] = bench.read(form, base)
    return bool(found == _READ[form.file, base])
