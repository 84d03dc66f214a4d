"""Pieces side by side: in order, on one thread each, with the same results on any number of threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hawq_tvm.backends.pytorch.threads import iterate_pieces, one_thread, run_pieces


@pytest.fixture(autouse=True)
def threads_are_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_pieces() -> None:
    first_may_end = threading.Event()

    def run(piece: int) -> int:
        if piece == 0:
            assert first_may_end.wait(60)
        if piece == 1:
            first_may_end.set()
        return piece * piece

    assert run_pieces(run, range(9), threads=2) == [piece * piece for piece in range(9)]
    assert run_pieces(run, [], threads=2) == []


def test_pieces_run_at_once() -> None:
    meeting = threading.Barrier(3, timeout=60)
    run_pieces(lambda _: meeting.wait(), range(3), threads=3)


@pytest.mark.parametrize("threads", [1, 3])
def test_pytorch_has_one_thread_in_each_piece(threads: int) -> None:
    assert set(run_pieces(lambda _: torch.get_num_threads(), range(8), threads)) == {1}
    with one_thread():
        assert torch.get_num_threads() == 1


def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 64, 28, 28, generator=generator)
    weight, matrix = torch.randn(32, 64, 1, 1, generator=generator), torch.randn(3000, 3000, generator=generator)

    def run(part: Tensor) -> Tensor:
        return F.linear(F.conv2d(part, weight).flatten(1)[:, :3000], matrix)

    one, two, three = (torch.cat(run_pieces(run, x.chunk(4), threads)) for threads in (1, 2, 3))
    assert torch.equal(one, two) and torch.equal(one, three)


def test_pieces_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []

    def pieces() -> Iterator[int]:
        for piece in range(100):
            taken.append(piece)
            yield piece

    results = iterate_pieces(lambda piece: piece, pieces(), threads=2)
    assert next(results) == 0
    assert len(taken) <= 3
    assert list(results) == list(range(1, 100))


def test_the_first_error_is_raised_and_the_rest_given_up() -> None:
    begun: list[int] = []

    def run(piece: int) -> int:
        begun.append(piece)
        if piece in (3, 4):
            raise ValueError(f"piece {piece}")
        return piece

    with pytest.raises(ValueError, match="piece 3"):
        run_pieces(run, range(1000), threads=2)
    assert max(begun) < 10


def test_gradients_are_recorded_as_the_caller_says() -> None:
    weight = torch.ones(2, requires_grad=True)
    assert run_pieces(lambda x: (weight * x).requires_grad, [1.0, 2.0], threads=2) == [True, True]
    with torch.no_grad():
        assert run_pieces(lambda x: (weight * x).requires_grad, [1.0, 2.0], threads=2) == [False, False]
