"""The sums of a program's rows at given prices: their least over all configurations, and what a choice adds to it.

Terms are held as excesses over their least, scaled by row to ranges near 1, all in two arrays, so that prices are put
on them by two products. Choices of a group that no border tells apart are one *state*; borders at which a side has a
single state belong to the choices of the other. What is left is a small graph of states (`elimination`) and groups by
themselves.
"""

from __future__ import annotations

from math import fsum

import numpy as np

from hawq_tvm.ilp.elimination import Elimination
from hawq_tvm.ilp.problem import FloatArray
from hawq_tvm.ilp.program import IntArray, Program, classes


class PricedTerms:
    """A program's terms, ready for prices.

    Attributes:
        least: by row, the sum of what each term is at least.
        scale: by row, the sum of what each term is above that at most; 1 where that is 0.
    """

    def __init__(self, program: Program) -> None:
        rows, starts = range(len(program.limits)), program.starts[:-1]
        lowest = np.minimum.reduceat(program.choices, starts, axis=1)
        highest = np.maximum.reduceat(program.choices, starts, axis=1)
        shared = [[program.together[edge][row] for edge in program.bordering[row]] for row in rows]
        self.least = [fsum([*lowest[row], *(float(terms.min()) for terms in shared[row])]) for row in rows]
        ranges = [fsum([*(highest - lowest)[row], *(float(np.ptp(terms)) for terms in shared[row])]) for row in rows]
        self.scale = np.array([value or 1.0 for value in ranges])
        excess = (program.choices - np.repeat(lowest, np.diff(program.starts), axis=1)) / self.scale[:, None]
        alone: list[FloatArray] = np.split(excess, program.starts[1:-1], axis=1)
        ends: list[tuple[int, int]] = []
        together: list[FloatArray] = []
        state_of, standing = _states(program)
        for (g, h), terms in zip(program.ends, program.together, strict=True):
            above = (terms - terms.min(axis=(1, 2), keepdims=True)) / self.scale[:, None, None]
            if len(standing[g]) == 1:
                alone[h] = alone[h] + above[:, 0]
            elif len(standing[h]) == 1:
                alone[g] = alone[g] + above[:, :, 0]
            else:
                ends.append((g, h))
                together.append(above[:, standing[g]][:, :, standing[h]])
        self._ends = np.array(ends, np.intp).reshape(-1, 2)
        self._shapes = [terms.shape[1:] for terms in together]
        self._edge_starts = np.cumsum([0, *(height * width for height, width in self._shapes)])
        flat = [terms.reshape(len(rows), -1) for terms in together]
        self._together = np.concatenate([np.zeros((len(rows), 0)), *flat], axis=1)
        joined = sorted({group for pair in ends for group in pair})
        number = {group: v for v, group in enumerate(joined)}
        counts = [len(standing[group]) if group in number else 1 for group in range(len(alone))]
        self._state_of = [s if g in number else np.zeros(len(s), np.intp) for g, s in enumerate(state_of)]
        # Choices stand in the order of their states, so that the least of each state is one call for all groups.
        self._order = [np.argsort(states, kind="stable") for states in self._state_of]
        self._alone = np.concatenate([terms[:, order] for terms, order in zip(alone, self._order, strict=True)], axis=1)
        self._starts = np.cumsum([0, *(len(order) for order in self._order)])
        self._state_starts = np.cumsum([0, *np.concatenate([np.bincount(states) for states in self._state_of])])
        self._groups = np.cumsum([0, *counts])
        self._joined = np.array(joined, np.intp)
        self._elimination = Elimination([counts[group] for group in joined], [(number[g], number[h]) for g, h in ends])

    def _priced(self, weights: FloatArray) -> tuple[FloatArray, FloatArray, list[FloatArray]]:
        """The rows' terms summed with these weights: of all choices in their order, of all states, of the edges."""
        choices, borders = weights @ self._alone, weights @ self._together
        edges = [
            borders[start : start + shape[0] * shape[1]].reshape(shape)
            for start, shape in zip(self._edge_starts, self._shapes, strict=False)
        ]
        return choices, np.minimum.reduceat(choices, self._state_starts[:-1]), edges

    def _joined_states(self, states: FloatArray) -> list[FloatArray]:
        return [states[self._groups[group] : self._groups[group + 1]] for group in self._joined]

    def cheapest(self, weights: FloatArray) -> tuple[float, IntArray, FloatArray]:
        """The least sum of the rows with these weights; a configuration that has it; and its sums by row.

        Sums count borders that were loosened as the least does.
        """
        choices, states, edges = self._priced(weights)
        value, found = self._elimination.minimise(self._joined_states(states), edges)
        chosen = self._groups[:-1].copy()
        chosen[self._joined] += np.array(found, np.intp)
        least = states[chosen]
        alone = np.delete(least, self._joined)
        places = np.array([
            start + choices[start:stop].argmin()
            for start, stop in zip(self._state_starts[chosen], self._state_starts[chosen + 1], strict=True)
        ], np.intp)  # fmt: skip
        total = self._alone[:, places].sum(axis=1) + self._borders(chosen - self._groups[:-1], weights)
        picks = [order[at] for order, at in zip(self._order, places - self._starts[:-1], strict=True)]
        return value + float(alone.sum()), np.array(picks, np.intp), total

    def _borders(self, states: IntArray, weights: FloatArray) -> FloatArray:
        """The edges' terms of a configuration by row."""
        if not len(self._ends):
            return np.zeros(len(self.scale))
        widths = np.array([width for _, width in self._shapes])
        at = self._edge_starts[:-1] + states[self._ends[:, 0]] * widths
        places = at + states[self._ends[:, 1]]
        for edge in self._elimination.loosened:
            row = weights @ self._together[:, at[edge] : at[edge] + widths[edge]]
            places[edge] = at[edge] + int(row.argmin())
        total: FloatArray = self._together[:, places].sum(axis=1)
        return total

    def totals(self, configurations: IntArray) -> FloatArray:
        """By configuration [configurations, groups] its sums by row, [configurations, rows]."""
        states = np.stack([own[column] for own, column in zip(self._state_of, configurations.T, strict=True)])
        places = [np.argsort(order)[column] for order, column in zip(self._order, configurations.T, strict=True)]
        total = self._alone[:, self._starts[:-1, None] + np.stack(places)].sum(axis=1)
        if len(self._ends):
            widths = np.array([width for _, width in self._shapes], np.intp)
            first, second = self._ends.T
            at = self._edge_starts[:-1, None] + states[first] * widths[:, None] + states[second]
            total = total + self._together[:, at].sum(axis=1)
        return np.ascontiguousarray(total.T)

    def marginals(self, weights: FloatArray) -> list[FloatArray]:
        """By group, by how much each choice raises the least sum: its state's marginal, and its own above that."""
        choices, states, edges = self._priced(weights)
        by_state = {
            int(group): own
            for group, own in zip(
                self._joined, self._elimination.marginals(self._joined_states(states), edges), strict=True
            )
        }
        found = []
        for group, (order, state_of) in enumerate(zip(self._order, self._state_of, strict=True)):
            own = np.empty(len(order))
            own[order] = choices[self._starts[group] : self._starts[group + 1]]
            own -= states[self._groups[group] + state_of]
            found.append(own + by_state[group][state_of] if group in by_state else own)
        return found


def _states(program: Program) -> tuple[list[IntArray], list[IntArray]]:
    """By group, the state of each choice, and for each state a choice that has it.

    Choices are of one state where every border costs them the same, whatever the neighbours have.
    """
    profiles: list[list[FloatArray]] = [[np.zeros((terms.shape[1], 1))] for terms in program.alone]
    for (first, second), terms in zip(program.ends, program.together, strict=True):
        profiles[first].append(terms.transpose(1, 0, 2).reshape(terms.shape[1], -1))
        profiles[second].append(terms.transpose(2, 0, 1).reshape(terms.shape[2], -1))
    found = [classes(np.concatenate(profile, axis=1)) for profile in profiles]
    return [number for _, number in found], [standing for standing, _ in found]
