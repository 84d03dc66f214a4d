"""Work in pieces side by side, with results that do not depend on the number of threads.

PyTorch's convolutions and products sum in another order where they run on another number of threads, and some where a
batch is cut otherwise: the last bits of nearly every value change. So the work is cut into pieces that do not know of
threads, each piece runs on one, several run at once, and the results come back in the order of the pieces. PyTorch lets
go of Python's lock while it computes. Nor do pieces wait for each other after every operator, as threads within one do,
which on a machine that others use took four to ten times as long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def run_pieces(function: Callable[[Piece], Result], pieces: Iterable[Piece], threads: int) -> list[Result]:
    """`iterate_pieces`, all results at once."""
    return list(iterate_pieces(function, pieces, threads))


def iterate_pieces(function: Callable[[Piece], Result], pieces: Iterable[Piece], threads: int) -> Iterator[Result]:
    """Each piece's result in the order of the pieces, computed side by side.

    Inside, PyTorch runs on one thread in every piece, and in the caller until the last result is taken; gradients are
    recorded in the pieces where the caller records them.

    Args:
        function: of one piece; called on several threads at once, so it changes nothing that another call reads.
        pieces: taken one by one on the caller's thread, a few ahead of the results, so that they may be made as they
            are needed.
        threads: how many pieces run at once, at least 1.

    Raises:
        What `function` raises for the first piece that it does; pieces that have not begun are given up.
    """
    records = torch.is_grad_enabled()

    def run(piece: Piece) -> Result:
        with torch.set_grad_enabled(records):
            return function(piece)

    with one_thread(), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running: deque[Future[Result]] = deque()
        try:
            for piece in pieces:
                running.append(pool.submit(run, piece))
                if len(running) > threads:  # one waits, so that no thread does
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread.

    A new thread of ours takes over what was set last, and OpenMP keeps its number for each thread: so it is set here,
    and once more in each worker.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
