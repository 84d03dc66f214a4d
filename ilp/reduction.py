"""Choices that no solver need look at, struck out exactly: the optimum stays, to the last bit.

Two reasons need no solver. A choice is *dominated* where another of its group is no worse in the objective, in each
bounded cost and at each border, whatever the neighbours have: sums that are rounded correctly are monotone in their
terms, so exchanging it harms nothing. And a choice is *out of reach* where a sum exceeds its limit even if everything
else takes its least.

Source: Kellerer, Pferschy, Pisinger, "Knapsack Problems" (2004), section 11.2.1 on dominance in multiple choice.
"""

from __future__ import annotations

from math import fsum

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.ilp.program import Program

_EPSILON = float(np.finfo(np.float64).eps)


def without_dominated(program: Program) -> Program:
    """The program without the choices that another of their group dominates; of equal ones the last stays."""
    borders = _borders(program)
    return program.keep([~_dominated(program, g, borders[g]) for g in range(len(program.alone))])


def _borders(program: Program) -> list[list[tuple[int, bool]]]:
    """By group, the edges that it is an end of, and whether it is the first."""
    found: list[list[tuple[int, bool]]] = [[] for _ in program.alone]
    for edge, (first, second) in enumerate(program.ends):
        found[first].append((edge, True))
        found[second].append((edge, False))
    return found


def _dominated(program: Program, group: int, borders: list[tuple[int, bool]]) -> NDArray[np.bool_]:
    """Which choices another is nowhere above: neither alone nor at any border, whatever the neighbour has."""
    own = program.alone[group].T
    better, worse = np.nonzero(np.all(own[:, None] <= own[None, :], axis=2) & ~np.eye(len(own), dtype=np.bool_))
    for edge, is_first in borders:
        terms = program.together[edge]
        mine = (terms.transpose(1, 0, 2) if is_first else terms.transpose(2, 0, 1)).reshape(len(own), -1)
        holds = np.all(mine[better] <= mine[worse], axis=1)
        better, worse = better[holds], worse[holds]
    no_worse = np.zeros((len(own), len(own)), np.bool_)
    no_worse[better, worse] = True
    later = np.arange(len(own))[:, None] > np.arange(len(own))
    dominated: NDArray[np.bool_] = np.any(no_worse & (~no_worse.T | later), axis=0)
    return dominated


def within_reach(program: Program) -> Program | None:
    """The program without choices that exceed a limit even where all else takes its least; None if that leaves none."""
    while True:
        size = program.size
        for row in np.flatnonzero(np.isfinite(program.limits)):
            kept = _within(program, int(row))
            if not all(mask.any() for mask in kept):
                return None
            if not all(mask.all() for mask in kept):
                program = program.keep(kept)
        if program.size == size:
            return program


def _within(program: Program, row: int) -> list[NDArray[np.bool_]]:
    """By group, which choices a row's limit allows."""
    limit, starts = float(program.limits[row]), program.starts
    own = program.choices[row]
    least = np.minimum.reduceat(own, starts[:-1])
    over = own - np.repeat(least, np.diff(starts))
    borders = program.bordering[row]
    shared = [program.together[e][row] for e in borders]
    sides = [(terms.min(axis=1), terms.min(axis=0)) for terms in shared]  # by each end's choice, the least of the other
    between = np.array([first.min() for first, _ in sides])
    for e, both, lowest in zip(borders, sides, between, strict=True):
        for group, side in zip(program.ends[e], both, strict=True):
            over[starts[group] : starts[group + 1]] += side - lowest
    terms = [*least.tolist(), *between.tolist()]
    # What may be lost where sums are compared in plain float64, far more than is.
    doubt = 8 * _EPSILON * (fsum(map(abs, terms)) + abs(limit))
    excess = fsum(terms) + over - limit
    mask = excess <= 0
    for place in np.flatnonzero(np.abs(excess) <= doubt + 8 * _EPSILON * np.abs(over)):
        group = int(np.searchsorted(starts, place, side="right")) - 1
        exact = list(terms)
        exact[group] = float(own[place])
        for at, (e, both) in enumerate(zip(borders, sides, strict=True)):
            if group in program.ends[e]:
                exact[len(least) + at] = float(both[program.ends[e].index(group)][place - starts[group]])
        mask[place] = fsum(exact) <= limit
    return np.split(mask, starts[1:-1])
