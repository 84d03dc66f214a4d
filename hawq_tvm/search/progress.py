"""How far a search came, kept after each episode: written aside, then renamed, by what it was asked.

The agent's networks, optimizers and replay, the state of its generator, and the best so far. What is damaged counts as
absent: the search begins anew, and what was measured is remembered all the same.
"""

from __future__ import annotations

from io import BytesIO
from pickle import UnpicklingError

import torch

from hawq_tvm.backends.tvm.cache import cache_key, read_entry, write_entry
from hawq_tvm.search.ddpg import Agent
from hawq_tvm.search.resources import Trials

_KIND = "searches"
_FORMAT = "1"  # of what is kept; another one is not looked at


class Progress:
    """The kept state of one search."""

    def __init__(self, question: str, name: str, asked: object) -> None:
        """Find its place.

        Args:
            question: as of `hawq_tvm.search.resources.Resources`; empty: nothing is kept.
            name: of the allocator.
            asked: all else that decides what it does, told apart by its `repr`.
        """
        self._key = cache_key(_FORMAT, question, name, torch.__version__, repr(asked)) if question else None

    def keep(self, agent: Agent, trials: Trials, origin: float) -> None:
        """Write it down."""
        if self._key is not None:
            data = BytesIO()
            torch.save({"agent": agent.state(), "trials": trials.state(), "origin": origin}, data)
            write_entry(_KIND, self._key, data.getvalue())

    def restore(self, agent: Agent, trials: Trials) -> float | None:
        """Take it up, and give what accuracy rewards are counted from; None where there is nothing."""
        entry = None if self._key is None else read_entry(_KIND, self._key)
        if entry is None:
            return None
        try:
            found = torch.load(BytesIO(entry[0]), weights_only=True)
        except (UnpicklingError, RuntimeError, EOFError):
            return None
        agent.restore(found["agent"])
        trials.restore(found["trials"])
        return float(found["origin"])
